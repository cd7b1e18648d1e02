# SPDX-License-Identifier: GPL-3.0-or-later
"""A call in a thread of its own, with a deadline: ssh, or a daemon that hangs, can keep a call for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from ._errors import TimedOut

Result = TypeVar("Result")


class Background(Generic[Result]):
    """``Background(call).result(10, "it was late")``; the call begins at once, and its time is counted from then.

    A thread whose call does not come back is left behind, and ends with the module.
    """

    def __init__(self, call: Callable[[], Result]) -> None:
        self._call = call
        self._outcome: list[Result] = []
        self._failure: list[Exception] = []
        self._started = time.monotonic()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            self._outcome.append(self._call())
        except Exception as exc:  # noqa: BLE001 (raised again in the thread that asks for the result)
            self._failure.append(exc)

    def result(self, timeout: float, late: str) -> Result:
        """What the call returned or raised; TimedOut with ``late`` when ``timeout`` seconds after its begin it runs."""
        self._thread.join(max(0.0, self._started + timeout - time.monotonic()))
        if self._failure:
            raise self._failure[0]
        if not self._outcome:
            raise TimedOut(late)
        return self._outcome[0]
