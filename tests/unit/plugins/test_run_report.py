# SPDX-License-Identifier: GPL-3.0-or-later
"""run_report: the numbers of a migration run in one place, a sentence for all that is wrong, never an exception."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.iovlab.storage.plugins.filter.run_report import FilterModule
from ansible_collections.iovlab.storage.plugins.plugin_utils._report import run_report

Run = dict[str, Any]
START = 1_763_856_000.0  # 2025-11-23 00:00:00 UTC
DIGEST = "sha256:" + "5e" * 32
MIB = 1 << 20


def phase(name: str, start: float, end: float) -> Run:
    return {"name": name, "start": START + start, "end": START + end}


def state(*positions: int) -> Run:
    queues = [
        {"index": index, "size": 128, "last_avail": at, "used": at, "inflight": []}
        for index, at in enumerate(positions)
    ]
    return {"version": 1, "vport": "tenant1", "luns": [{"lun": 0, "features": 0, "queues": queues}]}


def switch(host: str, at: str, origin: str, to: str, *positions: int) -> Run:
    report = {
        "changed": True,
        "from": origin,
        "to": to,
        "outstanding": 7,
        "drain_seconds": 0.0031,
        "transfer_seconds": 0.0012,
        "resume_seconds": 0.0004,
        "blackout_seconds": 0.0047,
        "state_before": state(*positions),
        "state_after": state(*positions),
    }
    return {"host": host, "at": at, "report": report}


def event(seconds: float, name: str, path: str, **detail: Any) -> Run:
    return {"time": START + seconds, "event": name, "path": path, "generation": 3, "detail": detail}


def record(path: str, vf: str | None, *history: Run) -> Run:
    return {
        "vport": "tenant1",
        "adapter": "0000:01:00.0",
        "state": "RUNNING",
        "path": path,
        "vf": vf,
        "degraded": None,
        "fenced": False,
        "digest": DIGEST,
        "history": list(history),
    }


def fio(name: str, **directions: Run) -> Run:
    return {"jobs": [{"jobname": name, "error": 0, "total_err": 0, "first_error": 0, **directions}]}


def direction(io_bytes: int, iops: float, worst_ms: float) -> Run:
    worst = {"min": 100, "max": int(worst_ms * 1e6), "mean": 1000.0}
    return {
        "io_bytes": io_bytes,
        "total_ios": io_bytes // 4096,
        "iops": iops,
        "lat_ns": worst,
        "clat_ns": {**worst, "max": worst["max"] - 9},
    }


@pytest.fixture
def run() -> Run:
    return good_run()


def good_run() -> Run:
    old = event(-60, "bound", "pf", vf="0000:01:00.1")
    leaving = [event(2, "switched", "pf", **{"from": "vf"}, to="pf"), event(19, "fenced", "pf", when="on_stop")]
    arriving = [event(1, "created", "pf", incoming=True), event(20, "switched", "vf", **{"from": "pf"}, to="vf")]
    return {
        "vm": "tenant1",
        "source": "hv1",
        "destination": "hv2",
        "phases": [
            phase("prepare the destination", 0, 1.5),
            phase("switch to the PF", 2, 2.01),
            phase("live migration", 3, 19.25),
            phase("switch to the VF", 20, 20.02),
            phase("check", 20.5, 24),
        ],
        "switches": [
            switch("hv1", "switch to the PF", "vf", "pf", 4711, 65535),
            switch("hv2", "switch to the VF", "pf", "vf", 9000, 12),
        ],
        "migration": {"total_time": 15.9, "downtime": 0.14, "memory_transferred": 300 * MIB, "phases": {}},
        "vports": {
            "before": {"hv1": record("vf", "0000:01:00.1", old), "hv2": None},
            "after": {"hv1": record("pf", None, old, *leaving), "hv2": record("vf", "0000:01:00.2", *arriving)},
        },
        "placement": {"hv1": None, "hv2": "running"},
        "fio": {
            "load": fio(
                "load",
                read=direction(10 * MIB, 310.2, 9.5),
                write=direction(12 * MIB, 402.0, 23.4),
                trim=direction(0, 0, 0),
            ),
            "verify": fio("verify", read=direction(256 * MIB, 5000, 40), write=direction(0, 0, 0)),
        },
        "checks": [
            {"name": "in the VM", "ok": True, "checked": 320, "errors": [], "counts": {}, "defects": []},
            {"name": "from outside", "ok": True, "checked": 320, "errors": [], "counts": {}, "defects": []},
        ],
    }


def test_a_good_run_is_ok_and_every_number_is_told(run: Run) -> None:
    report = run_report(run)
    assert report["errors"] == []
    assert report["verdict"] == "ok"
    assert (report["vm"], report["source"], report["destination"]) == ("tenant1", "hv1", "hv2")
    migration = report["phases"][2]
    assert (migration["name"], migration["duration"]) == ("live migration", 16.25)
    assert (migration["start"], migration["end"]) == ("2025-11-23T00:00:03.000Z", "2025-11-23T00:00:19.250Z")
    assert (migration["offset"], migration["share"]) == (0.125, pytest.approx(16.25 / 24, abs=1e-6))
    first = report["switches"][0]
    assert (first["host"], first["from"], first["to"], first["outstanding"]) == ("hv1", "vf", "pf", 7)
    assert (first["drain_seconds"], first["blackout_seconds"], first["match"]) == (0.0031, 0.0047, True)
    assert first["positions"][1] == {
        "lun": 0,
        "queue": 1,
        "before": {"last_avail": 65535, "used": 65535},
        "after": {"last_avail": 65535, "used": 65535},
        "match": True,
    }
    assert report["mapping"] == {"source": DIGEST, "destination": DIGEST, "equal": True}
    assert (report["migration"]["downtime"], report["migration"]["total_time"]) == (0.14, 15.9)
    assert report["io"] == {
        "load": True,
        "worst_latency_ms": 23.4,
        "iops": {"read": 310.2, "write": 402.0},
        "bytes_written": 12 * MIB,
        "bytes_verified": 256 * MIB,
        "errors": [],
    }
    json.dumps(report)


def test_paths_go_from_vf_to_vf_over_both_pfs(run: Run) -> None:
    assert run_report(run)["paths"] == [
        {"host": "hv1", "path": "vf", "vf": "0000:01:00.1"},
        {"host": "hv1", "path": "pf", "vf": None},
        {"host": "hv2", "path": "pf", "vf": None},
        {"host": "hv2", "path": "vf", "vf": "0000:01:00.2"},
    ]


def test_history_is_that_of_the_run_on_both_hosts_by_time(run: Run) -> None:
    history = run_report(run)["path_history"]
    assert [(one["host"], one["event"]) for one in history] == [
        ("hv2", "created"),
        ("hv1", "switched"),
        ("hv1", "fenced"),
        ("hv2", "switched"),
    ]
    assert history[1]["time"] == "2025-11-23T00:00:02.000Z"


def test_latency_is_the_worst_of_all_jobs_of_the_load(run: Run) -> None:
    worse = fio("more", read=direction(MIB, 10, 77.7))["jobs"][0]
    run["fio"]["load"]["jobs"].append(worse)
    io = run_report(run)["io"]
    assert (io["worst_latency_ms"], io["iops"]["read"], io["bytes_written"]) == (77.7, 320.2, 12 * MIB)


def test_times_that_jinja_made_strings_of_count(run: Run) -> None:
    for one in run["phases"]:
        one["start"], one["end"] = str(one["start"]), str(one["end"])
    assert run_report(run)["verdict"] == "ok"


def at(run: Run, *keys: Any) -> Any:
    value: Any = run
    for key in keys:
        value = value[key]
    return value


def setting(*way: Any) -> Callable[[Run], None]:
    """Sets the last of ``way`` at the keys before it."""
    *keys, last, value = way
    return lambda run: at(run, *keys).__setitem__(last, value)


def without(*way: Any) -> Callable[[Run], None]:
    *keys, last = way
    return lambda run: at(run, *keys).__delitem__(last)


LOAD, VERIFY = ("fio", "load", "jobs", 0), ("fio", "verify", "jobs", 0)
BEFORE, AFTER = ("vports", "before", "hv1"), ("vports", "after", "hv2")
FIRST = ("switches", 0, "report")
QUEUE = (*FIRST, "state_after", "luns", 0, "queues", 1)

WRONG: list[tuple[Callable[[Run], None], str]] = [
    (setting(*LOAD, "error", 5), "fio's job load of the load run: error 5 (Input/output error)"),
    (setting(*LOAD, "first_error", 84), "fio's job load of the load run: data is not what was written"),
    (setting(*VERIFY, "error", 84), "fio's job verify of the verify run: data is not what was written"),
    (setting(*VERIFY, "total_err", 3), "fio's job verify of the verify run: errors, 3 in all"),
    (setting(*VERIFY, "read", "io_bytes", 0), "not one byte was verified"),
    (without(*VERIFY, "read"), "not one byte was verified"),
    (setting(*LOAD, "write", "io_bytes", 0), "the load wrote nothing"),
    (without("fio", "load"), "fio's load run has no result"),
    (setting("fio", "verify", {}), "fio's verify run has no result"),
    (setting("fio", "load", fio("load", write={"io_bytes": MIB})), "fio tells no latency of the load"),
    (
        setting(*QUEUE, "last_avail", 65534),
        "the switch on hv1 from vf to pf left LUN 0 queue 1 with last_avail 65535 and used 65535, "
        "then last_avail 65534 and used 65535",
    ),
    (
        setting(*FIRST, "state_before", "luns", 0, "queues", 0, "used", 4710),
        "the switch on hv1 from vf to pf left LUN 0 queue 0 with last_avail 4711 and used 4710, "
        "then last_avail 4711 and used 4711",
    ),
    (
        setting(*FIRST, "state_after", state(4711)),
        "the switch on hv1 from vf to pf left LUN 0 queue 1 with last_avail 65535 and used 65535, "
        "then last_avail None and used None",
    ),
    (
        lambda run: at(run, *FIRST).update(state_before=state(4711, 65535), state_after=state(4712, 65535)),
        "the switch on hv1 from vf to pf left LUN 0 queue 0 with last_avail 4711 and used 4711, "
        "then last_avail 4712 and used 4712",
    ),
    (
        lambda run: at(run, *FIRST).update(state_before=state(), state_after=state()),
        "the switch on hv1 from vf to pf handed over no queue",
    ),
    (setting(*FIRST, "changed", False), "the switch on hv1 from vf to pf changed nothing"),
    (without(*FIRST, "outstanding"), "the switch on hv1 from vf to pf does not tell outstanding"),
    (setting("switches", 0, "report", None), "the switch on hv1 has no report"),
    (setting("switches", []), "no switch between paths was made"),
    (
        setting(*AFTER, "digest", "sha256:other"),
        f"the mapping differs: digest {DIGEST} on the source, sha256:other on the destination",
    ),
    (setting(*BEFORE, "digest", None), "the source tells no digest of the mapping"),
    (without(*AFTER, "digest"), "the destination tells no digest of the mapping"),
    (setting("placement", "hv2", "shut off"), "virtual machine tenant1 runs nowhere"),
    (
        setting("placement", "hv1", "paused"),
        "virtual machine tenant1 is active in more than one place: on hv1 (paused) and on hv2 (running)",
    ),
    (
        setting("placement", {"hv1": "running", "hv2": "shut off"}),
        "virtual machine tenant1 is on hv1, not on hv2",
    ),
    (setting("placement", "hv2", "paused"), "virtual machine tenant1 is paused on hv2, not running"),
    (without("placement"), "nobody looked where virtual machine tenant1 runs at the end"),
    (setting(*AFTER, "path", "pf"), "vport tenant1 on hv2 is on path pf at the end, not on path vf"),
    (setting(*AFTER, "vf", None), "vport tenant1 on hv2 is bound to no VF"),
    (setting(*AFTER, "degraded", "the VF worker died"), "vport tenant1 on hv2 is degraded: the VF worker died"),
    (setting(*AFTER, "fenced", True), "vport tenant1 on hv2 is fenced"),
    (setting(*AFTER, "state", "FROZEN"), "vport tenant1 on hv2 is FROZEN at the end"),
    (without("vports", "after", "hv2"), "there is no record of the vport on hv2 at the end"),
    (without("phases", 2, "end"), "phase live migration has no end"),
    (setting("phases", 2, "end", None), "phase live migration has no end"),
    (without("phases", 0, "start"), "phase prepare the destination has no start"),
    (setting("phases", 1, "end", START), "phase switch to the PF ends before it starts"),
    (without("phases"), "there are no phases"),
    (without("migration"), "there was no migration"),
    (
        lambda run: at(run, "checks", 1).update(
            ok=False, counts={"lost": 2, "torn": 1}, defects=[{"text": "tenant1:0 at 0 holds zeros"}]
        ),
        "from outside: of 320 blocks 2 lost, 1 torn: tenant1:0 at 0 holds zeros",
    ),
    (setting("checks", 0, "counts", {"stray": 1}), "in the VM: of 320 blocks 1 stray"),
    (
        lambda run: at(run, "checks", 1).update(ok=False, errors=["pool san has no volume"]),
        "from outside: pool san has no volume",
    ),
    (setting("checks", 0, "checked", 0), "in the VM: not one block was checked"),
    (setting("checks", 0, "ok", False), "in the VM did not succeed"),
    (setting("migration", "downtime", None), "libvirt does not tell the downtime"),
    (without("vm"), "the virtual machine is not named"),
    (without("source"), "the source is not named"),
    (without("destination"), "the destination is not named"),
]


@pytest.mark.parametrize(("spoil", "sentence"), WRONG, ids=[sentence for __, sentence in WRONG])
def test_what_is_wrong_is_said_and_fails_the_run(run: Run, spoil: Callable[[Run], None], sentence: str) -> None:
    spoil(run)
    report = run_report(run)
    assert sentence in report["errors"]
    assert report["verdict"] == "failed"


def test_what_failed_is_the_first_error(run: Run) -> None:
    found = run_report(run | {"failure": "the link was cut", "placement": {"hv1": "paused", "hv2": None}})
    assert found["verdict"] == "failed"
    assert found["errors"][0] == "the link was cut"


def test_a_run_that_is_offline_has_no_live_migration_to_tell_of(run: Run) -> None:
    run["migration"] = {}
    found = run_report(run | {"mode": "offline"})
    assert (found["verdict"], found["errors"]) == ("ok", [])
    assert any("offline" in note for note in found["notes"])


def test_one_wrong_position_is_one_error(run: Run) -> None:
    at(run, *QUEUE)["used"] = 1
    report = run_report(run)
    assert len(report["errors"]) == 1
    assert [switch["match"] for switch in report["switches"]] == [False, True]
    assert [position["match"] for position in report["switches"][0]["positions"]] == [True, False]


def ways(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to everything in the run."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*way, key)
        yield from ways(inner, (*way, key))


ANYTHING: list[Any] = [None, "", "nonsense", -1, 10**400, float("nan"), float("inf"), True, [], {}, [None], {"a": 1}]


@pytest.mark.parametrize("way", list(ways(good_run())), ids=lambda way: ".".join(map(str, way)))
def test_anything_in_the_place_of_anything_is_reported_and_shown(
    way: tuple[Any, ...], template: jinja2.Template
) -> None:
    for value in ANYTHING:
        run = good_run()
        setting(*way, value)(run)
        shown(template, run_report(run))
    run = good_run()
    without(*way)(run)
    shown(template, run_report(run))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(good_run())) | st.text(max_size=4), inner)
    ),
)


@given(values)
def test_nothing_that_is_collected_makes_it_raise(collected: Any) -> None:
    report = run_report(collected)
    assert report["verdict"] == "failed"
    assert all(isinstance(error, str) and "\n" not in error for error in report["errors"])


def test_the_filter_is_the_report(run: Run) -> None:
    assert FilterModule().filters()["run_report"](run) == run_report(run)


# The report as a person reads it


@pytest.fixture(scope="session")
def template(checkout: Path) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(checkout / "playbooks" / "templates"),
        trim_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,
    )
    return environment.get_template("report.txt.j2")


def shown(template: jinja2.Template, report: dict[str, Any]) -> list[str]:
    lines = template.render(report=report).splitlines()
    assert max(map(len, lines)) <= 100, max(lines, key=len)
    return lines


def test_the_text_shows_what_was_asked_for(run: Run, template: jinja2.Template) -> None:
    text = "\n".join(shown(template, run_report(run)))
    assert "VF 01:00.1 on hv1 → PF on hv1 → PF on hv2 → VF 01:00.2 on hv2" in text
    assert "worst latency 23.4 ms" in text
    assert "position  4711 before,  4711 after" in text
    assert text.splitlines()[1].split()[-1] == "OK"
    (migration,) = (line for line in text.splitlines() if line.startswith("live migration"))
    assert migration.count("█") == 27


def test_the_text_shows_what_is_wrong(run: Run, template: jinja2.Template) -> None:
    at(run, *QUEUE)["used"] = 1
    lines = shown(template, run_report(run))
    assert lines[1].split()[-1] == "FAILED"
    assert "1 thing is wrong:" in lines
    assert any(line.startswith("    ✗ LUN 0 queue 1") for line in lines)


def test_the_text_shows_why_it_stays_on_the_pf(run: Run, template: jinja2.Template) -> None:
    run["vports"]["after"]["hv2"].update(path="pf", vf=None)
    run["no_vf"] = "hv2 has no free VF"
    lines = shown(template, run_report(run))
    assert lines[1].split()[-1] == "OK"
    assert "Note          vport tenant1 on hv2 stays on path pf: hv2 has no free VF" in lines


def test_many_queues_do_not_fill_the_screen(run: Run, template: jinja2.Template) -> None:
    positions = list(range(100, 120))
    run["switches"][0] = switch("hv1", "x", "vf", "pf", *positions)
    run["switches"][0]["report"]["state_after"]["luns"][0]["queues"][17]["used"] = 5
    lines = shown(template, run_report(run))
    first = lines.index(next(line for line in lines if line.startswith("hv1 ")))
    assert lines[first + 1].startswith("    ✗ LUN 0 queue 17")
    assert lines[first + 9] == "      and 12 queues more, see errors"


def test_names_of_any_length_stay_in_their_columns(run: Run, template: jinja2.Template) -> None:
    long = copy.deepcopy(run)
    long["vm"] = long["phases"][0]["name"] = long["switches"][0]["at"] = "n" * 200
    long["switches"][0]["host"] = "h" * 150
    shown(template, run_report(long))
