# SPDX-License-Identifier: GPL-3.0-or-later
"""Vports: what makes one come, go, be bound, change its path or be fenced. Records are vportd's own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ._errors import Missing, Refused
from ._plan import Plan, Step

Record = Mapping[str, Any]
AUTO = "auto"


def front_ends(record: Record) -> dict[int, str]:
    """LUN -> the process that is connected to it."""
    found = {}
    for lun in record["luns"]:
        if lun["connected"]:
            process = lun.get("front_end") or {}
            found[lun["lun"]] = f"{process.get('comm', 'a virtual machine')} (process {process.get('pid', '?')})"
    return found


def missing(vport: str) -> Missing:
    return Missing(f"vport: there is no vport {vport} on this host; create it with the vport module first")


def adapter_of(
    adapters: Sequence[Mapping[str, Any]], address: str | None, listed_by: str = "vportd"
) -> Mapping[str, Any]:
    """The adapter ``address``, or the only one; Refused when vportd serves none such."""
    known = ", ".join(adapter["adapter"] for adapter in adapters) or "none"
    if address is None:
        if len(adapters) != 1:
            raise Refused(f"adapter: {listed_by} serves {len(adapters)} adapters ({known}); name one")
        return adapters[0]
    for adapter in adapters:
        if adapter["adapter"] == address:
            return adapter
    raise Refused(
        f"adapter: {listed_by} does not serve adapter {address} (it serves: {known}); correct it or add it to "
        "vportd's configuration"
    )


def plan_vport(
    name: str, record: Record | None, adapter: str | None, incoming: bool, force: bool, present: bool
) -> Plan:
    """A vport created or deleted. ``adapter`` is the one it should be on, None = wherever it is."""
    before = _shown(record)
    if present:
        if record is None:
            step = Step(
                "vport_create", f"create vport {name} on adapter {adapter}", {"adapter": adapter, "incoming": incoming}
            )
            return Plan(before, {"vport": name, "adapter": adapter, "incoming": incoming}, (step,))
        if adapter is not None and record["adapter"] != adapter:
            raise Refused(
                f"vport {name} is on adapter {record['adapter']}, not {adapter}; a vport does not move, delete it first"
            )
        return Plan(before, before)
    if record is None:
        return Plan(before, {})
    connected = front_ends(record)
    if connected and not force:
        users = ", ".join(dict.fromkeys(connected.values()))
        raise Refused(
            f"vport {name} is in use by {users}; stop the virtual machine first, or set force to take its disks away"
        )
    if record["vf"] and not force:
        raise Refused(f"vport {name} is bound to VF {record['vf']}; unbind it with vport_binding first, or set force")
    return Plan(before, {}, (Step("vport_delete", f"delete vport {name}", {"force": force}),))


def _shown(record: Record | None) -> dict[str, Any]:
    return (
        {}
        if record is None
        else {"vport": record["vport"], "adapter": record["adapter"], "incoming": record["incoming"]}
    )


def plan_fence(name: str, record: Record | None, when: str, present: bool, following: str | None = None) -> Plan:
    """``when``: ``now`` or ``on_stop``, the latter being met by a fence that already fell.

    ``following`` = the id of the host that the leases go to.
    """
    if record is None:
        raise missing(name)
    if following is not None and re.fullmatch("[0-9a-f]{32}", following) is None:
        raise Refused(
            f"next: {following!r} is no host_id; take it from what vport_info returns as engine on that hypervisor"
        )
    before = {"vport": name, "fenced": record["fenced"], "fence_on_stop": record["fence_on_stop"]}
    before |= {"fence_next": record.get("fence_next")}
    if present:
        armed = record["fence_on_stop"] and record.get("fence_next") == following
        if record["fenced"] or (when == "on_stop" and armed):
            return Plan(before, before)
        after = before | ({"fenced": True} if when == "now" else {"fence_on_stop": True}) | {"fence_next": following}
        text = f"fence vport {name} " + ("now" if when == "now" else "when its virtual machine stops")
        step = Step("vport_fence", text, {"when": when} if following is None else {"when": when, "next": following})
        return Plan(before, after, (step,))
    if not record["fenced"] and not record["fence_on_stop"]:
        return Plan(before, before)
    return Plan(
        before,
        before | {"fenced": False, "fence_on_stop": False, "fence_next": None},
        (Step("vport_unfence", f"lift the fence of vport {name}"),),
    )


def plan_lease(
    name: str, record: Record | None, leases: Sequence[Mapping[str, Any]], engine: Mapping[str, Any], force: bool
) -> Plan:
    """All leases of a vport held by this host. ``force``: break those of others."""
    if record is None:
        raise missing(name)
    me, called = engine["host_id"], engine["host_name"]
    before = {"vport": name, "leases": {one["vdisk"]: _owner(one) for one in leases}}
    after = {"vport": name, "leases": {one["vdisk"]: called for one in leases}}
    missed = [one for one in leases if (one["state"], one["owner"]) != ("held", me)]
    if not missed:
        return Plan(before, before)
    others = [one for one in missed if one["state"] != "free" and me not in (one["owner"], one["next"])]
    for one in () if force else others:
        raise Refused(
            f"vdisk {one['vdisk']} of vport {name} is leased to {one['owner_name'] or one['owner']} (generation "
            f"{one['generation']}); set break only when that hypervisor is switched off or lost for good"
        )
    if others:
        whose = ", ".join(dict.fromkeys(f"{one['owner_name'] or one['owner']}" for one in others))
        return Plan(before, after, (Step("lease_break", f"break the leases that {whose} has for vport {name}"),))
    return Plan(before, after, (Step("lease_take", f"take the leases of vport {name}"),))


def _owner(lease: Mapping[str, Any]) -> str | None:
    return None if lease["state"] == "free" else lease["owner_name"] or lease["owner"]


def choose_vf(record: Record, adapter: Mapping[str, Any], wanted: str) -> str | None:
    """The VF to bind: ``wanted`` itself, or for ``auto`` the one bound already, else the first free one, if any.

    Refused when the VF named cannot be bound to this vport.
    """
    name = record["vport"]
    if wanted == AUTO:
        if record["vf"]:
            return str(record["vf"])
        return next((str(vf["vf"]) for vf in adapter["vfs"] if vf["device"] and not vf["vport"]), None)
    if record["vf"] and record["vf"] != wanted:
        raise Refused(f"vport {name} is bound to VF {record['vf']}, not {wanted}; a vport has one VF, unbind it first")
    entry = next((vf for vf in adapter["vfs"] if vf["vf"] == wanted), None)
    if entry is None:
        known = ", ".join(vf["vf"] for vf in adapter["vfs"]) or "none"
        raise Refused(
            f"vf: {wanted} is no VF of adapter {adapter['adapter']} (its VFs: {known}); correct it or create VFs "
            "with sriov_vf"
        )
    if entry["vport"] not in (None, name):
        raise Refused(
            f"vf: {wanted} is bound to vport {entry['vport']} already; choose another VF or unbind that vport"
        )
    if not entry["device"]:
        raise Refused(
            f"vf: {wanted} shows no block device of the adapter's storage; set it up with sriov_vf (driver nvme)"
        )
    return wanted


def lost_vf(record: Record, adapter: Mapping[str, Any]) -> bool:
    """Whether the vport is bound to a VF that shows the storage no more, so that its requests go through the PF."""
    if not record["vf"] or record["path"] == "vf":
        return False
    return not any(vf["vf"] == record["vf"] and vf["device"] for vf in adapter["vfs"])


def no_free_vf(record: Record) -> Refused:
    return Refused(
        f"vf: adapter {record['adapter']} has no free VF that shows its storage for vport {record['vport']}; create "
        "VFs with sriov_vf, unbind a vport, or set on_no_vf=stay_on_pf"
    )


def plan_binding(record: Record, vf: str | None, path: str) -> Plan:
    """Bound to ``vf`` and on ``path``; ``vf`` None = stay on the PF without a VF."""
    name = record["vport"]
    before = {"vport": name, "vf": record["vf"], "path": record["path"]}
    if vf is None:
        return Plan(before, before)
    after = {"vport": name, "vf": vf, "path": path}
    if after == before:
        return Plan(before, after)
    if not record["generation"]:
        raise Missing(f"vport {name} has no mapping yet; push one with adapter_mapping before binding it")
    bind = Step("vport_bind", f"bind vport {name} to VF {vf} on path {path}", {"vf": vf, "path": path})
    if record["vf"] not in (None, vf):
        gone = Step("vport_unbind", f"unbind vport {name} from VF {record['vf']}, which shows the storage no more")
        return Plan(before, after, (gone, bind))
    if record["vf"]:
        return Plan(
            before,
            after,
            (Step("vport_switch", f"switch vport {name} from path {record['path']} to {path}", {"path": path}),),
        )
    return Plan(before, after, (bind,))


def plan_unbinding(record: Record) -> Plan:
    name = record["vport"]
    before = {"vport": name, "vf": record["vf"], "path": record["path"]}
    if not record["vf"]:
        return Plan(before, before)
    text = f"unbind vport {name} from VF {record['vf']}"
    return Plan(before, {"vport": name, "vf": None, "path": "pf"}, (Step("vport_unbind", text),))
