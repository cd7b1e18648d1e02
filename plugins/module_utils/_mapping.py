# SPDX-License-Identifier: GPL-3.0-or-later
"""The mapping of a vport: LUN -> vdisk -> extents; what makes one good, and the step that pushes it."""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter, itemgetter
from typing import Any

from ._errors import Refused
from ._plan import Plan, Step
from ._units import checked_name, parse_size

LUNS: Mapping[str, Any] = {
    "type": "list",
    "elements": "dict",
    "options": {
        "lun": {"type": "int", "required": True},
        "vdisk": {"type": "str", "required": True},
        "pool": {"type": "str"},
        "readonly": {"type": "bool", "default": False},
        "extents": {"type": "list", "elements": "list"},
    },
}
"""The option that names the LUNs of a vport."""
_SECTOR = 512
_MOST_LUNS = 256
_MANY = 4096


@dataclass(frozen=True, slots=True)
class Extent:
    """``start`` in the LUN, ``physical`` on the adapter's storage, ``length``: bytes."""

    start: int
    physical: int
    length: int
    readonly: bool = False

    def sent(self) -> list[Any]:
        extent: list[Any] = [self.start, self.physical, self.length]
        return [*extent, "ro"] if self.readonly else extent


@dataclass(frozen=True, slots=True)
class Lun:
    lun: int
    vdisk: str
    readonly: bool
    extents: tuple[Extent, ...]
    lease: int | None = None

    def sent(self) -> dict[str, Any]:
        """As vportd's mapping_set takes it."""
        sent = {
            "lun": self.lun,
            "vdisk": self.vdisk,
            "readonly": self.readonly,
            "extents": [extent.sent() for extent in self.extents],
        }
        return sent if self.lease is None else sent | {"lease": self.lease}

    def pushed(self) -> dict[str, Any]:
        """The same for vportd; many extents packed, as docs/rpc.md says, which is read many times as fast."""
        if len(self.extents) <= _MANY:
            return self.sent()
        columns = array("q")
        for column in ("start", "physical", "length"):
            columns.extend(map(attrgetter(column), self.extents))
        if sys.byteorder == "big":
            columns.byteswap()
        content = columns.tobytes() + bytes(map(attrgetter("readonly"), self.extents))
        return replace(self, extents=()).sent() | {"extents": base64.b64encode(content).decode("ascii")}


@dataclass(frozen=True, slots=True)
class VportMapping:
    """What vportd holds for a vport."""

    generation: int
    digest: str | None
    luns: tuple[Lun, ...]


def parse_extents(vdisk: str, extents: Any) -> tuple[Extent, ...]:
    """Extents as a user declares them: ``[start, physical, length]``, a fourth part ``ro`` for read-only."""
    found = []
    for number, extent in enumerate(extents):
        what = f"extent {number} of vdisk {vdisk}"
        if (
            not isinstance(extent, list | tuple)
            or len(extent) not in (3, 4)
            or (len(extent) == 4 and extent[3] not in ("ro", "rw"))
        ):
            raise Refused(
                f"{what}: {extent!r} is not [start, physical, length] or [start, physical, length, ro]; correct it"
            )
        start, physical, length = (parse_size(part, what) for part in extent[:3])
        found.append(Extent(start, physical, length, readonly=extent[3:] in (["ro"], ("ro",))))
    return tuple(found)


def normalised(luns: Iterable[Lun]) -> tuple[Lun, ...]:
    """LUNs by number, extents by start, neighbours that are one range merged: equal mappings become equal values."""
    result = []
    for lun in sorted(luns, key=lambda lun: lun.lun):
        merged: list[Extent] = []
        for extent in sorted(lun.extents, key=lambda extent: extent.start):
            last = merged[-1] if merged else None
            if (
                last
                and last.start + last.length == extent.start
                and last.physical + last.length == extent.physical
                and last.readonly == extent.readonly
            ):
                merged[-1] = Extent(last.start, last.physical, last.length + extent.length, last.readonly)
            else:
                merged.append(extent)
        result.append(Lun(lun.lun, lun.vdisk, lun.readonly, tuple(merged), lun.lease))
    return tuple(result)


def from_vportd(reply: Mapping[str, Any]) -> VportMapping:
    luns = [
        Lun(
            lun["lun"],
            lun["vdisk"],
            bool(lun.get("readonly")),
            parse_extents(lun["vdisk"], lun["extents"]),
            lun.get("lease"),
        )
        for lun in reply["luns"]
    ]
    return VportMapping(reply["generation"], reply.get("digest"), normalised(luns))


LookUp = Callable[[str, str], "tuple[tuple[Extent, ...], int | None]"]
"""(pool, vdisk) -> its extents and the byte where its lease lies"""


def wanted(entries: Sequence[Mapping[str, Any]], pool: str | None, look_up: LookUp) -> tuple[Lun, ...]:
    """The LUNs that a user asks for, extents as given or those of the vdisk, in its own pool or in ``pool``."""
    luns = []
    for entry in entries:
        vdisk, lease = entry["vdisk"], None
        if entry["extents"] is not None:
            extents = parse_extents(vdisk, entry["extents"])
        else:
            named = entry["pool"] or pool
            if named is None:
                raise Refused(
                    f"vdisk {vdisk} (LUN {entry['lun']}) has neither extents nor a pool to look them up in; give one "
                    "of both"
                )
            extents, lease = look_up(named, vdisk)
        luns.append(Lun(entry["lun"], vdisk, entry["readonly"], extents, lease))
    return tuple(luns)


def refuse_doubles(luns: Sequence[Mapping[str, Any]]) -> None:
    """A LUN number or a vdisk that is named twice, or a LUN number that cannot be."""
    numbers: dict[int, str] = {}
    vdisks: dict[str, int] = {}
    for entry in luns:
        number, vdisk = (
            entry["lun"],
            checked_name(entry["vdisk"], "vdisk", r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}", "letters, digits, _, . and -"),
        )
        if not 0 <= number < _MOST_LUNS:
            raise Refused(f"lun: {number} of vdisk {vdisk} is out of range; use 0 to {_MOST_LUNS - 1}")
        if number in numbers:
            raise Refused(
                f"lun: {number} is used twice, for vdisks {numbers[number]} and {vdisk}; give each vdisk its own LUN"
            )
        if vdisk in vdisks:
            raise Refused(f"vdisk: {vdisk} is mapped twice, as LUNs {vdisks[vdisk]} and {number}; map it once")
        numbers[number], vdisks[vdisk] = vdisk, number


def refuse_bad_extents(luns: Sequence[Lun], storage_size: int, others: Sequence[tuple[str, Lun]]) -> None:
    """Extents that are misaligned, out of range, or overlap in the vdisk, in this mapping or with another vport's."""
    for lun in luns:
        if not lun.extents:
            raise Refused(f"vdisk {lun.vdisk} (LUN {lun.lun}) has no extents; declare at least one")
        end = 0
        for extent in sorted(lun.extents, key=lambda extent: extent.start):
            what = f"extent [{extent.start}, {extent.physical}, {extent.length}] of vdisk {lun.vdisk}"
            if extent.length <= 0:
                raise Refused(f"{what} has no length; give one above 0")
            if extent.start % _SECTOR or extent.physical % _SECTOR or extent.length % _SECTOR:
                raise Refused(
                    f"{what} is not aligned; use multiples of the storage's block size, {_SECTOR} bytes at least"
                )
            if extent.start < end:
                raise Refused(f"{what} overlaps the extent before it, which ends at {end}; correct its start")
            if extent.physical + extent.length > storage_size:
                raise Refused(
                    f"{what} is out of range: it ends at {extent.physical + extent.length}, the storage at "
                    f"{storage_size}; correct physical or length"
                )
            end = extent.start + extent.length
    _refuse_shared(luns, others)


def _refuse_shared(luns: Sequence[Lun], others: Sequence[tuple[str, Lun]]) -> None:
    """An extent of ``luns`` of which a physical byte is another's."""
    pieces = [(extent.physical, extent.length, lun, "") for lun in luns for extent in lun.extents]
    pieces += [(extent.physical, extent.length, lun, vport) for vport, lun in others for extent in lun.extents]
    pieces.sort(key=itemgetter(0, 1))
    last: tuple[int, int, Lun, str] | None = None  # the one of those before that ends last
    for piece in pieces:
        if last is not None and piece[0] < last[0] + last[1] and not (piece[3] and last[3]):
            mine, other = (last, piece) if piece[3] else (piece, last)
            owner = f"vdisk {other[2].vdisk} of vport {other[3]}" if other[3] else f"vdisk {other[2].vdisk} itself"
            extent = next(one for one in mine[2].extents if (one.physical, one.length) == mine[:2])
            raise Refused(
                f"extent [{extent.start}, {extent.physical}, {extent.length}] of vdisk {mine[2].vdisk} overlaps a "
                f"physical extent of {owner} ([{other[0]}, {other[0] + other[1]})); give it storage of its own"
            )
        if last is None or piece[0] + piece[1] > last[0] + last[1]:
            last = piece


def plan(
    vport: str,
    current: VportMapping,
    desired: Sequence[Lun] | None,
    connected: Mapping[int, str],
    generation: int | None,
) -> Plan:
    """The step that brings the mapping to ``desired`` (None = gone).

    ``generation`` is the one that the user expects, None = the one just read: vportd refuses the write when another
    came first. ``connected`` names the front end of each LUN that has one.
    """
    before = {"vport": vport, "luns": [lun.sent() for lun in current.luns]}
    luns = normalised(desired or ())
    after = {"vport": vport, "luns": [lun.sent() for lun in luns]}
    if luns == current.luns:
        return Plan(before, after)
    if generation is not None and generation != current.generation:
        raise Refused(
            f"generation: {generation} is stale, the mapping of vport {vport} is at generation {current.generation}; "
            "read it again with vport_info and decide anew"
        )
    for lun in current.luns:
        kept = next((other for other in luns if other.lun == lun.lun), None)
        if lun.lun not in connected:
            continue
        if kept is None:
            raise Refused(
                f"LUN {lun.lun} of vport {vport} is in use by {connected[lun.lun]} and cannot be removed; stop the "
                "VM first"
            )
        if _capacity(kept) < _capacity(lun):
            raise Refused(
                f"LUN {lun.lun} of vport {vport} is in use by {connected[lun.lun]} and cannot shrink from "
                f"{_capacity(lun)} to {_capacity(kept)} bytes; stop the VM first"
            )
    expected = current.generation
    if desired is None:
        return Plan(
            before,
            after,
            (Step("mapping_delete", f"delete the mapping of vport {vport}", {"expected_generation": expected}),),
        )
    step = Step(
        "mapping_set",
        f"push a mapping of {len(luns)} LUNs to vport {vport}",
        {"expected_generation": expected, "luns": [lun.pushed() for lun in luns]},
    )
    return Plan(before, after, (step,))


def _capacity(lun: Lun) -> int:
    return max((extent.start + extent.length for extent in lun.extents), default=0)
