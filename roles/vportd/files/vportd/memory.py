# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory map: guest physical addresses, and the front end's own, to memory mapped here."""

import mmap
import os

from vportd.errors import MemoryFault

_NOTHING = memoryview(b"")


class Region:
    """One region of guest memory: guest physical ``gpa``, front end's address ``user``, both of ``size`` bytes,
    mapped as ``view``.
    """

    __slots__ = ("gpa", "end", "user", "view")

    def __init__(self, fd: int, gpa: int, size: int, user: int, offset: int) -> None:
        """Map ``size`` bytes at ``offset`` of ``fd``; ``fd`` stays the caller's. Raises MemoryFault."""
        if size <= 0 or gpa + size > 1 << 64 or user + size > 1 << 64 or offset + size > 1 << 63:
            raise MemoryFault(f"memory region of {size} bytes at guest address {gpa:#x} is not possible")
        start = offset - offset % mmap.ALLOCATIONGRANULARITY
        try:
            if os.fstat(fd).st_size < offset + size:
                raise MemoryFault(f"memory region {gpa:#x}: {size} bytes at offset {offset} are more than its file has")
            area = mmap.mmap(fd, offset - start + size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=start)
        except (OSError, ValueError, OverflowError) as problem:
            raise MemoryFault(f"memory region {gpa:#x} of {size} bytes cannot be mapped: {problem}") from problem
        self.gpa = gpa
        self.end = gpa + size
        self.user = user
        self.view = memoryview(area)[offset - start : offset - start + size]


class MemoryMap:
    """The guest memory of one front end.

    ``low``, ``high`` and ``view`` are those of the largest region, for the hot loop to look there first.
    A region stays mapped as long as any view of it is held, so a table may be replaced under running requests.
    """

    __slots__ = ("regions", "low", "high", "view")

    def __init__(self, regions: list[Region]) -> None:
        """Raises MemoryFault when regions overlap or there is none."""
        self.regions = sorted(regions, key=lambda region: region.gpa)
        for before, after in zip(self.regions, self.regions[1:], strict=False):
            if after.gpa < before.end:
                raise MemoryFault(f"memory regions at guest addresses {before.gpa:#x} and {after.gpa:#x} overlap")
        if not regions:
            raise MemoryFault("a memory table without a region")
        largest = max(self.regions, key=lambda region: region.end - region.gpa)
        self.low = largest.gpa
        self.high = largest.end
        self.view = largest.view

    def views(self, gpa: int, length: int) -> list[memoryview]:
        """Return the ``length`` bytes at guest physical address ``gpa``, one view a region touched. Raises
        MemoryFault.
        """
        found = []
        end = gpa + length
        for region in self.regions:
            if region.gpa <= gpa < region.end:
                stop = min(end, region.end)
                found.append(region.view[gpa - region.gpa : stop - region.gpa])
                gpa = stop
                if gpa == end:
                    return found
        raise MemoryFault(f"{length} bytes up to guest address {end:#x} are not in the guest's memory")

    def whole(self, gpa: int, length: int) -> memoryview:
        """Return the ``length`` bytes at ``gpa`` when they are all in one region, else an empty view."""
        for region in self.regions:
            if region.gpa <= gpa and gpa + length <= region.end:
                start = gpa - region.gpa
                return region.view[start : start + length]
        return _NOTHING

    def read(self, gpa: int, length: int) -> bytes:
        """Return a copy of ``length`` bytes at ``gpa``. Raises MemoryFault."""
        return b"".join(self.views(gpa, length))

    def user_view(self, user: int, length: int) -> memoryview:
        """Return the ``length`` bytes at the front end's address ``user``, all in one region. Raises MemoryFault."""
        for region in self.regions:
            start = user - region.user
            if start >= 0 and start + length <= region.end - region.gpa:
                return region.view[start : start + length]
        raise MemoryFault(f"{length} bytes at front end address {user:#x} are not in one memory region")
