# SPDX-License-Identifier: GPL-3.0-or-later
"""Extents of one vdisk as columns: a million of them are 25 MB, and every look at all of them is a few passes in C."""

import hashlib
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from operator import add, eq, itemgetter, le

Extent = tuple[int, int, int, bool]  # start, physical, length in bytes; read-only


class ExtentTable:
    """The extents of one vdisk, sorted by start: ``starts``, ``physicals`` and ``lengths`` in bytes, and one byte each
    in ``locked``, 1 = read-only. Never changed once it is made.
    """

    __slots__ = ("starts", "physicals", "lengths", "locked", "_hash", "_merged")

    def __init__(self, starts: "array[int]", physicals: "array[int]", lengths: "array[int]", locked: bytes) -> None:
        """The columns are of the same length, each of type ``q``; they are sorted here."""
        if not all(map(le, starts, islice(starts, 1, None))):
            order = sorted(range(len(starts)), key=starts.__getitem__)
            starts, physicals, lengths = (
                array("q", map(column.__getitem__, order)) for column in (starts, physicals, lengths)
            )
            locked = bytes(map(locked.__getitem__, order))
        self.starts, self.physicals, self.lengths, self.locked = starts, physicals, lengths, locked
        self._hash: str | None = None
        self._merged: ExtentTable | None = None

    @classmethod
    def of(cls, extents: Sequence[Extent]) -> "ExtentTable":
        """Make a table of ``(start, physical, length, read-only)``. Raises OverflowError and TypeError for what is not
        a number of 63 bits.
        """
        starts, physicals, lengths = (array("q", map(itemgetter(column), extents)) for column in range(3))
        return cls(starts, physicals, lengths, bytes(map(bool, map(itemgetter(3), extents))))

    @classmethod
    def unpack(cls, content: bytes) -> "ExtentTable":
        """Read what ``pack`` gave. Raises ValueError for what it cannot have given."""
        count, rest = divmod(len(content), 25)
        if rest:
            raise ValueError(f"{len(content)} bytes are no whole extents")
        if content[24 * count :].strip(b"\0\1"):
            raise ValueError("a byte that says read-only or not is neither 1 nor 0")
        numbers = array("q")
        numbers.frombytes(content[: 24 * count])
        columns = numbers[:count], numbers[count : 2 * count], numbers[2 * count :]
        return cls(columns[0], columns[1], columns[2], content[24 * count :])

    def pack(self) -> bytes:
        """Return the columns one after the other, 25 bytes an extent: starts, physicals and lengths as 64 bits each,
        lowest byte first, and the bytes of ``locked``.
        """
        return b"".join((self.starts.tobytes(), self.physicals.tobytes(), self.lengths.tobytes(), self.locked))

    @property
    def sha256(self) -> str:
        """The hash of ``pack``, as hexadecimal digits."""
        if self._hash is None:
            self._hash = hashlib.sha256(self.pack()).hexdigest()
        return self._hash

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[Extent]:
        return zip(self.starts, self.physicals, self.lengths, map(bool, self.locked), strict=True)

    def ends(self) -> Iterable[int]:
        """Return where each extent ends in the vdisk."""
        return map(add, self.starts, self.lengths)

    def physical_ends(self) -> Iterable[int]:
        """Return where each extent ends on the storage."""
        return map(add, self.physicals, self.lengths)

    @property
    def capacity(self) -> int:
        """Bytes up to the end of the last extent."""
        return self.starts[-1] + self.lengths[-1] if self.starts else 0

    def normalised(self) -> "ExtentTable":
        """Return the table with those merged that follow each other in the vdisk and on the storage."""
        if self._merged is None:
            following = True in map(eq, self.physical_ends(), islice(self.physicals, 1, None))
            self._merged = self._merge() if following else self
        return self._merged

    def _merge(self) -> "ExtentTable":
        merged: list[Extent] = []
        for start, physical, length, locked in self:
            if merged:
                before = merged[-1]
                if before[0] + before[2] == start and before[1] + before[2] == physical and before[3] == locked:
                    merged[-1] = (before[0], before[1], before[2] + length, locked)
                    continue
            merged.append((start, physical, length, locked))
        return ExtentTable.of(merged)

    def as_json(self) -> list[list[int | str]]:
        """Return the list of extents that ``mapping_set`` takes."""
        if 1 not in self.locked:
            return list(map(list, zip(self.starts, self.physicals, self.lengths, strict=True)))
        return [[*extent[:3], "ro"] if extent[3] else list(extent[:3]) for extent in self]

    def starts_with(self, other: "ExtentTable") -> bool:
        """True when the first extents of this table are those of the other, whole."""
        count = len(other)
        mine = (self.starts, self.physicals, self.lengths, self.locked)
        theirs = (other.starts, other.physicals, other.lengths, other.locked)
        return all(a[:count] == b for a, b in zip(mine, theirs, strict=True))


def combined(*columns: "array[int]") -> int:
    """Return the bits that any number of the columns has, of 64; bit 63 says that one is negative.

    The upper half of all is laid over the lower one until one number is left: that is much faster than one by one.
    """
    content = b"".join(columns)
    count, number = len(content) // 8, int.from_bytes(content, sys.byteorder)
    while count > 1:
        count = (count + 1) // 2
        number = number >> 64 * count | number & (1 << 64 * count) - 1
    return number


def disjoint(tables: Iterable[ExtentTable]) -> bool:
    """True when no two extents of all the tables share a byte of the storage: sorted, each ends before the next
    starts.
    """
    starts: list[int] = []
    ends: list[int] = []
    for table in tables:
        starts += table.physicals
        ends += table.physical_ends()
    starts.sort()
    ends.sort()
    return all(map(le, ends, islice(starts, 1, None)))
