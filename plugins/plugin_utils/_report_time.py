# SPDX-License-Identifier: GPL-3.0-or-later
"""The times of a run, for its picture: samples, progress and events in seconds from its beginning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

GAP = 3.0  # seconds without a sample in which nothing happened
KEPT = 900  # samples that the engine keeps of a vport
_LONGEST = 1e7  # seconds that a run may take to be drawn

Record = Mapping[str, Any]


class Run:
    """The times of a run, in seconds from its beginning."""

    def __init__(self, report: Record) -> None:
        samples = {host: list(found) for host, found in report["samples"].items()}
        known = [one["time"] for found in (*samples.values(), report["progress"]) for one in found]
        began, seconds = report["began"], report["duration"]
        if began is None or not seconds:
            began = min(known, default=None)
            seconds = max(known) - min(known) if known else 0.0
        self.began: float = began or 0.0
        self.drawn = began is not None and 0 < seconds <= _LONGEST
        self.seconds: float = seconds if self.drawn else 1.0
        self.events = [event | {"at": at} for event in report["path_history"] if (at := self._since(event)) is not None]
        self.left_source = self._left(report["source"])
        self.samples = self._carried(samples, report["source"], report["destination"])
        self.progress = self._inside(report["progress"])
        full = [found[0]["time"] - self.began for found in samples.values() if len(found) >= KEPT]
        self.first_kept = min(full, default=0.0)

    def _since(self, event: Record) -> float | None:
        if event["time"] is None or not self.drawn:
            return None
        return datetime.fromisoformat(event["time"]).timestamp() - self.began

    def _left(self, source: str | None) -> float | None:
        """When the VM stopped on the source: its vport fenced itself."""
        fenced = [event["at"] for event in self.events if event["host"] == source and event["event"] == "fenced"]
        return fenced[-1] if fenced else None

    def _inside(self, found: Sequence[Record]) -> list[dict[str, Any]]:
        moments = [{**one, "at": one["time"] - self.began} for one in found]
        return [one for one in moments if 0 <= one["at"] <= self.seconds]

    def _carried(
        self, samples: Mapping[str, Sequence[Record]], source: str | None, destination: str | None
    ) -> list[dict[str, Any]]:
        """Samples of the hypervisor that the VM was on, by time."""
        there = self._inside(samples.get(destination or "", ()))
        left = self.left_source
        if left is None:
            left = next((one["at"] for one in there if one["iops"] or one["outstanding"]), self.seconds + 1)
        here = [one | {"host": source} for one in self._inside(samples.get(source or "", ())) if one["at"] <= left]
        return here + [one | {"host": destination} for one in there if one["at"] > left]
