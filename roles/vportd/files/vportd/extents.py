# SPDX-License-Identifier: GPL-3.0-or-later
"""Translation: bytes of a vdisk to bytes of the physical storage, by a sorted list of extents (the second half of the
way D1, D2).
"""

import itertools
import operator
import struct
from array import array
from bisect import bisect_right
from collections import Counter

from vportd.extent_table import Extent, ExtentTable, combined

HOLE = -(1 << 63)  # in ``deltas``: look it up in the rows
GRANULES = 4  # granules an extent that ``deltas`` may have, on average
STEPS = 8  # extents of one bucket that are looked at one after the other
Row = tuple[int, int, int, int]  # start, end, delta, locked

_row = struct.Struct("<qqqq").unpack_from
_NOTHING: Row = (0, 0, 0, 1)


class Extents:
    """The extents of one vdisk, compact; immutable, so that a new one can replace it between two requests.

    ``capacity`` is the end of the last extent, in bytes. A vdisk that is ``readonly`` has all its extents locked.

    ``rows`` holds each extent in 32 bytes, so that a look-up touches one line of memory there, and one of ``first``:
    ``first[n]`` says how many extents start before byte ``n << shift``, so the one that holds a byte is the last that
    starts in its bucket, or one of the few before. Where extents crowd in some buckets, ``starts`` is there for a
    binary search.

    ``deltas`` is the shortest way, for extents that begin and end on multiples of a granule of ``1 << granule`` bytes,
    as those of LVM do: ``deltas[n]`` is what is added to a byte of granule n, or HOLE where nothing is, or where it is
    read-only. It is empty where that would take too many granules.
    """

    __slots__ = ("rows", "count", "starts", "first", "shift", "capacity", "deltas", "granule")

    def __init__(self, extents: list[Extent] | ExtentTable, readonly: bool) -> None:
        """``extents`` are ``(start, physical, length, read-only)`` in bytes, without an overlap."""
        table = extents if isinstance(extents, ExtentTable) else ExtentTable.of(extents)
        count = self.count = len(table)
        rows = array("q", bytes(32 * count))
        rows[0::4] = table.starts
        rows[1::4] = array("q", table.ends())
        rows[2::4] = array("q", map(operator.sub, table.physicals, table.starts))
        rows[3::4] = array("q", list(b"\1" * count if readonly else table.locked))
        self.rows = rows.tobytes()
        self.capacity = table.capacity
        self.shift = max(self.capacity // max(count, 1) - 1, 0).bit_length()
        starting = Counter(map(operator.rshift, table.starts, itertools.repeat(self.shift)))
        counts = map(starting.get, range((self.capacity >> self.shift) + 1), itertools.repeat(0))
        self.first = array("I", itertools.accumulate(counts, initial=0))
        self.starts = table.starts if max(starting.values(), default=0) > STEPS else array("q")

        self.deltas, self.granule = self._granules(table, rows)

    def _granules(self, table: ExtentTable, rows: "array[int]") -> tuple["array[int]", int]:
        every = combined(table.starts, table.lengths)
        granule = max((every & -every).bit_length() - 1, 0)
        wanted = self.capacity >> granule
        if wanted > GRANULES * self.count:
            return array("q"), 0
        deltas = array("q", [HOLE]) * wanted
        if wanted == self.count:  # each extent is one granule, and there is no hole
            deltas = rows[2::4]
            if 1 in rows[3::4]:
                deltas = array(
                    "q", [HOLE if locked else delta for delta, locked in zip(deltas, rows[3::4], strict=True)]
                )
            return deltas, granule
        for start, end, delta, locked in struct.iter_unpack("<qqqq", self.rows):
            if not locked:
                first, last = start >> granule, end >> granule
                deltas[first:last] = array("q", [delta]) * (last - first)
        return deltas, granule

    def pack(self) -> tuple[dict[str, int], bytes]:
        """Return what ``unpack`` takes: the sizes, and everything else."""
        sizes = {"count": self.count, "first": len(self.first), "starts": len(self.starts), "shift": self.shift}
        sizes |= {"capacity": self.capacity, "deltas": len(self.deltas), "granule": self.granule}
        return sizes, b"".join((self.rows, self.first.tobytes(), self.starts.tobytes(), self.deltas.tobytes()))

    @classmethod
    def unpack(cls, sizes: dict[str, int], content: memoryview) -> "Extents":
        """Make the extents again from what ``pack`` gave; ``content`` may go on after it."""
        self = cls.__new__(cls)
        self.count, self.shift, self.capacity = sizes["count"], sizes["shift"], sizes["capacity"]
        self.rows = bytes(content[: 32 * self.count])
        self.first, self.starts, self.deltas, self.granule = array("I"), array("q"), array("q"), sizes["granule"]
        at = 32 * self.count
        end = at + self.first.itemsize * sizes["first"]
        self.first.frombytes(content[at:end])
        at = end + 8 * sizes["starts"]
        self.starts.frombytes(content[end:at])
        self.deltas.frombytes(content[at : at + 8 * sizes["deltas"]])
        return self

    def find(self, start: int) -> int:
        """Return the number of the last extent that starts at or before byte ``start``, -1 when there is none;
        ``start`` is from 0 to the capacity.
        """
        bucket = start >> self.shift
        index = self.first[bucket + 1]
        if self.starts:
            return bisect_right(self.starts, start, self.first[bucket], index) - 1
        index -= 1
        while index >= 0 and _row(self.rows, index << 5)[0] > start:
            index -= 1
        return index

    def one(self, start: int) -> Row:
        """Return ``(start, end, delta, locked)`` of the extent that holds byte ``start``; an empty one when there is
        none.
        """
        if not 0 <= start < self.capacity:
            return _NOTHING
        # ``find`` mostly in line: this is on the way of every request that leaves its extent
        index = self.find(start) if self.starts else self.first[(start >> self.shift) + 1] - 1
        while index >= 0:
            row = _row(self.rows, index << 5)
            if row[0] <= start:
                return row if start < row[1] else _NOTHING
            index -= 1
        return _NOTHING

    def pieces(self, start: int, length: int, write: bool) -> list[tuple[int, int]] | None:
        """Return ``(physical, bytes)`` of each piece of a request, in order.

        None = not a byte of it may be done: it leaves the mapping, meets a hole, or writes to a read-only extent.
        """
        end = start + length
        if start < 0 or length < 0 or end > self.capacity:
            return None
        found: list[tuple[int, int]] = []
        index = self.find(start)
        while start < end:
            if not 0 <= index < self.count:
                return None
            first, last, delta, locked = _row(self.rows, index << 5)
            if not first <= start < last or (write and locked):
                return None
            stop = min(end, last)
            physical = start + delta
            if found and sum(found[-1]) == physical:
                found[-1] = (found[-1][0], found[-1][1] + stop - start)
            else:
                found.append((physical, stop - start))
            start = stop
            index += 1
        return found
