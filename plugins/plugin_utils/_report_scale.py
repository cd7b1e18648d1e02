# SPDX-License-Identifier: GPL-3.0-or-later
"""Scales of the report's picture: from seconds, bytes and counts to places on the page, to ticks, and to words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_STEPS = (
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30,
    60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400,
)  # fmt: skip
_PREFIXES = ("", "Ki", "Mi", "Gi", "Ti", "Pi")

Tick = tuple[float, str]
"""(value, what is written beside it)"""


@dataclass(frozen=True, slots=True)
class Linear:
    """``low`` is drawn at ``start``, ``high`` at ``end``; what lies beyond them is drawn at their places."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)


@dataclass(frozen=True, slots=True)
class Log:
    """As Linear, with as much room for each factor of ten. ``low`` and ``high`` are above 0."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        inside = min(max(value, self.low), self.high)
        share = math.log(inside / self.low) / math.log(self.high / self.low)
        return round(self.start + share * (self.end - self.start), 2)


def decades(values: Sequence[float]) -> tuple[float, float]:
    """The powers of ten around values above 0, two at least, from 1 us to 10 000 s."""
    low = math.floor(math.log10(min(max(min(values), 1e-6), 1e3)))
    high = math.ceil(math.log10(min(max([*values, 1e-5]), 1e4)))
    return 10.0**low, 10.0 ** max(high, low + 1)


def log_ticks(low: float, high: float) -> list[Tick]:
    """One for each power of ten from ``low`` to ``high``."""
    first, last = round(math.log10(low)), round(math.log10(high))
    return [(10.0**power, duration(10.0**power)) for power in range(first, last + 1)]


def top(values: Sequence[float]) -> float:
    """A round number, 1, 2 or 5 times a power of ten, not below any of ``values``."""
    highest = max(values, default=0.0)
    if highest < 1e-9:
        return 1.0
    power = 10.0 ** math.floor(math.log10(highest))
    return next((factor * power for factor in (1, 2, 5) if factor * power >= highest), 10 * power)


def top_bytes(values: Sequence[float]) -> float:
    """A power of two, at least 1 KiB, not below any of ``values``."""
    return max(1024.0, 2.0 ** math.ceil(math.log2(max([*values, 1.0]))))


def time_ticks(seconds: float) -> list[Tick]:
    """At most ten round moments from 0 to ``seconds``."""
    step = next((step for step in _STEPS if seconds / step <= 9), 86400.0 * math.ceil(seconds / 9 / 86400))
    return [(number * step, clock(number * step, step)) for number in range(int(seconds / step + 1e-9) + 1)]


def clock(seconds: float, step: float) -> str:
    """A moment on the time line: seconds as such below two minutes, then m:ss or h:mm:ss."""
    if step < 15:
        digits = 0 if step >= 1 else math.ceil(-math.log10(step))
        if seconds < 120:
            return f"{seconds:.{digits}f} s"
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours or step >= 3600 else f"{minutes}:{rest:02}"


# Words


def duration(seconds: float | None) -> str:
    """Three digits and a unit."""
    if seconds is None:
        return "not known"
    if abs(seconds) < 1e-9:
        return "0 s"
    if abs(seconds) >= 119.5:
        whole = round(seconds)
        hours, minutes = whole // 3600, whole // 60 % 60
        return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {whole % 60:02} s"
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if abs(seconds) * factor >= 0.9995 or unit == "µs":
            return f"{digits(seconds * factor)} {unit}"
    raise AssertionError("a unit fits any duration")


def size(amount: float | None, per: str = "") -> str:
    """Bytes with a binary unit, three digits."""
    if amount is None:
        return "not known"
    power = 0
    while abs(amount) >= 1000 and power < len(_PREFIXES) - 1:
        amount, power = amount / 1024, power + 1
    return f"{digits(amount)} {_PREFIXES[power]}B{per}"


def count(number: float | None) -> str:
    """A number with a thin space at the thousands."""
    if number is None:
        return "not known"
    return f"{number:,.0f}".replace(",", "\u202f") if abs(number) >= 100 or number == int(number) else digits(number)


def digits(number: float) -> str:
    """Three significant digits, without zeros that say nothing. Below a millionth it is 0."""
    if abs(number) < 1e-6:
        return "0"
    places = max(0, 2 - math.floor(math.log10(abs(number))))
    text = f"{number:.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
