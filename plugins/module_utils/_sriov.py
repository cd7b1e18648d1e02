# SPDX-License-Identifier: GPL-3.0-or-later
"""VFs of an NVMe adapter: reading, planning and applying.

``read`` gives an Adapter, ``wanted`` what it should become, ``plan`` the steps between them; ``Changes`` carries the
steps out and takes them back when one fails: taking back is nothing but a plan from what is there now to what was
there before.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from . import _nvme
from ._errors import IovlabError, Refused, StepFailed, TimedOut
from ._host import Host, wait_until
from ._plan import Plan, Step, carry_out
from ._users import users_of

NVME = "nvme"
VFIO = "vfio-pci"
LEAST_QUEUES = 2  # the admin queue and one for I/O
LEAST_INTERRUPTS = 1
_QUEUES = 0  # resource types of Virtualization Management
_INTERRUPTS = 1


@dataclass(frozen=True, slots=True)
class Vf:
    """A VF as it is. ``queues`` and ``interrupts`` are the flexible resources assigned to its controller."""

    index: int
    address: str
    cntlid: int
    online: bool
    queues: int
    interrupts: int
    driver: str | None


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of an adapter: ``count`` equal VFs; None for resources = an even share of what there is."""

    count: int
    queues: int | None
    interrupts: int | None
    driver: str | None


@dataclass(frozen=True, slots=True)
class WantedVf:
    """A VF as it should be; None for resources = leave what the controller has of its own."""

    queues: int | None
    interrupts: int | None
    driver: str | None
    online: bool = True


@dataclass(frozen=True, slots=True)
class Adapter:
    """A PF with everything that decides what can be done to its VFs."""

    address: str
    controller: str
    serial: str | None
    total: int
    offset: int
    stride: int
    autoprobe: bool
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
    adapter = Adapter(
        address=address,
        controller=controller,
        serial=sysfs.read(*base, "nvme", controller, "serial"),
        total=total,
        offset=sysfs.read_int(*base, "sriov_offset") or 1,
        stride=sysfs.read_int(*base, "sriov_stride") or 1,
        autoprobe=sysfs.read(*base, "sriov_drivers_autoprobe") != "0",
        iommu=sysfs.exists(*base, "iommu_group"),
        drivers=frozenset(sysfs.names("bus/pci/drivers")),
        capabilities=_nvme.capabilities(host, device),
        secondaries=tuple(_nvme.secondaries(host, device)),
        vfs=(),
    )
    return replace(adapter, vfs=tuple(_read_vfs(host, adapter)))


def _read_vfs(host: Host, adapter: Adapter) -> Iterator[Vf]:
    for index, address in vf_links(host, adapter.address):
        entry = adapter.secondary(index)
        yield Vf(
            index=index,
            address=address,
            cntlid=entry.cntlid,
            online=entry.online,
            queues=entry.queues,
            interrupts=entry.interrupts,
            driver=host.sysfs.link_name("bus/pci/devices", address, "driver"),
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


def wanted(adapter: Adapter, request: Request) -> tuple[WantedVf, ...]:
    """The VFs that were asked for; Refused when the adapter cannot have them."""
    count, driver = request.count, request.driver
    if count > adapter.total:
        raise Refused(
            f"count: {count} VFs are more than the {adapter.total} that adapter {adapter.address} has; ask for "
            f"{adapter.total} at most"
        )
    if count and driver == VFIO and not adapter.iommu:
        raise Refused(
            f"adapter {adapter.address} is in no IOMMU group, so vfio-pci cannot drive its VFs; turn the IOMMU on "
            "(intel_iommu=on or amd_iommu=on)"
        )
    vf = WantedVf(
        queues=_share(adapter, "queues", "VQ", adapter.capabilities.queues, count, request.queues, LEAST_QUEUES),
        interrupts=_share(
            adapter, "interrupts", "VI", adapter.capabilities.interrupts, count, request.interrupts, LEAST_INTERRUPTS
        ),
        driver=driver,
    )
    return (vf,) * count


def settled(adapter: Adapter, request: Request) -> Request:
    """The same request with the resources that each VF gets, which may follow from what the adapter has now."""
    first = wanted(adapter, request)[0]
    return replace(request, queues=first.queues, interrupts=first.interrupts)


def _share(
    adapter: Adapter, option: str, kind: str, resources: _nvme.Resources, count: int, asked: int | None, least: int
) -> int | None:
    """What each of ``count`` VFs gets of one kind of resources."""
    if not count:
        return None
    if resources.total == 0:
        if asked is not None:
            raise Refused(
                f"{option}: adapter {adapter.address} has no flexible {kind} resources to assign; leave {option} out"
            )
        return None
    most = resources.most or resources.total
    if asked is None:
        asked = max(min(resources.for_secondaries // count, most), least)
    if asked < least:
        raise Refused(f"{option}: {asked} is too few for a VF to go online; give {least} or more")
    if asked > most:
        raise Refused(
            f"{option}: {asked} is more than one VF of adapter {adapter.address} can get; give {most} at most"
        )
    if asked * count > resources.for_secondaries:
        raise Refused(
            f"{option}: {count} VFs with {asked} each need {asked * count} flexible {kind} resources, "
            f"adapter {adapter.address} has {resources.for_secondaries}; ask for fewer VFs or fewer {option}"
        )
    return asked


def as_it_is(adapter: Adapter) -> tuple[WantedVf, ...]:
    """What to want in order to get this state back."""
    flexible = adapter.capabilities
    return tuple(
        WantedVf(
            queues=vf.queues if flexible.queues.total else None,
            interrupts=vf.interrupts if flexible.interrupts.total else None,
            driver=vf.driver,
            online=vf.online,
        )
        for vf in adapter.vfs
    )


def plan(current: Adapter, desired: tuple[WantedVf, ...]) -> Plan:
    """Steps from ``current`` to ``desired``. VFs only ever go from 0 to N: another number means all of them anew."""
    anew = current.count != len(desired)
    kept: tuple[Vf | None, ...] = (None,) * len(desired) if anew else current.vfs
    steps: list[Step] = []
    for driver in dict.fromkeys(vf.driver for vf in desired if vf.driver and vf.driver not in current.drivers):
        steps.append(Step("load", f"load driver {driver}", {"driver": driver}))
    guard = anew and bool(desired) and current.autoprobe
    if guard:
        steps.append(
            Step("autoprobe", f"keep the kernel from binding new VFs of {current.address} by itself", {"value": "0"})
        )
    if anew and current.count:
        steps.append(Step("numvfs", f"remove the {current.count} VFs of {current.address}", {"count": 0}))
    if anew and desired:
        steps.append(Step("numvfs", f"create {len(desired)} VFs on {current.address}", {"count": len(desired)}))
    pairs = [(index, vf, want) for index, (vf, want) in enumerate(zip(kept, desired, strict=True))]
    for _index, vf, want in pairs:
        if vf is not None and vf.driver and (_resources_differ(vf, want) or vf.driver != want.driver):
            steps.append(
                Step(
                    "unbind",
                    f"take VF {vf.address} from driver {vf.driver}",
                    {"address": vf.address, "driver": vf.driver},
                )
            )
    for index, vf, want in pairs:
        if _resources_differ(vf, want):
            steps.append(_offline(current, index))
    steps += _releases(current, desired)
    for index, vf, want in pairs:
        if _resources_differ(vf, want):
            steps += _assignments(current, index, want)
    for index, vf, want in pairs:
        address = current.vf_address(index)
        if want.driver and (vf is None or vf.driver != want.driver or _resources_differ(vf, want)):
            steps.append(
                Step("bind", f"bind VF {address} to {want.driver}", {"address": address, "driver": want.driver})
            )
    for step in [step for step in steps if step.verb == "bind" and step.args["driver"] == NVME]:
        address = step.args["address"]
        steps.append(Step("ready", f"wait for the controller and the namespaces of VF {address}", {"address": address}))
    if guard:
        steps.append(Step("autoprobe", f"let the kernel bind VFs of {current.address} again as before", {"value": "1"}))
    return Plan(before=_shown(current), after=_shown_wanted(current, desired), steps=tuple(steps))


def _resources_differ(vf: Vf | None, want: WantedVf) -> bool:
    if vf is None:
        return True
    return (
        vf.online != want.online or want.queues not in (None, vf.queues) or want.interrupts not in (None, vf.interrupts)
    )


def _offline(adapter: Adapter, index: int) -> Step:
    cntlid = adapter.secondary(index).cntlid
    return Step("virt_mgmt", f"take controller {cntlid} of VF {index} offline", {"cntlid": cntlid, "action": 7})


def _releases(adapter: Adapter, desired: tuple[WantedVf, ...]) -> Iterator[Step]:
    """Take resources back from VFs that will not exist, where the others need them."""
    left = [entry for entry in adapter.secondaries if entry.vf > len(desired) and (entry.queues or entry.interrupts)]
    queues, interrupts = adapter.capabilities.queues, adapter.capabilities.interrupts
    short = sum(vf.queues or 0 for vf in desired) + sum(entry.queues for entry in left) > queues.for_secondaries
    short |= (
        sum(vf.interrupts or 0 for vf in desired) + sum(entry.interrupts for entry in left) > interrupts.for_secondaries
    )
    for entry in left if short else []:
        yield _offline(adapter, entry.vf - 1)
        for resource, count, total in (
            (_QUEUES, entry.queues, queues.total),
            (_INTERRUPTS, entry.interrupts, interrupts.total),
        ):
            if count and total:
                yield _assign(entry.cntlid, entry.vf - 1, resource, 0)


def _assignments(adapter: Adapter, index: int, want: WantedVf) -> Iterator[Step]:
    cntlid = adapter.secondary(index).cntlid
    for resource, count in ((_QUEUES, want.queues), (_INTERRUPTS, want.interrupts)):
        if count is not None:
            yield _assign(cntlid, index, resource, count)
    if want.online:
        yield Step("virt_mgmt", f"bring controller {cntlid} of VF {index} online", {"cntlid": cntlid, "action": 9})


def _assign(cntlid: int, index: int, resource: int, count: int) -> Step:
    kind = "VQ" if resource == _QUEUES else "VI"
    text = f"assign {count} {kind} resources to controller {cntlid} of VF {index}"
    return Step("virt_mgmt", text, {"cntlid": cntlid, "action": 8, "resource": resource, "count": count})


def _shown(adapter: Adapter) -> dict[str, Any]:
    vfs = [
        {
            "address": vf.address,
            "online": vf.online,
            "queues": vf.queues,
            "interrupts": vf.interrupts,
            "driver": vf.driver,
        }
        for vf in adapter.vfs
    ]
    return {"pf": adapter.address, "count": adapter.count, "vfs": vfs}


def _shown_wanted(adapter: Adapter, desired: tuple[WantedVf, ...]) -> dict[str, Any]:
    vfs = []
    for index, vf in enumerate(desired):
        entry = adapter.secondary(index)
        queues = entry.queues if vf.queues is None else vf.queues
        interrupts = entry.interrupts if vf.interrupts is None else vf.interrupts
        vfs.append(
            {
                "address": adapter.vf_address(index),
                "online": vf.online,
                "queues": queues,
                "interrupts": interrupts,
                "driver": vf.driver,
            }
        )
    return {"pf": adapter.address, "count": len(desired), "vfs": vfs}


def disturbed(current: Adapter, planned: Plan) -> list[str]:
    """Addresses of existing VFs that would lose their device, if only for a moment."""
    if any(step.verb == "numvfs" for step in planned.steps):
        return [vf.address for vf in current.vfs]
    cntlids = {step.args["cntlid"] for step in planned.steps if step.verb == "virt_mgmt"}
    unbound = {step.args["address"] for step in planned.steps if step.verb == "unbind"}
    return [vf.address for vf in current.vfs if vf.cntlid in cntlids or vf.address in unbound]


def plan_for(host: Host, current: Adapter, request: Request, vports: Mapping[str, str], allow_recreate: bool) -> Plan:
    """Steps from ``current`` to what is asked; Refused when it cannot be, or would take a VF from its user.

    ``vports`` maps VF address to vport, as vportd tells it.
    """
    desired = wanted(current, request)
    planned = plan(current, desired)
    refuse_loss(host, current, planned, vports, allow_recreate or request.count == 0)
    refuse_driver_that_cannot_load(host, current, desired)
    return planned


def refuse_loss(host: Host, current: Adapter, planned: Plan, vports: Mapping[str, str], may_remove: bool) -> None:
    """Refused when a step would take a VF from its user, or remove VFs without leave to."""
    victims = disturbed(current, planned)
    for address, users in users_of(host, victims, vports).items():
        if users:
            raise Refused(
                f"VF {address} is in use by {', '.join(users)}; what was asked would take it away, free it first"
            )
    if not may_remove and current.count and any(step.verb == "numvfs" for step in planned.steps):
        raise Refused(
            f"count: adapter {current.address} has {current.count} VFs, and the kernel changes that number only by "
            "removing them all "
            f"({', '.join(victims)}); set allow_recreate if that is all right"
        )


def refuse_driver_that_cannot_load(host: Host, current: Adapter, desired: tuple[WantedVf, ...]) -> None:
    for driver in {vf.driver for vf in desired if vf.driver and vf.driver not in current.drivers}:
        code, _out, _err = host.run(["modprobe", "--dry-run", "--quiet", driver], _nvme.COMMAND_TIMEOUT)
        if code != 0:
            raise Refused(
                f"driver: this kernel has no driver {driver} and no module of that name to load; install the "
                "kernel's modules or choose another driver"
            )


class Changes:
    """Carries out a plan on one adapter within ``timeout`` seconds for each wait."""

    def __init__(self, host: Host, adapter: Adapter, timeout: float) -> None:
        self._host = host
        self._before = adapter
        self._timeout = timeout
        self._actions: dict[str, Callable[..., None]] = {
            "load": self._load,
            "autoprobe": self._autoprobe,
            "numvfs": self._numvfs,
            "unbind": self._unbind,
            "virt_mgmt": self._virt_mgmt,
            "bind": self._bind,
            "ready": self._ready,
        }

    def apply(self, planned: Plan) -> None:
        """Raises StepFailed after taking everything back, or saying what is left where that failed too."""
        try:
            carry_out(planned, self._actions)
        except (IovlabError, OSError) as exc:
            raise StepFailed(f"{exc}; {self._take_back()}") from exc

    def _take_back(self) -> str:
        before = self._before
        try:
            try:
                carry_out(
                    plan(replace(read(self._host, before.address), autoprobe=False), as_it_is(before)), self._actions
                )
            finally:
                self._autoprobe("1" if before.autoprobe else "0")
        except (IovlabError, OSError) as exc:
            return f"going back to the state before failed too ({exc}); left: {self._left()}"
        return f"adapter {before.address} was put back to the state before"

    def _left(self) -> str:
        address = self._before.address
        vfs = [
            f"{vf} with {self._host.sysfs.link_name('bus/pci/devices', vf, 'driver') or 'no driver'}"
            for _index, vf in vf_links(self._host, address)
        ]
        return f"{len(vfs)} VFs on {address}" + (f" ({', '.join(vfs)})" if vfs else "")

    def _load(self, driver: str) -> None:
        self._host.output(["modprobe", driver], self._timeout)

    def _autoprobe(self, value: str) -> None:
        self._write(f"{self._before.address}/sriov_drivers_autoprobe", value)

    def _numvfs(self, count: int) -> None:
        address = self._before.address
        self._write(f"{address}/sriov_numvfs", str(count))
        wait_until(
            lambda: (
                len(vf_links(self._host, address)) == count
                and all(self._host.sysfs.exists("bus/pci/devices", vf) for _index, vf in vf_links(self._host, address))
            ),
            self._timeout,
            f"adapter {address} did not show {count} VFs within {self._timeout:g} s; see dmesg",
        )

    def _unbind(self, address: str, driver: str) -> None:
        self._write(f"{address}/driver/unbind", address)
        self._write(f"{address}/driver_override", "\n")
        wait_until(
            lambda: self._driver(address) is None,
            self._timeout,
            f"VF {address} did not leave driver {driver} within {self._timeout:g} s; see dmesg",
        )

    def _bind(self, address: str, driver: str) -> None:
        self._write(f"{address}/driver_override", driver)
        self._host.sysfs.write("bus/pci/drivers_probe", address, self._timeout)
        missing = f"VF {address} did not come to driver {driver} within {self._timeout:g} s; see dmesg"
        wait_until(lambda: self._driver(address) == driver, self._timeout, missing)

    def _driver(self, address: str) -> str | None:
        return self._host.sysfs.link_name("bus/pci/devices", address, "driver")

    def _virt_mgmt(self, cntlid: int, action: int, resource: int | None = None, count: int | None = None) -> None:
        device = self._host.device(self._before.controller)
        arguments = ["nvme", "virt-mgmt", device, "-c", str(cntlid), "-a", str(action)]
        if resource is not None and count is not None:
            arguments += ["-r", str(resource), "-n", str(count)]
        self._host.output(arguments, self._timeout)

    def _ready(self, address: str) -> None:
        """The controller is live and every namespace attached to it has its block device."""
        host = self._host
        wait_until(
            lambda: _nvme.controller_state(host, address) == "live" and self._has_node(address),
            self._timeout,
            f"the controller of VF {address} did not become live within {self._timeout:g} s; see dmesg",
        )
        controller = _nvme.controller(host, address)
        if controller is None:
            raise TimedOut(f"the controller of VF {address} went away while coming up; see dmesg")
        attached = set(_nvme.active_nsids(host, host.device(controller)))

        def shown() -> bool:
            _nvme.refuse_multipath(host, address)
            found = {space.nsid for space in _nvme.namespaces(host, address) if space.size and _is_there(space.device)}
            return attached <= found

        wait_until(
            shown,
            self._timeout,
            f"VF {address} did not show the block devices of namespaces {sorted(attached)} within "
            f"{self._timeout:g} s; see dmesg",
        )

    def _has_node(self, address: str) -> bool:
        """udev makes the character device a moment after the kernel has the controller."""
        name = _nvme.controller(self._host, address)
        return name is not None and os.path.exists(self._host.device(name))

    def _write(self, path: str, value: str) -> None:
        self._host.sysfs.write(f"bus/pci/devices/{path}", value, self._timeout)


def _is_there(device: str) -> bool:
    try:
        with open(device, "rb"):
            return True
    except OSError:
        return False
