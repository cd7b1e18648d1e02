# SPDX-License-Identifier: GPL-3.0-or-later
"""The NVMe adapters of a hypervisor, their VFs and namespaces, and the pools on them; read only, by sysfs, Identify
and LVM. What cannot be told is None, with the reason next to it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from . import _nvme, _nvme_admin, _sriov
from ._errors import CommandFailed
from ._host import Host
from ._pool import LEASES, WIPED_TAG, Lvm
from ._users import users_of

_LIVE = "live"
_POOL = ("vg_name", "vg_uuid", "vg_seqno", "vg_size", "vg_free", "pv_count")
_VDISK = ("lv_name", "lv_size", "lv_tags")


def adapters(host: Host, vports: Mapping[str, str]) -> list[dict[str, Any]]:
    """Every NVMe controller of the host that is not a VF. ``vports`` maps VF to vport, as vportd tells it."""
    return [_adapter(host, address, vports) for address in _functions(host)]


def _functions(host: Host) -> list[str]:
    return [
        address
        for address in host.sysfs.names("bus/pci/devices")
        if (host.sysfs.read("bus/pci/devices", address, "class") or "").startswith(_nvme.CLASS_NVME)
        and host.sysfs.link_name("bus/pci/devices", address, "physfn") is None
    ]


def _adapter(host: Host, address: str, vports: Mapping[str, str]) -> dict[str, Any]:
    base = ("bus/pci/devices", address)
    name = _nvme.controller(host, address)
    live = _nvme.controller_state(host, address) == _LIVE

    def told(attribute: str) -> str | None:
        return host.sysfs.read(*base, "nvme", name, attribute) if name else None

    links = _sriov.vf_links(host, address)
    secondaries, reason = _secondaries(host, name, live) if links else ({}, None)
    users = users_of(host, [vf for _index, vf in links], vports)
    return {
        "pf": address,
        "driver": host.sysfs.link_name(*base, "driver"),
        "controller": name,
        "state": told("state"),
        "model": told("model"),
        "serial": told("serial"),
        "firmware": told("firmware_rev"),
        "nqn": told("subsysnqn"),
        "iommu_group": host.sysfs.link_name(*base, "iommu_group"),
        "totalvfs": host.sysfs.read_int(*base, "sriov_totalvfs") or 0,
        "numvfs": len(links),
        "vfs": [_vf(host, index, vf, secondaries.get(index + 1), vports, users[vf]) for index, vf in links],
        "vfs_reason": reason,
        "namespaces": [_namespace(host, name, live, namespace) for namespace in _nvme.namespaces(host, address)],
        "multipath": _nvme.multipath_members(host, address),
    }


def _secondaries(host: Host, name: str | None, live: bool) -> tuple[dict[int, _nvme.Secondary], str | None]:
    if name is None or not live:
        return {}, "the PF has no controller that the kernel drives"
    try:
        return {entry.vf: entry for entry in _nvme_admin.secondaries(host.device(name))}, None
    except CommandFailed as exc:
        return {}, str(exc)


def _vf(
    host: Host, index: int, address: str, entry: _nvme.Secondary | None, vports: Mapping[str, str], users: list[str]
) -> dict[str, Any]:
    driver = host.sysfs.link_name("bus/pci/devices", address, "driver")
    devices = [namespace.device for namespace in _nvme.namespaces(host, address)]
    return {
        "address": address,
        "index": index,
        "driver": driver,
        "state": _nvme.controller_state(host, address),
        "online": entry.online if entry else None,
        "queues": entry.queues if entry else None,
        "interrupts": entry.interrupts if entry else None,
        "devices": devices,
        "vport": vports.get(address),
        "users": users,
        "free": bool(driver == "nvme" and devices and not users and not (entry and not entry.online)),
    }


def _namespace(host: Host, name: str | None, live: bool, namespace: _nvme.Namespace) -> dict[str, Any]:
    """``identity`` is what Linux shows, ``ids`` what the controller says."""
    ids: dict[str, str] = {}
    reason = None if name and live else "the controller is not live"
    if name and live:
        try:
            ids = _nvme_admin.namespace_ids(host.device(name), namespace.nsid)
        except CommandFailed as exc:
            reason = str(exc)
    return asdict(namespace) | {"ids": ids, "ids_reason": reason}


def pools(host: Host, found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The pool, or None and why, of each namespace of the adapters that have or could have VFs."""
    return [
        {"pf": adapter["pf"], "nsid": namespace["nsid"], "device": namespace["device"]}
        | _pool(host, namespace["device"])
        for adapter in found
        for namespace in adapter["namespaces"]
        if adapter["totalvfs"]
    ]


def _ready(volume: Mapping[str, str]) -> bool:
    """No former owner's data is left in a vdisk that is zeroed up to its size."""
    marks = re.findall(re.escape(WIPED_TAG) + r"(\d+)", volume["lv_tags"])
    return bool(marks) and min(map(int, marks)) >= int(volume["lv_size"])


def _pool(host: Host, device: str) -> dict[str, Any]:
    """``seqno`` counts the changes of LVM's metadata: with the same UUID and number it is the same metadata."""
    lvm = Lvm(host, device)
    none: dict[str, Any] = {"name": None, "uuid": None, "seqno": None, "size": None, "free": None, "vdisks": []}
    try:
        rows = [row for row in lvm.report("pvs", "pv", _POOL, "--readonly") if row["vg_name"]]
        if not rows:
            return none | {"reason": f"{device} holds no pool"}
        row = rows[0]
        volumes = lvm.report("lvs", "seg", _VDISK, "--readonly", "--segments", row["vg_name"])
        return {
            "name": row["vg_name"],
            "uuid": row["vg_uuid"],
            "seqno": int(row["vg_seqno"]),
            "size": int(row["vg_size"]),
            "free": int(row["vg_free"]),
            "vdisks": [
                {"name": name, "size": int(one["lv_size"]), "ready": _ready(one)}
                for name, one in {one["lv_name"]: one for one in volumes}.items()
                if name != LEASES
            ],
            "reason": None,
        }
    except (CommandFailed, KeyError, ValueError) as exc:
        said = str(exc) if isinstance(exc, CommandFailed) else f"LVM's report on {device} cannot be read ({exc})"
        return none | {"reason": said}
