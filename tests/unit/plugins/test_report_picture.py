# SPDX-License-Identifier: GPL-3.0-or-later
"""report_picture and the page: everything in its place, nothing invented, no name that can break out of its text."""

from __future__ import annotations

import copy
import html.parser
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.iovlab.storage.plugins.filter.report_picture import FilterModule
from ansible_collections.iovlab.storage.plugins.plugin_utils import _report_scale as scale
from ansible_collections.iovlab.storage.plugins.plugin_utils._report import run_report
from ansible_collections.iovlab.storage.plugins.plugin_utils._report_picture import LEFT, RIGHT, report_picture
from tests.unit.plugins.test_run_report import ANYTHING, START, WRONG, Run, good_run, setting, switch, values, ways

HOSTILE = "</title><script>alert(1)</script>\"'><img src=x onerror=alert(1)>&amp;{{ 1/0 }}"


def sample(seconds: float, path: str = "vf", **changes: Any) -> Run:
    measured = {"outstanding": 4, "iops": 200.0, "bytes_per_second": 819200.0, "errors": 0, "dirty_pages": 0}
    latency = {"latency_p50": 0.004, "latency_p99": 0.02, "latency_max": 0.3}
    return {"time": START + seconds, "path": path, "state": "RUNNING", **measured, **latency, **changes}


def idle(seconds: float) -> Run:
    nothing = {"outstanding": 0, "iops": 0.0, "bytes_per_second": 0.0}
    return sample(seconds, "pf", **nothing, latency_p50=0.0, latency_p99=0.0, latency_max=0.0)


def progress(seconds: float, **changes: Any) -> Run:
    told = {"iteration": 2, "memory_remaining": 64 << 20, "memory_transferred": 128 << 20, "dirty_rate": 1 << 20}
    return {"time": START + seconds, "throttle": 0, **told, **changes}


@pytest.fixture
def run() -> Run:
    """24 s: the path is switched at 2 s on hv1, the VM leaves it at 19 s, and the path is switched at 20 s on hv2."""
    run = good_run()
    run["samples"] = {
        "hv1": [sample(second + 0.5, "vf" if second < 2 else "pf") for second in range(19)] + [idle(19.5)],
        "hv2": [idle(second + 0.5) for second in range(2, 19)] + [sample(20.5 + second) for second in range(3)],
    }
    run["progress"] = [progress(3.5 + second) for second in range(15)]
    return run


def drawn(run: Run) -> dict[str, Any]:
    return report_picture(run_report(run))


def lane(picture: dict[str, Any], label: str) -> dict[str, Any]:
    (found,) = (lane for lane in picture["chart"]["lanes"] if lane["label"] == label)
    return dict(found)


def x(seconds: float, whole: float = 24) -> float:
    return LEFT + (RIGHT - LEFT) * seconds / whole


def points(line: str) -> list[list[tuple[float, float]]]:
    """The pieces of a line, each as its points."""
    return [
        [(float(one.split()[0]), float(one.split()[1])) for one in piece.split("L")]
        for piece in line.split("M")
        if piece
    ]


def test_each_phase_lies_at_its_time(run: Run) -> None:
    bars = lane(drawn(run), "Phases")["bars"]
    assert [one["x"] for one in bars] == pytest.approx([x(0), x(2), x(3), x(20), x(20.5)], abs=0.01)
    assert bars[2]["width"] == pytest.approx(x(19.25) - x(3), abs=0.02)
    assert bars[2]["text"] == "3 live migration"
    assert bars[1]["width"] == 1.5, "ten milliseconds can still be seen"
    assert bars[1]["title"] == "2. switch to the PF: 10 ms, from 2 s on"


def test_the_path_is_shown_by_hypervisor(run: Run) -> None:
    picture = drawn(run)
    here = [(one["kind"], one["text"]) for one in lane(picture, "Path on hv1")["bars"]]
    there = [(one["kind"], one["text"]) for one in lane(picture, "Path on hv2")["bars"]]
    assert here == [("vf", "VF 01:00.1"), ("pf", "PF"), ("fenced", "fenced")]
    assert there == [("waiting", "waits for the VM"), ("pf", "PF"), ("vf", "VF 01:00.2")]
    bars = lane(picture, "Path on hv2")["bars"]
    assert [one["x"] for one in bars] == pytest.approx([x(1), x(19), x(20)], abs=0.01)


def test_a_vm_that_stays_on_the_pf_is_shown_there_to_the_end(run: Run) -> None:
    record = run["vports"]["after"]["hv2"]
    record.update(path="pf", vf=None, history=record["history"][:1])
    run["switches"] = run["switches"][:1]
    run["no_vf"] = "hv2 has no free VF"
    report = run_report(run)
    assert (report["verdict"], report["errors"]) == ("ok", [])
    assert report["notes"] == ["vport tenant1 on hv2 stays on path pf: hv2 has no free VF"]
    last = lane(report_picture(report), "Path on hv2")["bars"][-1]
    assert (last["kind"], last["x"] + last["width"]) == ("pf", pytest.approx(RIGHT, abs=0.01))


def test_a_vm_that_never_left_is_not_shown_elsewhere(run: Run) -> None:
    """The migration failed: no fence closed, and the destination only waited."""
    run["vports"]["after"]["hv1"]["history"].pop()
    run["vports"]["after"]["hv2"]["history"] = run["vports"]["after"]["hv2"]["history"][:1]
    run["samples"]["hv2"] = [idle(second + 0.5) for second in range(2, 23)]
    picture = drawn(run)
    assert [one["kind"] for one in lane(picture, "Path on hv2")["bars"]] == ["waiting"]
    assert [one["kind"] for one in lane(picture, "Path on hv1")["bars"]] == ["vf", "pf"]


def test_samples_are_of_the_hypervisor_that_has_the_vm(run: Run) -> None:
    (series,) = lane(drawn(run), "Throughput")["series"]
    (line,) = points(series["line"])
    assert len(line) == 19 + 3, "the idle samples of the one that waits, or is fenced, are not drawn"
    assert len({place for __, place in line}) == 1


def test_latency_is_on_a_scale_of_powers_of_ten(run: Run) -> None:
    latency = lane(drawn(run), "Guest I/O latency")
    assert [mark["label"] for mark in latency["grid"]] == ["1 ms", "10 ms", "100 ms", "1 s"]
    assert [mark["y"] for mark in latency["grid"]] == [120, 80, 40, 0]
    p50 = next(one for one in latency["series"] if one["name"] == "p50")
    assert points(p50["line"])[0][0] == pytest.approx((x(0.5), 120 - 40 * math.log10(4)), abs=0.01)


def test_where_nothing_was_measured_the_line_is_broken(run: Run) -> None:
    run["samples"]["hv1"] = [sample(1), sample(2), sample(9), sample(10)]
    picture = drawn(run)
    p50 = next(one for one in lane(picture, "Guest I/O latency")["series"] if one["name"] == "p50")
    assert [len(piece) for piece in points(p50["line"])] == [2, 2, 3]
    (line,) = points(lane(picture, "Throughput")["series"][0]["line"])
    floor = max(place for __, place in line)
    assert [round(at, 2) for at, place in line if place == floor][:2] == [round(x(3), 2), round(x(8), 2)]


def test_many_samples_are_thinned_and_the_worst_of_them_stays(run: Run) -> None:
    hour = 3600.0
    run["phases"] = [{"name": "live migration", "start": START, "end": START + hour}]
    run["samples"] = {"hv1": [sample(float(second)) for second in range(0, 3600, 4)]}
    run["samples"]["hv1"][500]["latency_max"] = 7.5
    run["vports"]["after"]["hv1"]["history"].pop()
    picture = drawn(run)
    series = {one["name"]: points(one["line"]) for one in lane(picture, "Guest I/O latency")["series"]}
    assert sum(map(len, series["max"])) <= 240
    assert len(series["max"]) == 1, "thinning makes no gaps"
    assert [mark["label"] for mark in lane(picture, "Guest I/O latency")["grid"]][-1] == "10 s"
    highest = min(place for __, place in series["max"][0])
    assert highest == pytest.approx(scale.Log(0.001, 10, 120, 0).at(7.5), abs=0.01)
    assert len(picture["chart"]["columns"]) <= 241


def test_samples_that_the_engine_no_longer_had_are_said_to_be_gone(run: Run) -> None:
    run["phases"] = [{"name": "live migration", "start": START, "end": START + 3600}]
    run["samples"] = {"hv1": [sample(2000.0 + second) for second in range(900)]}
    run["vports"]["after"]["hv1"]["history"].pop()
    assert drawn(run)["chart"]["notes"][0] == "The engine keeps 900 samples: what was before 33 min 20 s is gone."


def test_switches_and_the_pause_run_through_all_lanes(run: Run) -> None:
    for host, at in (("hv1", 1), ("hv2", 1)):
        run["vports"]["after"][host]["history"][at]["detail"]["blackout_seconds"] = 0.5
    bands = drawn(run)["chart"]["bands"]
    assert [(band["kind"], band["title"]) for band in bands] == [
        ("switch", "switch to pf on hv1: nothing was taken for 500 ms"),
        ("switch", "switch to vf on hv2: nothing was taken for 500 ms"),
        ("pause", "the VM stood still for 140 ms"),
    ]
    assert (bands[0]["x"], bands[0]["width"]) == (
        pytest.approx(x(1.5), abs=0.01),
        pytest.approx(x(0.5) - LEFT, abs=0.01),
    )


def test_the_four_intervals_are_apart(run: Run) -> None:
    run["switches"][1]["report"]["drain_seconds"] = 0.25
    rows = {row["kind"]: row for row in drawn(run)["intervals"]["rows"]}
    assert {kind: row["text"] for kind, row in rows.items()} == {
        "drain": "250 ms",
        "transfer": "1.2 ms",
        "resume": "400 µs",
        "pause": "140 ms",
    }
    assert [dot["name"] for dot in rows["drain"]["dots"]] == ["1", "2"]
    assert rows["transfer"]["names"][0]["text"] == "1, 2", "dots in one place share one label"
    assert run_report(run)["intervals"]["drain"] == {
        "each": [{"switch": 1, "host": "hv1", "seconds": 0.0031}, {"switch": 2, "host": "hv2", "seconds": 0.25}],
        "worst": 0.25,
    }


def test_the_numbers_of_a_phase_are_of_its_samples(run: Run) -> None:
    run["samples"]["hv1"][0].update(latency_max=0.9, errors=3)
    first, __, third, *__ = drawn(run)["phases"]
    assert (first["name"], first["max"], first["errors"]) == ("prepare the destination", "900 ms", "3")
    assert (third["iops"], third["p50"], third["p99"], third["max"]) == ("200", "4 ms", "20 ms", "300 ms")


def test_what_was_not_collected_is_left_out_and_said(run: Run) -> None:
    del run["samples"], run["progress"]
    picture = drawn(run)
    assert [lane["label"] for lane in picture["chart"]["lanes"]] == ["Phases", "Path on hv1", "Path on hv2"]
    assert len(picture["chart"]["notes"]) == 2
    assert picture["phases"][2]["p99"] == "-"
    assert run_report(run)["verdict"] == "ok", "an older caller's run is as good as before"


def test_a_run_without_a_load_claims_nothing_about_data(run: Run, page: jinja2.Template) -> None:
    del run["fio"], run["checks"]
    tiles = {tile["label"]: tile["value"] for tile in drawn(run)["tiles"]}
    assert (tiles["Data compared"], tiles["Errors of the guest"]) == ("none", "not known")
    assert tiles["Worst guest I/O"] == "300 ms", "as the engine measured it"
    text = rendered(page, run)
    assert "No data was compared." in text
    assert "✓ OK" in text


def test_the_checks_of_blocks_are_told(run: Run, page: jinja2.Template) -> None:
    assert {tile["label"]: tile["value"] for tile in drawn(run)["tiles"]}["Blocks checked"] == "320"
    assert "320 blocks, each as it was written last" in rendered(page, run)
    run["checks"][1].update(ok=False, counts={"lost": 2})
    assert '<td class="no">320 blocks, 2 lost</td>' in rendered(page, run)


def test_a_run_without_times_has_no_time_line() -> None:
    assert report_picture(run_report({}))["chart"] is None


@pytest.mark.parametrize("seconds", [0.005, 5, 42, 101, 900, 7200, 6 * 3600, 40 * 86400])
def test_any_length_has_a_few_round_ticks(seconds: float) -> None:
    ticks = scale.time_ticks(seconds)
    assert 3 <= len(ticks) <= 10
    assert ticks[0][0] == 0
    assert seconds * 0.5 < ticks[-1][0] <= seconds * (1 + 1e-9)
    assert len({label for __, label in ticks}) == len(ticks), ticks


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "not known"), (0, "0 s"), (0.00000042, "0.42 µs"), (0.0004, "400 µs"), (0.0085, "8.5 ms"),
        (0.9999, "1 s"), (15.43, "15.4 s"), (150, "2 min 30 s"), (4620, "1 h 17 min"),
    ],
)  # fmt: skip
def test_durations_read_well(seconds: float | None, words: str) -> None:
    assert scale.duration(seconds) == words


@given(st.floats(0, 1e12), st.floats(0, 1e12))
def test_words_for_any_number(one: float, other: float) -> None:
    for text in (scale.duration(one), scale.size(one), scale.count(one)):
        assert 0 < len(text) < 24
    assert scale.top([one, other]) >= max(one, other)
    assert scale.top_bytes([one, other]) >= max(one, other)
    low, high = scale.decades([one or 1, other or 1])
    assert 0 < low < high


# The page


@pytest.fixture(scope="session")
def page(checkout: Path) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(checkout / "roles" / "migration" / "templates"),
        trim_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # as Ansible's: the template itself has to see to it
    )
    return environment.get_template("report.html.j2")


class _Balanced(html.parser.HTMLParser):
    """Fails on a tag that is not closed, or closes another."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.add(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def rendered(page: jinja2.Template, run: Any) -> str:
    """The page, checked: tags are balanced, pictures are XML and described, nothing comes from elsewhere."""
    report = run_report(run)
    text = page.render(report=report, picture=report_picture(report))
    parser = _Balanced()
    parser.feed(text)
    assert parser.open == []
    assert not parser.seen & {"script", "img", "link", "iframe", "object"}
    for picture in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        root = ElementTree.fromstring(picture)
        assert root.get("role") == "img"
        assert root.get("aria-label")
    assert set(re.findall(r"url\(([^)]*)\)", text)) <= {"#waiting", "#fenced"}
    assert "@import" not in text
    assert not re.search(
        r"\b(NaN|nan|inf|Infinity|None|Undefined)\b", re.sub(r"<(li|td|p|title|h1)\b.*?</\1>", "", text)
    )
    return text


def test_the_page_shows_what_was_asked_for(run: Run, page: jinja2.Template) -> None:
    text = rendered(page, run)
    assert "Live migration of tenant1 from hv1 to hv2" in text
    assert "✓ OK" in text
    for words in ("Guest I/O latency", "Throughput", "Outstanding", "Memory", "Dirty rate", "VM pause", "140 ms"):
        assert words in text, words
    assert "✓ the same in all 2" in text
    assert text.count("<svg") == 2


def test_the_page_shows_what_is_wrong(run: Run, page: jinja2.Template) -> None:
    run["switches"][0] = switch("hv1", "x", "vf", "pf", 5)
    run["switches"][0]["report"]["state_after"]["luns"][0]["queues"][0]["used"] = 6
    text = rendered(page, run)
    assert "✗ Failed" in text
    assert "1 thing is wrong" in text
    assert "✗ differs" in text


def test_no_name_can_break_out_of_its_text(run: Run, page: jinja2.Template) -> None:
    for key in ("vm", "source", "destination", "no_vf"):
        run[key] = HOSTILE
    for way in list(ways(run)):
        *__, key = way
        if key in ("name", "at", "host", "from", "to", "event", "path", "state", "degraded", "digest", "jobname", "vf"):
            setting(*way, HOSTILE)(run)
    run["placement"] = {HOSTILE: HOSTILE}
    run["samples"] = {HOSTILE: [sample(1.0, HOSTILE)]}
    for side in run["vports"].values():
        side[HOSTILE] = next(record for record in side.values() if record)
        side[HOSTILE]["history"][0]["detail"] = {HOSTILE: HOSTILE, "vf": HOSTILE}
    text = rendered(page, run)
    assert "<script" not in text
    assert "<img" not in text
    assert "&lt;script&gt;" in text


def test_ansible_renders_the_page_and_escapes_it_too(run: Run, checkout: Path) -> None:
    from ansible.parsing.dataloader import DataLoader
    from ansible.template import Templar, trust_as_template

    run["vm"] = HOSTILE
    report = run_report(run)
    source = (checkout / "roles" / "migration" / "templates" / "report.html.j2").read_text(encoding="utf-8")
    templar = Templar(loader=DataLoader(), variables={"report": report, "picture": report_picture(report)})
    text = templar.template(trust_as_template(source), convert_data=False)
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "{{ 1/0 }}" in text, "a name is no template"


@pytest.mark.parametrize("spoil", [spoil for spoil, __ in WRONG], ids=[sentence for __, sentence in WRONG])
def test_every_failure_has_a_page(run: Run, page: jinja2.Template, spoil: Any) -> None:
    spoil(run)
    assert "✗ Failed" in rendered(page, run)


def _short(run: Run) -> Run:
    """One sample of each kind, few phases: the ways into the run are many enough."""
    run["samples"] = {"hv1": run["samples"]["hv1"][:2], "hv2": run["samples"]["hv2"][-1:]}
    run["progress"] = run["progress"][:1]
    return run


@pytest.mark.parametrize("value", ANYTHING, ids=lambda value: repr(value)[:8])
def test_anything_in_the_place_of_anything_has_a_page(run: Run, page: jinja2.Template, value: Any) -> None:
    whole = _short(run)
    for way in ways(whole):
        spoiled = copy.deepcopy(whole)
        setting(*way, value)(spoiled)
        report = run_report(spoiled)
        page.render(report=report, picture=report_picture(report))


@given(values)
def test_whatever_is_collected_has_a_picture(collected: Any) -> None:
    report_picture(run_report(collected))


def test_the_filter_is_the_picture(run: Run) -> None:
    report = run_report(run)
    assert FilterModule().filters()["report_picture"](report) == report_picture(report)
