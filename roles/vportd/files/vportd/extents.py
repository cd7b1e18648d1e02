# SPDX-License-Identifier: GPL-3.0-or-later
"""Translation: bytes of a vdisk to bytes of the physical storage, by a sorted list of extents (the second half of the
way D1, D2).
"""

from array import array
from bisect import bisect_right


class Extents:
    """The extents of one vdisk in compact arrays; immutable, so that a new one can replace it between two requests.

    ``capacity`` is the end of the last extent, in bytes. ``readonly`` counts for the whole vdisk.
    """

    __slots__ = ("starts", "ends", "deltas", "locked", "capacity", "readonly")

    def __init__(self, extents: list[tuple[int, int, int, bool]], readonly: bool) -> None:
        """``extents`` are ``(start, physical, length, read-only)`` in bytes, sorted by start, without an overlap."""
        self.starts = array("q", [start for start, _, _, _ in extents])
        self.ends = array("q", [start + length for start, _, length, _ in extents])
        self.deltas = array("q", [physical - start for start, physical, _, _ in extents])
        self.locked = bytes(extent_ro or readonly for _, _, _, extent_ro in extents)
        self.capacity = self.ends[-1] if extents else 0
        self.readonly = readonly

    def one(self, start: int) -> tuple[int, int, int, int]:
        """Return ``(start, end, delta, locked)`` of the extent that holds byte ``start``; an empty one when there is
        none.
        """
        if not 0 <= start < self.capacity:
            return (0, 0, 0, 1)
        index = bisect_right(self.starts, start) - 1
        if index < 0 or start >= self.ends[index]:
            return (0, 0, 0, 1)
        return (self.starts[index], self.ends[index], self.deltas[index], self.locked[index])

    def pieces(self, start: int, length: int, write: bool) -> list[tuple[int, int]] | None:
        """Return ``(physical, bytes)`` of each piece of a request, in order.

        None = not a byte of it may be done: it leaves the mapping, meets a hole, or writes to a read-only extent.
        """
        end = start + length
        if start < 0 or length < 0 or end > self.capacity:
            return None
        found: list[tuple[int, int]] = []
        starts, ends = self.starts, self.ends
        index = bisect_right(starts, start) - 1
        while start < end:
            if (
                not 0 <= index < len(starts)
                or not starts[index] <= start < ends[index]
                or (write and self.locked[index])
            ):
                return None
            stop = min(end, ends[index])
            physical = start + self.deltas[index]
            if found and sum(found[-1]) == physical:
                found[-1] = (found[-1][0], found[-1][1] + stop - start)
            else:
                found.append((physical, stop - start))
            start = stop
            index += 1
        return found
