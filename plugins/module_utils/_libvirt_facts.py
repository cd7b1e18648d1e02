# SPDX-License-Identifier: GPL-3.0-or-later
"""libvirt as a hypervisor has it, and one virtual machine with all that decides whether it can be migrated.

Only asks. What libvirt does not tell is None.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

from . import _libvirt
from ._errors import Refused

_PING = 10  # seconds; a hypervisor that is emulated takes its time
_PAUSED_BY_IO_ERROR = (3, 5)  # VIR_DOMAIN_PAUSED, VIR_DOMAIN_PAUSED_IOERROR
_UNITS = {"b": 1, "bytes": 1, "k": 1024, "KiB": 1024, "M": 1 << 20, "MiB": 1 << 20, "G": 1 << 30, "GiB": 1 << 30}
_DISK_ERRORS = {1: "unspecified", 2: "no space"}

Element = ElementTree.Element


class Facts:
    """What one host's libvirt says."""

    def __init__(self, libvirt: ModuleType, hypervisor: _libvirt.Hypervisor) -> None:
        self._libvirt = libvirt
        self._hypervisor = hypervisor
        self._connection = hypervisor.connection
        self._capabilities = ElementTree.fromstring(self._connection.getCapabilities())
        self._arch = self._capabilities.findtext("host/cpu/arch") or "x86_64"
        self._guest = next(
            (
                guest
                for guest in self._capabilities.findall("guest")
                if guest.findtext("os_type") == "hvm" and self._arch_of(guest) == self._arch
            ),
            None,
        )

    @staticmethod
    def _arch_of(guest: Element) -> str:
        arch = guest.find("arch")
        return "" if arch is None else arch.get("name", "")

    def told(self) -> dict[str, Any]:
        types = self._types()
        domains = self._domains()
        return {
            "reachable": True,
            "reason": None,
            "uri": self._hypervisor.uri,
            "hostname": self._connection.getHostname(),
            "uuid": (self._capabilities.findtext("host/uuid") or "").strip() or None,
            "version": _version(self._asked(self._connection.getLibVersion)),
            "qemu": _version(self._asked(self._connection.getVersion)),
            "types": types,
            "machines": self._machines(),
            "cpu": self._cpu("kvm" if "kvm" in types else None),
            "memory_free": self._asked(self._connection.getFreeMemory),
            "domains": domains,
            "running": [domain["name"] for domain in domains if domain["active"]],
        }

    def _asked(self, call: Callable[[], Any]) -> Any:
        """None where this libvirt cannot say."""
        try:
            return call()
        except self._libvirt.libvirtError:
            return None

    def _types(self) -> list[str]:
        found = [] if self._guest is None else self._guest.findall("arch/domain")
        return sorted({domain.get("type", "") for domain in found})

    def _machines(self) -> list[str]:
        """Names of machine types, of an alias that which it stands for."""
        found = [] if self._guest is None else self._guest.findall("arch//machine")
        return sorted({machine.get("canonical") or machine.text or "" for machine in found})

    def _cpu(self, kind: str | None) -> dict[str, Any]:
        """The most that a virtual machine can have of this host's CPU, and the named models it can run."""
        text = self._asked(lambda: self._connection.getDomainCapabilities(None, self._arch, None, kind, 0))
        offered = ElementTree.fromstring(text) if text else ElementTree.Element("none")
        mode = offered.find("cpu/mode[@name='host-model']")
        cpu = ElementTree.Element("cpu")
        ElementTree.SubElement(cpu, "arch").text = self._arch
        cpu.extend([] if mode is None else list(mode))
        return {
            "arch": self._arch,
            "kind": kind or "qemu",
            "vendor": cpu.findtext("vendor"),
            "model": cpu.findtext("model"),
            **self._features(cpu, kind),
            "models": sorted(
                model.text or ""
                for model in offered.findall("cpu/mode[@name='custom']/model")
                if model.get("usable") != "no"
            ),
        }

    def _features(self, cpu: Element, kind: str | None) -> dict[str, Any]:
        """Names of the features of a CPU, those of its model included if libvirt can spell them out."""
        named = _required(cpu)
        model = cpu.findtext("model")
        text = None
        if model:
            plain = ElementTree.Element("cpu")
            ElementTree.SubElement(plain, "arch").text = self._arch
            ElementTree.SubElement(plain, "model").text = model
            for name in sorted(named):
                ElementTree.SubElement(plain, "feature", name=name)
            described = ElementTree.tostring(plain, encoding="unicode")
            expand = self._libvirt.VIR_CONNECT_BASELINE_CPU_EXPAND_FEATURES
            text = self._asked(
                lambda: self._connection.baselineHypervisorCPU(None, self._arch, None, kind, [described], expand)
            )
        if not text:
            return {"features": sorted(named), "expanded": False}
        absent = {one.get("name", "") for one in cpu.findall("feature") if one.get("policy") in ("disable", "forbid")}
        return {"features": sorted((_required(ElementTree.fromstring(text)) | named) - absent), "expanded": True}

    def runs(self, cpu: str, kind: str, machine: str | None) -> dict[str, Any]:
        """Whether this host can run ``cpu``, a virtual machine's CPU in XML. ``ok`` is None if libvirt can't say."""
        lib = self._libvirt
        try:
            verdict = self._connection.compareHypervisorCPU(
                None, self._arch, machine, kind, cpu, lib.VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE
            )
        except lib.libvirtError as exc:
            refused = exc.get_error_code() == lib.VIR_ERR_CPU_INCOMPATIBLE
            return {"ok": False if refused else None, "reason": _libvirt.said(exc)}
        return {"ok": verdict in (lib.VIR_CPU_COMPARE_IDENTICAL, lib.VIR_CPU_COMPARE_SUPERSET), "reason": None}

    def _domains(self) -> list[dict[str, Any]]:
        found = []
        for domain in self._connection.listAllDomains(0):
            summary = self._asked(lambda domain=domain: self._summary(domain))  # type: ignore[misc]
            if summary is not None:  # else it went away meanwhile
                found.append(summary)
        return sorted(found, key=lambda one: str(one["name"]))

    def _summary(self, domain: Any) -> dict[str, Any]:
        active = bool(domain.isActive())
        return {
            "name": domain.name(),
            "uuid": domain.UUIDString(),
            "state": _libvirt.state_name(domain),
            "active": active,
            "memory": domain.maxMemory() * 1024,
            "persistent": bool(domain.isPersistent()),
            "job": active and bool(self._asked(lambda: domain.jobInfo()[0])),
        }

    def domain(self, name: str, qemu: ModuleType | None) -> dict[str, Any] | None:
        """Everything about one virtual machine; None when there is none of this name."""
        domain = self._hypervisor.domain(name)
        if domain is None:
            return None
        try:
            about = ElementTree.fromstring(domain.XMLDesc(0))
            summary = self._summary(domain)
            state = tuple(domain.state())
        except self._libvirt.libvirtError as exc:
            raise Refused(f"libvirt cannot tell about {name}: {_libvirt.said(exc)}; look at its log") from exc
        kind = about.get("type", "")
        cpu = about.find("cpu")
        cpu = ElementTree.Element("cpu") if cpu is None else cpu
        machine = about.find("os/type")
        errors = self._asked(lambda: domain.diskErrors(0)) if summary["active"] else {}
        return summary | {
            "type": kind,
            "machine": None if machine is None else machine.get("machine"),
            "arch": None if machine is None else machine.get("arch"),
            "cpu": {
                "mode": cpu.get("mode", "custom") if cpu.get("mode") or cpu.find("model") is not None else None,
                "model": cpu.findtext("model"),
                "vendor": cpu.findtext("vendor"),
                "xml": ElementTree.tostring(cpu, encoding="unicode").strip() if cpu.findtext("model") else None,
                **self._features(cpu, kind or None),
            },
            "memory": _bytes(about.find("memory")),
            "disks": [_disk(disk) for disk in about.findall("devices/disk")],
            "host_devices": _libvirt.host_devices(about),
            "files": _files(about),
            "io_error": state == _PAUSED_BY_IO_ERROR,
            "disk_errors": {disk: _DISK_ERRORS.get(code, str(code)) for disk, code in (errors or {}).items() if code},
            "agent": self._agent(domain, about, qemu),
        }

    def _agent(self, domain: Any, about: Element, qemu: ModuleType | None) -> dict[str, Any]:
        """``answers`` is None where there is nobody to ask, or nothing to ask with."""
        target = about.find("devices/channel/target[@name='org.qemu.guest_agent.0']")
        connected = target is not None and target.get("state") == "connected"
        answers: bool | None = None
        if connected and qemu is not None:
            ping = json.dumps({"execute": "guest-ping"})
            answers = self._asked(lambda: qemu.qemuAgentCommand(domain, ping, _PING, 0)) is not None
        return {"configured": target is not None, "connected": connected, "answers": answers}


def _required(cpu: Element) -> set[str]:
    return {
        feature.get("name", "")
        for feature in cpu.findall("feature")
        if feature.get("policy", "require") in ("require", "force")
    }


def _version(number: Any) -> str | None:
    """libvirt's 7002017 -> 7.2.17."""
    return f"{number // 1000000}.{number // 1000 % 1000}.{number % 1000}" if isinstance(number, int) else None


def _bytes(element: Element | None) -> int | None:
    if element is None or not (element.text or "").strip().isdigit():
        return None
    return int((element.text or "0").strip()) * _UNITS.get(element.get("unit", "KiB"), 1024)


def _disk(disk: Element) -> dict[str, Any]:
    source, target = disk.find("source"), disk.find("target")
    attributes = {} if source is None else source.attrib
    return {
        "target": None if target is None else target.get("dev"),
        "type": disk.get("type", ""),
        "device": disk.get("device", "disk"),
        "source": next(
            (attributes[key] for key in ("path", "file", "dev", "name", "volume") if key in attributes), None
        ),
    }


def _files(about: Element) -> list[str]:
    """What QEMU reads when it starts, on whatever host it does."""
    found = [about.findtext(path) for path in ("os/kernel", "os/initrd", "os/dtb", "os/loader")]
    return [path.strip() for path in found if path and path.strip()]
