# SPDX-License-Identifier: GPL-3.0-or-later
"""vportctl against a running engine."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.unit.vportd.engine_process import PACKAGES, VF0
from tests.unit.vportd.frontend import IN, OK, OUT
from tests.unit.vportd.test_paths import wait_for
from vportd import ctl_text

PROGRAM = PACKAGES / "vportctl"


@pytest.fixture
def ctl(engine, make_vport):
    make_vport(engine, bind=VF0)

    def run(*arguments, expected=0):
        command = [str(PROGRAM), "--socket", str(engine.run_dir / "rpc.sock"), *arguments]
        environment = {**os.environ, "VPORTD_PACKAGES": str(PACKAGES)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
        assert done.returncode == expected, done.stderr
        return done.stderr if expected else done.stdout

    return run


def test_every_command_says_what_the_engine_says(ctl, engine, front_end):
    queue = front_end(engine.socket()).start()
    assert queue.do(OUT, 0, b"c" * 4096)[0] == OK
    assert "vp0" in ctl("list")
    assert ctl("names") == "vp0\n"
    record = json.loads(ctl("--json", "show", "vp0"))
    assert record["path"] == "vf"
    assert sum(record["luns"][0]["latency_us"]) == 1
    shown = ctl("show", "vp0")
    assert "RUNNING on path vf" in shown
    assert "vp0-root" in shown
    assert "connected" in shown
    assert json.loads(ctl("mapping", "vp0", "--json")) == engine.rpc().mapping_get(vport="vp0")
    assert "vf -> pf: 0 requests drained" in ctl("switch", "vp0", "pf")
    assert ctl("switch", "vp0", "pf") == "on path pf already\n"
    assert ctl("suspend", "vp0").startswith("FROZEN")
    assert json.loads(ctl("state", "vp0"))["luns"][0]["queues"][0]["used"] == 1
    assert ctl("resume", "vp0", "--path", "vf") == "RUNNING on path vf\n"
    assert queue.do(IN, 0, length=4096)[:2] == (OK, b"c" * 4096)


def test_a_refusal_is_one_line_and_exit_status_1(ctl):
    assert ctl("show", "none", expected=1) == "vportctl: NOT_FOUND: there is no vport 'none': those there are are vp0\n"
    assert ctl("state", "vp0", expected=1).startswith("vportctl: BAD_STATE: ")
    assert json.loads(ctl("--json", "state", "vp0", expected=1))["error"]["data"]["reason"] == "BAD_STATE"
    assert "is vportd running" in ctl("--socket", "/nonexistent", "list", expected=1)


def test_top_shows_what_happened_between_two_looks(ctl):
    (row,) = json.loads(ctl("--json", "top", "--interval", "0.05", "--count", "1"))
    assert (row["vport"], row["reads"]) == ("vp0", 0)
    assert row["latency_us"] == {"p50": None, "p99": None, "p99.9": None}
    assert ctl("top", "--interval", "0.05", "--count", "2").count("VPORT") == 2


def test_policy_and_samples(ctl, engine, front_end):
    assert ctl("policy", "vp0") == "error policy report, auto return no\n"
    assert ctl("policy", "vp0", "--error-policy", "wait", "--auto-return", "yes") == (
        "error policy wait, auto return yes\n"
    )
    assert json.loads(ctl("policy", "vp0", "--json")) == {"vport": "vp0", "error_policy": "wait", "auto_return": True}
    queue = front_end(engine.socket()).start()
    assert queue.do(OUT, 0, b"c" * 4096)[0] == OK
    wait_for(lambda: any(one["iops"] for one in json.loads(ctl("--json", "samples", "vp0"))))
    assert "RUNNING" in ctl("samples", "vp0")
    assert ctl("samples", "vp0", "--last", "0").count("\n") == 1


def test_rates_and_percentiles_come_from_the_difference():
    def look(reads, histogram):
        counters = {"reads": reads, "writes": 0, "bytes_read": reads * 4096, "bytes_written": 0, "errors": 0}
        lun = {"lun": 0, "counters": counters, "latency_us": histogram}
        return [{"vport": "a", "state": "RUNNING", "path": "vf", "outstanding": 3, "luns": [lun]}]

    (row,) = ctl_text.rates(look(100, [0, 5, 0, 0]), look(300, [0, 5, 99, 1]), 2.0)
    assert (row["reads"], row["bytes_read"], row["histogram"]) == (100.0, 409600.0, [0, 0, 99, 1])
    assert row["latency_us"] == {"p50": 4, "p99": 4, "p99.9": 8}
    assert "<4 us  <4 us  <8 us" in ctl_text.top([row])
    assert ctl_text.percentile([0, 0], 0.5) is None
    assert ctl_text.below(ctl_text.percentile([0] * 14 + [1], 0.5)) == "<16 ms"
    assert ctl_text.below(None) == "-"


def test_help_tells_each_command_and_completion_is_bash(ctl):
    text = ctl("--help")
    commands = [
        "list",
        "show",
        "mapping",
        "state",
        "suspend",
        "resume",
        "switch",
        "policy",
        "top",
        "samples",
        "completion",
    ]
    for command in commands:
        assert f"    {command} " in text
        assert len(ctl(command, "--help").splitlines()) > 6
    script = ctl("completion")
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0

    def completed(*words):
        typed = f'COMP_WORDS=({" ".join(words)}) COMP_CWORD={len(words) - 1}; _vportctl; echo "${{COMPREPLY[@]}}"'
        done = subprocess.run(["bash", "-c", script + typed], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert completed("vportctl", "sw") == "switch"
    assert completed("vportctl", "policy", "vp0", "--a") == "--auto-return"
    assert completed("vportctl", "policy", "vp0", "--error-policy", "w") == "wait"
    assert completed("vportctl", "top", "--co") == "--count"
    assert completed("vportctl", "list", "--co") == ""
    assert json.loads(ctl("--json", "completion")) == script
    assert Path(PROGRAM).stat().st_mode & 0o111


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1536, "1.5 KiB"), (5 << 30, "5 GiB"), (1 << 62, "4 EiB")])
def test_sizes(count, text):
    assert ctl_text.size(count) == text
