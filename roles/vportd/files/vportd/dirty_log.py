# SPDX-License-Identifier: GPL-3.0-or-later
"""Dirty log: one bit for each 4 KiB page of guest memory that the device has written (vhost-user, "Migration")."""

import ctypes
import mmap

from vportd.atomic import fence, or_byte
from vportd.errors import MemoryFault
from vportd.vhost_user_spec import LOG_PAGE_SHIFT


class DirtyLog:
    """The log that the front end shares. Bits are set atomically: the front end clears them at the same time.

    Call ``mark`` after the memory was written, and before anybody is told that it was.
    """

    __slots__ = ("_area", "_anchor", "_base", "_bits", "_size", "pages")

    def __init__(self, fd: int, size: int, offset: int) -> None:
        """Map ``size`` bytes at ``offset`` of ``fd``; ``fd`` stays the caller's. Raises MemoryFault."""
        start = offset - offset % mmap.ALLOCATIONGRANULARITY
        try:
            self._area = mmap.mmap(
                fd, offset - start + size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=start
            )
        except (OSError, ValueError, OverflowError) as problem:
            raise MemoryFault(f"dirty log of {size} bytes cannot be mapped: {problem}") from problem
        self._bits = memoryview(self._area)[offset - start : offset - start + size]
        self._anchor = ctypes.c_char.from_buffer(self._bits)
        self._base = ctypes.addressof(self._anchor)
        self._size = size
        self.pages = 0

    def mark(self, ranges: list[tuple[int, int]]) -> None:
        """Set the bits of all pages of the ``(guest physical address, bytes)`` ranges. Raises MemoryFault beyond the
        log's end.

        A bit that is found set need not be set again: the fence puts the look after the write, so who clears it later
        copies the page later.
        """
        masks: dict[int, int] = {}
        for gpa, length in ranges:
            if length:
                for page in range(gpa >> LOG_PAGE_SHIFT, ((gpa + length - 1) >> LOG_PAGE_SHIFT) + 1):
                    masks[page >> 3] = masks.get(page >> 3, 0) | 1 << (page & 7)
        fence()
        for index, mask in masks.items():
            if index >= self._size:
                raise MemoryFault(f"page {index * 8} is beyond the dirty log of {self._size} bytes")
            missing = mask & ~self._bits[index]
            if missing:
                or_byte(self._base + index, missing)
                self.pages += missing.bit_count()
