# SPDX-License-Identifier: GPL-3.0-or-later
"""Mapping of one vport: which vdisk each LUN is, and which extents of the storage each vdisk is. Checked whole before
anything is changed.
"""

import binascii
import hashlib
import itertools
import json
from array import array
from bisect import bisect_right
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter, le
from typing import Any

from vportd.errors import RpcError
from vportd.extent_table import Extent, ExtentTable, combined, disjoint
from vportd.extents import Extents
from vportd.lease_record import LONGEST_VDISK
from vportd.lease_record import SIZE as LEASE_SIZE

MAX_LUN = 255
MAX_EXTENTS = 1 << 20


@dataclass(frozen=True, slots=True)
class Lun:
    """One LUN. ``extents`` as they were set, sorted by start. ``lease`` = byte on the storage where its lease lies."""

    lun: int
    vdisk: str
    readonly: bool
    extents: ExtentTable
    lease: int | None = None

    @property
    def capacity(self) -> int:
        """Bytes up to the end of the last extent."""
        return self.extents.capacity

    def as_json(self) -> dict[str, Any]:
        """Return the record that ``mapping_set`` takes."""
        lease = {} if self.lease is None else {"lease": self.lease}
        return {
            "lun": self.lun,
            "vdisk": self.vdisk,
            "readonly": self.readonly,
            "extents": self.extents.as_json(),
            **lease,
        }


def sha256(value: object) -> str:
    """Return ``sha256:`` with the hash of the canonical JSON of ``value``."""
    return "sha256:" + hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def digest(luns: tuple[Lun, ...]) -> str:
    """Return the digest of a mapping: the same on every host and for every way to cut the same extents.

    It is ``sha256`` of the list of all LUNs, in which the hash of their merged extents, packed, stands for these.
    """
    return sha256(
        [
            {
                "lun": one.lun,
                "vdisk": one.vdisk,
                "readonly": one.readonly,
                "lease": one.lease,
                "extents": one.extents.normalised().sha256,
            }
            for one in luns
        ]
    )


def _invalid(message: str, **data: object) -> RpcError:
    return RpcError("INVALID", message, **data)


def _integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _extent(where: str, value: object, block_size: int, storage_size: int) -> Extent:
    if not isinstance(value, list | tuple) or len(value) not in (3, 4) or not all(map(_integer, value[:3])):
        raise _invalid(f'{where}: {value!r} is not [start, physical, length] or [start, physical, length, "ro"]')
    if len(value) == 4 and value[3] != "ro":
        raise _invalid(f'{where}: {value[3]!r} is not "ro"')
    start, physical, length = value[:3]
    if start < 0 or physical < 0 or length <= 0:
        raise _invalid(
            f"{where}: start {start}, physical {physical}, length {length}: none may be negative, length must be "
            f"above 0"
        )
    for name, number in (("start", start), ("physical", physical), ("length", length)):
        if number % block_size:
            raise _invalid(f"{where}: {name} {number} is not a multiple of the storage's block size {block_size}")
    if physical + length > storage_size:
        raise _invalid(f"{where}: ends at byte {physical + length} of a storage of {storage_size} bytes")
    if start + length > 1 << 62:
        raise _invalid(f"{where}: start {start} is beyond any disk")
    return (start, physical, length, len(value) == 4)


def _table(where: str, extents: list[Any] | str | ExtentTable, block_size: int, storage_size: int) -> ExtentTable:
    """Return the extents of one LUN as a table. All are checked at once; only when one is wrong are they looked at one
    by one, to say which.
    """
    if isinstance(extents, str):
        extents = _unpacked(where, extents)
    if isinstance(extents, ExtentTable):
        found: ExtentTable | None = extents
        extents = []
    elif set(map(type, extents)) <= {list, tuple}:
        found = _columns(extents)
    else:
        raise _invalid(f"{where}: extents must be lists, as [start, physical, length]")
    if found is not None:
        every = combined(found.starts, found.physicals, found.lengths)
        if (
            every & (block_size - 1 | 1 << 63) == 0 == block_size & (block_size - 1)
            and min(found.lengths) > 0
            and max(found.physical_ends()) <= storage_size
            and max(found.starts) + max(found.lengths) <= 1 << 62
        ):
            return found
        extents = extents or found.as_json()
    return ExtentTable.of(
        [_extent(f"{where} extent {n}", one, block_size, storage_size) for n, one in enumerate(extents)]
    )


def _columns(extents: list[Any]) -> ExtentTable | None:
    """Return the table of extents that may all be written, None when it takes a closer look at one of them."""
    if set(map(len, extents)) != {3}:
        return None
    columns = [list(map(itemgetter(column), extents)) for column in range(3)]
    if any(set(map(type, column)) != {int} for column in columns):
        return None
    try:
        starts, physicals, lengths = (array("q", column) for column in columns)
    except OverflowError:
        return None
    return ExtentTable(starts, physicals, lengths, bytes(len(starts)))


def _unpacked(where: str, text: str) -> ExtentTable:
    """Return the table of packed extents: base64 of what ``ExtentTable.pack`` gives."""
    try:
        found = ExtentTable.unpack(binascii.a2b_base64(text, strict_mode=True))
    except ValueError as problem:
        raise _invalid(f"{where}: extents are a string, and no packed extents: {problem}") from None
    if not 0 < len(found) <= MAX_EXTENTS:
        raise _invalid(f"{where}: there are {len(found)} packed extents: there must be 1 to {MAX_EXTENTS}")
    return found


def _checked(where: str, table: ExtentTable) -> ExtentTable:
    """Return the table. Raises RpcError INVALID when two of its extents overlap in the vdisk."""
    if not all(map(le, table.ends(), islice(table.starts, 1, None))):
        for before, after in itertools.pairwise(table):
            if after[0] < before[0] + before[2]:
                raise _invalid(f"{where}: the extents at {before[0]} and {after[0]} overlap in the vdisk")
    return table


def _lease(where: str, value: object, vdisk: str, storage_size: int) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0 or value % LEASE_SIZE:
        raise _invalid(f"{where}: lease is {value!r}: it must be a multiple of {LEASE_SIZE} bytes")
    if value + LEASE_SIZE > storage_size:
        raise _invalid(f"{where}: the lease at {value} is beyond the storage of {storage_size} bytes")
    if len(vdisk.encode()) > LONGEST_VDISK:
        raise _invalid(f"{where}: the name of a vdisk with a lease has at most {LONGEST_VDISK} bytes")
    return value


def refuse_lease_overlap(vport: str, luns: tuple[Lun, ...], others: list[tuple[str, tuple[Lun, ...]]]) -> None:
    """Raise RpcError INVALID when the lease of a LUN is in somebody's extents, or another vport's."""
    leases = {one.lease: one for one in luns if one.lease is not None}
    for name, owned in others:
        for one in owned:
            if one.lease is not None and one.lease in leases:
                mine = leases[one.lease]
                raise _invalid(
                    f"LUN {mine.lun} ({mine.vdisk}): its lease at {one.lease} is that of LUN {one.lun} ({one.vdisk}) "
                    f"of vport {name}",
                    vport=name,
                    lun=one.lun,
                    vdisk=one.vdisk,
                )
    everything = [(vport, luns), *others]
    blocks = sorted(one.lease for __, owned in everything for one in owned if one.lease is not None)
    for name, owned in everything if blocks else ():
        for one in owned:
            for start, end in zip(one.extents.physicals, one.extents.physical_ends(), strict=True):
                at = bisect_right(blocks, start - LEASE_SIZE)
                if at < len(blocks) and blocks[at] < end:
                    raise _invalid(
                        f"the lease at {blocks[at]} is in the physical bytes {start} to {end} of LUN {one.lun} "
                        f"({one.vdisk}) of vport {name}",
                        vport=name,
                        lun=one.lun,
                        vdisk=one.vdisk,
                    )


def parse_luns(value: object, block_size: int, storage_size: int) -> tuple[Lun, ...]:
    """Return the LUNs of a mapping, sorted. Raises RpcError INVALID for anything wrong in or between them."""
    if not isinstance(value, list):
        raise _invalid(f"luns is {value!r}: it must be a list")
    luns: list[Lun] = []
    for record in value:
        if not isinstance(record, dict):
            raise _invalid(f"{record!r} is not a LUN: it must be an object with lun, vdisk and extents")
        unknown = sorted(set(record) - {"lun", "vdisk", "readonly", "extents", "lease"})
        if unknown:
            raise _invalid(f"unknown key {unknown[0]!r} in a LUN: remove it")
        number, vdisk, readonly = record.get("lun"), record.get("vdisk"), record.get("readonly", False)
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= MAX_LUN:
            raise _invalid(f"lun is {number!r}: it must be a number from 0 to {MAX_LUN}")
        if not isinstance(vdisk, str) or not 0 < len(vdisk) <= 255 or not vdisk.isprintable():
            raise _invalid(f"LUN {number}: vdisk is {vdisk!r}: it must be a name of 1 to 255 characters")
        if not isinstance(readonly, bool):
            raise _invalid(f"LUN {number}: readonly is {readonly!r}: it must be true or false")
        extents = record.get("extents")
        if not isinstance(extents, str) and not (
            isinstance(extents, list | ExtentTable) and 0 < len(extents) <= MAX_EXTENTS
        ):
            raise _invalid(f"LUN {number}: extents must be a list of 1 to {MAX_EXTENTS}")
        lease = _lease(f"LUN {number}", record.get("lease"), vdisk, storage_size)
        found = _checked(f"LUN {number}", _table(f"LUN {number}", extents, block_size, storage_size))
        for other in luns:
            if other.lun == number:
                raise _invalid(f"LUN {number} is there twice")
            if other.vdisk == vdisk:
                raise _invalid(f"vdisk {vdisk} is there twice, as LUN {other.lun} and LUN {number}")
            if other.lease is not None and other.lease == lease:
                raise _invalid(f"the lease at {lease} is there twice, of LUN {other.lun} and LUN {number}")
        luns.append(Lun(number, vdisk, readonly, found, lease))
    luns.sort(key=lambda one: one.lun)
    return tuple(luns)


MANY = 4096  # extents that are not compared one by one


def only_grows(before: tuple[Lun, ...], after: tuple[Lun, ...]) -> bool:
    """True when every byte mapped before is mapped to the same place after, with the same rights."""
    new = {one.lun: one for one in after}
    for old in before:
        other = new.get(old.lun)
        if other is None or other.readonly != old.readonly:
            return False
        if other.extents.starts_with(old.extents):
            continue
        if len(old.extents) > MANY:
            return False  # not worth the look: to say no is always right
        extents = Extents(other.extents, False)
        for start, physical, length, locked in old.extents:
            if extents.pieces(start, length, False) != [(physical, length)]:
                return False
            if locked != (extents.pieces(start, length, True) is None):
                return False
    return True


def refuse_overlap(vport: str, luns: tuple[Lun, ...], others: list[tuple[str, tuple[Lun, ...]]]) -> None:
    """Raise RpcError INVALID when two extents of the mapping share a physical byte, or one with another vport's."""
    if disjoint(one.extents for __, owned in [(vport, luns), *others] for one in owned):
        return
    pieces = [
        (extent[1], extent[1] + extent[2], name, one)
        for name, owned in [(vport, luns), *others]
        for one in owned
        for extent in one.extents
    ]
    pieces.sort(key=lambda piece: piece[:2])
    reach: tuple[int, int, str, Lun] | None = None
    for piece in pieces:
        if reach is not None and piece[0] < reach[1] and vport in (piece[2], reach[2]):
            mine, other = (piece, reach) if piece[2] == vport else (reach, piece)
            whose = "the same mapping" if other[2] == vport else f"vport {other[2]}"
            raise _invalid(
                f"LUN {mine[3].lun} ({mine[3].vdisk}): physical bytes {piece[0]} to {min(piece[1], reach[1])} "
                f"belong to LUN {other[3].lun} "
                f"({other[3].vdisk}) of {whose}",
                vport=other[2],
                lun=other[3].lun,
                vdisk=other[3].vdisk,
            )
        if reach is None or piece[1] > reach[1]:
            reach = piece
