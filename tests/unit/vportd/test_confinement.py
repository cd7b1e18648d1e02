# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine's unit: it lets through what the engine and its workers need, and little else."""

import os
import re
import shutil
import signal
import subprocess
import sys

import pytest

from tests.unit.vportd import confined
from tests.unit.vportd.engine_process import PACKAGES, VF0
from tests.unit.vportd.frontend import FLUSH, IN, OK
from tests.unit.vportd.test_metrics import ask
from tests.unit.vportd.test_paths import Stream, wait_for

UNIT = PACKAGES / "vportd.service"
UNITS = [UNIT, PACKAGES / "vportd-metrics.service", PACKAGES / "vportd-metrics.socket"]
needs_tools = pytest.mark.skipif(confined.missing() is not None, reason=str(confined.missing()))


@needs_tools
@pytest.mark.parametrize("backend", ["uring", "threads", "file"])
def test_all_that_the_engine_does_it_can_do_within_the_limits_of_its_unit(backend, make_engine, make_vport, front_end):
    prefix = [sys.executable, confined.__file__, str(UNIT)]
    engine = make_engine(prefix=prefix, backend=backend, settings={"metrics": "RUN/metrics.sock"})
    with open(f"/proc/{engine.process.pid}/status", encoding="ascii") as file:
        facts = dict(line.split(":\t", 1) for line in file.read().splitlines() if ":\t" in line)
    assert (facts["Seccomp"], facts["NoNewPrivs"]) == ("2", "1")
    assert int(facts["CapEff"], 16) == 1 << 0 | 1 << 5 | 1 << 6 | 1 << 7
    engine.let_discard()
    rpc = make_vport(engine, bind=VF0)
    assert f"through {'io_uring' if backend == 'uring' else backend}" in engine.log.read_text()
    front = front_end(engine.socket())
    queue = front.start()
    with Stream(queue) as stream:
        wait_for(lambda: stream.count > 100)
        for path in ("pf", "vf"):
            rpc.vport_switch(vport="vp0", path=path)
        os.kill(engine.workers()["vp0", "vf"], signal.SIGKILL)
        wait_for(lambda: rpc.vport_get(vport="vp0")["path"] == "pf")
        before = stream.count
        wait_for(lambda: stream.count > before + 100 or stream.problem)
    assert queue.do(FLUSH)[0] == OK
    assert front.offered >> 13 & 1
    assert front.start_log() == (0, 0)
    assert queue.do(IN, 0, length=4096)[0] == OK
    assert ask(engine.run_dir / "metrics.sock")[0] == "HTTP/1.1 200 OK"
    rpc.vport_unbind(vport="vp0")
    front.disconnect()
    rpc.vport_delete(vport="vp0", force=True)


@needs_tools
def test_what_the_unit_keeps_out_is_kept_out():
    found = confined.allowed(UNIT)
    for call in ("ptrace", "mount", "setns", "bpf", "init_module", "keyctl", "reboot", "chroot", "process_vm_readv"):
        assert call not in found
    assert {"io_uring_setup", "io_uring_enter", "io_uring_register", "fallocate", "preadv2", "pidfd_open"} <= found
    code = "import os; os.chroot('/')"
    done = subprocess.run(
        [sys.executable, confined.__file__, str(UNIT), sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "PermissionError" in done.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_finds_no_fault_with_the_units():
    done = subprocess.run(["systemd-analyze", "verify", *map(str, UNITS)], capture_output=True, text=True, check=False)
    ours = [line for line in done.stderr.splitlines() if "vportd" in line]
    assert ours == []


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize(("unit", "most"), [(UNITS[0], 2.5), (UNITS[1], 2.0)])
def test_the_exposure_that_systemd_sees_stays_low(unit, most):
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    level = re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout)
    assert level is not None, done.stdout + done.stderr
    assert float(level[1]) <= most, done.stdout
