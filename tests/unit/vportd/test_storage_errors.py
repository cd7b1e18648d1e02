# SPDX-License-Identifier: GPL-3.0-or-later
"""Storage that errs, hangs, or goes away: what the guest sees, and what the engine does meanwhile."""

import errno
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.slow_file import NoFuse, SlowFile, loop_device
from tests.unit.vportd.engine_process import VF0, Refusal
from tests.unit.vportd.frontend import FLUSH, HIGH_GPA, IN, IOERR, OK, OUT
from tests.unit.vportd.test_paths import Stream, wait_for

MIB = 1 << 20
HANG = 255


class Faults:
    """The file that says what fails on which path."""

    def __init__(self, directory):
        self.path = directory / "faults"
        self.path.write_bytes(bytes(2))

    def set(self, path, code):
        with open(self.path, "r+b") as file:
            file.seek(("pf", "vf").index(path))
            file.write(bytes([code]))


@pytest.fixture
def faults(tmp_path):
    return Faults(tmp_path)


@pytest.fixture
def make(make_engine, faults):
    return lambda **adapter: make_engine(faults=str(faults.path), **adapter)


def events(rpc, vport="vp0"):
    return [one["event"] for one in rpc.vport_get(vport=vport)["history"]]


def test_with_report_the_guest_gets_the_error_and_the_next_request_is_done(make, faults, make_vport, front_end):
    engine = make()
    rpc = make_vport(engine)
    queue = front_end(engine.socket()).start()
    for code in (errno.EIO, errno.ENOSPC):
        faults.set("pf", code)
        assert queue.do(OUT, 0, b"e" * 512)[0] == IOERR
        assert queue.do(FLUSH)[0] == IOERR
        faults.set("pf", 0)
        assert queue.do(OUT, 0, b"e" * 512)[0] == OK
    assert rpc.vport_get(vport="vp0")["luns"][0]["counters"]["errors"] == 4
    assert "storage_failed" not in events(rpc)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.ETIMEDOUT, errno.ENODEV])
def test_with_wait_the_guest_waits_until_the_storage_is_back(code, make, faults, make_vport, front_end):
    engine = make(error_policy="wait")
    rpc = make_vport(engine)
    other = make_vport(engine, "vp1", [{"lun": 0, "vdisk": "b", "extents": [[0, 20 * MIB, MIB]]}])
    queue = front_end(engine.socket()).start()
    assert queue.do(OUT, 0, b"a" * 4096)[0] == OK
    faults.set("pf", code)
    queue.submit(OUT, 0, b"b" * 4096)
    queue.submit(IN, 128, length=4096)
    queue.submit(FLUSH)
    queue.kick()
    wait_for(lambda: rpc.vport_get(vport="vp0")["waiting"] == 3)
    time.sleep(1.3)  # it is tried again in between
    assert queue.reap() == []
    with pytest.raises(Refusal) as refusal:
        rpc.vport_suspend(vport="vp0", timeout=0.2)
    assert refusal.value.reason == "TIMEOUT"
    assert {one["operation"] for one in refusal.value.data["outstanding"]} == {"read", "write", "flush"}
    assert other.vport_get(vport="vp1")["state"] == "RUNNING"
    faults.set("pf", 0)
    assert [one[1] for one in queue.wait(3)] == [OK] * 3
    assert queue.do(IN, 0, length=4096)[:2] == (OK, b"b" * 4096)
    wait_for(lambda: "storage_back" in events(rpc))
    record = rpc.vport_get(vport="vp0")
    assert (record["waiting"], record["outstanding"], record["luns"][0]["counters"]["errors"]) == (0, 0, 0)
    failed = next(one for one in record["history"] if one["event"] == "storage_failed")
    assert failed["detail"]["error"] == errno.errorcode[code]
    assert next(one for one in record["history"] if one["event"] == "storage_back")["detail"]["seconds"] > 1
    assert sum(record["luns"][0]["latency_us"][20:]) == 3  # the wait is part of their latency


def test_with_wait_a_device_that_is_there_anew_gets_what_the_old_one_failed(make, faults, make_vport, front_end):
    engine = make(error_policy="wait")
    rpc = make_vport(engine)
    queue = front_end(engine.socket()).start()
    faults.set("pf", errno.ENODEV)
    queue.submit(OUT, 0, b"b" * 4096)
    queue.kick()
    wait_for(lambda: rpc.vport_get(vport="vp0")["waiting"] == 1)
    anew = engine.replace_storage()
    wait_for(lambda: "taken_over" in events(rpc))
    faults.set("pf", 0)
    assert queue.wait(1)[0][1] == OK
    assert b"b" * 4096 in anew.read_bytes()
    assert rpc.vport_get(vport="vp0")["luns"][0]["counters"]["errors"] == 0


def test_without_its_device_an_adapter_is_listed_with_the_reason(make):
    engine = make()
    for link in (engine.directory / "dev").iterdir():
        link.unlink()
    for path in (engine.directory / "sys/bus/pci/devices").glob("*/nvme"):
        shutil.rmtree(path.resolve())
    (adapter,) = engine.rpc().adapter_list()
    assert (adapter["device"], adapter["size"]) == (None, 0)
    assert "has no block device" in adapter["error"]


def test_a_front_end_that_goes_while_much_waits_for_the_storage_leaves_room_for_the_next(
    make, faults, make_vport, front_end
):
    """More than is begun at a time: some is held, some was taken and not begun."""
    engine = make(error_policy="wait", backend="threads")
    rpc = make_vport(engine)
    faults.set("pf", errno.EIO)
    front = front_end(engine.socket())
    queue = front.start()
    while queue.free:
        queue.submit(IN, buffers=[(HIGH_GPA + MIB, 512)] * 500)
    queue.kick()
    wait_for(lambda: rpc.vport_get(vport="vp0")["waiting"] > 20)
    front.disconnect()
    front = front_end(engine.socket())
    queue = front.start()
    assert rpc.vport_get(vport="vp0")["outstanding"] == 0
    faults.set("pf", 0)
    assert queue.do(IN, length=512)[0] == OK


@pytest.mark.parametrize("code", [errno.ENODATA, errno.EINVAL, errno.EILSEQ])
def test_what_another_try_cannot_mend_is_reported_at_once(code, make, faults, make_vport, front_end):
    engine = make(error_policy="wait")
    rpc = make_vport(engine, bind=VF0)
    queue = front_end(engine.socket()).start()
    for path in ("vf", "pf"):
        rpc.vport_switch(vport="vp0", path=path)
        faults.set(path, code)
        assert queue.do(IN, 0, length=512)[0] == IOERR
        faults.set(path, 0)
    assert rpc.vport_get(vport="vp0")["degraded"] is None


def test_the_policy_is_set_while_requests_wait_and_survives_a_restart(make, faults, make_vport, front_end):
    engine = make(error_policy="wait")
    rpc = make_vport(engine)
    queue = front_end(engine.socket()).start()
    faults.set("pf", errno.EIO)
    queue.submit(IN, 0, length=512)
    queue.kick()
    wait_for(lambda: rpc.vport_get(vport="vp0")["waiting"] == 1)
    assert rpc.vport_set_policy(vport="vp0", error_policy="report")["error_policy"] == "report"
    assert queue.wait(1)[0][1] == IOERR
    engine.stop()
    engine.start()
    rpc = engine.rpc()
    assert rpc.vport_get(vport="vp0")["error_policy"] == "report"
    assert rpc.vport_set_policy(vport="vp0", error_policy="adapter")["error_policy"] == "wait"
    assert rpc.vport_set_policy(vport="vp0", auto_return=True)["auto_return"] is True
    with pytest.raises(Refusal) as refusal:
        rpc.vport_set_policy(vport="vp0", error_policy="hope")
    assert refusal.value.reason == "INVALID"


def test_a_front_end_that_goes_while_its_requests_wait_finds_them_done_when_it_is_back(
    make, faults, make_vport, front_end
):
    engine = make(error_policy="wait")
    rpc = make_vport(engine)
    front = front_end(engine.socket())
    queue = front.start()
    faults.set("pf", errno.EIO)
    queue.submit(OUT, 0, b"w" * 512)
    queue.kick()
    wait_for(lambda: rpc.vport_get(vport="vp0")["waiting"] == 1)
    front.disconnect()
    wait_for(lambda: not rpc.vport_get(vport="vp0")["luns"][0]["connected"])
    faults.set("pf", 0)
    front.connect()
    front.start(1)
    assert queue.wait(1)[0][1] == OK
    assert engine.storage.read_bytes()[8 * MIB : 8 * MIB + 512] == b"w" * 512


def test_a_worker_that_dies_while_requests_wait_leaves_them_to_its_successor(make, faults, make_vport, front_end):
    engine = make(error_policy="wait")
    rpc = make_vport(engine)
    queue = front_end(engine.socket()).start()
    faults.set("pf", errno.EIO)
    queue.submit(OUT, 0, b"w" * 512)
    queue.kick()
    wait_for(lambda: rpc.vport_get(vport="vp0")["waiting"] == 1)
    os.kill(engine.workers()["vp0", "pf"], signal.SIGKILL)
    wait_for(lambda: "taken_over" in events(rpc))
    wait_for(lambda: rpc.vport_get(vport="vp0")["waiting"] == 1)
    faults.set("pf", 0)
    assert queue.wait(1)[0][1] == OK


def test_storage_that_hangs_stops_its_vport_alone(make, faults, make_vport, front_end):
    engine = make()
    rpc = make_vport(engine, bind=VF0)
    make_vport(engine, "vp1", [{"lun": 0, "vdisk": "b", "extents": [[0, 20 * MIB, MIB]]}])
    queue, other = front_end(engine.socket()).start(), front_end(engine.socket("vp1")).start()
    faults.set("vf", HANG)
    queue.submit(OUT, 0, b"h" * 512)
    queue.kick()
    wait_for(lambda: rpc.vport_get(vport="vp0")["outstanding"] == 1)
    for call in (rpc.vport_suspend, lambda **how: rpc.vport_switch(path="pf", **how)):
        with pytest.raises(Refusal) as refusal:
            call(vport="vp0", timeout=0.2)
        assert refusal.value.reason == "TIMEOUT"
        assert refusal.value.data["outstanding"][0]["operation"] == "write"
        assert other.do(OUT, 0, b"o" * 512)[0] == OK
    record = rpc.vport_get(vport="vp0")
    assert (record["state"], record["path"]) == ("RUNNING", "vf")
    faults.set("vf", 0)
    assert queue.wait(1)[0][1] == OK
    assert rpc.vport_switch(vport="vp0", path="pf")["changed"]


@pytest.mark.parametrize("code", [errno.ENODEV, errno.EIO, errno.ENOSPC])
def test_a_vf_that_fails_is_taken_over_from_by_the_pf_path_and_the_guest_sees_no_error(
    code, make, faults, make_vport, front_end
):
    engine = make(latency=[0.0, 0.01])
    rpc = make_vport(engine, bind=VF0)
    queue = front_end(engine.socket()).start()
    with Stream(queue) as stream:
        wait_for(lambda: stream.count > 200)
        faults.set("vf", code)
        wait_for(lambda: rpc.vport_get(vport="vp0")["path"] == "pf")
        before = stream.count
        wait_for(lambda: stream.count > before + 200 or stream.problem)
        record = rpc.vport_get(vport="vp0")
        assert errno.errorcode[code] in record["degraded"]
        assert record["luns"][0]["counters"]["errors"] == 0
        with pytest.raises(Refusal) as refusal:  # it is still broken
            rpc.vport_switch(vport="vp0", path="vf")
        assert "cannot be read" in refusal.value.message
        faults.set("vf", 0)
        assert rpc.vport_switch(vport="vp0", path="vf")["changed"]
        before = stream.count
        wait_for(lambda: stream.count > before + 200 or stream.problem)
    assert rpc.vport_get(vport="vp0")["degraded"] is None


def test_a_vf_that_fails_in_the_middle_of_a_switch_does_not_cost_its_deadline(make, faults, make_vport, front_end):
    engine = make(latency=0.3)
    rpc = make_vport(engine, bind=VF0)
    queue = front_end(engine.socket()).start()
    faults.set("vf", errno.ENODEV)
    queue.submit(OUT, 0, b"s" * 512)
    queue.kick()
    rpc.vport_switch(vport="vp0", path="pf", timeout=20)
    assert queue.wait(1)[0][1] == OK
    assert rpc.vport_get(vport="vp0")["path"] == "pf"


def test_a_vport_returns_by_itself_where_it_is_told_to(make, faults, make_vport, front_end):
    engine = make(auto_return=True)
    rpc = make_vport(engine, bind=VF0)
    queue = front_end(engine.socket()).start()
    with Stream(queue) as stream:
        faults.set("vf", errno.ENODEV)
        wait_for(lambda: rpc.vport_get(vport="vp0")["path"] == "pf")
        wait_for(lambda: "not_returned" in events(rpc))
        faults.set("vf", 0)
        wait_for(lambda: rpc.vport_get(vport="vp0")["path"] == "vf")
        before = stream.count
        wait_for(lambda: stream.count > before + 100 or stream.problem)
    record = rpc.vport_get(vport="vp0")
    assert record["degraded"] is None
    assert record["history"][-1]["event"] == "returned"


def test_a_vport_that_was_sent_to_the_pf_path_stays_there(make, faults, make_vport, front_end):
    engine = make(auto_return=True)
    rpc = make_vport(engine, bind=VF0)
    queue = front_end(engine.socket()).start()
    faults.set("vf", errno.ENODEV)
    assert queue.do(OUT, 0, b"s" * 512)[0] == OK
    rpc.vport_switch(vport="vp0", path="pf")
    faults.set("vf", 0)
    time.sleep(2)
    assert rpc.vport_get(vport="vp0")["path"] == "pf"
    assert "returned" not in events(rpc)


def test_a_vport_away_from_its_vf_knows_it_after_a_restart_and_returns(make, faults, make_vport, front_end):
    engine = make()
    make_vport(engine, bind=VF0)
    front = front_end(engine.socket())
    faults.set("vf", errno.ENODEV)
    assert front.start().do(OUT, 0, b"s" * 512)[0] == OK
    front.disconnect()
    engine.stop()
    faults.set("vf", 0)
    engine.start()
    rpc = engine.rpc()
    record = rpc.vport_get(vport="vp0")
    assert (record["path"], "before the restart" in record["degraded"]) == ("pf", True)
    rpc.vport_set_policy(vport="vp0", auto_return=True)
    wait_for(lambda: rpc.vport_get(vport="vp0")["path"] == "vf")


@pytest.fixture
def slow_storage(make_engine, tmp_path):
    """An engine on a block device that takes two seconds for each request."""
    engine = make_engine(start=False, backend="uring")
    try:
        with SlowFile(tmp_path / "slow", engine.storage, 2.0) as slow, loop_device(slow.point) as device:
            for link in (engine.directory / "dev").iterdir():
                link.unlink()
                link.symlink_to(device)
            yield engine.start()
            engine.stop()
    except NoFuse as problem:
        pytest.skip(f"no slow device here: {problem}")


def is_dead(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):  # gone before the file was opened, or before it was read
        return True


def test_a_device_that_goes_away_in_the_kernel_is_taken_over_from(make_engine, make_vport, front_end, tmp_path):
    """The VF's block device loses what is behind it, in the middle of requests; the PF's still has the same storage."""
    engine = make_engine(start=False)
    try:
        with SlowFile(tmp_path / "slow", engine.storage, 0.001) as slow, loop_device(slow.point) as device:
            link = engine.directory / "dev/nvme1n1"
            link.unlink()
            link.symlink_to(device)
            rpc = make_vport(engine.start(), bind=VF0)
            queue = front_end(engine.socket()).start()
            with Stream(queue) as stream:
                wait_for(lambda: stream.count > 200)
                slow.process.kill()
                wait_for(lambda: rpc.vport_get(vport="vp0")["path"] == "pf")
                before = stream.count
                wait_for(lambda: stream.count > before + 200 or stream.problem)
            record = rpc.vport_get(vport="vp0")
            assert "lost its storage (EIO)" in record["degraded"]
            assert record["luns"][0]["counters"]["errors"] == 0
            engine.stop()
    except NoFuse as problem:
        pytest.skip(f"no device to lose here: {problem}")


@pytest.mark.parametrize("path", ["pf", "vf"])
def test_nobody_takes_over_while_requests_of_the_dead_worker_are_with_the_storage(
    path, slow_storage, make_vport, front_end
):
    rpc = make_vport(slow_storage, bind=VF0, path=path)
    queue = front_end(slow_storage.socket()).start()
    queue.submit(OUT, 0, b"k" * 4096)
    queue.kick()
    wait_for(lambda: rpc.vport_get(vport="vp0")["outstanding"] == 1)
    began = time.monotonic()
    worker = slow_storage.workers()["vp0", path]
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: is_dead(worker))
    dead = time.monotonic() - began
    wait_for(lambda: "taken_over" in events(rpc))
    assert dead < 1.9  # it was dead before the storage was done
    assert time.monotonic() - began > 1.5
    assert queue.wait(1)[0][1] == OK
    if path == "pf":  # then the new worker was started, whose look at the first block takes its time too
        assert time.monotonic() - began > 3.2


def test_a_new_engine_waits_for_the_storage_to_be_done_with_what_the_old_one_began(slow_storage, make_vport, front_end):
    rpc = make_vport(slow_storage)
    front = front_end(slow_storage.socket())
    queue = front.start()
    queue.submit(OUT, 0, b"k" * 4096)
    queue.kick()
    wait_for(lambda: rpc.vport_get(vport="vp0")["outstanding"] == 1)
    workers = slow_storage.workers().values()
    began = time.monotonic()
    slow_storage.kill()
    wait_for(lambda: all(map(is_dead, workers)))
    assert time.monotonic() - began < 1.9  # they were dead before the storage was done
    slow_storage.start()
    assert "waiting for the end of an earlier engine" in slow_storage.log.read_text()
    front.disconnect()
    front.connect()
    front.start(1)
    assert queue.wait(1)[0][1] == OK
