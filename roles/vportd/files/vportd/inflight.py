# SPDX-License-Identifier: GPL-3.0-or-later
"""In-flight region of one queue: which heads were taken and not yet given back (vhost-user, "Inflight I/O tracking",
split virtqueue).

The region outlives this process, so each step is one aligned store and any of them may be the last before a kill. The
words used here::

    words[2 + 2 * head] = inflight (byte 0) | next << 48      words[3 + 2 * head] = counter
    halves[4] = version    halves[5] = desc_num    halves[6] = last_batch_head    halves[7] = used_idx
"""

import mmap

from vportd.errors import MemoryFault
from vportd.vhost_user_spec import INFLIGHT_ALIGNMENT, INFLIGHT_VERSION


def queue_region_size(size: int) -> int:
    """Return the bytes of the region of a queue of ``size`` descriptors."""
    return (16 + 16 * size + INFLIGHT_ALIGNMENT - 1) // INFLIGHT_ALIGNMENT * INFLIGHT_ALIGNMENT


class InflightRegion:
    """The region of one queue of ``size`` descriptors."""

    __slots__ = ("words", "halves", "size", "counter")

    def __init__(self, fd: int, offset: int, size: int) -> None:
        """Map the region at ``offset`` of ``fd``; ``fd`` stays the caller's. Raises MemoryFault."""
        start = offset - offset % mmap.ALLOCATIONGRANULARITY
        length = 16 + 16 * size
        try:
            area = mmap.mmap(
                fd, offset - start + length, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=start
            )
        except (OSError, ValueError, OverflowError) as problem:
            raise MemoryFault(f"in-flight region at {offset} cannot be mapped: {problem}") from problem
        view = memoryview(area)[offset - start : offset - start + length]
        self.words = view.cast("Q")
        self.halves = view.cast("H")
        self.size = size
        self.counter = 0

    def recover(self, used: int) -> list[int]:
        """Make the region right for a ring whose used index is ``used``; return the heads to submit again, oldest
        first.

        A region never used, of another queue size, or of which the used index cannot be this ring's, is made anew:
        nothing is in flight.
        """
        words, halves = self.words, self.halves
        behind = (used - halves[7]) & 0xFFFF
        if halves[4] != INFLIGHT_VERSION or halves[5] != self.size or behind > self.size:
            halves[4] = 0
            for head in range(self.size):
                words[2 + 2 * head] = 0
            halves[5] = self.size
            halves[6] = 0
            halves[7] = used
            halves[4] = INFLIGHT_VERSION
            return []
        head = halves[6]
        for __ in range(behind):  # the last batch reached the used ring, but was not yet taken off the list
            if head >= self.size:
                raise MemoryFault(f"in-flight region names head {head} of a queue of {self.size}")
            word = words[2 + 2 * head]
            words[2 + 2 * head] = word & ~0xFF
            head = word >> 48
        halves[7] = used
        heads = [head for head in range(self.size) if words[2 + 2 * head] & 0xFF]
        heads.sort(key=lambda head: words[3 + 2 * head])
        # What a front end has written there may be at its end: half of the range is left to count on in.
        self.counter = words[3 + 2 * heads[-1]] + 1 & (1 << 63) - 1 if heads else 0
        return heads
