# SPDX-License-Identifier: GPL-3.0-or-later
"""hypervisor_info: everything about a host that decides a migration, whatever the host lacks, and nothing touched."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.iovlab.storage.plugins.filter.migration_preflight import migration_preflight
from ansible_collections.iovlab.storage.plugins.filter.server_preflight import server_preflight
from ansible_collections.iovlab.storage.plugins.module_utils import (
    _guest_agent,
    _host_facts,
    _libvirt,
    _nvme_admin,
    _peers,
)
from ansible_collections.iovlab.storage.plugins.module_utils._errors import CommandFailed
from ansible_collections.iovlab.storage.plugins.module_utils._host import Host
from ansible_collections.iovlab.storage.plugins.module_utils._sysfs import Sysfs
from tests.unit.plugins.libvirt_facts import UUID, Connection, Domain, Library, load_both
from tests.unit.plugins.libvirt_hosts import libvirtError
from tests.unit.plugins.machine import MIB, PF, Machine
from tests.unit.plugins.runner import Modules
from tests.unit.plugins.vportd_server import Engine

STORAGE = uuid.UUID("0b9d1f8a-5c1e-4a55-9d3e-2f6f1c1f7a10")
NGUID, EUI64 = bytes(range(16)), bytes(range(0x50, 0x58))
INVALID_FIELD = 0x4002


class PassthruCommand(ctypes.Structure):
    """struct nvme_passthru_cmd of linux/nvme_ioctl.h, by its C declaration."""

    _fields_ = [
        ("opcode", ctypes.c_uint8),
        ("flags", ctypes.c_uint8),
        ("rsvd1", ctypes.c_uint16),
        ("nsid", ctypes.c_uint32),
        ("cdw2", ctypes.c_uint32),
        ("cdw3", ctypes.c_uint32),
        ("metadata", ctypes.c_uint64),
        ("addr", ctypes.c_uint64),
        ("metadata_len", ctypes.c_uint32),
        ("data_len", ctypes.c_uint32),
        *[(f"cdw{number}", ctypes.c_uint32) for number in range(10, 16)],
        ("timeout_ms", ctypes.c_uint32),
        ("result", ctypes.c_uint32),
    ]


def descriptors(*entries: tuple[int, bytes]) -> bytes:
    return b"".join(struct.pack("<BBH", kind, len(value), 0) + value for kind, value in entries)


class Controller:
    """What answers admin commands that come by ioctl."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.descriptors: bytes | None = descriptors((3, STORAGE.bytes))
        self.namespace = bytearray(4096)
        self.errno = 0
        self.kvm = True
        self.asked: list[tuple[str, int, int]] = []

    def ioctl(self, descriptor: int, request: int, argument: Any) -> int:
        node = os.readlink(f"/proc/self/fd/{descriptor}")
        if request == 0xAE00:
            if not self.kvm:
                raise OSError(errno.ENOTTY, "Inappropriate ioctl for device")
            return 12
        assert request == 0xC0484E41
        assert ctypes.sizeof(PassthruCommand) == 72
        command = PassthruCommand.from_buffer_copy(argument)
        if self.errno:
            raise OSError(self.errno, os.strerror(self.errno))
        assert (command.opcode, command.data_len, command.timeout_ms) == (0x06, 4096, 0)
        cns, cntid = command.cdw10 & 0xFF, command.cdw10 >> 16
        self.asked.append((os.path.basename(node), cns, command.nsid))
        page = self._page(cns, cntid)
        if page is None:
            return INVALID_FIELD
        ctypes.memmove(command.addr, page.ljust(4096, b"\0"), 4096)
        return 0

    def _page(self, cns: int, cntid: int) -> bytes | None:
        if cns == 0x03:
            return self.descriptors
        if cns == 0x00:
            return bytes(self.namespace)
        assert cns == 0x15
        listed = self._machine.adapter.list_secondary(cntid, "binary")
        assert isinstance(listed, bytes)
        return listed


@pytest.fixture
def controller(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Controller:
    found = Controller(machine)
    monkeypatch.setattr(fcntl, "ioctl", found.ioctl)
    return found


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    library = Library()
    library.local.domains.append(Domain())
    monkeypatch.setattr(_libvirt, "load", lambda: library.module)
    monkeypatch.setattr(_guest_agent, "load", lambda: load_both(library))
    return library


@pytest.fixture
def host(machine: Machine, modules: Modules, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """The machine with a root of its own below /etc, /usr and /var."""
    root = machine.root / "root"
    for path, content in {
        "etc/machine-id": "6f1f2a3b4c5d6e7f8091a2b3c4d5e6f7\n",
        "etc/os-release": 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 13 (trixie)"\n',
        "var/lib/iovlab/tenant/vmlinuz": "kernel",
        "usr/lib/x86_64-linux-gnu/libatomic.so.1": "",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content)
    (root / "usr/sbin").mkdir()
    for program in ("nvme", "pvs"):
        (root / "usr/sbin" / program).write_text("")
        (root / "usr/sbin" / program).chmod(0o755)
    for path, content in {
        "sys/kernel/hostname": "hv1",
        "sys/kernel/osrelease": "6.12.48",
        "sys/kernel/random/boot_id": "7c0b",
        "cmdline": "root=/dev/vda nvme_core.multipath=N",
        "cpuinfo": "vendor_id\t: AuthenticAMD\nmodel name\t: EPYC\nflags\t\t: fpu avx2\n\nprocessor\t: 1",
        "meminfo": "MemTotal:  2560 kB\nMemFree: 12 kB\nMemAvailable:   1024 kB\n",
        "net/tcp": "  sl  local_address rem_address   st\n"
        "   0: 00000000:C000 00000000:0000 0A 0:0\n   1: 00000000:C001 0100007F:0016 01 0:0\n",
    }.items():
        (machine.proc / path).parent.mkdir(parents=True, exist_ok=True)
        (machine.proc / path).write_text(content + "\n")
    machine.write("module/nvme_core/parameters/multipath", "N")
    (machine.dev / "kvm").write_text("")
    changed = replace(machine.host, root=str(root))
    monkeypatch.setattr(Host, "of", classmethod(lambda _cls, _module: changed))
    return machine


@pytest.fixture
def told(host: Machine, modules: Modules, library: Library, controller: Controller) -> Callable[..., dict[str, Any]]:
    """Ask; the module must not fail and not touch anything, whatever the host is like."""

    def ask(**options: Any) -> dict[str, Any]:
        before = host.fingerprint()
        result: dict[str, Any] = modules.hypervisor_info(**options)
        assert not result.get("failed"), result
        assert not result["changed"]
        assert host.fingerprint() == before
        return result

    return ask


def test_the_host_is_told_by_its_kernel(told: Callable[..., dict[str, Any]], host: Machine) -> None:
    found = told(paths=["/var/lib/iovlab/tenant/vmlinuz", "/var/lib/iovlab/tenant/initrd"])
    assert found["host"]["name"] == "hv1"
    assert found["host"]["boot"] == "7c0b"
    assert found["host"]["system"] == "Debian GNU/Linux 13 (trixie)"
    assert len(found["host"]["machine"]) == 32
    assert "6f1f2a3b" not in found["host"]["machine"], "the machine ID itself is nobody's business"
    kernel = found["kernel"]
    assert (kernel["release"], kernel["nvme_multipath"], kernel["iommu"], kernel["kvm"]) == (
        "6.12.48",
        False,
        True,
        True,
    )
    assert kernel["cpu"] == {"vendor": "AuthenticAMD", "model": "EPYC", "flags": ["avx2", "fpu"]}
    assert found["memory"] == {"total": 2560 * 1024, "available": MIB}
    assert found["paths"] == {"/var/lib/iovlab/tenant/vmlinuz": True, "/var/lib/iovlab/tenant/initrd": False}
    assert found["space"]["/var/lib/libvirt"] > 0, "of the nearest directory that is there"
    assert found["packages"]["nvme-cli"]
    assert found["packages"]["libatomic1"]
    assert not found["packages"]["libvirt-clients"]
    assert abs(found["clock"]["now"] - os.stat(f"/proc/{os.getpid()}").st_ctime) < 86400
    assert found["clock"]["elapsed"] >= 0


def test_ports_for_migrations_are_counted_as_libvirt_is_set_up(host: Machine) -> None:
    root = host.root / "root"
    at = replace(host.host, root=str(root))
    assert _host_facts.migration_ports(at) == {"first": 49152, "last": 49215, "free": 63}, (
        "one listens, one is a client's"
    )
    (root / "etc/libvirt").mkdir()
    (root / "etc/libvirt/qemu.conf").write_text(
        "#migration_port_min = 1\nmigration_port_min = 49152\nmigration_port_max = 49152\n"
    )
    assert _host_facts.migration_ports(at) == {"first": 49152, "last": 49152, "free": 0}


def test_kvm_that_is_a_file_and_no_device_cannot_be_used(
    told: Callable[..., dict[str, Any]], controller: Controller, host: Machine
) -> None:
    controller.kvm = False
    assert not told()["kernel"]["kvm"]
    (host.dev / "kvm").unlink()
    kernel = told()["kernel"]
    assert not kernel["kvm"]
    assert "No such file" in kernel["kvm_reason"]


# Adapters


def test_vfs_are_told_with_their_resources_and_who_has_them(
    told: Callable[..., dict[str, Any]], modules: Modules, host: Machine, engine: Engine
) -> None:
    modules.sriov_vf(pf=PF, count=3, queues=2, interrupts=2)
    for attribute, value in {"serial": "lab-hv1", "model": "QEMU NVMe Ctrl", "subsysnqn": "nqn.lab"}.items():
        host.write(f"bus/pci/devices/{PF}/nvme/nvme0/{attribute}", value)
    engine.adapters[0]["vfs"][0]["vport"] = "web1"
    host.process(77, "fio", ["fio"], [host.dev / "nvme2n1"])
    (adapter,) = told()["adapters"]
    assert (adapter["pf"], adapter["serial"], adapter["nqn"]) == (PF, "lab-hv1", "nqn.lab")
    assert (adapter["totalvfs"], adapter["numvfs"], adapter["vfs_reason"]) == (4, 3, None)
    vfs = adapter["vfs"]
    assert [(vf["online"], vf["queues"], vf["interrupts"]) for vf in vfs] == [(True, 2, 2)] * 3
    assert [vf["vport"] for vf in vfs] == ["web1", None, None]
    assert [vf["free"] for vf in vfs] == [False, False, True]
    assert "fio" in vfs[1]["users"][0]


def test_a_vf_that_is_offline_is_not_free(told: Callable[..., dict[str, Any]], modules: Modules, host: Machine) -> None:
    modules.sriov_vf(pf=PF, count=2, queues=2, interrupts=2)
    host.adapter.controllers[1].online = False
    (adapter,) = told()["adapters"]
    assert [vf["free"] for vf in adapter["vfs"]] == [False, True]


def test_an_adapter_without_sriov_is_listed_too(told: Callable[..., dict[str, Any]], host: Machine) -> None:
    host.write("bus/pci/devices/0000:05:00.0/class", "0x010802")
    found = told()["adapters"]
    assert [(one["pf"], one["totalvfs"], one["controller"]) for one in found][1:] == [("0000:05:00.0", 0, None)]


def test_identity_comes_from_the_controller_and_not_from_sysfs(
    told: Callable[..., dict[str, Any]], controller: Controller
) -> None:
    controller.namespace[104:120] = NGUID
    (namespace,) = told()["adapters"][0]["namespaces"]
    assert namespace["ids"] == {"uuid": str(STORAGE), "nguid": NGUID.hex()}
    assert ("nvme0", 0x03, 1) in controller.asked
    assert ("nvme0", 0x00, 1) in controller.asked


def test_a_controller_without_descriptors_tells_by_identify_namespace(
    told: Callable[..., dict[str, Any]], controller: Controller
) -> None:
    controller.descriptors = None
    controller.namespace[120:128] = EUI64
    (namespace,) = told()["adapters"][0]["namespaces"]
    assert namespace["ids"] == {"eui64": EUI64.hex()}
    assert namespace["ids_reason"] is None


def test_a_controller_that_cannot_be_asked_is_told_with_the_reason(
    told: Callable[..., dict[str, Any]], controller: Controller, modules: Modules
) -> None:
    modules.sriov_vf(pf=PF, count=1, queues=2, interrupts=2)
    controller.errno = errno.EACCES
    (adapter,) = told()["adapters"]
    assert "root" in adapter["vfs_reason"]
    assert adapter["vfs"][0]["queues"] is None
    assert adapter["namespaces"][0]["ids"] == {}
    assert "root" in adapter["namespaces"][0]["ids_reason"]


def test_descriptors_are_read_to_their_end() -> None:
    page = descriptors((1, EUI64), (2, NGUID), (4, b"\0"), (3, STORAGE.bytes)).ljust(4096, b"\0")
    assert _nvme_admin.parse_descriptors(page) == {"eui64": EUI64.hex(), "nguid": NGUID.hex(), "uuid": str(STORAGE)}


@pytest.mark.parametrize(
    "page",
    [
        b"",
        bytes(4096),
        descriptors((3, bytes(16))).ljust(4096, b"\0"),  # zeroes are no identity
        descriptors((3, b"\x01" * 8)).ljust(4096, b"\0"),  # of a wrong length
        descriptors((9, b"\x01" * 16)).ljust(4096, b"\0"),  # of a kind to come
        bytes([3, 16, 0, 0, 1, 2, 3]),  # cut off
    ],
)
def test_descriptors_that_say_nothing_give_no_identity(page: bytes) -> None:
    assert _nvme_admin.parse_descriptors(page) == {}


def test_more_secondaries_than_a_page_has_are_all_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def identify(_device: str, cns: int, nsid: int = 0, cntid: int = 0) -> bytes:
        assert (cns, nsid) == (0x15, 0)
        entries = [number for number in range(1, 201) if number >= cntid][:127]
        rows = b"".join(struct.pack("<HHB3xHHH18x", number, 0, 1, number, 2, 1) for number in entries)
        return struct.pack("<B31x", len(entries)) + rows

    monkeypatch.setattr(_nvme_admin, "identify", identify)
    assert [entry.vf for entry in _nvme_admin.secondaries("/dev/nvme0")] == list(range(1, 201))


def test_a_device_that_is_not_there_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="No such file or directory; see dmesg"):
        _nvme_admin.identify(str(tmp_path / "nvme7"), 0)


# Pools


def test_the_pool_is_told_with_its_uuid_and_the_number_of_its_change(
    told: Callable[..., dict[str, Any]], modules: Modules
) -> None:
    modules.pool(name="san", adapter=PF)
    modules.vdisk(name="data", pool="san", size="4MiB", adapter=PF)
    (pool,) = told()["pools"]
    assert (pool["name"], pool["uuid"], pool["seqno"], pool["reason"]) == ("san", "AAAAAA-BBBB", 7, None)
    assert (pool["pf"], pool["nsid"]) == (PF, 1)
    assert pool["vdisks"] == [{"name": "data", "size": 4 * MIB, "ready": True}]


def test_a_vdisk_that_is_zeroed_only_in_part_is_not_ready(
    told: Callable[..., dict[str, Any]], modules: Modules, host: Machine
) -> None:
    modules.pool(name="san", adapter=PF)
    modules.vdisk(name="data", pool="san", size="8MiB", adapter=PF)
    host.lvm.groups["san"].volumes["data"].tags = {f"iovlab.wiped={4 * MIB}"}
    assert not told()["pools"][0]["vdisks"][0]["ready"]
    host.lvm.groups["san"].volumes["data"].tags = set()
    assert not told()["pools"][0]["vdisks"][0]["ready"]


def test_a_namespace_without_pool_and_a_host_without_lvm_say_so(
    told: Callable[..., dict[str, Any]], host: Machine
) -> None:
    (pool,) = told()["pools"]
    assert pool["name"] is None
    assert "holds no pool" in pool["reason"]
    host.missing.add("pvs")
    (pool,) = told()["pools"]
    assert "lvm2" in pool["reason"]


# vportd


def test_the_engine_is_told_with_its_vports_but_without_their_history(
    told: Callable[..., dict[str, Any]], modules: Modules, engine: Engine
) -> None:
    modules.vport(name="web1")
    modules.adapter_mapping(vport="web1", luns=[{"lun": 0, "vdisk": "root", "extents": [[0, MIB, MIB]]}])
    found = told()["vportd"]
    assert (found["reachable"], found["version"], found["protocol"]) == (True, "1.2.3", 1)
    (record,) = found["vports"]
    assert "history" not in record
    assert (record["vport"], record["path"], record["luns"][0]["vdisk"]) == ("web1", "pf", "root")
    assert found["free_vfs"] == ["0000:01:00.1", "0000:01:00.2"], "the third one shows no block device"


def test_an_engine_that_is_not_there_is_told_with_the_reason(told: Callable[..., dict[str, Any]]) -> None:
    found = told()["vportd"]
    assert not found["reachable"]
    assert "vportd does not answer" in found["reason"]


# libvirt


def test_libvirt_is_told_with_machine_types_cpu_and_vms(told: Callable[..., dict[str, Any]]) -> None:
    found = told()["libvirt"]
    assert (found["version"], found["qemu"], found["uuid"]) == ("11.3.0", "10.0.2", UUID)
    assert found["machines"] == ["pc-q35-10.0", "pc-q35-9.2"], "no alias, and none of another architecture"
    assert found["types"] == ["kvm", "qemu"]
    cpu = found["cpu"]
    assert (cpu["vendor"], cpu["model"], cpu["models"], cpu["expanded"]) == ("AMD", "EPYC-Rome", ["EPYC"], True)
    assert cpu["features"] == ["avx2", "sse4a", "x2apic"], "with those of the model, without what is disabled"
    (vm,) = found["domains"]
    assert (vm["name"], vm["state"], vm["active"], vm["memory"], vm["job"]) == (
        "web1",
        "running",
        True,
        384 * MIB,
        False,
    )


def test_a_vm_is_told_as_it_runs(told: Callable[..., dict[str, Any]], library: Library) -> None:
    vm = told(domain="web1")["domain"]
    assert (vm["type"], vm["machine"], vm["memory"]) == ("kvm", "pc-q35-10.0", 384 * MIB)
    assert (vm["cpu"]["mode"], vm["cpu"]["model"]) == ("custom", "EPYC")
    assert vm["cpu"]["features"] == ["avx2", "x2apic"]
    assert vm["disks"][0] == {
        "target": "vda",
        "type": "vhostuser",
        "device": "disk",
        "source": "/run/vportd/web1/0.sock",
    }
    assert vm["disks"][1]["source"] == "/srv/log.img"
    assert vm["host_devices"] == ["0000:03:00.1"]
    assert vm["files"] == ["/var/lib/iovlab/tenant/vmlinuz", "/var/lib/iovlab/tenant/initrd"]
    assert vm["agent"] == {"configured": True, "connected": True, "answers": True}
    library.agent_answers = False
    library.local.domains[0].state_now = (3, 5)
    library.local.domains[0].errors = {"vda": 2}
    library.local.domains[0].job = True
    vm = told(domain="web1")["domain"]
    assert (vm["state"], vm["io_error"], vm["job"], vm["disk_errors"]) == ("paused", True, True, {"vda": "no space"})
    assert vm["agent"]["answers"] is False


def test_a_vm_that_is_not_there_is_told_with_the_reason(told: Callable[..., dict[str, Any]]) -> None:
    found = told(domain="web2")
    assert found["domain"] is None
    assert "no virtual machine web2" in found["domain_reason"]


def test_the_cpu_of_another_host_s_vm_is_compared_here(told: Callable[..., dict[str, Any]], library: Library) -> None:
    cpu = "<cpu mode='custom'><model>EPYC</model></cpu>"
    assert told(cpu=cpu, machine="pc-q35-10.0")["libvirt"]["runs_cpu"] == {"ok": True, "reason": None}
    library.local.incompatible = "the CPU is incompatible with host CPU: missing features: avx512f"
    verdict = told(cpu=cpu)["libvirt"]["runs_cpu"]
    assert verdict["ok"] is False
    assert "avx512f" in verdict["reason"]


def test_an_old_libvirt_that_describes_no_cpu_is_told_as_it_is(
    told: Callable[..., dict[str, Any]], library: Library
) -> None:
    library.local.expands = False
    assert told()["libvirt"]["cpu"]["features"] == ["x2apic"]
    assert not told()["libvirt"]["cpu"]["expanded"]
    library.local.domain_capabilities = None
    cpu = told()["libvirt"]["cpu"]
    assert (cpu["model"], cpu["features"]) == (None, [])


def test_a_libvirt_that_refuses_is_told_with_the_reason(told: Callable[..., dict[str, Any]], library: Library) -> None:
    library.hosts["qemu:///system"] = libvirtError("Failed to connect socket: Connection refused", 38)
    found = told(domain="web1")
    assert not found["libvirt"]["reachable"]
    assert "Connection refused" in found["libvirt"]["reason"]
    assert found["domain"] is None
    assert found["domain_reason"]


def test_a_libvirt_that_hangs_holds_the_module_up_no_longer_than_asked(
    told: Callable[..., dict[str, Any]], library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = threading.Event()
    monkeypatch.setattr(library, "open", lambda _uri: hangs.wait(30))
    try:
        found = told(timeout=1)
    finally:
        hangs.set()
    assert "did not answer within 1 s" in found["libvirt"]["reason"]
    assert found["clock"]["elapsed"] < 10


def test_a_host_without_the_binding_is_told_as_such(
    told: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> Any:
        raise ImportError("No module named 'libvirt'")

    monkeypatch.setattr(_libvirt, "load", missing)
    monkeypatch.setattr(_libvirt, "probe_interpreters_for_module", lambda *_arguments: None)
    assert "python3-libvirt" in told()["libvirt"]["reason"]


# The filters


def test_the_filters_understand_what_the_module_tells(
    told: Callable[..., dict[str, Any]], modules: Modules, engine: Engine, library: Library
) -> None:
    """Both sides are this one host, so that it is refused; but nothing is refused for not being understood."""
    modules.sriov_vf(pf=PF, count=2, queues=2, interrupts=2)
    modules.pool(name="san", adapter=PF)
    modules.vdisk(name="data", pool="san", size="4MiB", adapter=PF)
    modules.vport(name="web1")
    modules.adapter_mapping(vport="web1", pool="san", luns=[{"lun": 0, "vdisk": "data"}])
    library.hosts["qemu+ssh://root@127.0.0.1/system?no_tty=1"] = library.local
    source = told(domain="web1", peers=["127.0.0.1"])
    destination = told(peers=["127.0.0.1"], cpu=source["domain"]["cpu"]["xml"], paths=source["domain"]["files"])
    luns = [{"lun": 0, "vdisk": "data"}]
    found = migration_preflight(
        {"vm": "web1", "vport": "web1", "luns": luns, "pool": "san", "source": source, "destination": destination}
    )
    results = {check["name"]: check["result"] for check in found["checks"]}
    for name in (
        "libvirt",
        "engine",
        "libvirt_way",
        "machine_type",
        "cpu",
        "storage",
        "pool",
        "vf",
        "mapping",
        "ports",
    ):
        assert results[name] == "ok", found["checks"]
    assert results["hosts"] == results["placement"] == "problem"
    servers = server_preflight({"hv1": source}, {"hv1": [{"pf": PF, "vfs": 2}]})
    results = {check["name"]: check["result"] for check in servers["servers"]["hv1"]["checks"]}
    for name in ("facts", "adapter", "inventory", "vfs", "identity", "multipath", "iommu", "kvm", "libvirt", "pool"):
        assert results[name] in ("ok", "warning"), (name, servers)
    everything = str(found) + str(servers)
    assert "cannot be read" not in everything
    assert "does not tell about" not in everything


# Peers


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_peer_is_reached_by_ssh_port_migration_port_and_libvirt(
    told: Callable[..., dict[str, Any]], library: Library, listener: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_peers, "SSH", listener)
    there = Connection("hv2")
    library.hosts["qemu+ssh://root@127.0.0.1/system?no_tty=1"] = there
    (peer,) = told(peers=["127.0.0.1"])["peers"]
    assert peer["address"] == "127.0.0.1"
    assert peer["ssh"]["reachable"]
    assert peer["migration_port"]["reachable"], "who refuses has got the packet"
    assert (peer["libvirt"]["reachable"], peer["libvirt"]["hostname"], peer["libvirt"]["uuid"]) == (True, "hv2", UUID)
    assert there.closed


def test_a_peer_that_is_not_reached_is_told_with_the_reason(
    told: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_route(_address: object, _timeout: float) -> socket.socket:
        raise OSError(errno.EHOSTUNREACH, "No route to host")

    monkeypatch.setattr(socket, "create_connection", no_route)
    (peer,) = told(peers=["203.0.113.12"])["peers"]
    for look in ("ssh", "migration_port", "libvirt"):
        assert not peer[look]["reachable"]
        assert "No route to host" in peer[look]["reason"]


def test_a_bare_host_tells_what_it_lacks(
    machine: Machine, modules: Modules, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nothing but Python: no adapter, no packages, no libvirt, no vportd, not even what is usually in /proc."""

    def missing() -> Any:
        raise ImportError("No module named 'libvirt'")

    monkeypatch.setattr(_libvirt, "load", missing)
    monkeypatch.setattr(_libvirt, "probe_interpreters_for_module", lambda *_arguments: None)
    empty = tmp_path / "empty"
    empty.mkdir()
    bare = Host(Sysfs(str(empty)), str(empty), str(empty), str(empty), machine.host.runner, str(empty))
    monkeypatch.setattr(Host, "of", classmethod(lambda _cls, _module: bare))
    found = modules.hypervisor_info(domain="web1")
    assert not found.get("failed"), found
    assert found["adapters"] == found["pools"] == []
    assert found["memory"] == {"total": None, "available": None}
    assert found["host"]["name"] is None
    assert found["kernel"]["nvme_multipath"] is None
    assert not any(there for package, there in found["packages"].items() if not package.startswith("python3-"))
    assert not found["vportd"]["reachable"]
    assert not found["libvirt"]["reachable"]


def test_a_timeout_of_nothing_is_refused(told: Callable[..., dict[str, Any]], modules: Modules) -> None:
    assert "timeout" in modules.refused("hypervisor_info", timeout=0)
