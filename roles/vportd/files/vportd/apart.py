# SPDX-License-Identifier: GPL-3.0-or-later
"""A thread for system calls on what a front end has sent: to close a file, a socket or a FUSE file may wait for as
long as its owner likes, and nobody else is to wait with it.
"""

import asyncio
import contextlib
import os
import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

Calls = queue.SimpleQueue[Callable[[], None]]

EVENTFD = "anon_inode:[eventfd]"
_IDLE = 10.0  # seconds without work after which the thread ends
PATIENCE = 60.0  # seconds that a LUN waits for its thread, before it has another
LEFT = 32  # threads of a LUN at most that are left behind


def is_eventfd(fd: int) -> bool:
    """True for an eventfd: to close one never waits."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == EVENTFD
    except OSError:
        return False


class Apart:
    """The calls of one LUN, one after the other, in a thread that is there while there are some. One that waits without
    end, as its owner can bring about, is left behind after a time, with what was to come after it.
    """

    def __init__(self) -> None:
        self._calls: Calls = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._working = False
        self._left = 0

    def begin(self, call: Callable[[], object]) -> None:
        """Make a call, sometime."""
        with self._lock:
            self._calls.put(lambda: _quietly(call))
            self._start()

    def _start(self) -> None:
        if not self._working:
            with contextlib.suppress(RuntimeError):  # no thread is to be had: some other time
                threading.Thread(target=self._work, args=[self._calls], daemon=True).start()
                self._working = True

    def close(self, fds: list[int]) -> None:
        """Close descriptors, sometime."""
        for fd in fds:
            self.begin(partial(os.close, fd))

    async def do(self, call: Callable[[], Any]) -> Any:
        """Make a call after those that were begun, and return what it returns, or raise what it raises. Raises
        TimeoutError when that takes too long; it is left behind then.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def settle(result: Any, problem: OSError | None) -> None:
            if future.done():  # nobody waits for it any more
                return
            if problem is None:
                future.set_result(result)
            else:
                future.set_exception(problem)

        def work() -> None:
            result, problem = None, None
            try:
                result = call()
            except OSError as found:
                problem = found
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(settle, result, problem)

        self.begin(work)
        while not (await asyncio.wait([future], timeout=PATIENCE))[0]:
            with self._lock:
                if not self._working:
                    self._start()
                elif self._left < LEFT:
                    self._left += 1
                    self._calls, self._working = queue.SimpleQueue(), False
                    future.cancel()
                    raise TimeoutError("what it has sent keeps those waiting who ask it something, or close it")
        return future.result()

    async def done(self) -> None:
        """Wait until all that was begun is done. Raises TimeoutError."""
        await self.do(lambda: None)

    def _work(self, calls: Calls) -> None:
        while True:
            try:
                call = calls.get(timeout=_IDLE)
            except queue.Empty:
                with self._lock:
                    if calls.empty():
                        if calls is self._calls:
                            self._working = False
                        else:
                            self._left -= 1
                        return
                continue
            call()


def _quietly(call: Callable[[], object]) -> None:
    with contextlib.suppress(OSError):
        call()
