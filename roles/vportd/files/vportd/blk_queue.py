# SPDX-License-Identifier: GPL-3.0-or-later
"""A LUN in a worker: its device, its queues, and the requests that the storage is working on."""

import os

from vportd.dirty_log import DirtyLog
from vportd.extents import Extents
from vportd.memory import MemoryMap
from vportd.storage import Storage
from vportd.virtio_spec import VIRTIO_BLK_ID_BYTES
from vportd.virtqueue import Chain, Virtqueue

# Words of the counters of one queue, 64 bits each, in memory shared with the engine's process
LAST_AVAIL, USED, OUTSTANDING, READS, WRITES, FLUSHES, ERRORS, BYTES_READ, BYTES_WRITTEN, DIRTY_PAGES = range(10)
DISCARDS, ZEROES = 10, 11
LATENCY, WORST, HELD = 12, 13, 14  # us: of all requests, of the longest; requests that wait for the storage
HISTOGRAM, BUCKETS = 16, 24  # word HISTOGRAM + n counts requests that took less than 2**n us, the last all others
COUNTERS_SIZE = 512  # bytes a queue

_SIGNAL = (1).to_bytes(8, "little")


class Device:
    """One LUN as the guest sees it. ``extents`` and ``memory`` may be replaced between two requests."""

    __slots__ = ("lun", "serial", "extents", "memory", "storage", "log", "queues")

    def __init__(self, lun: int, serial: str, extents: Extents, storage: Storage) -> None:
        self.lun = lun
        self.serial = serial.encode()[:VIRTIO_BLK_ID_BYTES].ljust(VIRTIO_BLK_ID_BYTES, b"\0")
        self.extents = extents
        self.storage = storage
        self.memory: MemoryMap | None = None
        self.log: DirtyLog | None = None
        self.queues: dict[int, Queue] = {}


class Queue:
    """One queue of a device: its ring, the notification to the driver, and what was taken and not yet given back
    (``outstanding``, by head).

    ``used_log`` = guest physical address of the used ring for the dirty log, or None. ``broken`` = why nothing more is
    taken. ``again`` = what an earlier worker took and did not give back. ``held`` = do that, but take nothing new.
    ``patience`` = seconds to look into the empty ring, ``alone`` = no other queue of this worker had something too.
    ``taken`` = when the requests that are being started were taken. ``hurry``: not 0 when a command waits. ``long`` =
    sum over the outstanding requests; ``full`` = nothing is begun because that is too much. ``left`` = nobody waits for
    what the storage fails.
    """

    __slots__ = (
        "device",
        "index",
        "ring",
        "call_fd",
        "kick_fd",
        "counters",
        "outstanding",
        "again",
        "broken",
        "used_log",
        "held",
        "patience",
        "waiting_since",
        "alone",
        "taken",
        "hurry",
        "long",
        "full",
        "left",
    )

    def __init__(
        self, device: Device, index: int, ring: Virtqueue, kick_fd: int, call_fd: int, counters: memoryview
    ) -> None:
        """``counters`` = COUNTERS_SIZE bytes. ``call_fd`` is -1 when the driver polls."""
        self.device = device
        self.index = index
        self.ring = ring
        self.kick_fd = kick_fd
        self.call_fd = call_fd
        self.counters = counters.cast("Q")
        self.outstanding: dict[int, Request] = {}
        self.again: list[tuple[int, Chain]] = []
        self.broken: str | None = None
        self.used_log: int | None = None
        self.held = False
        self.patience = 0.0
        self.waiting_since = 0.0
        self.alone = True
        self.taken = 0.0
        self.hurry: memoryview | bytes = b"\0"
        self.long = 0
        self.full = False
        self.left = False

    def signal(self) -> None:
        """Notify the driver."""
        if self.call_fd >= 0:
            try:
                os.write(self.call_fd, _SIGNAL)
            except OSError:  # the counter is full, and the driver has enough to see; or it is no eventfd at all
                return

    def unfinished(self) -> bool:
        """True while something that was taken is not given back."""
        return bool(self.outstanding) or (bool(self.again) and self.broken is None)

    def publish(self) -> None:
        """Write the position to the shared counters."""
        counters = self.counters
        counters[LAST_AVAIL] = self.ring.last_avail
        counters[USED] = self.ring.used
        counters[OUTSTANDING] = len(self.outstanding)


class Request:
    """A request that the storage is working on: ``left`` operations of it, then the status byte. ``dirty`` = chain to
    log as written. ``long`` = numbers in its chain and, four for each, its operations, where it is not a usual one.
    """

    __slots__ = ("queue", "head", "dirty", "operation", "total", "missing", "left", "failed", "status", "taken", "long")

    def __init__(
        self, queue: Queue, head: int, dirty: Chain, operation: int, length: int, left: int, status: memoryview
    ) -> None:
        self.queue = queue
        self.head = head
        self.dirty = dirty
        self.operation = operation
        self.total = length
        self.missing = length
        self.left = left
        self.failed = 0  # the errno of an operation that failed, negative
        self.status = status
        self.taken = queue.taken
        self.long = 0
