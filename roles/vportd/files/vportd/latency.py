# SPDX-License-Identifier: GPL-3.0-or-later
"""A test and lab facility: another back end whose completions are held back for a while, so that requests are really
outstanding.
"""

import heapq
import random
import time

from vportd.storage import Completion, Storage, Token

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class SlowStorage(Storage):
    """Delivers each completion of ``inner`` only after ``latency`` = (lowest, highest) seconds, drawn evenly, in the
    order that gives.
    """

    def __init__(self, inner: Storage, latency: tuple[float, float]) -> None:
        super().__init__(inner.fd)
        self.name = f"{inner.name}+latency"
        self.event_fd = inner.event_fd
        self._inner = inner
        self._low, self._high = latency
        self._held: list[tuple[float, int, Completion]] = []
        self._count = 0

    def submit(self, token: Token, operation: int, offset: int, views: list[memoryview], length: int = 0) -> None:
        self._inner.submit(token, operation, offset, views, length)

    def gate(self, closed: "Callable[[], bool]") -> None:
        self._inner.gate(closed)

    def kick(self) -> None:
        self._inner.kick()

    def reap(self) -> list[Completion]:
        now = time.monotonic()
        for completion in self._inner.reap():
            self._count += 1
            heapq.heappush(self._held, (now + random.uniform(self._low, self._high), self._count, completion))
        due = []
        while self._held and self._held[0][0] <= now:
            due.append(heapq.heappop(self._held)[2])
        return due

    def timeout(self) -> float:
        inner = self._inner.timeout()
        if inner == 0 or not self._held:
            return inner
        wait = max(0.0, self._held[0][0] - time.monotonic())
        return wait if inner < 0 else min(wait, inner)

    def close(self) -> None:
        self._inner.close()
