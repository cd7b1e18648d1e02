# SPDX-License-Identifier: GPL-3.0-or-later
"""Worker: the process that takes the requests of one vport on one path, ``vf`` or ``pf``. The program of both paths
is the same.

It is started as ``python3 -I -S -c ... <fd of the control channel>``, gets all it may touch over that channel (its
storage, its vport's mapping, the guest's memory, the rings' eventfds), and gives up its privileges before it looks at
any of it. It starts suspended. Commands are dictionaries with
``do`` and ``id``; each is answered by one with the same ``id``, and ``error`` when it was refused.
"""

import ctypes
import mmap
import os
import select
import signal
import socket
import sys

from vportd import blk, channel, journal
from vportd.dirty_log import DirtyLog
from vportd.errors import ChannelClosed, VportdError
from vportd.extents import Extents
from vportd.inflight import InflightRegion
from vportd.memory import MemoryMap, Region
from vportd.storage import FLUSH, make_storage
from vportd.virtqueue import Virtqueue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Message = dict[str, Any]

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
QUEUES_PER_LUN = 4


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if (
        libc.prctl(ctypes.c_int(option), ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))
        != 0
    ):
        raise OSError(ctypes.get_errno(), "prctl")


def _clear(eventfd: int) -> None:
    """Take a pending kick: QEMU must not find one that is meant for nobody when it takes the eventfd back."""
    try:
        os.read(eventfd, 8)
    except OSError:  # none is pending
        return


class Worker:
    """The state of the process; ``run`` is its loop."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.epoll = select.epoll()
        self.epoll.register(control, select.EPOLLIN)
        self.devices: dict[int, blk.Device] = {}
        self.kicks: dict[int, blk.Queue] = {}
        self.ready: set[blk.Queue] = set()
        self.suspended = True
        self.suspending: int | None = None  # id of the suspend command that waits for its answer
        self.stopping: dict[blk.Queue, int] = {}  # queue -> id of the stop command that waits
        self.flushing = False
        self.writes_flushed = 0
        self.told_broken: set[blk.Queue] = set()
        self.flush_token = object()

    def initialise(self, message: "Message", fds: list[int]) -> "Message":
        """``init``: storage and counters; then the privileges go. Fields: vport, path, block_size, latency, backend,
        uid, gid.
        """
        storage_fd, counters_fd = fds
        journal.name_process(f"vportd[{message['vport']}/{message['path']}]")
        self.vport = message["vport"]
        self.counters = memoryview(mmap.mmap(counters_fd, 0))
        os.close(counters_fd)
        latency = message["latency"]
        self.storage = make_storage(
            storage_fd, message["block_size"], tuple(latency) if latency else None, message["backend"]
        )
        if message["uid"] is not None:  # from here on nothing can be imported: that user may have no way to the files
            os.setgroups([])
            os.setresgid(message["gid"], message["gid"], message["gid"])
            os.setresuid(message["uid"], message["uid"], message["uid"])
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if self.storage.event_fd >= 0:
            self.epoll.register(self.storage.event_fd, select.EPOLLIN)
        return {"backend": self.storage.name}

    def run(self) -> None:
        """Serve until the control channel closes."""
        message, fds = channel.receive(self.control)
        self.control.setblocking(False)
        self._answer(message, self.initialise(message, fds))
        storage = self.storage
        control = self.control.fileno()
        poll = self.epoll.poll
        kicks = self.kicks
        ready = self.ready
        while True:
            timeout = 0 if ready else storage.timeout()
            for fd, _ in poll(timeout):
                queue = kicks.get(fd)
                if queue is not None:
                    if not self.suspended and queue not in self.stopping:
                        ready.add(queue)
                elif fd == control:
                    self._commands()
            if not storage.synchronous:
                completions = storage.reap()
                if completions:
                    self._completed(completions)
            for queue in tuple(ready):
                if queue.broken is not None or not blk.service(queue):
                    ready.discard(queue)
                if queue.broken is not None and queue not in self.told_broken:
                    self._tell_broken(queue)
            if self.suspending is not None or self.stopping:
                self._drained()

    def _completed(self, completions: list[tuple[object, int]]) -> None:
        for completion in completions:
            if completion[0] is self.flush_token:
                completions = [other for other in completions if other is not completion]
                self.flushing = False
                if completion[1] < 0:
                    journal.error(f"flush of the storage before the hand-over failed: {os.strerror(-completion[1])}")
        for queue in blk.complete(completions):
            if queue.broken is not None and queue not in self.told_broken:
                self._tell_broken(queue)

    def _tell_broken(self, queue: blk.Queue) -> None:
        self.told_broken.add(queue)
        journal.warning(f"LUN {queue.device.lun} queue {queue.index} is broken by its driver: {queue.broken}")
        self._send({"event": "broken", "lun": queue.device.lun, "index": queue.index, "why": queue.broken})

    def _send(self, message: "Message") -> None:
        try:
            channel.send(self.control, message, [])
        except BlockingIOError:  # the engine is not reading: it is gone or stuck, and cannot do without this answer
            journal.error("the engine does not read its control channel")
            raise ChannelClosed("not read") from None

    def _answer(self, message: "Message", result: "Message") -> None:
        self._send({"id": message["id"], **result})

    def _commands(self) -> None:
        while True:
            try:
                message, fds = channel.receive(self.control)
            except BlockingIOError:
                return
            try:
                result = getattr(self, f"do_{message['do']}")(message, fds)
            except (VportdError, OSError) as problem:
                result = {"error": f"{problem}"}
            finally:
                for fd in fds:
                    os.close(fd)
            if result is not None:
                self._answer(message, result)

    # Every do_* below answers a command at once, or returns None and answers when the queues are drained. Descriptors
    # in ``fds`` are closed afterwards:
    # one that is kept is taken out of the list.

    def do_mapping(self, message: "Message", fds: list[int]) -> "Message":
        """Replace the whole mapping; LUNs that are no longer in it are forgotten."""
        luns = {}
        for record in message["luns"]:
            extents = Extents(
                [(start, physical, length, bool(ro)) for start, physical, length, ro in record["extents"]],
                record["readonly"],
            )
            luns[record["lun"]] = (record["serial"], extents)
        for lun, (serial, extents) in luns.items():
            device = self.devices.get(lun)
            if device is None:
                self.devices[lun] = blk.Device(lun, serial, extents, self.storage)
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
    def _mark_used_rings(device: blk.Device) -> None:
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
        positions, and rings that are broken.
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
                    self._remove(device.queues[index])
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
                at = (device.lun * QUEUES_PER_LUN + index) * blk.COUNTERS_SIZE
                queue = blk.Queue(device, index, ring, kick, call, self.counters[at : at + blk.COUNTERS_SIZE])
                queue.used_log = record["used_log"]
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
            queue.publish()
            positions.append([index, ring.last_avail, ring.used, len(queue.again)])
            if not self.suspended:
                self._wake(queue)
        self._mark_used_rings(device)
        return {"queues": positions, "broken": broken}

    def _wake(self, queue: blk.Queue) -> None:
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
        """Take nothing more from one queue, wait for what was taken, forget the queue. Answers its position."""
        queue = self.devices[message["lun"]].queues.get(message["index"])
        if queue is None:
            return {"error": f"LUN {message['lun']} queue {message['index']} is not started"}
        self._hold(queue)
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

    def _hold(self, queue: blk.Queue) -> None:
        """Take nothing more from a queue; what an earlier worker took is still to be done."""
        queue.held = True
        self.ready.discard(queue)
        if queue.again and queue.broken is None:
            blk.service(queue)

    def do_resume(self, message: "Message", fds: list[int]) -> "Message":
        """Take requests again; a suspend that still waits is answered with an error."""
        if self.suspending is not None:
            self._send({"id": self.suspending, "error": "resumed"})
            self.suspending = None
        self.suspended = False
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

    def do_outstanding(self, message: "Message", fds: list[int]) -> "Message":
        """Answer every request that was taken and is not done: LUN, queue, head, operation, bytes."""
        return {
            "outstanding": [
                {
                    "lun": device.lun,
                    "queue": queue.index,
                    "head": request.head,
                    "operation": ("read", "write", "flush")[request.operation],
                    "bytes": request.total,
                }
                for device in self.devices.values()
                for queue in device.queues.values()
                for request in queue.outstanding.values()
            ]
        }

    def _forget(self, device: blk.Device) -> None:
        for queue in list(device.queues.values()):
            self._remove(queue)

    def _remove(self, queue: blk.Queue) -> None:
        """Let go of one queue. What it has outstanding goes on, and is given back to its ring all the same."""
        self.epoll.unregister(queue.kick_fd)
        self.kicks.pop(queue.kick_fd)
        os.close(queue.kick_fd)
        if queue.call_fd >= 0 and not queue.outstanding:
            os.close(queue.call_fd)
            queue.call_fd = -1
        self.ready.discard(queue)
        self.stopping.pop(queue, None)
        self.told_broken.discard(queue)
        del queue.device.queues[queue.index]

    def _drained(self) -> None:
        """Answer the commands whose requests are all done - and durable, for what the next one on the storage is may
        be another controller.
        """
        waiting = [queue for queue in self.stopping if not queue.outstanding]
        suspended = self.suspending is not None and not any(
            queue.outstanding for device in self.devices.values() for queue in device.queues.values()
        )
        if (not waiting and not suspended) or self.flushing:
            return
        if not self.storage.synchronous:
            writes = sum(
                queue.counters[blk.WRITES] for device in self.devices.values() for queue in device.queues.values()
            )
            if writes != self.writes_flushed:
                self.writes_flushed = writes
                self.flushing = True
                self.storage.submit(self.flush_token, FLUSH, 0, [])
                self.storage.kick()
                return
        for queue in waiting:
            answer = {
                "id": self.stopping[queue],
                "last_avail": queue.ring.last_avail,
                "used": queue.ring.used,
                "broken": queue.broken,
            }
            _clear(queue.kick_fd)
            queue.publish()
            self._remove(queue)
            self._send(answer)
        if suspended:
            positions = []
            for device in self.devices.values():
                for queue in device.queues.values():
                    queue.publish()
                    positions.append([device.lun, queue.index, queue.ring.last_avail, queue.ring.used, queue.broken])
            self._send({"id": self.suspending, "queues": positions})
            self.suspending = None


def main() -> None:
    """Serve the control channel whose descriptor is the last argument (the first names the directory of this
    package).
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    control = socket.socket(fileno=int(sys.argv[-1]))
    try:
        Worker(control).run()
    except ChannelClosed:
        os._exit(0)
    except VportdError as problem:
        journal.error(str(problem))
        os._exit(1)


if __name__ == "__main__":
    main()
