# SPDX-License-Identifier: GPL-3.0-or-later
"""The curves of a run's picture: what the vport's samples and the progress of the migration look like over time."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from . import _report_scale as scale
from ._report_time import GAP, KEPT, Record, Run

PATHS = {"vf": "VF", "pf": "PF", "waiting": "waits for the VM", "fenced": "fenced"}
_COLUMNS = 240  # points of a curve, at most

Point = tuple[float, float]


def sample_lanes(run: Run, across: scale.Linear, notes: list[str]) -> list[dict[str, Any]]:
    if not run.samples:
        notes.append(
            "No samples of the vport were collected: latency, throughput and outstanding requests are left out."
        )
        return []
    if run.first_kept > GAP:
        notes.append(f"The engine keeps {KEPT} samples: what was before {scale.duration(run.first_kept)} is gone.")
    latencies = {key: _values(run, f"latency_{key}") for key in ("p50", "p99", "max")}
    known = [value for values in latencies.values() for __, value in values if value]
    lanes = []
    if known:
        low, high = scale.decades(known)
        down = scale.Log(low, high, 120, 0)
        reduce: dict[str, Callable[[list[float]], float]] = {"p50": statistics.median, "p99": max, "max": max}
        series = [
            _curve(key, f"latency-{key}", _thin([one for one in latencies[key] if one[1]], run.seconds, reduce[key]),
                   across, down)
            for key in ("max", "p99", "p50")
        ]  # fmt: skip
        grid = [{"y": down.at(value), "label": label} for value, label in scale.log_ticks(low, high)]
        lanes.append(_lane("Guest I/O latency", "by the engine, logarithmic", 120, grid, series))
    else:
        notes.append("No request was measured: latency is left out.")
    for key, label, hint, height in (
        ("iops", "Throughput", "requests a second", 70),
        ("outstanding", "Outstanding", "requests taken, not done", 44),
    ):
        values = _idle(_values(run, key))
        if not values:
            continue
        thinned = _thin(values, run.seconds, statistics.mean if key == "iops" else max)
        high = scale.top([value for __, value in thinned])
        down_linear = scale.Linear(0, high, height, 0)
        grid = [{"y": down_linear.at(value), "label": scale.count(value)} for value in (0, high / 2, high)]
        lanes.append(_lane(label, hint, height, grid, [_area(label, key, thinned, across, down_linear)]))
    return lanes


def progress_lanes(run: Run, across: scale.Linear, notes: list[str]) -> list[dict[str, Any]]:
    if not run.progress:
        notes.append("No progress of the live migration was collected: memory and dirty rate are left out.")
        return []
    lanes = []
    for label, hint, keys, height in (
        ("Memory", "of the live migration", {"memory_transferred": "sent", "memory_remaining": "left to send"}, 60),
        ("Dirty rate", "written by the VM", {"dirty_rate": "dirty rate"}, 44),
    ):
        found = {
            key: _thin(values, run.seconds, max)
            for key in keys
            if (values := [(one["at"], one[key]) for one in run.progress if one[key] is not None])
        }
        if not found:
            continue
        high = scale.top_bytes([value for values in found.values() for __, value in values])
        down = scale.Linear(0, high, height, 0)
        per = "/s" if "dirty_rate" in keys else ""
        grid = [{"y": down.at(value), "label": scale.size(value, per)} for value in (0, high / 2, high)]
        series = [_area(keys[key], key, values, across, down) for key, values in found.items()]
        lanes.append(_lane(label, hint, height, grid, series))
    return lanes


def _lane(
    label: str, hint: str, height: int, grid: list[dict[str, Any]], series: list[dict[str, Any]]
) -> dict[str, Any]:
    return {"kind": "curves", "label": label, "hint": hint, "height": height, "grid": grid, "series": series}


def _values(run: Run, key: str) -> list[Point]:
    return [(one["at"], one[key]) for one in run.samples if one[key] is not None]


def _idle(values: Sequence[Point]) -> list[Point]:
    """With zeros where the engine took no sample in between, since nothing happened."""
    whole: list[Point] = []
    for at, value in values:
        if whole and at - whole[-1][0] > GAP:
            whole += [(whole[-1][0] + 1.0, 0.0), (at - 1.0, 0.0)]
        whole.append((at, value))
    return whole


def _thin(values: Sequence[Point], seconds: float, reduce: Callable[[list[float]], float]) -> list[Point]:
    """At most ``_COLUMNS`` points over the run: of those that fall together the middle moment, and ``reduce``."""
    if len(values) <= _COLUMNS:
        return list(values)
    found = []
    for __, group in itertools.groupby(values, lambda one: int(one[0] / seconds * _COLUMNS)):
        points = list(group)
        found.append((statistics.mean(at for at, __ in points), reduce([value for __, value in points])))
    return found


def _pieces(points: Sequence[Point], seconds: float) -> list[list[Point]]:
    """Cut where nothing was measured for long."""
    longest = max(GAP, 3 * seconds / _COLUMNS)
    pieces: list[list[Point]] = []
    for point in points:
        if pieces and point[0] - pieces[-1][-1][0] <= longest:
            pieces[-1].append(point)
        else:
            pieces.append([point])
    return pieces


def _curve(
    name: str, kind: str, points: Sequence[Point], across: scale.Linear, down: scale.Log | scale.Linear
) -> dict[str, Any]:
    """A line, broken where nothing was measured; a lone point is a dot."""
    drawn = []
    for piece in _pieces(points, across.high):
        places = [(across.at(at), down.at(value)) for at, value in piece]
        places = places if len(places) > 1 else [places[0], (places[0][0] + 0.1, places[0][1])]
        drawn.append("M" + "L".join(f"{x} {y}" for x, y in places))
    return {"name": name, "kind": kind, "line": "".join(drawn), "area": ""}


def _area(name: str, kind: str, points: Sequence[Point], across: scale.Linear, down: scale.Linear) -> dict[str, Any]:
    """A line with what is below it filled."""
    places = [(across.at(at), down.at(value)) for at, value in points]
    places = places if len(places) > 1 else [places[0], (places[0][0] + 1, places[0][1])]
    line = "L".join(f"{x} {y}" for x, y in places)
    floor = down.at(0)
    return {
        "name": name,
        "kind": kind,
        "line": f"M{line}",
        "area": f"M{places[0][0]} {floor}L{line}L{places[-1][0]} {floor}Z",
    }


def columns(run: Run, across: scale.Linear) -> list[dict[str, Any]]:
    """Invisible columns that tell, where the pointer is, what was measured there."""
    groups: dict[int, list[dict[str, Any]]] = {}
    for one in (*run.samples, *run.progress):
        groups.setdefault(int(one["at"] / run.seconds * _COLUMNS), []).append(one)
    columns = []
    for number, found in sorted(groups.items()):
        start, end = number * run.seconds / _COLUMNS, (number + 1) * run.seconds / _COLUMNS
        lines = [f"{scale.duration(found[0]['at'])} from the beginning"]
        sample = next((one for one in found if "iops" in one), None)
        progress = next((one for one in found if "iteration" in one), None)
        if sample:
            lines += _told(sample)
        if progress:
            lines += [
                f"{scale.size(progress['memory_transferred'])} sent, {scale.size(progress['memory_remaining'])} left, "
                f"pass {scale.count(progress['iteration'])}",
                f"dirty rate {scale.size(progress['dirty_rate'], '/s')}, throttled by "
                f"{scale.count(progress['throttle'])} %",
            ]
        x = across.at(start)
        columns.append({"x": x, "width": max(round(across.at(end) - x, 2), 0.1), "title": "\n".join(lines)})
    return columns


def _told(sample: Record) -> list[str]:
    path = PATHS.get(sample.get("path") or "", "an unknown path")
    latency = ", ".join(
        f"{name} {scale.duration(sample[key])}"
        for name, key in (("p50", "latency_p50"), ("p99", "latency_p99"), ("worst", "latency_max"))
        if sample[key]
    )
    return [
        f"{sample['host']} on {path}: {scale.count(sample['iops'])} requests a second, "
        f"{scale.size(sample['bytes_per_second'], '/s')}",
        f"latency {latency or 'not measured'}",
        f"{scale.count(sample['outstanding'])} outstanding, {scale.count(sample['errors'])} errors, "
        f"{scale.count(sample['dirty_pages'])} pages written and logged",
    ]
