# SPDX-License-Identifier: GPL-3.0-or-later
"""Leases as modules see them: where the block of one lies, and whether its owner is alive. vportd writes them."""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ._errors import Refused

SIZE = 4096
_MAGIC = b"IOVLEASE"
_FIELDS = struct.Struct("<8sIIQQ16s16s16s64s128sQ")  # as in vportd/lease_record.py
_FREE = 0
_LOOK = 0.2  # seconds between two looks at a lease that may be renewed


@dataclass(frozen=True, slots=True)
class Lease:
    """What counts of a record: who owns it, and a number that each renewal changes. ``validity`` in seconds."""

    owner: str
    stamp: int
    validity: float


def offset_of(block: int, extents: Sequence[tuple[int, int, int]]) -> int | None:
    """Byte on the storage of a block of the volume of leases; None when it has not so many."""
    at = block * SIZE
    for start, physical, length in extents:
        if start <= at and at + SIZE <= start + length:
            return physical + at - start
    return None


def owned(block: bytes) -> Lease | None:
    """The lease in a block; None when it is free, or no lease."""
    body, checksum = block[: _FIELDS.size], block[_FIELDS.size : _FIELDS.size + 32]
    if body[:8] != _MAGIC or hashlib.sha256(body).digest() != checksum:
        return None
    __, __, state, __, stamp, owner, __, __, name, __, validity = _FIELDS.unpack(body)
    if state == _FREE:
        return None
    return Lease(name.rstrip(b"\0").decode(errors="replace") or owner.hex(), stamp, validity / 1000)


def read(device: str, offset: int) -> Lease | None:
    """The lease at ``offset`` of ``device``, read past the page cache."""
    flags = os.O_DIRECT if stat.S_ISBLK(os.stat(device).st_mode) else 0
    descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        with mmap.mmap(-1, SIZE) as page:  # aligned, as O_DIRECT asks for
            os.preadv(descriptor, [page], offset)
            return owned(page[:])
    finally:
        os.close(descriptor)


def refuse_living(device: str, offset: int, vdisk: str) -> None:
    """Refused when a host renews the lease; that takes a moment to see, unless the lease is free."""
    first = read(device, offset)
    if first is None:
        return
    end = time.monotonic() + first.validity / 2
    while time.monotonic() < end:
        time.sleep(_LOOK)
        now = read(device, offset)
        if now is not None and now.stamp != first.stamp:
            raise Refused(
                f"vdisk {vdisk} is in use on {now.owner}, which renews its lease; delete the vport that maps it there "
                "first"
            )
