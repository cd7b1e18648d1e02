# SPDX-License-Identifier: GPL-3.0-or-later
"""A test and lab facility: another back end whose operations fail or hang while a file says so."""

import mmap

from vportd.counters import PATHS
from vportd.storage import Completion, Storage, Token

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

HANG = 255


class FaultyStorage(Storage):
    """What the byte of ``path`` in the file ``fd`` says: 0 = operations go to ``inner``, HANG = they wait until it says
    something else, any other = they fail with this errno.
    """

    def __init__(self, inner: Storage, fd: int, path: str) -> None:
        super().__init__(inner.fd)
        self.name = f"{inner.name}+faults"
        self.event_fd = inner.event_fd
        self._inner = inner
        self._area = memoryview(mmap.mmap(fd, len(PATHS), mmap.MAP_SHARED, mmap.PROT_READ))[PATHS.index(path) :]
        self._hung: list[tuple[Token, int, int, list[memoryview], int]] = []
        self._failed: list[Completion] = []

    def gate(self, closed: "Callable[[], bool]") -> None:
        super().gate(closed)
        self._inner.gate(closed)

    def submit(self, token: Token, operation: int, offset: int, views: list[memoryview], length: int = 0) -> None:
        fault = self._area[0]
        if fault == HANG:
            self._hung.append((token, operation, offset, views, length))
        elif fault:
            self._failed.append((token, -fault))
        else:
            self._inner.submit(token, operation, offset, views, length)

    def kick(self) -> None:
        self._inner.kick()

    def reap(self) -> list[Completion]:
        if self._hung and self._area[0] != HANG and not self._closed():
            hung, self._hung = self._hung, []
            for one in hung:
                self.submit(*one)
            self._inner.kick()
        failed, self._failed = self._failed, []
        return failed + self._inner.reap()

    def timeout(self) -> float:
        inner = self._inner.timeout()
        if self._failed:
            return 0
        return inner if not self._hung else 0.02 if inner < 0 else min(inner, 0.02)

    def close(self) -> None:
        self._inner.close()
