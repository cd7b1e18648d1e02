# SPDX-License-Identifier: GPL-3.0-or-later
"""A host's libvirt as it is asked about itself and its virtual machines, by the names of libvirt's binding."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, cast

from tests.unit.plugins.libvirt_hosts import libvirtError

LOCAL = "qemu:///system"
UUID = "aaaaaaaa-0000-0000-0000-000000000001"

CAPABILITIES = f"""<capabilities>
  <host><uuid>{UUID}</uuid><cpu><arch>x86_64</arch></cpu></host>
  <guest><os_type>hvm</os_type><arch name='i686'><machine>pc-i440fx-1.0</machine><domain type='qemu'/></arch></guest>
  <guest><os_type>hvm</os_type>
    <arch name='x86_64'>
      <machine maxCpus='4096'>pc-q35-10.0</machine>
      <machine canonical='pc-q35-10.0' maxCpus='4096'>q35</machine>
      <domain type='qemu'/>
      <domain type='kvm'><machine>pc-q35-9.2</machine></domain>
    </arch>
  </guest>
</capabilities>"""

DOMAIN_CAPABILITIES = """<domainCapabilities><cpu>
  <mode name='host-model' supported='yes'>
    <model fallback='forbid'>EPYC-Rome</model><vendor>AMD</vendor>
    <feature policy='require' name='x2apic'/><feature policy='disable' name='svm'/>
  </mode>
  <mode name='custom' supported='yes'>
    <model usable='yes'>EPYC</model><model usable='no'>Skylake-Server</model>
  </mode>
</cpu></domainCapabilities>"""

# What the named models stand for, as libvirt spells them out.
MODELS = {"EPYC-Rome": ["avx2", "sse4a", "svm"], "EPYC": ["avx2", "sse4a"]}

DOMAIN = """<domain type='kvm'>
  <name>web1</name><uuid>11111111-2222-3333-4444-555555555555</uuid>
  <memory unit='KiB'>393216</memory>
  <os><type arch='x86_64' machine='pc-q35-10.0'>hvm</type>
    <kernel>/var/lib/iovlab/tenant/vmlinuz</kernel><initrd>/var/lib/iovlab/tenant/initrd</initrd></os>
  <cpu mode='custom' match='exact' check='full'><model fallback='forbid'>EPYC</model><vendor>AMD</vendor>
    <feature policy='require' name='x2apic'/><feature policy='disable' name='sse4a'/></cpu>
  <devices>
    <disk type='vhostuser' device='disk'>
      <source type='unix' path='/run/vportd/web1/0.sock'/><target dev='vda' bus='virtio'/></disk>
    <disk type='file' device='disk'><source file='/srv/log.img'/><target dev='vdb'/></disk>
    <hostdev type='pci'><source><address domain='0x0000' bus='0x03' slot='0x00' function='0x1'/></source></hostdev>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0' state='connected'/></channel>
  </devices>
</domain>"""


@dataclass
class Domain:
    xml: str = DOMAIN
    named: str = "web1"
    state_now: tuple[int, int] = (1, 1)
    job: bool = False
    errors: dict[str, int] = field(default_factory=dict)

    def name(self) -> str:
        return self.named

    def UUIDString(self) -> str:
        return "11111111-2222-3333-4444-555555555555"

    def isActive(self) -> int:
        return int(self.state_now[0] in (1, 3))

    def isPersistent(self) -> int:
        return 1

    def state(self) -> list[int]:
        return list(self.state_now)

    def maxMemory(self) -> int:
        return 393216

    def jobInfo(self) -> list[int]:
        return [int(self.job)]

    def diskErrors(self, _flags: int) -> dict[str, int]:
        return self.errors

    def XMLDesc(self, _flags: int) -> str:
        return self.xml


@dataclass
class Connection:
    hostname: str = "hv1"
    capabilities: str = CAPABILITIES
    domain_capabilities: str | None = DOMAIN_CAPABILITIES
    expands: bool = True
    incompatible: str = ""
    domains: list[Domain] = field(default_factory=list)
    closed: bool = False

    def setKeepAlive(self, interval: int, count: int) -> int:
        return 0

    def getCapabilities(self) -> str:
        return self.capabilities

    def getHostname(self) -> str:
        return self.hostname

    def getLibVersion(self) -> int:
        return 11003000

    def getVersion(self) -> int:
        return 10000002

    def getFreeMemory(self) -> int:
        return 1 << 30

    def getDomainCapabilities(self, _emulator: None, arch: str, _machine: None, kind: str, _flags: int) -> str:
        assert (arch, kind) == ("x86_64", "kvm")
        if self.domain_capabilities is None:
            raise libvirtError("this function is not supported by the connection driver", 3)
        return self.domain_capabilities

    def baselineHypervisorCPU(
        self, _emulator: None, _arch: str, _machine: None, _kind: str, cpus: list[str], flags: int
    ) -> str:
        assert flags == Library.VIR_CONNECT_BASELINE_CPU_EXPAND_FEATURES
        if not self.expands:
            raise libvirtError("this function is not supported by the connection driver", 3)
        (name,) = (name for name in MODELS if f"<model>{name}</model>" in cpus[0])
        spelled = "".join(f"<feature policy='require' name='{feature}'/>" for feature in MODELS[name])
        return f"<cpu><model>{name}</model>{spelled}<feature policy='disable' name='mpx'/></cpu>"

    def compareHypervisorCPU(
        self, _emulator: None, _arch: str, _machine: str | None, _kind: str, _cpu: str, flags: int
    ) -> int:
        assert flags == Library.VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE
        if self.incompatible:
            raise libvirtError(self.incompatible, Library.VIR_ERR_CPU_INCOMPATIBLE)
        return Library.VIR_CPU_COMPARE_SUPERSET

    def listAllDomains(self, _flags: int) -> list[Domain]:
        return self.domains

    def lookupByName(self, name: str) -> Domain:
        for domain in self.domains:
            if domain.named == name:
                return domain
        raise libvirtError(f"Domain not found: no domain with matching name '{name}'", 42)

    def close(self) -> int:
        self.closed = True
        return 0


class Library:
    """The binding; ``hosts`` has the connection, or the error, of each URI."""

    VIR_CONNECT_BASELINE_CPU_EXPAND_FEATURES = 1
    VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE = 1
    VIR_CPU_COMPARE_INCOMPATIBLE = 0
    VIR_CPU_COMPARE_IDENTICAL = 1
    VIR_CPU_COMPARE_SUPERSET = 2
    VIR_ERR_NO_DOMAIN = 42
    VIR_ERR_CPU_INCOMPATIBLE = 91

    def __init__(self) -> None:
        self.libvirtError = libvirtError
        self.local = Connection()
        self.hosts: dict[str, Connection | libvirtError] = {LOCAL: self.local}
        self.opened: list[str] = []
        self.agent_answers = True

    def open(self, uri: str) -> Connection:
        self.opened.append(uri)
        found = self.hosts.get(uri, libvirtError("Cannot recv data: ssh: connect: No route to host"))
        if isinstance(found, libvirtError):
            raise found
        return found

    def qemuAgentCommand(self, _domain: Domain, command: str, _timeout: int, _flags: int) -> str:
        assert "guest-ping" in command
        if not self.agent_answers:
            raise libvirtError("Guest agent is not responding: QEMU guest agent is not connected", 86)
        return '{"return": {}}'

    @property
    def module(self) -> ModuleType:
        return cast(ModuleType, self)


def load_both(library: Library) -> tuple[Any, Any]:
    return library, library
