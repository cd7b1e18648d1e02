# SPDX-License-Identifier: GPL-3.0-or-later
"""The load: a vhost-user front end with one queue whose requests are always all outstanding.

Lean, so that it is not what limits a back end: descriptors are written once, a request is started again by its sector
and one entry of the available ring, and everything that is found done is started again at once.
"""

import array
import os
import random
import select
import time
from dataclasses import dataclass
from typing import Any

from tests.unit.vportd.frontend import (
    EVENT_IDX,
    HIGH_GPA,
    IN,
    OUT,
    FrontEnd,
    Queue,
)
from tests.unit.vportd.peer import offered
from vportd.atomic import fence

SLOT = 4096  # header and status of one request; its data lies elsewhere
HEADERS, DATA = HIGH_GPA + 0x40000, HIGH_GPA + 0x100000
MEMORY = 32 << 20
ROUND = 1 << 16  # sectors drawn in advance: as many as there are in a span, so that they are not all in the cache


class Stalled(Exception):
    """A back end completes nothing any more, or with an error."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What is asked: requests of ``size`` bytes over ``span`` bytes, ``depth`` at a time, so many of ten of them
    writes.
    """

    size: int
    depth: int
    writes: int
    span: int


@dataclass(frozen=True, slots=True)
class Figures:
    """What was seen: ``worst`` and ``median`` are latencies in seconds, ``own`` the CPU seconds of the load."""

    requests: int
    seconds: float
    worst: float
    median: float
    own: float

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds


class Load:
    """One front end at ``path``."""

    def __init__(self, path: Any, shape: Shape) -> None:
        features, protocol = offered(path)
        self.shape = shape
        self.front: Any = FrontEnd(path, features=features, protocol=protocol, high=MEMORY)
        size = 128 if shape.depth <= 32 else 512
        self.queue: Any = self.front.start(1, size=size, slots=0)
        self._prepare(size)

    def _prepare(self, size: int) -> None:
        shape, queue, memory = self.shape, self.queue, self.front.memory
        whole = memoryview(memory.maps[1])
        self.avail = whole[queue.avail - HIGH_GPA :][: 6 + 2 * size].cast("H")
        used = whole[queue.used - HIGH_GPA :][: 6 + 8 * size]
        self.used16, self.used64 = used.cast("H"), used[4 : 4 + 8 * size].cast("Q")
        self.headers = whole[HEADERS - HIGH_GPA :][: SLOT * shape.depth].cast("Q")
        self.statuses = whole[HEADERS - HIGH_GPA :][: SLOT * shape.depth]
        for slot in range(shape.depth):
            write = slot * 10 < shape.writes * shape.depth
            header, data = HEADERS + slot * SLOT, DATA + slot * shape.size
            self.headers[slot * SLOT // 8] = OUT if write else IN
            queue.descriptor(3 * slot, header, 16, 1, 3 * slot + 1)
            queue.descriptor(3 * slot + 1, data, shape.size, 1 if write else 3, 3 * slot + 2)
            queue.descriptor(3 * slot + 2, header + 16, 1, 2, 0)
        places = range(0, shape.span // 512, shape.size // 512)
        self.sectors = array.array("Q", random.Random(1).choices(places, k=ROUND))
        self.index = self.seen = 0

    def run(self, seconds: float, keep: list[float] | None = None) -> Figures:
        """Keep the queue full for ``seconds``, then let it run empty. ``keep`` gets the latency of every request."""
        avail, used16, used64, headers = self.avail, self.used16, self.used64, self.headers
        sectors, statuses = self.sectors, self.statuses
        depth, size = self.shape.depth, self.queue.size
        mask, event, last = size - 1, 2 + size, ROUND - 1
        kick_event = 2 + 4 * size
        kick, call = self.queue.kick_fd, self.queue.call_fd
        event_idx = bool(self.front.features & EVENT_IDX)
        assert event_idx
        clock, write_fd, read_fd = time.perf_counter, os.eventfd_write, os.eventfd_read
        poller = select.poll()
        poller.register(call, select.POLLIN)
        index, seen, drawn, requests, worst = self.index, self.seen, 0, 0, 0.0
        started = [0.0] * (3 * depth)
        latencies = [] if keep is None else keep
        own = time.process_time()
        now = begin = clock()
        end = begin + seconds
        old = index
        for slot in range(depth):
            headers[slot * SLOT // 8 + 1] = sectors[slot % ROUND]
            avail[2 + (index & mask)] = 3 * slot
            started[3 * slot] = now
            index += 1
        running = depth
        while True:
            avail[1] = index & 0xFFFF
            fence()  # else both may miss what the other has just written: no kick, no notification, and all stand still
            if (index - used16[kick_event] - 1) & 0xFFFF < (index - old) & 0xFFFF:
                write_fd(kick, 1)
            old = index
            done = used16[1]
            if done == seen & 0xFFFF:
                avail[event] = seen & 0xFFFF
                fence()
                while (done := used16[1]) == seen & 0xFFFF:
                    if not poller.poll(30000):
                        raise Stalled(f"{running} requests are outstanding for 30 s")
                    try:
                        read_fd(call)
                    except BlockingIOError:
                        continue
            now = clock()
            more = now < end
            for position in range(seen, seen + ((done - seen) & 0xFFFF)):
                head = used64[position & mask] & 0xFFFFFFFF
                took = now - started[head]
                if took > worst:
                    worst = took
                if not requests & 7 or keep is not None:
                    latencies.append(took)
                requests += 1
                slot = head // 3
                if statuses[slot * SLOT + 16]:
                    raise Stalled(f"status {statuses[slot * SLOT + 16]}")
                if more:
                    drawn += 1
                    headers[slot * SLOT // 8 + 1] = sectors[drawn & last]
                    avail[2 + (index & mask)] = head
                    started[head] = now
                    index += 1
                else:
                    running -= 1
            seen += (done - seen) & 0xFFFF
            if not running:
                break
        self.index, self.seen = index, seen
        spent = clock() - begin
        latencies.sort()
        return Figures(requests, spent, worst, latencies[len(latencies) // 2], time.process_time() - own)

    def close(self) -> None:
        """Stop the queue and disconnect."""
        self.front.stop_queue(0)
        for view in (self.avail, self.used16, self.used64, self.headers, self.statuses):
            view.release()
        self.front.close()


__all__ = ["Figures", "Load", "Queue", "Shape", "Stalled"]
