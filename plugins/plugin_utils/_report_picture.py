# SPDX-License-Identifier: GPL-3.0-or-later
"""The picture of a migration run: where each thing of a report lies on the page. The template only places it.

Numbers are in units of the picture, texts are plain: whoever shows them has to escape them. What the report does not
have is left out, and a note says so.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from . import _report_scale as scale
from ._report_curves import PATHS, columns, progress_lanes, sample_lanes
from ._report_time import Record, Run

WIDTH, LEFT, RIGHT = 1080, 190, 1060
_LETTER = 6.4  # width of a letter in a bar
_INTERVALS = {
    "drain": ("Drain", "requests that were taken are completed"),
    "transfer": ("State transfer", "queue positions go to the other path"),
    "resume": ("Path resume", "the other path takes requests"),
    "pause": ("VM pause", "the virtual machine stands still, by libvirt's count"),
}


def report_picture(report: Record) -> dict[str, Any]:
    """``tiles``, ``chart``, ``intervals`` and ``phases`` of what ``run_report`` returned."""
    run = Run(report)
    return {
        "tiles": _tiles(report),
        "chart": _chart(report, run) if run.drawn else None,
        "intervals": _intervals(report["intervals"]),
        "phases": [_phase(phase, run) for phase in report["phases"]],
    }


# Tiles


def _tiles(report: Record) -> list[dict[str, str]]:
    io, migration, intervals = report["io"], report["migration"], report["intervals"]
    blackouts = [found for switch in report["switches"] if (found := switch["blackout_seconds"]) is not None]
    worst = [one["latency_max"] for found in report["samples"].values() for one in found if one["latency_max"]]
    latency = io["worst_latency_ms"]
    seen = "by the guest's own clock" if latency is not None else "as the engine measured it"
    guest = latency / 1e3 if latency is not None else max(worst, default=None)
    blocks = min((check["checked"] for check in report["checks"]), default=None)
    if blocks is not None:
        compared = _tile("Blocks checked", scale.count(blocks), f"by {len(report['checks'])} checks of each")
    elif io["load"]:
        compared = _tile(
            "Data compared",
            scale.size(io["bytes_verified"]),
            f"{scale.size(io['bytes_written'])} written during the run",
        )
    else:
        compared = _tile("Data compared", "none", "the run had no load of its own")
    errors = str(sum(one["count"] for one in io["errors"])) if io["load"] else "not known"
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
        compared,
        _tile("Errors of the guest", errors, "as its load reported"),
    ]


def _tile(label: str, value: str, hint: str) -> dict[str, str]:
    return {"label": label, "value": value, "hint": hint}


# The time line


def _chart(report: Record, run: Run) -> dict[str, Any]:
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
    for lane in sample_lanes(run, across, notes) + progress_lanes(run, across, notes):
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
        "columns": columns(run, across),
        "notes": notes,
        "summary": _summary(report, run),
    }


def _summary(report: Record, run: Run) -> str:
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


def _phase_lane(phases: Sequence[Record], run: Run, across: scale.Linear) -> dict[str, Any]:
    bars = []
    for number, phase in enumerate(phases, 1):
        if phase["duration"] is None:
            continue
        start = phase["offset"] * run.seconds
        title = f"{number}. {phase['name']}: {scale.duration(phase['duration'])}, from {scale.duration(start)} on"
        place = across.at(start), across.at(start + phase["duration"])
        bars.append(_bar(*place, f"phase{number % 2}", (f"{number} {phase['name']}", str(number)), title))
    return {"kind": "bars", "label": "Phases", "hint": "", "height": 24, "bars": bars}


def _path_lanes(report: Record, run: Run, across: scale.Linear) -> list[dict[str, Any]]:
    """For each hypervisor, which path its vport was on."""
    hosts = dict.fromkeys(host for host in (report["source"], report["destination"]) if host)
    lanes = []
    for host in hosts:
        bars = []
        for start, end, kind, vf in _segments(report, run, host):
            name = f"VF {vf.removeprefix('0000:')}" if vf else PATHS[kind]
            title = f"{host}: {name}, for {scale.duration(end - start)} from {scale.duration(start)} on"
            bars.append(_bar(across.at(start), across.at(end), kind, (name, PATHS[kind][:2]), title))
        hint = "" if bars else "no events"
        lanes.append({"kind": "bars", "label": f"Path on {host}", "hint": hint, "height": 24, "bars": bars})
    return lanes


def _segments(report: Record, run: Run, host: str) -> list[tuple[float, float, str, str | None]]:
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
        if kind is None or kind not in PATHS or end <= start:
            continue
        if segments and segments[-1][1:] == (start, kind, function):
            segments[-1] = (segments[-1][0], end, kind, function)
        else:
            segments.append((start, end, kind, function))
    return segments


def _bands(report: Record, run: Run, across: scale.Linear) -> list[dict[str, Any]]:
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


def _phase(phase: Record, run: Run) -> dict[str, Any]:
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
