# SPDX-License-Identifier: GPL-3.0-or-later
"""Steps from the VFs that an adapter has to those that it should have, and what forbids them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from . import _nvme
from ._errors import Refused
from ._host import Host
from ._plan import Plan, Step
from ._sriov import Adapter, Request, Vf
from ._users import defined_for, users_of

NVME = "nvme"
VFIO = "vfio-pci"
LEAST_QUEUES = 2  # the admin queue and one for I/O
LEAST_INTERRUPTS = 1
_QUEUES = 0  # resource types of Virtualization Management
_INTERRUPTS = 1


@dataclass(frozen=True, slots=True)
class WantedVf:
    """A VF as it should be; None for resources = leave what the controller has of its own, for ``namespaces`` = leave
    what the adapter attaches.
    """

    queues: int | None
    interrupts: int | None
    driver: str | None
    namespaces: tuple[int, ...] | None = None
    online: bool = True


@dataclass(frozen=True, slots=True)
class Bindings:
    """Which VF is whose: VF address -> vport, as vportd tells it. ``waiting`` are VFs that failed their vport, which is
    on the PF now and goes back when the VF works again.
    """

    vports: Mapping[str, str] = field(default_factory=dict)
    waiting: frozenset[str] = frozenset()


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
        namespaces=_visible(request),
    )
    return (vf,) * count


def _visible(request: Request) -> tuple[int, ...] | None:
    """A VF that leaves the kernel's hands sees nothing unless told otherwise: the pool could be among it."""
    if request.namespaces is None and request.driver == VFIO:
        return ()
    return request.namespaces


def settled(adapter: Adapter, request: Request) -> Request:
    """The same request with the resources that each VF gets, which may follow from what the adapter has now."""
    first = wanted(adapter, request)[0]
    return replace(request, queues=first.queues, interrupts=first.interrupts, namespaces=first.namespaces)


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
            f"{_held(adapter, option, kind, resources)}; {_remedies(adapter, option, resources, count, asked, least)}"
        )
    return asked


def _held(adapter: Adapter, option: str, kind: str, resources: _nvme.Resources) -> str:
    """How many there are, who has them, and how many nobody has."""
    holders = [(f"VF {adapter.vf_address(one.vf - 1)}", getattr(one, option)) for one in adapter.secondaries]
    holders.insert(0, (f"the PF itself ({kind}RFAP)", resources.assigned_to_primary))
    told = [f"{count} are held by {holder}" for holder, count in holders if count]
    free = max(resources.total - sum(count for __, count in holders), 0)
    return f"adapter {adapter.address} has {resources.total}: {', '.join([*told, f'{free} are free'])}"


def _remedies(adapter: Adapter, option: str, resources: _nvme.Resources, count: int, asked: int, least: int) -> str:
    found = []
    if resources.for_secondaries >= asked:
        found.append(f"ask for {resources.for_secondaries // asked} VFs at most")
    if resources.for_secondaries // count >= least:
        found.append(f"ask for {option}={resources.for_secondaries // count} at most")
    if resources.assigned_to_primary:
        kind = _QUEUES if option == "queues" else _INTERRUPTS
        found.append(
            f"take them from the PF (nvme virt-mgmt /dev/{adapter.controller} -c CNTLID-OF-THE-PF -r {kind} -a 1 -n 0, "
            "then a reset of that controller, which takes every VF offline)"
        )
    return ", or ".join(found) or "it has too few for any VF"


def as_it_is(adapter: Adapter) -> tuple[WantedVf, ...]:
    """What to want in order to get this state back."""
    flexible = adapter.capabilities
    return tuple(
        WantedVf(
            queues=vf.queues if flexible.queues.total else None,
            interrupts=vf.interrupts if flexible.interrupts.total else None,
            driver=vf.driver,
            namespaces=(vf.attached or ()) if vf.driver == VFIO else None,
            online=vf.online,
        )
        for vf in adapter.vfs
    )


def plan(current: Adapter, desired: tuple[WantedVf, ...]) -> Plan:
    """Steps from ``current`` to ``desired``. VFs only ever go from 0 to N: another number means all of them anew."""
    anew = current.count != len(desired)
    kept: tuple[Vf | None, ...] = (None,) * len(desired) if anew else current.vfs
    pairs = [(index, vf, want) for index, (vf, want) in enumerate(zip(kept, desired, strict=True))]
    hold = anew and bool(desired) and current.autoprobe
    steps: list[Step] = []
    for driver in _to_load(current, desired):
        steps.append(Step("load", f"load driver {driver}", {"driver": driver}))
    if hold:
        steps.append(Step("hold", f"keep the kernel from binding new VFs of {current.address} by itself"))
    if anew and current.count:
        steps.append(Step("numvfs", f"remove the {current.count} VFs of {current.address}", {"count": 0}))
    if anew and desired:
        steps.append(Step("numvfs", f"create {len(desired)} VFs on {current.address}", {"count": len(desired)}))
    for _index, vf, want in pairs:
        if vf is not None and vf.driver and _to_bind(vf, want):
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
        if want.namespaces is not None and want.online and _to_bind(vf, want):
            steps.append(_isolation(current, index, want.namespaces))
        if want.driver and _to_bind(vf, want):
            steps.append(
                Step("bind", f"bind VF {address} to {want.driver}", {"address": address, "driver": want.driver})
            )
    for step in [step for step in steps if step.verb == "bind" and step.args["driver"] == NVME]:
        address = step.args["address"]
        steps.append(Step("ready", f"wait for the controller and the namespaces of VF {address}", {"address": address}))
    if hold or current.held:
        steps.append(Step("let_go", f"let the kernel bind VFs of {current.address} again as before"))
    return Plan(before=_shown(current), after=_shown_wanted(current, desired), steps=tuple(steps))


def _to_load(current: Adapter, desired: tuple[WantedVf, ...]) -> list[str]:
    needed = [vf.driver for vf in desired if vf.driver]
    needed += [NVME for vf in desired if vf.namespaces is not None]  # which looks at what a VF sees
    return [driver for driver in dict.fromkeys(needed) if driver not in current.drivers]


def _to_bind(vf: Vf | None, want: WantedVf) -> bool:
    """Whether the VF must be without a driver for a moment, or has the wrong one."""
    return vf is None or vf.driver != want.driver or _resources_differ(vf, want) or _sees_other(vf, want)


def _sees_other(vf: Vf, want: WantedVf) -> bool:
    if want.namespaces is None or vf.attached is None:
        return False
    return set(vf.attached) != set(want.namespaces)


def _isolation(adapter: Adapter, index: int, namespaces: tuple[int, ...]) -> Step:
    address = adapter.vf_address(index)
    listed = ", ".join(map(str, namespaces))
    shown = f"namespace {listed} alone" if namespaces else "no namespace"
    return Step(
        "isolate",
        f"see to it that VF {address} shows {shown}",
        {"address": address, "cntlid": adapter.secondary(index).cntlid, "namespaces": namespaces},
    )


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
    """Take resources back from VFs that are removed, and from others that do not exist where they are needed."""
    left = [entry for entry in adapter.secondaries if entry.vf > len(desired) and (entry.queues or entry.interrupts)]
    queues, interrupts = adapter.capabilities.queues, adapter.capabilities.interrupts
    short = sum(vf.queues or 0 for vf in desired) + sum(entry.queues for entry in left) > queues.for_secondaries
    short |= (
        sum(vf.interrupts or 0 for vf in desired) + sum(entry.interrupts for entry in left) > interrupts.for_secondaries
    )
    for entry in left if short else [entry for entry in left if entry.vf <= adapter.count]:
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


def _shown_vf(vf: Vf) -> dict[str, Any]:
    return {
        "address": vf.address,
        "online": vf.online,
        "queues": vf.queues,
        "interrupts": vf.interrupts,
        "driver": vf.driver,
        "attached": None if vf.attached is None else list(vf.attached),
    }


def _shown(adapter: Adapter) -> dict[str, Any]:
    vfs = [_shown_vf(vf) for vf in adapter.vfs]
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
                "attached": _attached_then(adapter, index, vf),
            }
        )
    return {"pf": adapter.address, "count": len(desired), "vfs": vfs}


def _attached_then(adapter: Adapter, index: int, want: WantedVf) -> list[int] | None:
    """None where it is not asked for and the VF is not there yet."""
    if want.namespaces is not None:
        return sorted(want.namespaces)
    kept = adapter.vfs[index].attached if index < adapter.count else None
    return None if kept is None else list(kept)


def disturbed(current: Adapter, planned: Plan) -> list[str]:
    """Addresses of existing VFs that would lose their device, if only for a moment."""
    if any(step.verb == "numvfs" for step in planned.steps):
        return [vf.address for vf in current.vfs]
    cntlids = {step.args["cntlid"] for step in planned.steps if step.verb == "virt_mgmt"}
    unbound = {step.args["address"] for step in planned.steps if step.verb == "unbind"}
    return [vf.address for vf in current.vfs if vf.cntlid in cntlids or vf.address in unbound]


def plan_for(host: Host, current: Adapter, request: Request, bindings: Bindings, allow_recreate: bool) -> Plan:
    """Steps from ``current`` to what is asked; Refused when it cannot be, or would take a VF from its user."""
    desired = wanted(current, request)
    planned = plan(current, desired)
    refuse_loss(host, current, planned, bindings, allow_recreate or request.count == 0)
    refuse_missing_when_started(host, current, desired)
    refuse_driver_that_cannot_load(host, current, desired)
    return planned


def refuse_loss(host: Host, current: Adapter, planned: Plan, bindings: Bindings, may_remove: bool) -> None:
    """Refused when a step would take a VF from its user, or remove VFs without leave to.

    A vport that waits for its VF loses nothing when the offline VF is brought back; its worker has ended by itself.
    """
    victims = disturbed(current, planned)
    removed = any(step.verb == "numvfs" for step in planned.steps)
    helped = {vf.address for vf in current.vfs if not vf.online and not removed} & bindings.waiting
    vports = {address: vport for address, vport in bindings.vports.items() if address not in helped}
    for address, users in users_of(host, victims, vports).items():
        if users:
            vf = next(vf for vf in current.vfs if vf.address == address)
            state = "" if vf.online else ", though its controller is offline, as after a reset of the PF"
            raise Refused(
                f"VF {address} is in use by {', '.join(users)}{state}; what was asked would take it away, free it "
                "first (a vport with vport_binding state=absent)"
            )
    if not may_remove and current.count and removed:
        raise Refused(
            f"count: adapter {current.address} has {current.count} VFs, and the kernel changes that number only by "
            "removing them all "
            f"({', '.join(victims)}); set allow_recreate if that is all right"
        )


def refuse_missing_when_started(host: Host, current: Adapter, desired: tuple[WantedVf, ...]) -> None:
    """Refused when a virtual machine that is shut off would not find its VF, or not with vfio-pci as it does now.

    A VF that is removed and comes back at the same address is found.
    """
    lost = [
        vf.address
        for vf in current.vfs
        if vf.index >= len(desired) or (vf.driver == VFIO and desired[vf.index].driver != VFIO)
    ]
    for address, guests in defined_for(host, lost).items():
        if guests:
            raise Refused(
                f"VF {address} is in the definition of virtual machine {', '.join(guests)}, which is shut off and "
                f"could not start without it; take the VF out with virsh edit {guests[0]}, or undefine the machine"
            )


def refuse_driver_that_cannot_load(host: Host, current: Adapter, desired: tuple[WantedVf, ...]) -> None:
    for driver in _to_load(current, desired):
        code, _out, _err = host.run(["modprobe", "--dry-run", "--quiet", driver], _nvme.COMMAND_TIMEOUT)
        if code != 0:
            raise Refused(
                f"driver: this kernel has no driver {driver} and no module of that name to load; install the "
                "kernel's modules or choose another driver"
            )
