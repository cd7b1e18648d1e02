# SPDX-License-Identifier: GPL-3.0-or-later
"""Samples: what a vport did in each of its last seconds. While nothing changes, nothing is done and none is taken."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

KEPT = 900


@dataclass(frozen=True, slots=True)
class Look:
    """What there is to see of a vport at one moment: counters since it was made, and its state."""

    path: str
    state: str
    outstanding: int
    requests: int
    bytes: int
    errors: int
    dirty_pages: int
    histogram: tuple[int, ...]


def quantile(histogram: list[int], share: float, worst: float) -> float:
    """Return the latency, in seconds, that ``share`` of the requests kept below. Inside its bucket, which ends at a
    power of 2 of a microsecond, it is taken to lie in proportion; it is never above ``worst``.
    """
    wanted, seen = share * sum(histogram), 0
    if not wanted:
        return 0.0
    for bucket, count in enumerate(histogram):
        if count and seen + count >= wanted:
            low, high = (1 << bucket) // 2, 1 << bucket
            return min(worst, (low + (high - low) * (wanted - seen) / count) * 1e-6)
        seen += count
    return worst


class Sampler:
    """``look`` is asked each ``seconds`` while what it says changes; ``worst`` = the longest latency, in microseconds,
    since it was last asked; ``watch`` = see that ``wake`` is called when there is something new.
    """

    def __init__(
        self, look: Callable[[], Look], worst: Callable[[], int], watch: Callable[[], None], seconds: float
    ) -> None:
        self._look, self._worst, self._watch, self._seconds = look, worst, watch, seconds
        self._samples: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._before: Look | None = None
        self._then = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def wake(self) -> None:
        """Begin to take samples, unless that is being done."""
        if self._timer is None:
            self._before = self._before or self._look()
            self._then = time.time()
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self._tick)

    def start(self) -> None:
        """From now on, wake up when there is something new."""
        self._before = self._look()
        self._watch()

    def stop(self) -> None:
        """Take no more samples."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def since(self, when: float | None) -> list[dict[str, Any]]:
        """Return the samples later than ``when`` (Unix seconds), or all."""
        return [one for one in self._samples if when is None or one["time"] > when]

    def _tick(self) -> None:
        self._timer = None
        before, now = self._before, time.time()
        found = self._before = self._look()
        assert before is not None
        changed = found != before
        self._samples.append(self._sample(before, found, max(now - self._then, 1e-6), now))
        if not changed and not found.outstanding:
            self._watch()
            changed = self._look() != found  # it came before somebody was there to say so
        self._then = now
        if changed or found.outstanding:
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self._tick)

    def _sample(self, before: Look, found: Look, seconds: float, now: float) -> dict[str, Any]:
        grown = [max(0, after - then) for after, then in zip(found.histogram, before.histogram, strict=True)]
        worst = self._worst() * 1e-6
        return {
            "time": now,
            "path": found.path,
            "state": found.state,
            "outstanding": found.outstanding,
            "iops": max(0, found.requests - before.requests) / seconds,
            "bytes_per_second": max(0, found.bytes - before.bytes) / seconds,
            "errors": max(0, found.errors - before.errors),
            "latency_p50": quantile(grown, 0.5, worst),
            "latency_p99": quantile(grown, 0.99, worst),
            "latency_max": worst,
            "dirty_pages": max(0, found.dirty_pages - before.dirty_pages),
        }
