# SPDX-License-Identifier: GPL-3.0-or-later
"""Writing zeros over a range of a block device, past the page cache."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import struct

BLKZEROOUT = 0x127F  # linux/fs.h: _IO(0x12, 127); argument: two u64, offset and length in bytes
_IOCTL_CHUNK = 256 * 1024 * 1024
_WRITE_CHUNK = 1024 * 1024


def zero(path: str, offset: int, length: int) -> None:
    """Zero ``length`` bytes from ``offset``, both multiples of the block size; on stable storage when it returns."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | _direct(path))
    try:
        end = offset + length
        done = _by_ioctl(descriptor, offset, end) if stat.S_ISBLK(os.fstat(descriptor).st_mode) else offset
        _by_writes(descriptor, done, end)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _direct(path: str) -> int:
    return os.O_DIRECT if stat.S_ISBLK(os.stat(path).st_mode) else 0


def _by_ioctl(descriptor: int, offset: int, end: int) -> int:
    """Let the device zero as much as it can; return the offset up to which it did."""
    while offset < end:
        length = min(_IOCTL_CHUNK, end - offset)
        try:
            fcntl.ioctl(descriptor, BLKZEROOUT, struct.pack("=QQ", offset, length))
        except OSError as exc:
            if exc.errno not in (errno.EOPNOTSUPP, errno.ENOTTY):
                raise
            return offset
        offset += length
    return offset


def _by_writes(descriptor: int, offset: int, end: int) -> None:
    with mmap.mmap(-1, _WRITE_CHUNK) as zeros, memoryview(zeros) as view:  # a page-aligned buffer, as O_DIRECT asks for
        while offset < end:
            with view[: min(_WRITE_CHUNK, end - offset)] as part:
                offset += os.pwrite(descriptor, part, offset)
