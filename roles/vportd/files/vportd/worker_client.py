# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine's end of a worker: starts the process, sends commands, notices its end. Nothing here ever blocks the
engine.
"""

import asyncio
import fcntl
import itertools
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

from vportd import channel, journal
from vportd.errors import ChannelClosed, WorkerDied, WorkerRefused

Message = dict[str, Any]

_PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); from vportd.worker import main; main()"
_PACKAGES = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))  # also when a link to it is set anew
_CONTROL_FD, _LOCK_FD, _PROOF_FD = 3, 4, 5
CLOSE_TIMEOUT = 5.0
LOOK_TIME = 20.0  # seconds after which a worker that is busy with something has to say that it is there
MESSAGES = 64  # of one worker that are looked at in one go
PROOFS = [_LOCK_FD, _PROOF_FD]  # what a worker's io_uring keeps open until its I/O is done


class WorkerClient:
    """One worker process. ``on_event`` gets what it says unasked, ``on_exit`` is called once when it has ended.

    A process may be dead while what it gave to the storage is still under way: the kernel ends an io_uring later, when
    the last operation is done. So each worker has a pipe of which nobody writes; its ring keeps the end for writing
    open too, and ``gone`` is done when that end is closed everywhere.
    """

    def __init__(
        self, who: str, lock_fd: int, on_event: Callable[[Message], None], on_exit: Callable[[], None]
    ) -> None:
        """Start the process; it holds a copy of ``lock_fd`` as long as it lives."""
        self.who = who
        self.exit_text = ""
        self.closing = False
        self._on_event = on_event
        self._on_exit = on_exit
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Message]] = {}
        self._loop = asyncio.get_running_loop()
        self.ended = self._loop.create_future()
        self.gone: asyncio.Future[None] = self._loop.create_future()
        self.failed = False
        self.device = ""
        self.node: tuple[int, ...] | None = None  # of its device, when that was opened
        self.hurry: memoryview | None = None  # set to 1 when a suspend has been sent
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._proof, proof = os.pipe2(os.O_CLOEXEC)
        copies = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (theirs.fileno(), lock_fd, proof)]
        theirs.close()
        os.close(proof)
        try:
            self.pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-S", "-c", _PROGRAM, _PACKAGES, str(_CONTROL_FD)],
                {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, copies[0], _CONTROL_FD),
                    (os.POSIX_SPAWN_DUP2, copies[1], _LOCK_FD),
                    (os.POSIX_SPAWN_DUP2, copies[2], _PROOF_FD),
                ],
            )
        finally:
            for fd in copies:
                os.close(fd)
        mine.setblocking(False)
        self._socket = mine
        self._pidfd = os.pidfd_open(self.pid)
        self._loop.add_reader(self._pidfd, self._exited)
        self._loop.add_reader(mine, self._readable)
        self._loop.add_reader(self._proof, self._is_gone)

    def _is_gone(self) -> None:
        self._loop.remove_reader(self._proof)
        os.close(self._proof)
        self.gone.set_result(None)

    @property
    def alive(self) -> bool:
        """False from the moment its end was noticed."""
        return not self.ended.done()

    async def call(
        self, do: str, fds: list[int] | None = None, timeout: float | None = None, **fields: object
    ) -> Message:
        """Send one command and return its answer. Raises WorkerDied, WorkerRefused, TimeoutError (after ``timeout``
        seconds).
        """
        if not self.alive:
            raise WorkerDied(f"{self.who} {self.exit_text}")
        number = next(self._numbers)
        future: asyncio.Future[Message] = self._loop.create_future()
        self._waiting[number] = future
        try:
            try:
                channel.send(self._socket, {"id": number, "do": do, **fields}, fds or [])
                if do == "suspend" and self.hurry is not None:
                    self.hurry[0] = 1
            except ChannelClosed as problem:
                future.cancel()  # nobody waits for it: its exception would never be retrieved
                # Its end is noticed by the event loop. Whoever tries again at once must not keep that from its turn.
                await asyncio.wait([self.ended], timeout=0.1)
                raise WorkerDied(f"{self.who} has closed its control channel") from problem
            except BlockingIOError as problem:
                raise TimeoutError(f"{self.who} does not read its control channel") from problem
            if timeout is None:
                await self._patiently(future)
            async with asyncio.timeout(timeout):  # wait_for of Python 3.11 can swallow a cancellation
                answer = await future
        finally:
            self._waiting.pop(number, None)
        if "error" in answer:
            raise WorkerRefused(f"{self.who}: {answer['error']}")
        return answer

    async def _patiently(self, future: asyncio.Future[Message]) -> None:
        """Wait for an answer that may take as long as the storage does; a worker that looks at nothing else meanwhile
        is ended. A front end can bring that about, with an eventfd that waits for it.
        """
        while not (await asyncio.wait([future], timeout=LOOK_TIME))[0]:
            try:
                await self.call("look", timeout=LOOK_TIME)
            except TimeoutError:
                journal.error(f"{self.who} (pid {self.pid}) does not answer any more, and is ended")
                self.kill()
                await asyncio.wait([future])

    def _readable(self) -> None:
        for __ in range(MESSAGES):  # then others have their turn, and the event loop calls again
            try:
                message, fds = channel.receive(self._socket)
            except BlockingIOError:
                return
            except ChannelClosed:
                self._loop.remove_reader(self._socket)
                self._loop.call_later(1, self.kill)  # should it not end by itself, as it does
                return
            for fd in fds:
                os.close(fd)
            number = message.get("id")
            if number is None:
                self._on_event(message)
            elif isinstance(number, int) and (future := self._waiting.get(number)) and not future.done():
                future.set_result(message)

    def _exited(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self._loop.remove_reader(self._socket)
        __, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if not self.failed:
            self.exit_text = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        os.close(self._pidfd)
        self._socket.close()
        self.ended.set_result(code)
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(WorkerDied(f"{self.who} {self.exit_text}"))
        if not self.closing:
            journal.warning(f"{self.who} (pid {self.pid}) {self.exit_text}")
        self._on_exit()

    def kill(self) -> None:
        """End the process at once; ``on_exit`` follows."""
        if self.alive:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def fail(self, why: str) -> None:
        """End the process at once because of its storage; ``on_exit`` follows."""
        if self.alive and not self.failed:
            self.failed, self.exit_text = True, why
            self.kill()

    async def until_gone(self, timeout: float) -> bool:
        """Wait until the process has ended and nothing that it gave to the storage is under way; False = not yet."""
        try:
            async with asyncio.timeout(timeout):
                await asyncio.shield(self.gone)
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """End the process on purpose, and wait until it is gone, for what it has under way no longer than CLOSE_TIMEOUT
        seconds.
        """
        self.closing = True
        self.kill()
        await self.ended
        if not await self.until_gone(CLOSE_TIMEOUT):
            journal.error(f"{self.who} (pid {self.pid}) has ended, and the storage is still busy with its requests")
