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

EVENTFD = "anon_inode:[eventfd]"
_IDLE = 10.0  # seconds without work after which the thread ends


def is_eventfd(fd: int) -> bool:
    """True for an eventfd: to close one never waits."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == EVENTFD
    except OSError:
        return False


class Apart:
    """The calls of one LUN, one after the other, in a thread that is there while there are some."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._working = False

    def begin(self, call: Callable[[], object]) -> None:
        """Make a call, sometime."""
        with self._lock:
            self._calls.put(lambda: _quietly(call))
            if not self._working:
                self._working = True
                threading.Thread(target=self._work, daemon=True).start()

    def close(self, fds: list[int]) -> None:
        """Close descriptors, sometime."""
        for fd in fds:
            self.begin(partial(os.close, fd))

    async def do(self, call: Callable[[], Any]) -> Any:
        """Make a call after those that were begun, and return what it returns, or raise what it raises."""
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
        return await future

    async def done(self) -> None:
        """Wait until all that was begun is done."""
        await self.do(lambda: None)

    def _work(self) -> None:
        while True:
            try:
                call = self._calls.get(timeout=_IDLE)
            except queue.Empty:
                with self._lock:
                    if self._calls.empty():
                        self._working = False
                        return
                continue
            call()


def _quietly(call: Callable[[], object]) -> None:
    with contextlib.suppress(OSError):
        call()
