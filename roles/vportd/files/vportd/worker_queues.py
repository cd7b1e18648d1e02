# SPDX-License-Identifier: GPL-3.0-or-later
"""The queues of a worker, and the commands that change them."""

import mmap
import os
import select
import time

from vportd import journal
from vportd.blk_config import QUEUES
from vportd.blk_queue import COUNTERS_SIZE, HELD, Device, Queue
from vportd.dirty_log import DirtyLog
from vportd.errors import VportdError
from vportd.extents import Extents
from vportd.inflight import InflightRegion
from vportd.lease_gate import Watch
from vportd.memory import MemoryMap, Region
from vportd.storage import OPERATIONS, Storage
from vportd.storage_errors import StorageErrors
from vportd.virtqueue import Virtqueue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Message = dict[str, Any]


class WorkerQueues:
    """All devices and queues of one worker; ``suspended`` = none of them takes anything."""

    gate: Watch
    storage: Storage
    errors: StorageErrors
    counters: memoryview  # of all queues on this path
    wake: memoryview  # not 0: say so when there is something to do
    hurry: memoryview  # not 0: look for a command

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.devices: dict[int, Device] = {}
        self.kicks: dict[int, Queue] = {}
        self.ready: set[Queue] = set()
        self.suspended = True
        self.suspending: int | None = None  # id of the suspend command that waits for its answer
        self.stopping: dict[Queue, int] = {}  # queue -> id of the stop command that waits
        self.told_broken: set[Queue] = set()
        self.prepared: set[Queue] = set()  # all is there but the position

    def send(self, message: "Message") -> None:
        """Send a message to the engine."""
        raise NotImplementedError

    # Every do_* below answers a command at once, or returns None and answers when the queues are drained. Descriptors
    # in ``fds`` are closed afterwards: one that is kept is taken out of the list.

    def do_mapping(self, message: "Message", fds: list[int]) -> "Message":
        """Replace the whole mapping; LUNs that are no longer in it are forgotten."""
        luns = {}
        size = os.fstat(fds[0]).st_size
        area = mmap.mmap(fds[0], size, mmap.MAP_SHARED, mmap.PROT_READ) if size else b""
        with memoryview(area) as content:
            at = 0
            for record in message["luns"]:
                luns[record["lun"]] = (record["serial"], Extents.unpack(record, content[at:]))
                at += record["bytes"]
        for lun, (serial, extents) in luns.items():
            device = self.devices.get(lun)
            if device is None:
                self.devices[lun] = Device(lun, serial, extents, self.storage)
            else:
                device.extents = extents
        for lun in set(self.devices) - set(luns):
            self._forget(self.devices.pop(lun))
        return {}

    def do_memory(self, message: "Message", fds: list[int]) -> "Message":
        """Replace the guest memory of one LUN; running rings are found again in it."""
        device = self.devices[message["lun"]]
        regions = [Region(fd, *fields) for fd, fields in zip(fds, message["regions"], strict=True)]
        memory = MemoryMap(regions)
        for queue in device.queues.values():
            queue.ring.remap(memory)
        device.memory = memory
        return {}

    def do_log(self, message: "Message", fds: list[int]) -> "Message":
        """Switch the dirty log of one LUN on or off: size and offset of the log, ``used`` = [queue, guest address of
        its used ring or null].
        """
        device = self.devices[message["lun"]]
        device.log = DirtyLog(fds[0], message["size"], message["offset"]) if fds else None
        for index, address in message["used"]:
            if index in device.queues:
                device.queues[index].used_log = address
        self._mark_used_rings(device)
        return {}

    @staticmethod
    def _mark_used_rings(device: Device) -> None:
        """Log all used rings as written: a worker that was killed may have written one and not come to log it."""
        if device.log is not None:
            rings = [
                (queue.used_log, 6 + 8 * queue.ring.size)
                for queue in device.queues.values()
                if queue.used_log is not None
            ]
            device.log.mark(rings)

    def do_start(self, message: "Message", fds: list[int]) -> "Message":
        """Start queues of one LUN. ``fds`` = for each queue: in-flight region, kick, and call when ``call``. Answers
        positions, and rings that are broken. ``prepare``: all but the start, for another worker still serves them;
        ``do_place`` follows.
        """
        device = self.devices[message["lun"]]
        if device.memory is None:
            raise VportdError(f"LUN {device.lun} has no guest memory yet")
        positions = []
        broken = []
        for record in message["queues"]:
            index = record["index"]
            inflight = fds.pop(0)
            kick = fds.pop(0)
            call = fds.pop(0) if record["call"] else -1
            try:
                if index in device.queues:
                    self.remove(device.queues[index])
                region = InflightRegion(inflight, record["inflight_offset"], record["size"])
                ring = Virtqueue(
                    device.memory,
                    record["size"],
                    record["desc"],
                    record["avail"],
                    record["used"],
                    message["features"],
                    region,
                )
                at = (device.lun * QUEUES + index) * COUNTERS_SIZE
                queue = Queue(device, index, ring, kick, call, self.counters[at : at + COUNTERS_SIZE])
                queue.counters[HELD] = 0
                queue.hurry = self.hurry
                queue.used_log = record["used_log"]
                if not message["prepare"]:
                    queue.again = ring.start(record["base"])
                os.set_blocking(kick, False)
                if call >= 0:
                    os.set_blocking(call, False)
                self.epoll.register(kick, select.EPOLLIN | select.EPOLLET)
            except (VportdError, OSError) as problem:
                fds += [fd for fd in (kick, call) if fd >= 0]
                broken.append([index, str(problem)])
                journal.warning(f"LUN {device.lun} queue {index} does not start: {problem}")
                continue
            finally:
                os.close(inflight)
            device.queues[index] = queue
            self.kicks[kick] = queue
            if message["prepare"]:
                self.prepared.add(queue)
                continue
            queue.publish()
            positions.append([index, ring.last_avail, ring.used, len(queue.again)])
            if not self.suspended:
                self._wake(queue)
        self._mark_used_rings(device)
        return {"queues": positions, "broken": broken}

    def do_place(self, message: "Message", fds: list[int]) -> "Message":
        """Start the queues that were prepared, at these positions, and resume. Answers as ``do_start`` for each LUN,
        and when the queues were in place, and served, by CLOCK_MONOTONIC. Refused as a whole, before anything is taken.
        """
        wanted = {(lun, index) for lun, places in message["luns"] for index, __ in places}
        missing = wanted - {(queue.device.lun, queue.index) for queue in self.prepared}
        if missing:
            raise VportdError("LUN {} queue {} is not prepared".format(*min(missing)))
        for device in self.devices.values():
            for queue in set(device.queues.values()) - self.prepared:  # of a hand-over that did not come about
                self.remove(queue)
        luns = []
        for lun, places in message["luns"]:
            device = self.devices[lun]
            positions = []
            broken = []
            for index, base in places:
                queue = device.queues[index]
                self.prepared.discard(queue)
                try:
                    queue.again = queue.ring.start(base)
                except VportdError as problem:
                    self.remove(queue)
                    broken.append([index, str(problem)])
                    journal.warning(f"LUN {lun} queue {index} does not start: {problem}")
                    continue
                queue.publish()
                positions.append([index, queue.ring.last_avail, queue.ring.used, len(queue.again)])
            self._mark_used_rings(device)
            luns.append({"queues": positions, "broken": broken})
        placed = time.monotonic()
        self.do_resume(message, fds)
        return {"luns": luns, "placed": placed, "resumed": time.monotonic()}

    def _wake(self, queue: Queue) -> None:
        queue.held = False
        queue.signal()  # the notification of what an earlier worker gave back may have died with it
        self.ready.add(queue)

    def do_call(self, message: "Message", fds: list[int]) -> "Message":
        """Replace the call eventfd of one queue; none = the driver polls."""
        queue = self.devices[message["lun"]].queues.get(message["index"])
        if queue is not None:
            old = queue.call_fd
            queue.call_fd = fds.pop(0) if fds else -1
            if old >= 0:
                os.close(old)
            if queue.call_fd >= 0:
                os.set_blocking(queue.call_fd, False)
                queue.signal()
        return {}

    def do_stop(self, message: "Message", fds: list[int]) -> "Message | None":
        """Take nothing more from one queue, wait for what was taken (unless ``drain`` is false), forget the queue.
        Answers its position.
        """
        queue = self.devices[message["lun"]].queues.get(message["index"])
        if queue is None:
            return {"error": f"LUN {message['lun']} queue {message['index']} is not started"}
        if not message["drain"]:
            answer = {"last_avail": queue.ring.used, "used": queue.ring.used, "broken": queue.broken}
            self.remove(queue)
            return answer
        self._hold(queue)
        if message["gone"]:  # nobody waits for what is held; it stays noted in the in-flight region
            self.errors.forget(queue)
        self.stopping[queue] = message["id"]
        return None

    def do_suspend(self, message: "Message", fds: list[int]) -> "Message | None":
        """Take nothing more from any queue, and wait for what was taken. Answers all positions."""
        self.suspended = True
        self.suspending = message["id"]
        for device in self.devices.values():
            for queue in device.queues.values():
                self._hold(queue)
        return None

    def do_look(self, message: "Message", fds: list[int]) -> "Message":
        """Look at the gate again: that comes with every message."""
        return {}

    def _hold(self, queue: Queue) -> None:
        """Take nothing more from a queue; what an earlier worker took is still to be done."""
        queue.held = True
        self.ready.discard(queue)
        if queue.again and queue.broken is None:
            self.ready.add(queue)

    def do_resume(self, message: "Message", fds: list[int]) -> "Message":
        """Take requests again; a suspend that still waits is answered with an error."""
        if self.suspending is not None:
            self.send({"id": self.suspending, "error": "resumed"})
            self.suspending = None
        self.suspended = False
        for queue in tuple(self.prepared):  # it has no position, so it must not be served
            self.remove(queue)
        for device in self.devices.values():
            for queue in device.queues.values():
                self._wake(queue)
        return {}

    def do_drop(self, message: "Message", fds: list[int]) -> "Message":
        """Forget all queues of one LUN with its memory, or (``lun`` null) the queues of all LUNs."""
        for device in self.devices.values():
            if message["lun"] in (None, device.lun):
                self._forget(device)
                if message["lun"] is not None:
                    device.memory = None
                    device.log = None
        return {}

    def do_policy(self, message: "Message", fds: list[int]) -> "Message":
        """Set what becomes of a request whose I/O failed; what is held is tried again at once."""
        self.errors.policy = message["policy"]
        if not self.gate.closed():
            self.ready.update(self.errors.try_again(now=True))
        return {}

    def do_outstanding(self, message: "Message", fds: list[int]) -> "Message":
        """Answer every request that was taken and is not done: LUN, queue, head, operation, bytes."""
        return {
            "outstanding": [
                {
                    "lun": device.lun,
                    "queue": queue.index,
                    "head": request.head,
                    "operation": OPERATIONS[request.operation],
                    "bytes": request.total,
                }
                for device in self.devices.values()
                for queue in device.queues.values()
                for request in queue.outstanding.values()
            ]
        }

    def _forget(self, device: Device) -> None:
        for queue in list(device.queues.values()):
            self.remove(queue)

    def remove(self, queue: Queue) -> None:
        """Let go of one queue. What it has outstanding goes on, and is given back to its ring all the same."""
        self.errors.forget(queue)
        self.epoll.unregister(queue.kick_fd)
        self.kicks.pop(queue.kick_fd)
        os.close(queue.kick_fd)
        if queue.call_fd >= 0 and not queue.outstanding:
            os.close(queue.call_fd)
            queue.call_fd = -1
        self.ready.discard(queue)
        self.prepared.discard(queue)
        self.stopping.pop(queue, None)
        self.told_broken.discard(queue)
        del queue.device.queues[queue.index]
