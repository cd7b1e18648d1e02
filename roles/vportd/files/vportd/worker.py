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

from vportd import blk, channel, counters, journal
from vportd.blk_queue import DISCARDS, WRITES, ZEROES, Queue
from vportd.errors import ChannelClosed, VportdError
from vportd.lease_gate import Watch
from vportd.storage import FLUSH, Completion, make_storage, read_first_block
from vportd.storage_errors import StorageErrors
from vportd.virtqueue import UNDER_WAY
from vportd.worker_queues import WorkerQueues

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Message = dict[str, Any]

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if (
        libc.prctl(ctypes.c_int(option), ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))
        != 0
    ):
        raise OSError(ctypes.get_errno(), "prctl")


def _may_be_killed_first() -> None:
    """Before the engine, when the host is out of memory: what a worker has taken is in the in-flight regions."""
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("0")
    except OSError:  # it was more before, and less needs a capability
        return


def _clear(eventfd: int) -> None:
    """Take a pending kick: QEMU must not find one that is meant for nobody when it takes the eventfd back."""
    try:
        os.read(eventfd, 8)
    except OSError:  # none is pending
        return


class Worker(WorkerQueues):
    """The state of the process; ``run`` is its loop."""

    def __init__(self, control: socket.socket) -> None:
        super().__init__()
        self.control = control
        self.epoll.register(control, select.EPOLLIN)
        self.flushing = False
        self.writes_flushed = 0
        self.flush_token = object()

    def initialise(self, message: "Message", fds: list[int]) -> "Message":
        """``init``: storage, counters and gate; then the privileges go. Fields: vport, path, block_size, latency,
        backend, proofs, policy, uid, gid. A fourth descriptor is that of ``faults``.
        """
        storage_fd, counters_fd, gate_fd = fds[:3]
        self.gate = Watch(gate_fd)
        journal.name_process(f"vportd[{message['vport']}/{message['path']}]")
        self.vport = message["vport"]
        shared = memoryview(mmap.mmap(counters_fd, 0))
        self.counters, self.wake, self.hurry = counters.part(shared, message["path"])
        os.close(counters_fd)
        latency = message["latency"]
        self.storage = make_storage(
            storage_fd,
            message["block_size"],
            tuple(latency) if latency else None,
            message["backend"],
            message["proofs"],
        )
        if fds[3:]:
            from vportd.faults import FaultyStorage

            self.storage = FaultyStorage(self.storage, fds[3], message["path"])
            os.close(fds[3])
        self.errors = StorageErrors(message["policy"])
        _may_be_killed_first()
        if message["uid"] is not None:  # from here on nothing can be imported: that user may have no way to the files
            os.setgroups([])
            os.setresgid(message["gid"], message["gid"], message["gid"])
            os.setresuid(message["uid"], message["uid"], message["uid"])
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if self.storage.event_fd >= 0:
            self.epoll.register(self.storage.event_fd, select.EPOLLIN)
        if message["path"] == "vf" and (result := read_first_block(self.storage, message["block_size"])) < 0:
            raise VportdError(f"the VF's device cannot be read: {os.strerror(-result)}")
        self.storage.gate(self.gate.closed)
        return {"backend": self.storage.name}

    def run(self) -> None:
        """Serve until the control channel closes."""
        message, fds = channel.receive(self.control)
        self.control.setblocking(False)
        try:
            self._answer(message, self.initialise(message, fds))
        except VportdError as problem:
            self._answer(message, {"error": str(problem)})
            raise
        storage = self.storage
        errors = self.errors
        control = self.control.fileno()
        poll = self.epoll.poll
        kicks = self.kicks
        ready = self.ready
        wake, hurry = self.wake, self.hurry
        gate = self.gate
        kept: list[Completion] = []
        allowed = True
        while True:
            if allowed:
                timeout = 0 if ready else gate.idle(errors.timeout(storage.timeout()))
            else:  # until the engine says that there is a new grant
                timeout = gate.idle(storage.timeout())
            events = poll(timeout)
            if hurry[0]:  # the command that it is for is among the events
                hurry[0] = 0
            for fd, __ in events:
                queue = kicks.get(fd)
                if queue is not None:
                    if not self.suspended and queue not in self.stopping:
                        ready.add(queue)
                elif fd == control:
                    self._commands()
            if not storage.synchronous:
                kept += storage.reap()
            allowed = not (ready or kept or errors.error) or gate.open()
            if allowed and not storage.synchronous:  # else another host may be the owner: this guest is told nothing
                if kept:
                    self._completed(kept)
                    kept = []
                if errors.error:
                    self._try_again()
            if ready and wake[0]:
                wake[0] = 0
                self.send({"event": "busy"})
            for queue in tuple(ready) if allowed else ():
                queue.alone = len(ready) == 1
                if queue.broken is not None or not blk.service(queue):
                    ready.discard(queue)
                if queue.broken is not None and queue not in self.told_broken:
                    self._tell_broken(queue)
            if allowed and not storage.synchronous:  # what was begun just now may be done already
                kept = storage.reap()
                if kept and (allowed := gate.open()):
                    self._completed(kept)
                    kept = []
            if self.suspending is not None or self.stopping:
                self._drained()

    def _completed(self, completions: list[tuple[object, int]]) -> None:
        for completion in completions:
            if completion[0] is self.flush_token:
                completions = [other for other in completions if other is not completion]
                self.flushing = False
                if completion[1] < 0:
                    self._not_durable(-completion[1])
        failing = self.errors.error
        for queue in blk.complete(completions, self.errors):
            if queue.broken is not None and queue not in self.told_broken:
                self._tell_broken(queue)
            if queue.full and not queue.left and queue.long <= 4 * UNDER_WAY:
                queue.full = False
                if queue.again or not queue.held:
                    self.ready.add(queue)
        if self.errors.error and not failing:
            self.send({"event": "storage", "error": self.errors.error})

    def _try_again(self) -> None:
        """Begin again what the storage has failed, when it is time for it; say when there is nothing of that left."""
        self.ready.update(self.errors.try_again())
        if self.errors.is_back():
            self.send({"event": "storage", "error": 0})

    def _not_durable(self, code: int) -> None:
        """The flush before a hand-over has failed: no suspend. A ring that is stopped has done what can be done."""
        journal.error(f"flush of the storage before the hand-over failed: {os.strerror(code)}")
        if self.errors.policy == "leave":
            self.writes_flushed = -1
            self.send({"event": "storage", "error": code})
        elif self.suspending is not None:
            self.send({"id": self.suspending, "error": f"the storage does not flush: {os.strerror(code)}"})
            self.suspending = None
            self.writes_flushed = -1

    def _tell_broken(self, queue: Queue) -> None:
        self.told_broken.add(queue)
        journal.warning(f"LUN {queue.device.lun} queue {queue.index} is broken by its driver: {queue.broken}")
        self.send({"event": "broken", "lun": queue.device.lun, "index": queue.index, "why": queue.broken})

    def send(self, message: "Message") -> None:
        """Send a message to the engine. Raises ChannelClosed."""
        try:
            channel.send(self.control, message, [])
        except BlockingIOError:  # the engine is not reading: it is gone or stuck, and cannot do without this answer
            journal.error("the engine does not read its control channel")
            raise ChannelClosed("not read") from None

    def _answer(self, message: "Message", result: "Message") -> None:
        self.send({"id": message["id"], **result})

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

    def _drained(self) -> None:
        """Answer the commands whose requests are all done - and durable, for what the next one on the storage is may
        be another controller.
        """
        waiting = [queue for queue in self.stopping if not queue.unfinished()]
        suspended = self.suspending is not None and not any(
            queue.unfinished() for device in self.devices.values() for queue in device.queues.values()
        )
        if (not waiting and not suspended) or self.flushing:
            return
        if not self.storage.synchronous:
            writes = sum(
                queue.counters[WRITES] + queue.counters[DISCARDS] + queue.counters[ZEROES]
                for device in self.devices.values()
                for queue in device.queues.values()
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
            self.remove(queue)
            self.send(answer)
        if suspended:
            positions = []
            for device in self.devices.values():
                for queue in device.queues.values():
                    queue.publish()
                    positions.append([device.lun, queue.index, queue.ring.last_avail, queue.ring.used, queue.broken])
            self.send({"id": self.suspending, "queues": positions})
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
