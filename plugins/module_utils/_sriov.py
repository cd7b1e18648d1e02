# SPDX-License-Identifier: GPL-3.0-or-later
"""An NVMe adapter and its VFs: choosing and reading one. What to change is in _sriov_plan, changing in _sriov_apply."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from . import _nvme
from ._errors import Refused
from ._host import Host
from ._units import pci_address


@dataclass(frozen=True, slots=True)
class Vf:
    """A VF as it is. ``queues`` and ``interrupts`` are the flexible resources assigned to its controller, ``attached``
    the namespaces that its controller has; None where the adapter cannot tell.
    """

    index: int
    address: str
    cntlid: int
    online: bool
    queues: int
    interrupts: int
    driver: str | None
    attached: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of an adapter: ``count`` equal VFs; None for resources = an even share of what there is, for
    ``namespaces`` = those that the adapter attaches by itself.
    """

    count: int
    queues: int | None
    interrupts: int | None
    driver: str | None
    namespaces: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Adapter:
    """A PF with everything that decides what can be done to its VFs.

    ``autoprobe``: whether the kernel is to bind new VFs by itself when nothing is going on; ``held``: whether a run of
    ours that has not ended, or was killed, keeps it from that.
    """

    address: str
    controller: str
    serial: str | None
    nqn: str | None
    total: int
    offset: int
    stride: int
    autoprobe: bool
    held: bool
    iommu: bool
    drivers: frozenset[str]
    capabilities: _nvme.Capabilities
    secondaries: tuple[_nvme.Secondary, ...]
    vfs: tuple[Vf, ...]

    def vf_address(self, index: int) -> str:
        """Address of VF ``index`` (from 0), also of one that does not exist yet (PCIe 6.0, 9.2.1.2)."""
        domain, bus, device, function = re.split("[:.]", self.address)
        routing = (int(bus, 16) << 8 | int(device, 16) << 3 | int(function)) + self.offset + self.stride * index
        return f"{domain}:{routing >> 8:02x}:{routing >> 3 & 31:02x}.{routing & 7}"

    def secondary(self, index: int) -> _nvme.Secondary:
        for entry in self.secondaries:
            if entry.vf == index + 1:
                return entry
        raise Refused(
            f"adapter {self.address} lists no secondary controller for VF {index}; check nvme list-secondary and the "
            "adapter's firmware"
        )

    @property
    def count(self) -> int:
        return len(self.vfs)


def read(host: Host, address: str) -> Adapter:
    """The adapter whose PF is ``address``; Refused with the reason when it is not an NVMe PF with SR-IOV."""
    sysfs = host.sysfs
    base = ("bus/pci/devices", address)
    if not sysfs.exists(*base):
        raise Refused(f"there is no PCI device {address} on this host; lspci -D lists the addresses")
    physfn = sysfs.link_name(*base, "physfn")
    if physfn is not None:
        raise Refused(f"{address} is a VF of {physfn}, not a PF; give {physfn}")
    total = sysfs.read_int(*base, "sriov_totalvfs")
    if not total:
        raise Refused(
            f"{address} has no SR-IOV; choose a PF that has, or turn SR-IOV on in the firmware (lspci -s {address} "
            "-vv shows the capability)"
        )
    kind = sysfs.read(*base, "class") or "none"
    if not kind.startswith(_nvme.CLASS_NVME):
        raise Refused(f"{address} is no NVMe controller (PCI class {kind}); give the address of an NVMe PF")
    controller = _nvme.controller(host, address)
    if controller is None:
        driver = sysfs.link_name(*base, "driver")
        raise Refused(
            f"PF {address} is driven by {driver or 'no driver'}, so its controller cannot be asked; bind the PF to "
            "the nvme driver"
        )
    device = host.device(controller)
    held = os.path.exists(hold_path(host, address))
    adapter = Adapter(
        address=address,
        controller=controller,
        serial=sysfs.read(*base, "nvme", controller, "serial"),
        nqn=sysfs.read(*base, "nvme", controller, "subsysnqn"),
        total=total,
        offset=sysfs.read_int(*base, "sriov_offset") or 1,
        stride=sysfs.read_int(*base, "sriov_stride") or 1,
        autoprobe=held or sysfs.read(*base, "sriov_drivers_autoprobe") != "0",
        held=held,
        iommu=sysfs.exists(*base, "iommu_group"),
        drivers=frozenset(sysfs.names("bus/pci/drivers")),
        capabilities=_nvme.capabilities(host, device),
        secondaries=tuple(_nvme.secondaries(host, device)),
        vfs=(),
    )
    return replace(adapter, vfs=tuple(_read_vfs(host, adapter)))


def hold_path(host: Host, address: str) -> str:
    """A file that is there from before autoprobe is turned off until it is on again. A reboot ends both."""
    return os.path.join(host.lock_dir, f"iovlab-autoprobe-{address}")


def _read_vfs(host: Host, adapter: Adapter) -> Iterator[Vf]:
    links = vf_links(host, adapter.address)
    attached = _nvme.attachments(host, host.device(adapter.controller)) if links else None
    for index, address in links:
        entry = adapter.secondary(index)
        yield Vf(
            index=index,
            address=address,
            cntlid=entry.cntlid,
            online=entry.online,
            queues=entry.queues,
            interrupts=entry.interrupts,
            driver=host.sysfs.link_name("bus/pci/devices", address, "driver"),
            attached=None if attached is None else tuple(attached.get(entry.cntlid, ())),
        )


def vf_links(host: Host, address: str) -> list[tuple[int, str]]:
    """(index, address) of each ``virtfnN`` link of a PF."""
    links = []
    for name in host.sysfs.names("bus/pci/devices", address):
        target = host.sysfs.link_name("bus/pci/devices", address, name) if re.fullmatch(r"virtfn\d+", name) else None
        if target is not None:
            links.append((int(name.removeprefix("virtfn")), target))
    return sorted(links)


def physical_functions(host: Host) -> list[str]:
    """Addresses of all NVMe PFs of this host that could have VFs."""
    return [
        address
        for address in host.sysfs.names("bus/pci/devices")
        if host.sysfs.read_int("bus/pci/devices", address, "sriov_totalvfs")
        and (host.sysfs.read("bus/pci/devices", address, "class") or "").startswith(_nvme.CLASS_NVME)
    ]


def choose(host: Host, pf: str | None, serial: str | None, nqn: str | None, option: str = "pf") -> str:
    """Address of the PF that one of the three names; Refused when there is none, or more than one.

    ``option`` is what the module calls the address.
    """
    if pf is not None:
        return pci_address(pf, option)
    what, wanted = ("serial", serial) if serial is not None else ("nqn", nqn)
    attribute = "serial" if serial is not None else "subsysnqn"
    found = {address: _attribute(host, address, attribute) for address in physical_functions(host)}
    matching = [address for address, value in found.items() if value == wanted]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise Refused(
            f"{what}: {wanted} is of {len(matching)} adapters ({', '.join(matching)}); give {option}, the address of "
            "one"
        )
    listed = ", ".join(f"{address} has {value or 'none that can be read'}" for address, value in found.items())
    raise Refused(
        f"{what}: no NVMe adapter with SR-IOV on this host has {wanted} ({listed or 'there is none'}); correct it, or "
        f"give {option}"
    )


def adapter(host: Host, options: Mapping[str, Any]) -> str:
    """The same for a module whose options are ``adapter``, ``serial`` and ``nqn``."""
    return choose(host, options["adapter"], options["serial"], options["nqn"], "adapter")


def adapter_if_named(host: Host, options: Mapping[str, Any]) -> str | None:
    """The same where all three may be left out; then it is None."""
    return adapter(host, options) if any(options[name] for name in ("adapter", "serial", "nqn")) else None


def _attribute(host: Host, address: str, name: str) -> str | None:
    controller = _nvme.controller(host, address)
    return host.sysfs.read("bus/pci/devices", address, "nvme", controller, name) if controller else None
