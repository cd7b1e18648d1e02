# SPDX-License-Identifier: GPL-3.0-or-later
"""The picture of a migration run: where each thing of a report lies on the page. The template only places it.

Numbers are in units of the picture, texts are plain: whoever shows them has to escape them. What the report does not
have is left out, and a note says so.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from . import _report_scale as scale

WIDTH, LEFT, RIGHT = 1080, 190, 1060
_COLUMNS = 240  # points of a curve, at most
_LETTER = 6.4  # width of a letter in a bar
_LONGEST = 1e7  # seconds that a run may take to be drawn
_KEPT = 900  # samples that the engine keeps of a vport
_GAP = 3.0  # seconds without a sample in which nothing happened
_LANES = {"vf": "VF", "pf": "PF", "waiting": "waits for the VM", "fenced": "fenced"}
_INTERVALS = {
    "drain": ("Drain", "requests that were taken are completed"),
    "transfer": ("State transfer", "queue positions go to the other path"),
    "resume": ("Path resume", "the other path takes requests"),
    "pause": ("VM pause", "the virtual machine stands still, by libvirt's count"),
}

Record = Mapping[str, Any]
Point = tuple[float, float]


def report_picture(report: Record) -> dict[str, Any]:
    """``tiles``, ``chart``, ``intervals`` and ``phases`` of what ``run_report`` returned."""
    run = _Run(report)
    return {
        "tiles": _tiles(report),
        "chart": _chart(report, run) if run.drawn else None,
        "intervals": _intervals(report["intervals"]),
        "phases": [_phase(phase, run) for phase in report["phases"]],
    }


class _Run:
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
        full = [found[0]["time"] - self.began for found in samples.values() if len(found) >= _KEPT]
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


# Tiles


def _tiles(report: Record) -> list[dict[str, str]]:
    io, migration, intervals = report["io"], report["migration"], report["intervals"]
    blackouts = [found for switch in report["switches"] if (found := switch["blackout_seconds"]) is not None]
    worst = [one["latency_max"] for found in report["samples"].values() for one in found if one["latency_max"]]
    latency = io["worst_latency_ms"]
    seen = "by the guest's own clock" if latency is not None else "as the engine measured it"
    guest = latency / 1e3 if latency is not None else max(worst, default=None)
    return [
        _tile("VM stood still", scale.duration(intervals["pause"]["worst"]), "by libvirt's count"),
        _tile("Worst guest I/O", scale.duration(guest), seen),
        _tile(
            "Longest path switch",
            scale.duration(max(blackouts, default=None)),
            f"of {len(blackouts)}; no request was taken meanwhile" if blackouts else "no switch was made",
        ),
        _tile(
            "Live migration",
            scale.duration(migration["total_time"]),
            f"{scale.size(migration['memory_transferred'])} of memory sent"
            if migration["memory_transferred"] is not None
            else "memory sent not known",
        ),
        _tile(
            "Data compared",
            scale.size(io["bytes_verified"]),
            f"{scale.size(io['bytes_written'])} written during the run",
        ),
        _tile("Errors of the guest", str(sum(one["count"] for one in io["errors"])), "that its load reported"),
    ]


def _tile(label: str, value: str, hint: str) -> dict[str, str]:
    return {"label": label, "value": value, "hint": hint}


# The time line


def _chart(report: Record, run: _Run) -> dict[str, Any]:
    across = scale.Linear(0, run.seconds, LEFT, RIGHT)
    lanes: list[dict[str, Any]] = []
    notes: list[str] = []
    y = 30.0
    bars = [_phase_lane(report["phases"], run, across), *_path_lanes(report, run, across)]
    for lane in bars:
        lanes.append(lane | {"y": y})
        y += lane["height"] + 8
    y += 12
    curves = y
    for lane in _sample_lanes(run, across, notes) + _progress_lanes(run, across, notes):
        lanes.append(lane | {"y": y})
        y += lane["height"] + 28
    ticks = [{"x": across.at(value), "label": label} for value, label in scale.time_ticks(run.seconds)]
    return {
        "width": WIDTH,
        "height": y - 6,
        "left": LEFT,
        "right": RIGHT,
        "bottom": y - 16,
        "ticks": ticks,
        "lanes": lanes,
        "curves": curves,
        "bands": _bands(report, run, across),
        "columns": _columns(run, across),
        "notes": notes,
        "summary": _summary(report, run),
    }


def _summary(report: Record, run: _Run) -> str:
    way = ", then ".join(
        f"{'VF ' + step['vf'] if step['vf'] else step['path'].upper()} on {step['host']}" for step in report["paths"]
    )
    return (
        f"Time line of {scale.duration(run.seconds)} with {len(report['phases'])} phases and "
        f"{len(report['switches'])} switches of the path: {way or 'the path is not known'}. "
        "The tables below have its numbers."
    )


def _bar(x: float, end: float, kind: str, texts: Sequence[str], title: str) -> dict[str, Any]:
    """A bar at least 1.5 wide, with the first of ``texts`` that fits into it."""
    width = max(round(end - x, 2), 1.5)
    text = next((text for text in texts if len(text) * _LETTER + 8 <= width), "")
    return {"x": x, "width": width, "kind": kind, "text": text, "title": title}


def _phase_lane(phases: Sequence[Record], run: _Run, across: scale.Linear) -> dict[str, Any]:
    bars = []
    for number, phase in enumerate(phases, 1):
        if phase["duration"] is None:
            continue
        start = phase["offset"] * run.seconds
        title = f"{number}. {phase['name']}: {scale.duration(phase['duration'])}, from {scale.duration(start)} on"
        place = across.at(start), across.at(start + phase["duration"])
        bars.append(_bar(*place, f"phase{number % 2}", (f"{number} {phase['name']}", str(number)), title))
    return {"kind": "bars", "label": "Phases", "hint": "", "height": 24, "bars": bars}


def _path_lanes(report: Record, run: _Run, across: scale.Linear) -> list[dict[str, Any]]:
    """For each hypervisor, which path its vport was on."""
    hosts = dict.fromkeys(host for host in (report["source"], report["destination"]) if host)
    lanes = []
    for host in hosts:
        bars = []
        for start, end, kind, vf in _segments(report, run, host):
            name = f"VF {vf.removeprefix('0000:')}" if vf else _LANES[kind]
            title = f"{host}: {name}, for {scale.duration(end - start)} from {scale.duration(start)} on"
            bars.append(_bar(across.at(start), across.at(end), kind, (name, _LANES[kind][:2]), title))
        hint = "" if bars else "no events"
        lanes.append({"kind": "bars", "label": f"Path on {host}", "hint": hint, "height": 24, "bars": bars})
    return lanes


def _segments(report: Record, run: _Run, host: str) -> list[tuple[float, float, str, str | None]]:
    """(start, end, kind, VF) from the events of a vport; kind is vf, pf, waiting or fenced."""
    first = report["paths"][0] if report["paths"] else None
    changes: list[tuple[float, str | None, str | None]] = []
    if first and first["host"] == host:
        changes.append((0.0, first["path"], first["vf"]))
    last = next((step for step in reversed(report["paths"]) if step["host"] == host and step["vf"]), None)
    vf = first["vf"] if first and first["host"] == host else last["vf"] if last else None
    waiting = fenced = False
    for event in run.events:
        if event["host"] != host:
            continue
        at, name = event["at"], event["event"]
        waiting = waiting or (name == "created" and bool(event["detail"].get("incoming")))
        fenced = name == "fenced" or (fenced and name != "unfenced")
        if waiting and (name == "switched" or (run.left_source is not None and at >= run.left_source)):
            waiting = False
            if run.left_source is not None:
                changes.append((run.left_source, "pf", None))
        vf = event["detail"].get("vf") or vf
        path = event["path"] if event["path"] in ("vf", "pf") else None
        kind = "fenced" if fenced else "waiting" if waiting else path
        changes.append((at, kind, str(vf) if kind == "vf" and vf else None))
    if waiting and run.left_source is not None:
        changes.append((run.left_source, "pf", None))
    segments: list[tuple[float, float, str, str | None]] = []
    for (start, kind, function), (end, *_rest) in itertools.pairwise([*changes, (run.seconds, None, None)]):
        start, end = min(max(start, 0.0), run.seconds), min(max(end, 0.0), run.seconds)
        if kind is None or kind not in _LANES or end <= start:
            continue
        if segments and segments[-1][1:] == (start, kind, function):
            segments[-1] = (segments[-1][0], end, kind, function)
        else:
            segments.append((start, end, kind, function))
    return segments


def _bands(report: Record, run: _Run, across: scale.Linear) -> list[dict[str, Any]]:
    """What runs through all lanes: switches of the path, and the pause of the VM."""
    bands = []
    for event in run.events:
        if event["event"] != "switched" or not 0 <= event["at"] <= run.seconds:
            continue
        took = event["detail"].get("blackout_seconds")
        took = float(took) if isinstance(took, int | float) and not isinstance(took, bool) and took >= 0 else 0.0
        title = f"switch to {event['path']} on {event['host']}: nothing was taken for {scale.duration(took)}"
        bands.append(_band(across, event["at"] - took, event["at"], "switch", title))
    pause = report["intervals"]["pause"]["worst"]
    if run.left_source is not None and pause is not None and 0 <= run.left_source <= run.seconds:
        title = f"the VM stood still for {scale.duration(pause)}"
        bands.append(_band(across, run.left_source, run.left_source + pause, "pause", title))
    return bands


def _band(across: scale.Linear, start: float, end: float, kind: str, title: str) -> dict[str, Any]:
    x = across.at(start)
    return {"x": x, "width": max(round(across.at(end) - x, 2), 1.5), "kind": kind, "title": title}


# Curves


def _sample_lanes(run: _Run, across: scale.Linear, notes: list[str]) -> list[dict[str, Any]]:
    if not run.samples:
        notes.append(
            "No samples of the vport were collected: latency, throughput and outstanding requests are left out."
        )
        return []
    if run.first_kept > _GAP:
        notes.append(f"The engine keeps {_KEPT} samples: what was before {scale.duration(run.first_kept)} is gone.")
    latencies = {key: _values(run, f"latency_{key}") for key in ("p50", "p99", "max")}
    known = [value for values in latencies.values() for _, value in values if value]
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
        high = scale.top([value for _, value in thinned])
        down_linear = scale.Linear(0, high, height, 0)
        grid = [{"y": down_linear.at(value), "label": scale.count(value)} for value in (0, high / 2, high)]
        lanes.append(_lane(label, hint, height, grid, [_area(label, key, thinned, across, down_linear)]))
    return lanes


def _progress_lanes(run: _Run, across: scale.Linear, notes: list[str]) -> list[dict[str, Any]]:
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
        high = scale.top_bytes([value for values in found.values() for _, value in values])
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


def _values(run: _Run, key: str) -> list[Point]:
    return [(one["at"], one[key]) for one in run.samples if one[key] is not None]


def _idle(values: Sequence[Point]) -> list[Point]:
    """With zeros where the engine took no sample in between, since nothing happened."""
    whole: list[Point] = []
    for at, value in values:
        if whole and at - whole[-1][0] > _GAP:
            whole += [(whole[-1][0] + 1.0, 0.0), (at - 1.0, 0.0)]
        whole.append((at, value))
    return whole


def _thin(values: Sequence[Point], seconds: float, reduce: Callable[[list[float]], float]) -> list[Point]:
    """At most ``_COLUMNS`` points over the run: of those that fall together the middle moment, and ``reduce``."""
    if len(values) <= _COLUMNS:
        return list(values)
    found = []
    for _, group in itertools.groupby(values, lambda one: int(one[0] / seconds * _COLUMNS)):
        points = list(group)
        found.append((statistics.mean(at for at, _ in points), reduce([value for _, value in points])))
    return found


def _pieces(points: Sequence[Point], seconds: float) -> list[list[Point]]:
    """Cut where nothing was measured for long."""
    longest = max(_GAP, 3 * seconds / _COLUMNS)
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


def _columns(run: _Run, across: scale.Linear) -> list[dict[str, Any]]:
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
    path = _LANES.get(sample.get("path") or "", "an unknown path")
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


# The four intervals


def _intervals(intervals: Record) -> dict[str, Any]:
    """A row each on one logarithmic scale, a dot for each switch."""
    known = [one["seconds"] for found in intervals.values() for one in found["each"] if one["seconds"] > 0]
    low, high = scale.decades(known) if known else (1e-3, 1.0)
    across = scale.Log(low, high, LEFT, RIGHT - 120)
    rows: list[dict[str, Any]] = []
    for number, (key, (label, hint)) in enumerate(_INTERVALS.items()):
        dots: list[dict[str, Any]] = []
        for one in intervals[key]["each"]:
            which = f" of switch {one['switch']} on {one['host']}" if one["switch"] else ""
            title = f"{label}{which}: {scale.duration(one['seconds'])}"
            dots.append({"x": across.at(max(one["seconds"], low)), "name": str(one["switch"] or ""), "title": title})
        worst = intervals[key]["worst"]
        rows.append(
            {
                "y": 40 + number * 38,
                "label": label,
                "hint": hint,
                "kind": key,
                "dots": dots,
                "names": _names(dots),
                "end": max((float(dot["x"]) for dot in dots), default=LEFT),
                "text": scale.duration(worst) if dots else "not measured",
            }
        )
    told = ", ".join(f"{row['label'].lower()} {row['text']}" for row in rows)
    return {
        "width": WIDTH,
        "height": 30 + len(rows) * 38,
        "left": LEFT,
        "right": RIGHT - 120,
        "ticks": [{"x": across.at(value), "label": label} for value, label in scale.log_ticks(low, high)],
        "rows": rows,
        "summary": f"The worst of each interval: {told}.",
    }


def _names(dots: Sequence[Record]) -> list[dict[str, Any]]:
    """The numbers over the dots; those of dots that lie close together share one place."""
    groups: list[list[Record]] = []
    for dot in sorted(dots, key=lambda dot: float(dot["x"])):
        if groups and dot["x"] - groups[-1][-1]["x"] < 14:
            groups[-1].append(dot)
        else:
            groups.append([dot])
    return [
        {"x": round(statistics.mean(dot["x"] for dot in group), 2), "text": ", ".join(dot["name"] for dot in group)}
        for group in groups
    ]


# Numbers of each phase


def _phase(phase: Record, run: _Run) -> dict[str, Any]:
    """A row of the table: what the guest's I/O was like during a phase."""
    row = {"name": phase["name"], "start": phase["start"], "duration": scale.duration(phase["duration"])}
    start = phase["offset"] * run.seconds
    end = start + (phase["duration"] or 0)
    found = [one for one in run.samples if start <= one["at"] < end]

    def known(key: str) -> list[float]:
        return [one[key] for one in found if one[key]]

    def told(key: str, reduce: Callable[[list[float]], float], word: Callable[[float | None], str]) -> str:
        return word(reduce(known(key))) if known(key) else "-"

    return row | {
        "iops": told("iops", statistics.mean, scale.count),
        "bandwidth": told("bytes_per_second", statistics.mean, lambda value: scale.size(value, "/s")),
        "p50": told("latency_p50", statistics.median, scale.duration),
        "p99": told("latency_p99", max, scale.duration),
        "max": told("latency_max", max, scale.duration),
        "errors": scale.count(sum(known("errors"))) if found else "-",
    }
