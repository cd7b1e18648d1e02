# SPDX-License-Identifier: GPL-3.0-or-later
"""The record of a lease: who may write a vdisk. One block of 4096 bytes on the storage that all hypervisors share.

All that counts is in its first 512 bytes, so that it is old or new also where the storage writes such blocks one by
one. A block of zeroes is a lease that nobody has had yet.
"""

import hashlib
import struct
from dataclasses import dataclass

from vportd.errors import LeaseDamaged

SIZE = 4096
MAGIC, VERSION = b"IOVLEASE", 1
FREE, CLAIM, HELD, HANDED = "free", "claim", "held", "handed"
STATES = (FREE, CLAIM, HELD, HANDED)
LONGEST_NAME, LONGEST_VDISK = 64, 128  # bytes

# magic, version, state, generation, stamp, owner, nonce, next, owner's name, vdisk, validity in milliseconds; then a
# SHA-256 of all that
_FIELDS = struct.Struct(f"<8sIIQQ16s16s16s{LONGEST_NAME}s{LONGEST_VDISK}sQ")


@dataclass(frozen=True, slots=True)
class Record:
    """``owner``, ``nonce`` and ``next`` are 32 hexadecimal digits, or empty. ``generation`` is one more at each change
    of owner, ``stamp`` at each write. ``validity`` = seconds that the writer counts on after a renewal.
    """

    state: str = FREE
    generation: int = 0
    stamp: int = 0
    owner: str = ""
    nonce: str = ""
    next: str = ""
    owner_name: str = ""
    vdisk: str = ""
    validity: float = 0.0

    def pack(self) -> bytes:
        """Return the block."""
        body = _FIELDS.pack(
            MAGIC,
            VERSION,
            STATES.index(self.state),
            self.generation,
            self.stamp,
            bytes.fromhex(self.owner),
            bytes.fromhex(self.nonce),
            bytes.fromhex(self.next),
            cut(self.owner_name, LONGEST_NAME),
            cut(self.vdisk, LONGEST_VDISK),
            round(self.validity * 1000),
        )
        return (body + hashlib.sha256(body).digest()).ljust(SIZE, b"\0")

    def __str__(self) -> str:
        """Return what a message says of it: ``held by hv1 (generation 5)``."""
        if self.state == FREE:
            return f"free (generation {self.generation})"
        word = {CLAIM: "claimed by", HELD: "held by", HANDED: "handed on by"}[self.state]
        to = f" to the host of id {self.next}" if self.state == HANDED else ""
        return f"{word} {self.owner_name or self.owner}{to} (generation {self.generation})"


def cut(text: str, size: int) -> bytes:
    """Return ``text`` in at most ``size`` bytes of UTF-8."""
    return text.encode()[:size].decode(errors="ignore").encode()


def unpack(block: bytes) -> Record:
    """Return the record in a block. Raises LeaseDamaged."""
    if not any(block):
        return Record()
    body, checksum = block[: _FIELDS.size], block[_FIELDS.size : _FIELDS.size + 32]
    if body[:8] != MAGIC:
        raise LeaseDamaged("the block of the lease holds something else")
    if hashlib.sha256(body).digest() != checksum:
        raise LeaseDamaged("the checksum of the lease does not fit its content")
    __, version, state, generation, stamp, owner, nonce, following, name, vdisk, validity = _FIELDS.unpack(body)
    if version != VERSION or state >= len(STATES):
        raise LeaseDamaged(f"the lease is of version {version} and state {state}, which this engine does not know")
    owner, nonce, following = (one.hex() if any(one) else "" for one in (owner, nonce, following))
    name, vdisk = (one.rstrip(b"\0").decode(errors="replace") for one in (name, vdisk))
    return Record(STATES[state], generation, stamp, owner, nonce, following, name, vdisk, validity / 1000)
