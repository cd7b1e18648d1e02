# SPDX-License-Identifier: GPL-3.0-or-later
"""The report of one migration run: numbers brought together from what was collected, and a verdict.

Nothing in here raises on input that is missing or of another shape; what is missing is one more error of the report.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

_INACTIVE = frozenset({"", "shut off", "shutoff", "shutdown", "crashed", "no state", "nostate", "undefined", "absent"})
_EILSEQ = 84  # fio's number for data that is not what was written
_DIRECTIONS = ("read", "write")
_TIMES = ("drain_seconds", "transfer_seconds", "resume_seconds", "blackout_seconds")
_SAMPLE = (
    "outstanding", "iops", "bytes_per_second", "errors", "latency_p50", "latency_p99", "latency_max", "dirty_pages",
)  # fmt: skip
_PROGRESS = ("iteration", "memory_remaining", "memory_transferred", "dirty_rate", "throttle")

Record = Mapping[Any, Any]


def run_report(run: Any) -> dict[str, Any]:
    """The report. ``errors`` has a sentence for each thing that is wrong, ``verdict`` is ``ok`` when there is none."""
    errors: list[str] = []
    notes: list[str] = []
    run = _record(run)
    if not run:
        errors.append("nothing was collected")
    if (failure := _text(run.get("failure"))) is not None:
        errors.append(failure)
    names = {}
    for key, what in (("vm", "the virtual machine"), ("source", "the source"), ("destination", "the destination")):
        names[key] = _text(run.get(key))
        if names[key] is None:
            errors.append(f"{what} is not named")
    vports = _record(run.get("vports"))
    before, after = _record(vports.get("before")), _record(vports.get("after"))
    measured = errors
    if run.get("killed"):
        measured = []
        notes.append("what the run measured was lost with it; the history of the paths is what the vports have noted")
    switches = _switches(run.get("switches"), measured)
    phases = _phases(run.get("phases"), errors)
    loaded = run.get("fio") is not None
    migration = _migration(run.get("migration"), run.get("mode") == "offline", measured, notes)
    report = {
        **names,
        **_span(run.get("phases")),
        "phases": phases,
        "paths": _paths(names, before, after, switches),
        "path_history": _history(before, after),
        "switches": switches,
        "mapping": _mapping(names, before, after, errors),
        "migration": migration,
        "intervals": _intervals(switches, migration),
        "placement": _placement(names, run.get("placement"), errors),
        "end": _end(names, after, _text(run.get("no_vf")), errors, notes),
        "io": {"load": loaded, **_io(_record(run.get("fio")), errors if loaded else [])},
        "checks": _checks(run.get("checks"), errors),
        "samples": {str(host): _moments(one, _SAMPLE) for host, one in _record(run.get("samples")).items()},
        "progress": _moments(run.get("progress", _record(run.get("migration")).get("progress")), _PROGRESS),
    }
    return {**report, "notes": notes, "errors": errors, "verdict": "failed" if errors else "ok"}


# Input of any shape


def _record(value: Any) -> Record:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else []


def _text(value: Any) -> str | None:
    return str(value) if isinstance(value, str) and value else None


def _number(value: Any) -> float | None:
    """A finite number, also one that Jinja has made a string of."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _count(value: Any) -> int | None:
    number = _number(value)
    return None if number is None else int(number)


def _time(seconds: float | None) -> str | None:
    """ISO 8601 in UTC, to the millisecond."""
    if seconds is None:
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        return None


def _and(words: Iterable[str]) -> str:
    return " and ".join(words)


def _moments(value: Any, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Records with a time, by time: numbers from 0 on, None for what is no such number, and texts as they are."""
    found: list[dict[str, Any]] = []
    for one in map(_record, _list(value)):
        if (time := _number(one.get("time"))) is None:
            continue
        numbers = {key: _number(one.get(key)) for key in keys}
        texts = {key: _text(one.get(key)) for key in ("path", "state") if key in one}
        kept = {key: number if number is not None and number >= 0 else None for key, number in numbers.items()}
        found.append({"time": time, **texts, **kept})
    return sorted(found, key=lambda one: float(one["time"]))


# Phases


def _span(value: Any) -> dict[str, float | None]:
    """When the first phase began, seconds since 1970, and the seconds from there to the end of the last."""
    moments = [_number(_record(one).get(key)) for one in _list(value) for key in ("start", "end")]
    known = [moment for moment in moments if moment is not None]
    return {"began": min(known, default=None), "duration": round(max(known) - min(known), 6) if known else None}


def _phases(value: Any, errors: list[str]) -> list[dict[str, Any]]:
    """``offset`` and ``share`` say where on the way from the first start to the last end a phase lies, from 0 to 1."""
    found = [_record(one) for one in _list(value)]
    if not found:
        errors.append("there are no phases")
    times = [(_number(one.get("start")), _number(one.get("end"))) for one in found]
    known = [moment for pair in times for moment in pair if moment is not None]
    first = min(known, default=0.0)
    whole = max(known, default=0.0) - first
    phases = []
    for number, (one, (start, end)) in enumerate(zip(found, times, strict=True), 1):
        name = _text(one.get("name")) or f"phase {number}"
        duration = None
        if start is None or end is None:
            errors.append(f"phase {name} has no {'start' if start is None else 'end'}")
        elif end < start:
            errors.append(f"phase {name} ends before it starts")
        else:
            duration = end - start
        phases.append(
            {
                "name": name,
                "start": _time(start),
                "end": _time(end),
                "duration": None if duration is None else round(duration, 6),
                "offset": round((start - first) / whole, 6) if start is not None and whole else 0.0,
                "share": round(duration / whole, 6) if duration is not None and whole else 0.0,
            }
        )
    return phases


# Switches


def _switches(value: Any, errors: list[str]) -> list[dict[str, Any]]:
    found = [_record(one) for one in _list(value)]
    if not found:
        errors.append("no switch between paths was made")
    return [_switch(one, errors) for one in found]


def _switch(one: Record, errors: list[str]) -> dict[str, Any]:
    report, host = _record(one.get("report")), _text(one.get("host"))
    what = f"the switch on {host or 'an unknown host'}"
    switch: dict[str, Any] = {
        "host": host,
        "at": _text(one.get("at")),
        "from": _text(report.get("from")),
        "to": _text(report.get("to")),
        "changed": bool(report.get("changed")),
        "outstanding": _count(report.get("outstanding")),
        **{key: _number(report.get(key)) for key in _TIMES},
        "positions": [],
        "match": True,
    }
    if not report:
        errors.append(f"{what} has no report")
        return {**switch, "match": False}
    what += f" from {switch['from']} to {switch['to']}"
    if not switch["changed"]:
        errors.append(f"{what} changed nothing")
        return switch
    for key in ("outstanding", *_TIMES):
        if switch[key] is None:
            errors.append(f"{what} does not tell {key}")
    before, after = _queues(report.get("state_before")), _queues(report.get("state_after"))
    if not before and not after:
        errors.append(f"{what} handed over no queue")
        return {**switch, "match": False}
    for lun, queue in sorted({**before, **after}):
        positions = [_position(side.get((lun, queue))) for side in (before, after)]
        numbers = {number for position in positions for number in position.values()}
        match = len(numbers) == 1 and None not in numbers
        if not match:
            told = ", then ".join(
                f"last_avail {position['last_avail']} and used {position['used']}" for position in positions
            )
            errors.append(f"{what} left LUN {lun} queue {queue} with {told}")
        switch["positions"].append(
            {"lun": lun, "queue": queue, "before": positions[0], "after": positions[1], "match": match}
        )
    switch["match"] = all(position["match"] for position in switch["positions"])
    return switch


def _queues(state: Any) -> dict[tuple[int, int], Record]:
    """Queues of a queue state record, by LUN and index."""
    found = {}
    for lun in map(_record, _list(_record(state).get("luns"))):
        for queue in map(_record, _list(lun.get("queues"))):
            number, index = _count(lun.get("lun")), _count(queue.get("index"))
            found[-1 if number is None else number, -1 if index is None else index] = queue
    return found


def _position(queue: Record | None) -> dict[str, int | None]:
    return {key: _count(_record(queue).get(key)) for key in ("last_avail", "used")}


def _intervals(switches: Sequence[Record], migration: Record) -> dict[str, dict[str, Any]]:
    """What a guest waits for, apart: drain, state transfer and resume of each switch, and the pause of the VM.

    Each has ``each``, a list of ``switch`` (its number, None for the pause), ``host`` and ``seconds``, and ``worst``.
    """

    def interval(each: list[dict[str, Any]]) -> dict[str, Any]:
        return {"each": each, "worst": max((one["seconds"] for one in each), default=None)}

    found = {}
    for name in ("drain", "transfer", "resume"):
        found[name] = interval(
            [
                {"switch": number, "host": switch["host"], "seconds": seconds}
                for number, switch in enumerate(switches, 1)
                if (seconds := switch[f"{name}_seconds"]) is not None and seconds >= 0
            ]
        )
    pause = migration.get("downtime")
    told = pause is not None and pause >= 0
    found["pause"] = interval([{"switch": None, "host": None, "seconds": pause}] if told else [])
    return found


# vports


def _paths(
    names: Mapping[str, str | None], before: Record, after: Record, switches: Sequence[Record]
) -> list[dict[str, Any]]:
    """The paths that requests have taken, in order: host, path, and on path vf the VF."""
    taken: list[dict[str, Any]] = []

    def take(host: str | None, path: str | None, record: Record) -> None:
        vf = _text(record.get("vf")) if path == "vf" else None
        if path is not None and (not taken or (taken[-1]["host"], taken[-1]["path"]) != (host, path)):
            taken.append({"host": host, "path": path, "vf": vf})

    source, destination = names["source"], names["destination"]
    record = _record(before.get(source))
    take(source, _text(record.get("path")), record)
    for switch in switches:
        host = switch["host"]
        record = _record((before if host == source else after).get(host))
        take(host, switch["from"], record)
        take(host, switch["to"], record)
    record = _record(after.get(destination))
    take(destination, _text(record.get("path")), record)
    return taken


def _history(before: Record, after: Record) -> list[dict[str, Any]]:
    """What happened to the vports during the run: what the later records have and the earlier have not, by time."""
    events = []
    for host, record in after.items():
        known = [(one.get("time"), one.get("event")) for one in _events(before.get(host))]
        for one in _events(record):
            if (one.get("time"), one.get("event")) not in known:
                events.append((_number(one.get("time")) or 0.0, str(host), one))
    events.sort(key=lambda event: event[:2])
    return [
        {
            "time": _time(moment),
            "host": host,
            "event": one.get("event"),
            "path": one.get("path"),
            "generation": one.get("generation"),
            "detail": dict(_record(one.get("detail"))),
        }
        for moment, host, one in events
    ]


def _events(record: Any) -> list[Record]:
    return [_record(one) for one in _list(_record(record).get("history"))]


def _mapping(
    names: Mapping[str, str | None], before: Record, after: Record, errors: list[str]
) -> dict[str, str | bool | None]:
    """Digests: the source's from before the migration, the destination's from after it."""
    source = _record(before.get(names["source"])) or _record(after.get(names["source"]))
    destination = _record(after.get(names["destination"])) or _record(before.get(names["destination"]))
    digests = _text(source.get("digest")), _text(destination.get("digest"))
    equal = digests[0] is not None and digests[0] == digests[1]
    for side, digest in zip(("source", "destination"), digests, strict=True):
        if digest is None:
            errors.append(f"the {side} tells no digest of the mapping")
    if None not in digests and not equal:
        errors.append(f"the mapping differs: digest {digests[0]} on the source, {digests[1]} on the destination")
    return {"source": digests[0], "destination": digests[1], "equal": equal}


def _end(
    names: Mapping[str, str | None], after: Record, no_vf: str | None, errors: list[str], notes: list[str]
) -> dict[str, Any]:
    """The vport on the destination at the end. With ``no_vf``, why there is no VF for it, path pf is right."""
    destination = names["destination"]
    record = _record(after.get(destination))
    vport = _text(record.get("vport"))
    end = {key: record.get(key) for key in ("vport", "state", "path", "vf", "degraded", "fenced")}
    if not record:
        errors.append(f"there is no record of the vport on {destination} at the end")
        return end
    what = f"vport {vport} on {destination}"
    if no_vf and record.get("path") == "pf" and not record.get("vf"):
        notes.append(f"{what} stays on path pf: {no_vf}")
    else:
        if record.get("path") != "vf":
            errors.append(f"{what} is on path {record.get('path')} at the end, not on path vf")
        if not _text(record.get("vf")):
            errors.append(f"{what} is bound to no VF")
    if record.get("state") not in (None, "RUNNING"):
        errors.append(f"{what} is {record['state']} at the end")
    if record.get("fenced"):
        errors.append(f"{what} is fenced")
    for host, one in after.items():
        if degraded := _text(_record(one).get("degraded")):
            errors.append(f"vport {_record(one).get('vport')} on {host} is degraded: {degraded}")
    return end


# The virtual machine


def _migration(value: Any, offline: bool, errors: list[str], notes: list[str]) -> dict[str, float | None]:
    """libvirt's seconds; it has none of a VM that was shut down and started again."""
    migration = _record(value)
    numbers = {key: _number(migration.get(key)) for key in ("total_time", "downtime")}
    for key in ("memory_transferred", "memory_total", "iterations"):
        numbers[key] = _number(migration.get(key))
    if offline:
        notes.append("mode offline: libvirt tells no times of a virtual machine that is shut down and started again")
    elif not migration:
        errors.append("there was no migration")
    else:
        errors += [f"libvirt does not tell the {key}" for key in ("total_time", "downtime") if numbers[key] is None]
    return numbers


def _placement(names: Mapping[str, str | None], value: Any, errors: list[str]) -> dict[str, str | None]:
    vm, destination = names["vm"], names["destination"]
    states = {str(host): _text(state) for host, state in _record(value).items()}
    active = {host: state for host, state in states.items() if state and state.strip().lower() not in _INACTIVE}
    if not states:
        errors.append(f"nobody looked where virtual machine {vm} runs at the end")
    elif not active:
        errors.append(f"virtual machine {vm} runs nowhere")
    elif len(active) > 1:
        places = _and(f"on {host} ({state})" for host, state in active.items())
        errors.append(f"virtual machine {vm} is active in more than one place: {places}")
    else:
        ((host, state),) = active.items()
        if state != "running":
            errors.append(f"virtual machine {vm} is {state} on {host}, not running")
        if host != destination:
            errors.append(f"virtual machine {vm} is on {host}, not on {destination}")
    return states


# The guest's I/O


def _io(fio: Record, errors: list[str]) -> dict[str, Any]:
    """Latency in ms and IOPS of the load, bytes that it wrote, bytes that were read back and compared."""
    jobs = {run: _jobs(fio.get(run), run, errors) for run in ("load", "verify")}
    load = [_record(job.get(direction)) for job in jobs["load"] for direction in _DIRECTIONS]
    worst = [
        _number(_record(one.get(key)).get("max"))
        for one in load
        for key in ("lat_ns", "clat_ns")
        if _bytes(one) or _number(one.get("total_ios"))
    ]
    told = [number for number in worst if number is not None]
    failures = [failure for run in jobs for job in jobs[run] if (failure := _failure(run, job))]
    io: dict[str, Any] = {
        "worst_latency_ms": round(max(told) / 1e6, 3) if told else None,
        "iops": {
            direction: round(sum(_number(_record(job.get(direction)).get("iops")) or 0 for job in jobs["load"]), 1)
            for direction in _DIRECTIONS
        },
        "bytes_written": sum(_bytes(_record(job.get("write"))) for job in jobs["load"]),
        "bytes_verified": sum(_bytes(_record(job.get("read"))) for job in jobs["verify"]),
        "errors": failures,
    }
    errors += [f"fio's job {one['job']} of the {one['run']} run: {one['text']}" for one in failures]
    if jobs["load"] and not told:
        errors.append("fio tells no latency of the load")
    if jobs["load"] and not io["bytes_written"]:
        errors.append("the load wrote nothing")
    if not io["bytes_verified"]:
        errors.append("not one byte was verified")
    return io


def _jobs(value: Any, run: str, errors: list[str]) -> list[Record]:
    jobs = [job for job in map(_record, _list(_record(value).get("jobs"))) if job]
    if not jobs:
        errors.append(f"fio's {run} run has no result")
    return jobs


def _bytes(direction: Record) -> int:
    return _count(direction.get("io_bytes")) or 0


def _failure(run: str, job: Record) -> dict[str, Any] | None:
    """The errors of one job, None when there are none. ``verify`` = of data that is not what was written."""
    code = _count(job.get("error")) or _count(job.get("first_error")) or 0
    count = _count(job.get("total_err")) or 0
    if not code and not count:
        return None
    verify = code == _EILSEQ
    meaning = f" ({os.strerror(code)})" if 0 < code < 1 << 16 else ""
    text = "data is not what was written" if verify else f"error {code}{meaning}" if code else "errors"
    return {
        "run": run,
        "job": _text(job.get("jobname")) or "?",
        "error": code,
        "count": max(count, 1),
        "verify": verify,
        "text": f"{text}, {count} in all" if count > 1 else text,
    }


def _checks(value: Any, errors: list[str]) -> list[dict[str, Any]]:
    """What checks of each block, in the guest and from outside, have found."""
    checks = []
    for number, one in enumerate(map(_record, _list(value)), 1):
        name = _text(one.get("name")) or f"check {number}"
        counts = {str(kind): _count(count) or 0 for kind, count in _record(one.get("counts")).items()}
        checked = _count(one.get("checked")) or 0
        found = [f"{count} {kind}" for kind, count in counts.items() if count]
        if found:
            defects = [_text(_record(defect).get("text")) for defect in _list(one.get("defects"))]
            first = next((f": {text}" for text in defects if text), "")
            errors.append(f"{name}: of {checked} blocks {', '.join(found)}{first}")
        said = [" ".join(text.split()) for error in _list(one.get("errors")) if (text := _text(error))]
        errors += [f"{name}: {text}" for text in said]
        if not checked:
            errors.append(f"{name}: not one block was checked")
        elif one.get("ok") is not True and not found and not said:
            errors.append(f"{name} did not succeed")
        checks.append({"name": name, "checked": checked, "ok": one.get("ok") is True and not found, "counts": counts})
    return checks
