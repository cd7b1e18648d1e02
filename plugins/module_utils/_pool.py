# SPDX-License-Identifier: GPL-3.0-or-later
"""Pools and vdisks on LVM.

A pool is a volume group on one namespace, a vdisk a linear logical volume in it that is never activated: LVM keeps
the first mapping (vdisk -> extents) and, as a tag, which block of the volume ``iovlab_leases`` is the vdisk's lease.
Every LVM command is told the one device to look at, because the same physical volume shows through the PF and through
each VF, and is run with activation off, so that no command can hand a vdisk to device-mapper.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from . import _lease, _zero
from ._errors import CommandFailed, IovlabError, Missing, Refused, StepFailed
from ._host import Host
from ._plan import Plan, Step, carry_out
from ._units import format_size

Extent = tuple[int, int, int]
"""(start in the vdisk, physical offset on the namespace, length), all in bytes"""

LVM_TIMEOUT = 60.0
WIPED_TAG = "iovlab.wiped="
LEASE_TAG = "iovlab.lease="
LEASES = "iovlab_leases"
LEASES_SIZE = 4 * 1024 * 1024
UNKNOWN = -1  # physical offset of an extent before LVM has chosen it
_DATA_START = 1024 * 1024  # where LVM puts the first extent of a pool
_TAG_EVERY = 1024 * 1024 * 1024  # bytes zeroed after which the tags of vdisks are changed
_CONFIG = 'global{activation=0} devices{filter=["a|.*|"] global_filter=["a|.*|"]}'


@dataclass(frozen=True, slots=True)
class Vdisk:
    """``wiped``: bytes from the start that hold no former owner's data; None = not made by this collection.
    ``lease``: its block of the volume of leases.
    """

    name: str
    size: int
    wiped: int | None
    extents: tuple[Extent, ...]
    active_as: str | None = None
    lease: int | None = None

    @property
    def ready(self) -> bool:
        return self.wiped is not None and self.wiped >= self.size and bool(self.extents)


@dataclass(frozen=True, slots=True)
class Pool:
    """``leases``: the volume that holds the leases of the vdisks; it is none of them."""

    name: str
    device: str
    extent_size: int
    size: int
    free: int
    autoactivation: bool
    vdisks: tuple[Vdisk, ...]
    leases: Vdisk | None = None

    def lease_of(self, vdisk: Vdisk) -> int | None:
        """Byte on the namespace where the lease of a vdisk lies."""
        if self.leases is None or not self.leases.ready or vdisk.lease is None:
            return None
        return _lease.offset_of(vdisk.lease, self.leases.extents)

    def free_lease(self) -> int | None:
        """The lowest block that is no vdisk's lease; None when there is none, or none can be given yet."""
        if self.leases is None or not self.leases.ready:
            return None
        taken = {vdisk.lease for vdisk in self.vdisks}
        return next((block for block in range(self.leases.size // _lease.SIZE) if block not in taken), None)

    def vdisk(self, name: str) -> Vdisk | None:
        return next((vdisk for vdisk in self.vdisks if vdisk.name == name), None)


@dataclass(frozen=True, slots=True)
class Storage:
    """A namespace and what is on it: the pool, or signatures of something else."""

    device: str
    size: int
    pool: Pool | None
    signatures: tuple[str, ...] = ()


class Lvm:
    """LVM's commands on one device."""

    def __init__(self, host: Host, device: str) -> None:
        self._host = host
        self.device = device

    def run(self, program: str, *arguments: str) -> str:
        return self._host.output([program, "--devices", self.device, "--config", _CONFIG, *arguments], LVM_TIMEOUT)

    def report(self, program: str, kind: str, fields: Sequence[str], *arguments: str) -> list[dict[str, str]]:
        """Rows of a report, sizes in bytes."""
        out = self.run(
            program, *arguments, "--reportformat", "json", "--units", "b", "--nosuffix", "-o", ",".join(fields)
        )
        try:
            rows: list[dict[str, str]] = [row for report in json.loads(out)["report"] for row in report.get(kind, [])]
        except (ValueError, KeyError, TypeError) as exc:
            raise CommandFailed(
                f"{program} on {self.device} gave no report that can be read ({exc}); check {program} by hand"
            ) from exc
        return rows


def read_storage(host: Host, device: str, size: int, readonly: bool = False) -> Storage:
    """What is on ``device``; ``readonly`` takes no lock and works on a hypervisor that does not manage the pool."""
    lvm = Lvm(host, device)
    mode = ("--readonly",) if readonly else ()
    fields: tuple[str, ...] = (
        "pv_name",
        "pe_start",
        "vg_name",
        "vg_uuid",
        "vg_extent_size",
        "vg_size",
        "vg_free",
        "pv_count",
        "vg_autoactivation",
    )
    rows = [row for row in lvm.report("pvs", "pv", fields, *mode) if row["vg_name"]]
    if not rows:
        return Storage(device, size, None, () if readonly else _signatures(host, device))
    group = rows[0]
    if group["pv_count"] != "1":
        raise Refused(
            f"volume group {group['vg_name']} on {device} spans {group['pv_count']} devices; a pool is on one "
            "namespace only, choose another"
        )
    extent_size, start = int(group["vg_extent_size"]), int(group["pe_start"])
    fields = ("lv_name", "lv_uuid", "lv_size", "lv_tags", "segtype", "seg_start", "seg_size", "seg_pe_ranges")
    segments = lvm.report("lvs", "seg", fields, *mode, "--segments", group["vg_name"])
    mapped = _device_mapper(host)
    vdisks = []
    for name in dict.fromkeys(row["lv_name"] for row in segments):
        own = [row for row in segments if row["lv_name"] == name]
        uuid = "LVM-" + (group["vg_uuid"] + own[0]["lv_uuid"]).replace("-", "")
        vdisks.append(
            Vdisk(
                name=name,
                size=int(own[0]["lv_size"]),
                wiped=_number(own[0]["lv_tags"], WIPED_TAG),
                extents=_extents(own, start, extent_size),
                active_as=next((node for known, node in mapped.items() if known.startswith(uuid)), None),
                lease=_number(own[0]["lv_tags"], LEASE_TAG),
            )
        )
    pool = Pool(
        name=group["vg_name"],
        device=device,
        extent_size=extent_size,
        size=int(group["vg_size"]),
        free=int(group["vg_free"]),
        autoactivation=group["vg_autoactivation"] not in ("", "0"),
        vdisks=tuple(sorted((one for one in vdisks if one.name != LEASES), key=lambda vdisk: vdisk.name)),
        leases=next((one for one in vdisks if one.name == LEASES), None),
    )
    return Storage(device, size, pool)


def pool_of(storage: Storage, name: str) -> Pool:
    """The pool ``name``; Refused when the storage has none or another."""
    if storage.pool is None:
        raise Missing(f"pool: there is no pool {name} on {storage.device}; create it with the pool module first")
    if storage.pool.name != name:
        raise Refused(
            f"pool: there is no pool {name} on {storage.device}, it holds pool {storage.pool.name}; correct pool or "
            "adapter"
        )
    return storage.pool


def _number(tags: str, kind: str) -> int | None:
    marks = [tag.removeprefix(kind) for tag in tags.split(",") if tag.startswith(kind)]
    return min((int(mark) for mark in marks if mark.isdigit()), default=None)


def _extents(segments: Sequence[Mapping[str, str]], start: int, extent_size: int) -> tuple[Extent, ...]:
    """Extents of a linear volume, neighbours merged; none for any other kind of volume."""
    found: list[Extent] = []
    for row in sorted(segments, key=lambda row: int(row["seg_start"])):
        match = re.fullmatch(r".*:(\d+)-(\d+)", row["seg_pe_ranges"].strip())
        if row["segtype"] != "linear" or match is None:
            return ()
        virtual, physical, length = int(row["seg_start"]), start + int(match[1]) * extent_size, int(row["seg_size"])
        if found and found[-1][0] + found[-1][2] == virtual and found[-1][1] + found[-1][2] == physical:
            found[-1] = (found[-1][0], found[-1][1], found[-1][2] + length)
        else:
            found.append((virtual, physical, length))
    return tuple(found)


def _device_mapper(host: Host) -> dict[str, str]:
    """Devices of device-mapper on this host: uuid -> dm-N."""
    return {
        uuid: node
        for node in host.sysfs.names("class/block")
        if node.startswith("dm-") and (uuid := host.sysfs.read("class/block", node, "dm/uuid"))
    }


def _signatures(host: Host, device: str) -> tuple[str, ...]:
    """Types of what is on a device besides LVM's own label; nothing is written."""
    out = host.output(["wipefs", "--no-act", "--json", device], LVM_TIMEOUT)
    try:
        found = json.loads(out or "{}").get("signatures", [])
    except ValueError as exc:
        raise CommandFailed(
            f"wipefs --no-act {device} gave no report that can be read; check the device by hand"
        ) from exc
    return tuple(dict.fromkeys(entry["type"] for entry in found if entry["type"] != "LVM2_member"))


def plan_pool(storage: Storage, name: str, present: bool, extent_size: int) -> Plan:
    """Steps that make the pool ``name`` be on the storage, or be gone."""
    pool = storage.pool
    before = _shown_pool(pool)
    if present:
        after = {
            "name": name,
            "device": storage.device,
            "extent_size": pool.extent_size if pool else extent_size,
            "autoactivation": False,
            "leases": True,
        }
        if pool is None:
            if storage.signatures:
                raise Refused(
                    f"{storage.device} holds {', '.join(storage.signatures)}, which a pool would destroy; "
                    f"choose another namespace, or clear it yourself with wipefs --all {storage.device}"
                )
            if extent_size < 4096 or extent_size & (extent_size - 1):
                raise Refused(f"extent_size: {extent_size} is not a power of two of at least 4KiB; use 4MiB")
            room = extent_size * 2 + _leases_size(extent_size)  # for LVM's own data, the leases, and a vdisk
            if room > storage.size:
                raise Refused(
                    f"extent_size: {format_size(extent_size)} leaves no extent for a vdisk on {storage.device} of "
                    f"{format_size(storage.size)}; choose a smaller one"
                )
            return Plan(
                before,
                after,
                (
                    Step(
                        "create", f"create pool {name} on {storage.device}", {"name": name, "extent_size": extent_size}
                    ),
                    *_leases_steps(name, extent_size, None),
                ),
            )
        pool_of(storage, name)
        steps = []
        if pool.autoactivation:
            text = f"keep hosts from activating the vdisks of pool {name} at boot"
            steps.append(Step("no_autoactivation", text, {"name": name}))
        missing = _leases_size(pool.extent_size)
        if pool.leases is None and pool.free < missing:
            note = (
                f"pool {name} has no {format_size(missing)} left for leases, so that nothing keeps two hosts from "
                "writing a vdisk; remove a vdisk and run this again"
            )
            return Plan(before, after | {"leases": False}, tuple(steps), (note,))
        return Plan(before, after, (*steps, *_leases_steps(name, pool.extent_size, pool.leases)))
    if pool is None:
        return Plan(before, {})
    pool_of(storage, name)
    if pool.vdisks:
        names = ", ".join(vdisk.name for vdisk in pool.vdisks)
        raise Refused(
            f"pool {name} still holds {len(pool.vdisks)} vdisks ({names}); remove them with the vdisk module first"
        )
    steps = [Step("remove", f"remove pool {name} from {storage.device}", {"name": name})]
    if pool.leases is not None:
        steps.insert(0, Step("remove_leases", f"remove the leases of pool {name}", {"name": name}))
    return Plan(before, {}, tuple(steps))


def _leases_size(extent_size: int) -> int:
    return -(-LEASES_SIZE // extent_size) * extent_size


def _leases_steps(name: str, extent_size: int, leases: Vdisk | None) -> tuple[Step, ...]:
    """What is missing until vdisks can be given leases. They are zeroed first, and a run that was killed before it had
    done so is finished by the next.
    """
    if leases is not None and (leases.wiped is None or not leases.extents):
        raise Refused(
            f"{name}/{LEASES} is not of this collection, and its name is needed; rename it with lvrename {name} "
            f"{LEASES}"
        )
    steps = []
    if leases is None:
        size = _leases_size(extent_size)
        text = f"make room for the leases of pool {name}, {format_size(size)}"
        steps.append(Step("create_leases", text, {"name": name, "size": size}))
    if leases is None or not leases.ready:
        steps.append(Step("zero_leases", f"zero the leases of pool {name}", {"name": name}))
    return tuple(steps)


def apply_pool(host: Host, storage: Storage, planned: Plan) -> None:
    lvm = Lvm(host, storage.device)

    def create(name: str, extent_size: int) -> None:
        lvm.run(
            "vgcreate",
            "--yes",
            "--setautoactivation",
            "n",
            "--physicalextentsize",
            f"{extent_size}b",
            name,
            storage.device,
        )

    def remove(name: str) -> None:
        lvm.run("vgremove", name)
        lvm.run("pvremove", storage.device)

    def no_autoactivation(name: str) -> None:
        lvm.run("vgchange", "--setautoactivation", "n", name)

    def create_leases(name: str, size: int) -> None:
        _create(lvm, name, LEASES, size)

    def zero_leases(name: str) -> None:
        now = pool_of(read_storage(host, storage.device, 0), name).leases
        if now is None or now.wiped is None or now.active_as:
            raise StepFailed(f"the leases of pool {name} changed under this run; nothing was zeroed, run it again")
        _wipe(lvm, name, now)

    def remove_leases(name: str) -> None:
        lvm.run("lvremove", "--yes", f"{name}/{LEASES}")

    actions: dict[str, Callable[..., None]] = {
        "create": create,
        "remove": remove,
        "no_autoactivation": no_autoactivation,
        "create_leases": create_leases,
        "zero_leases": zero_leases,
        "remove_leases": remove_leases,
    }
    carry_out(planned, actions)


def _create(lvm: Lvm, pool: str, name: str, size: int, *tags: str) -> None:
    lvm.run(
        "lvcreate", "--yes", "--type", "linear", "--activate", "n", "--zero", "n", "--wipesignatures", "n",
        *(word for tag in (f"{WIPED_TAG}0", *tags) for word in ("--addtag", tag)),
        "--size", f"{size}b", "--name", name, pool,
    )  # fmt: skip


def _wipe(lvm: Lvm, pool: str, volume: Vdisk) -> None:
    """Zero what of a volume is not wiped yet, then say in its tag that it is."""
    _zero_rest(lvm, volume)
    _tag_wiped(lvm, pool, [volume])


def _zero_rest(lvm: Lvm, volume: Vdisk) -> int:
    """Zero what of a volume is not wiped yet; return how many bytes that was."""
    if volume.wiped is None:
        raise StepFailed(
            f"vdisk {volume.name} is not known to be one of this collection and was not zeroed; run this again"
        )
    rest = beyond(volume.extents, volume.wiped)
    try:
        for _start, physical, length in rest:
            _zero.zero(lvm.device, physical, length)
    except OSError as exc:
        raise StepFailed(
            f"zeroing vdisk {volume.name} on {lvm.device} failed: {exc.strerror}; it is not wiped and cannot be "
            "mapped, run this again"
        ) from exc
    return sum(length for _start, _physical, length in rest)


def _tag_wiped(lvm: Lvm, pool: str, volumes: Sequence[Vdisk]) -> None:
    """Say that volumes are wiped to their end; one command does it for all that need the same tags."""
    groups: dict[tuple[int | None, int], list[str]] = {}
    for volume in volumes:
        groups.setdefault((volume.wiped, volume.size), []).append(f"{pool}/{volume.name}")
    for (wiped, size), names in groups.items():
        lvm.run("lvchange", "--deltag", f"{WIPED_TAG}{wiped}", "--addtag", f"{WIPED_TAG}{size}", *names)


def _shown_pool(pool: Pool | None) -> dict[str, Any]:
    if pool is None:
        return {}
    return {
        "name": pool.name,
        "device": pool.device,
        "extent_size": pool.extent_size,
        "autoactivation": pool.autoactivation,
        "leases": pool.leases is not None and pool.leases.ready,
    }


def plan_vdisk(pool: Pool, name: str, size: int | None, wipe: bool) -> Plan:
    """Steps that give vdisk ``name`` the ``size`` (None = it shall be gone), wiped where it is new."""
    vdisk = pool.vdisk(name)
    before = _shown_vdisk(vdisk)
    if vdisk is not None and vdisk.active_as and (size is None or size > vdisk.size or not vdisk.ready):
        raise Refused(
            f"vdisk {name} is active on this host as {vdisk.active_as}; deactivate it with lvchange --activate n "
            f"{pool.name}/{name}"
        )
    if size is None:
        if vdisk is None:
            return Plan(before, {})
        return Plan(before, {}, (Step("remove", f"remove vdisk {name} from pool {pool.name}", {"name": name}),))
    if size <= 0:
        raise Refused(f"size: a vdisk of {size} bytes cannot be; give a size above 0, such as 64MiB")
    rounded = -(-size // pool.extent_size) * pool.extent_size
    notes: tuple[str, ...] = ()
    if rounded != size:
        notes = (
            f"size {size} of vdisk {name} is rounded up to {rounded} bytes ({format_size(rounded)}): extents of pool "
            f"{pool.name} are {format_size(pool.extent_size)}",
        )
    missing = rounded - (vdisk.size if vdisk else 0)
    if missing > pool.free:
        raise Refused(
            f"size: vdisk {name} of {format_size(rounded)} does not fit in pool {pool.name}: {format_size(missing)} "
            "more needed, "
            f"{format_size(pool.free)} free; choose a smaller size or remove vdisks"
        )
    steps: list[Step] = []
    if vdisk is None:
        steps.append(
            Step(
                "create",
                f"create vdisk {name} of {format_size(rounded)} in pool {pool.name}",
                {"name": name, "size": rounded},
            )
        )
        wiped = 0
    else:
        if rounded < vdisk.size:
            raise Refused(
                f"size: vdisk {name} has {format_size(vdisk.size)} and cannot shrink to {format_size(rounded)}, its "
                "end may hold data; keep the size or make a new vdisk"
            )
        if vdisk.wiped is None or not vdisk.extents:
            kind = "is no linear volume" if not vdisk.extents else f"has no {WIPED_TAG} tag"
            raise Refused(
                f"{pool.name}/{name} {kind}, so it is not a vdisk of this collection and is left alone; choose "
                "another name, "
                f"or take it over with its data: lvchange --addtag {WIPED_TAG}{vdisk.size} {pool.name}/{name}"
            )
        wiped = min(vdisk.wiped, vdisk.size)
        if rounded > vdisk.size:
            text = f"grow vdisk {name} from {format_size(vdisk.size)} to {format_size(rounded)}"
            steps.append(Step("grow", text, {"name": name, "size": rounded}))
    if wipe and wiped < rounded:
        steps.append(Step("wipe", f"zero {format_size(rounded - wiped)} of vdisk {name}", {"name": name}))
        wiped = rounded
    lease = vdisk.lease if vdisk else None
    if lease is None:
        lease = pool.free_lease()
        if lease is not None:
            steps.append(Step("lease", f"give vdisk {name} lease {lease}", {"name": name, "lease": lease}))
    return Plan(before, {"name": name, "size": rounded, "wiped": wiped, "lease": lease}, tuple(steps), notes)


def pool_then(storage: Storage, planned: Plan) -> Pool:
    """The pool as it will be after the steps of ``plan_pool``; where LVM puts the leases it alone can tell."""
    after = planned.after
    pool, extent_size = storage.pool, int(after["extent_size"])
    if pool is None:
        size = (storage.size - _DATA_START) // extent_size * extent_size
        pool = Pool(after["name"], storage.device, extent_size, size, size, autoactivation=False, vdisks=())
    if not after["leases"] or (pool.leases is not None and pool.leases.ready):
        return pool
    size = pool.leases.size if pool.leases else _leases_size(extent_size)
    taken = 0 if pool.leases else size
    return replace(pool, free=pool.free - taken, leases=Vdisk(LEASES, size, size, ((0, UNKNOWN, size),)))


def vdisk_then(pool: Pool, planned: Plan) -> Pool:
    """The pool as it will be after the steps of a ``plan_vdisk`` that makes, grows or wipes a vdisk."""
    after = planned.after
    old = pool.vdisk(after["name"])
    size, extents = after["size"], old.extents if old else ()
    grown = size - (old.size if old else 0)
    if grown:
        extents = (*extents, (size - grown, UNKNOWN, grown))
    vdisk = Vdisk(after["name"], size, after["wiped"], extents, old.active_as if old else None, after["lease"])
    others = [one for one in pool.vdisks if one.name != vdisk.name]
    return replace(pool, free=pool.free - grown, vdisks=tuple(sorted((*others, vdisk), key=lambda one: one.name)))


Guard = Callable[[Sequence[tuple[str, Sequence[Extent]]]], None]
"""Called with vdisks and those of their extents that are about to be zeroed; raises when somebody uses them."""
Done = Callable[[str], None]
"""Called with the name of each vdisk that is finished."""


class VdiskFailed(Exception):
    """A step of one of several vdisks failed, for ``reason``."""

    def __init__(self, name: str, reason: Exception) -> None:
        super().__init__(name)
        self.name = name
        self.reason = reason


def apply_vdisk(host: Host, pool: Pool, planned: Plan, guard: Guard) -> None:
    try:
        apply_vdisks(host, pool, [planned], guard)
    except VdiskFailed as exc:
        raise exc.reason from None


def apply_vdisks(host: Host, pool: Pool, plans: Sequence[Plan], guard: Guard, done: Done = lambda name: None) -> None:
    """Carry out the plans of several vdisks, with as few commands as LVM allows; VdiskFailed names the one that failed.

    Each LVM command commits the metadata once and takes tens of milliseconds whatever it does, so a new vdisk gets its
    lease as it is created, all extents are read with one report, and tags are changed for many vdisks at once. A run
    may be killed anywhere: a lease is zeroed before a vdisk has it, a vdisk is zeroed before its tag says so.
    """
    lvm = Lvm(host, pool.device)
    left = Counter(step.args["name"] for planned in plans for step in planned.steps)

    def finished(name: str, steps: int = 1) -> None:
        left[name] -= steps
        if not left[name]:
            done(name)

    wipes: list[str] = []
    leases: list[tuple[str, int]] = []
    for planned in plans:
        given = {step.args["name"]: step.args["lease"] for step in planned.steps if step.verb == "lease"}
        for step in planned.steps:
            name = step.args["name"]
            with _of(name):
                if step.verb == "create":
                    lease = given.pop(name, None)
                    if lease is not None:
                        _zero_lease(pool, lease)
                    _create(lvm, pool.name, name, step.args["size"], *(() if lease is None else (_lease_tag(lease),)))
                    finished(name, 1 if lease is None else 2)
                elif step.verb == "grow":
                    lvm.run("lvextend", "--type", "linear", "--size", f"{step.args['size']}b", f"{pool.name}/{name}")
                    finished(name)
                elif step.verb == "remove":
                    lvm.run("lvremove", "--yes", f"{pool.name}/{name}")
                    finished(name)
                elif step.verb == "wipe":
                    wipes.append(name)
        leases += given.items()
    if wipes:
        _apply_wipes(host, lvm, pool, wipes, guard, finished)
    for name, lease in leases:
        with _of(name):
            _zero_lease(pool, lease)
            lvm.run("lvchange", "--addtag", _lease_tag(lease), f"{pool.name}/{name}")
            finished(name)


def _apply_wipes(
    host: Host, lvm: Lvm, pool: Pool, names: Sequence[str], guard: Guard, finished: Callable[[str], None]
) -> None:
    """Zero vdisks, and say so in their tags as soon as there is much that a run need not do again."""
    with _of(names[0]):
        now = read_storage(host, pool.device, 0).pool
    found = []
    for name in names:
        with _of(name):
            vdisk = now.vdisk(name) if now else None
            if vdisk is None or vdisk.wiped is None or vdisk.active_as:
                raise StepFailed(
                    f"vdisk {name} of pool {pool.name} changed under this run; nothing was wiped, run it again"
                )
            found.append(vdisk)
    with _of(names[0]):
        guard([(vdisk.name, beyond(vdisk.extents, vdisk.wiped or 0)) for vdisk in found])
    zeroed: list[Vdisk] = []
    waiting = 0

    def tag() -> None:
        with _of(zeroed[0].name):
            _tag_wiped(lvm, pool.name, zeroed)
        for vdisk in zeroed:
            finished(vdisk.name)

    for vdisk in found:
        with _of(vdisk.name):
            waiting += _zero_rest(lvm, vdisk)
        zeroed.append(vdisk)
        if waiting >= _TAG_EVERY:
            tag()
            zeroed, waiting = [], 0
    if zeroed:
        tag()


def _zero_lease(pool: Pool, lease: int) -> None:
    """Zero what the vdisk that had the lease before has left."""
    offset = _lease.offset_of(lease, pool.leases.extents) if pool.leases else None
    if offset is None:
        raise StepFailed(f"pool {pool.name} has no lease {lease}; run this again")
    _zero.zero(pool.device, offset, _lease.SIZE)


def _lease_tag(lease: int) -> str:
    return f"{LEASE_TAG}{lease}"


@contextmanager
def _of(name: str) -> Iterator[None]:
    try:
        yield
    except (IovlabError, OSError) as exc:
        raise VdiskFailed(name, exc) from exc


def beyond(extents: Sequence[Extent], offset: int) -> list[Extent]:
    """The parts of ``extents`` from ``offset`` of the vdisk on."""
    found = []
    for start, physical, length in extents:
        skip = max(offset - start, 0)
        if skip < length:
            found.append((start + skip, physical + skip, length - skip))
    return found


def _shown_vdisk(vdisk: Vdisk | None) -> dict[str, Any]:
    if vdisk is None:
        return {}
    return {"name": vdisk.name, "size": vdisk.size, "wiped": vdisk.wiped, "lease": vdisk.lease}


def described(pool: Pool, vdisk: Vdisk) -> dict[str, Any]:
    """A vdisk as modules return it."""
    return {
        "name": vdisk.name,
        "pool": pool.name,
        "size": vdisk.size,
        "wiped": vdisk.wiped,
        "ready": vdisk.ready,
        "device": pool.device,
        "extents": [list(extent) for extent in vdisk.extents],
        "lease": pool.lease_of(vdisk),
    }


def described_pool(pool: Pool | None) -> dict[str, Any]:
    """A pool as modules return it."""
    if pool is None:
        return {}
    shown = {
        "name": pool.name,
        "device": pool.device,
        "size": pool.size,
        "free": pool.free,
        "extent_size": pool.extent_size,
    }
    return shown | {"vdisks": [vdisk.name for vdisk in pool.vdisks]}


def mappable(pool: Pool, name: str) -> Vdisk:
    """The vdisk ``name``; Refused when there is none, or when it could show a former tenant's data."""
    vdisk = pool.vdisk(name)
    if vdisk is None:
        known = ", ".join(vdisk.name for vdisk in pool.vdisks) or "none"
        raise Missing(
            f"vdisk: there is no vdisk {name} in pool {pool.name} (it has: {known}); create it with the vdisk module "
            "first"
        )
    if not vdisk.extents:
        raise Refused(
            f"vdisk: {pool.name}/{name} is no linear volume and has no extents to map; make it with the vdisk module"
        )
    if not vdisk.ready:
        raise Refused(
            f"vdisk: {name} of pool {pool.name} is wiped up to {vdisk.wiped or 0} of {vdisk.size} bytes only and "
            "could show another tenant's data; "
            "run the vdisk module on the pool's manager with wipe=true"
        )
    return vdisk
