# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes die at any moment; the VM does not notice."""

import asyncio
import json
import os
import random
import signal
import threading
from pathlib import Path

import pytest

from tests.unit.vportd.engine_process import VF0, Refusal
from tests.unit.vportd.frontend import IN, INFLIGHT, OK, USUAL_PROTOCOL
from tests.unit.vportd.test_paths import Stream, wait_for
from vportd import vport_workers
from vportd.vport import Vport

MIB = 1 << 20


@pytest.mark.parametrize("protocol", [USUAL_PROTOCOL, USUAL_PROTOCOL & ~INFLIGHT])
def test_a_killed_vf_worker_is_taken_over_from_by_the_pf_path(protocol, make_engine, make_vport, front_end):
    engine = make_engine(latency=[0.005, 0.05])
    rpc = make_vport(engine, bind=VF0)
    queue = front_end(engine.socket(), protocol=protocol).start()
    with Stream(queue) as stream:
        wait_for(lambda: stream.count > 100 and rpc.vport_get(vport="vp0")["outstanding"] > 10)
        os.kill(engine.workers()["vp0", "vf"], signal.SIGKILL)
        before = stream.count
        wait_for(lambda: stream.count > before + 200 or stream.problem)
    record = rpc.vport_get(vport="vp0")
    assert record["path"] == "pf"
    assert record["vf"] == VF0
    assert "SIGKILL" in record["degraded"]
    assert any(one["event"] == "resubmitted" for one in record["history"])
    assert rpc.vport_switch(vport="vp0", path="vf")["changed"]
    assert rpc.vport_get(vport="vp0")["degraded"] is None
    assert queue.do(IN, 0, length=512)[0] == OK


@pytest.mark.parametrize("side", ["old", "new"])
@pytest.mark.parametrize("seed", range(3))
def test_a_worker_killed_at_any_moment_of_a_hand_over_loses_and_repeats_no_request(
    seed, side, make_engine, make_vport, front_end
):
    engine = make_engine(latency=[0.0, 0.004])
    rpc = make_vport(engine, bind=VF0)
    queue = front_end(engine.socket()).start()
    chance = random.Random(seed)
    with Stream(queue) as stream:
        for turn in range(4):  # one more, and the engine would not believe in this front end
            path = ("pf", "vf")[turn % 2]
            other = "vf" if path == "pf" else "pf"
            if rpc.vport_get(vport="vp0")["path"] == path:
                rpc.vport_switch(vport="vp0", path=other)
            victim = engine.workers()["vp0", path if side == "new" else other]
            killer = threading.Timer(chance.uniform(0.0, 0.012), os.kill, (victim, signal.SIGKILL))
            killer.start()
            before = stream.count
            try:
                rpc.vport_switch(vport="vp0", path=path)
            except Refusal:
                assert side == "new"  # whom nobody needs any more can end
            killer.join()
            wait_for(lambda victim=victim: victim not in engine.workers().values())  # the engine has noticed
            wait_for(lambda before=before: stream.count > before + 50 or stream.problem)
            wait_for(lambda: ("vp0", "pf") in engine.workers())
            rpc.vport_switch(vport="vp0", path="vf")  # which starts a VF worker when that has died
            assert rpc.vport_get(vport="vp0")["degraded"] is None
    assert stream.count


def test_a_killed_pf_worker_is_started_again(make_engine, make_vport, front_end):
    engine = make_engine(latency=[0.005, 0.05])
    rpc = make_vport(engine)
    front = front_end(engine.socket())
    queue = front.start()
    assert front.start_log() == (0, 0)
    with Stream(queue) as stream:
        for __ in range(3):
            before = stream.count
            wait_for(lambda before=before: stream.count > before + 50)
            os.kill(engine.workers()["vp0", "pf"], signal.SIGKILL)
        before = stream.count
        wait_for(lambda before=before: stream.count > before + 50 or stream.problem)
    assert queue.used // 4096 in front.logged()
    assert rpc.vport_get(vport="vp0")["path"] == "pf"


@pytest.mark.parametrize("path", ["vf", "pf"])
def test_a_killed_engine_comes_back_and_no_request_is_lost(path, make_engine, make_vport, front_end):
    engine = make_engine(latency=[0.005, 0.05])
    make_vport(engine, bind=VF0, path=path)
    front = front_end(engine.socket())
    queue = front.start()
    with Stream(queue) as stream:
        for __ in range(2):
            before = stream.count
            wait_for(lambda before=before: stream.count > before + 100)
            engine.kill()
            engine.start()
            front.disconnect()
            front.connect()
            front.start(1)
        before = stream.count
        wait_for(lambda: stream.count > before + 100 or stream.problem)
    record = engine.rpc().vport_get(vport="vp0")
    assert (record["path"], record["vf"], record["degraded"], record["generation"]) == (path, VF0, None, 1)


@pytest.mark.parametrize("path", ["vf", "pf"])
@pytest.mark.parametrize(("latency", "drained"), [([0.005, 0.05], True), ([1.0, 5.0], False)])
def test_an_engine_that_is_stopped_under_load_goes_on_where_it_was(
    latency, drained, path, make_engine, make_vport, front_end
):
    """SIGTERM, as the service manager sends it for an upgrade: what is not done in the 3 s of its drain is done by the
    next one.
    """
    engine = make_engine(latency=latency)
    rpc = make_vport(engine, bind=VF0, path=path)
    front = front_end(engine.socket())
    queue = front.start()
    with Stream(queue) as stream:
        for __ in range(3 if drained else 1):
            before = stream.count
            wait_for(lambda before=before: stream.count > before + 5 or stream.problem, 30)
            wait_for(lambda rpc=rpc: rpc.vport_get(vport="vp0")["outstanding"] > 10, 30)
            engine.stop()
            assert ("ends undrained" in engine.log.read_text()) != drained
            engine.start()
            front.disconnect()
            front.connect()
            front.start(1)
            rpc = engine.rpc()
            events = {one["event"] for one in rpc.vport_get(vport="vp0")["history"]}
            assert ("resubmitted" in events) != drained
        before = stream.count
        wait_for(lambda: stream.count > before + 20 or stream.problem, 30)
    record = rpc.vport_get(vport="vp0")
    assert (record["path"], record["vf"], record["degraded"], record["generation"]) == (path, VF0, None, 1)
    assert record["luns"][0]["counters"]["errors"] == 0
    left = dict(stream.blocks)
    while left:
        asked = {queue.submit(IN, slot * 8, length=4096): slot for slot in list(left)[: len(queue.free)]}
        queue.kick()
        for slot, status, data, __ in queue.wait(len(asked), 30):
            assert (status, data) == (OK, left.pop(asked[slot]))


def test_a_reconnect_after_a_broken_connection_goes_on_where_it_was(make_engine, make_vport, front_end):
    engine = make_engine(latency=[0.0, 0.05])
    make_vport(engine, bind=VF0)
    front = front_end(engine.socket())
    queue = front.start()
    with Stream(queue) as stream:
        for __ in range(5):
            before = stream.count
            wait_for(lambda before=before: stream.count > before + 50)
            front.disconnect()
            front.connect()
            front.start(1)
    assert stream.count


def test_a_stopped_engine_leaves_no_process_and_restores_all(engine, make_vport, front_end):
    rpc = make_vport(engine, bind=VF0)
    mapping = rpc.mapping_get(vport="vp0")
    workers = engine.workers()
    assert set(workers) == {("vp0", "vf"), ("vp0", "pf")}
    engine.stop()
    for pid in workers.values():
        assert not os.path.exists(f"/proc/{pid}")
    engine.start()
    rpc = engine.rpc()
    assert rpc.mapping_get(vport="vp0") == mapping
    assert rpc.vport_get(vport="vp0")["path"] == "vf"


def test_workers_do_not_outlive_a_killed_engine(engine, make_vport):
    make_vport(engine, bind=VF0)
    workers = engine.workers()
    engine.kill()
    wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in workers.values()))


def test_a_vf_without_its_device_after_a_restart_leaves_the_vport_on_the_pf_path(engine, make_vport, front_end):
    make_vport(engine, bind=VF0)
    engine.stop()
    space = engine.devices / VF0 / "nvme/nvme1/nvme1n1"
    space.rename(space.with_name("gone"))
    engine.start()
    record = engine.rpc().vport_get(vport="vp0")
    assert (record["path"], record["vf"]) == ("pf", VF0)
    assert VF0 in record["degraded"]
    assert front_end(engine.socket()).start().do(IN, 0, length=512)[0] == OK


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("vp0-root", "vp0-rood"),
        lambda text: "",
    ],
)
def test_a_damaged_state_file_costs_that_vport_and_no_other(damage, engine, make_vport):
    make_vport(engine, bind=VF0)
    make_vport(engine, "vp1", [{"lun": 0, "vdisk": "b", "extents": [[0, 20 * MIB, MIB]]}])
    engine.stop()
    path = engine.state_dir / "vports/vp0.json"
    path.write_text(damage(path.read_text()))
    engine.start()
    rpc = engine.rpc()
    assert [one["vport"] for one in rpc.vport_list()] == ["vp1"]
    with pytest.raises(Refusal) as refusal:
        rpc.vport_get(vport="vp0")
    assert refusal.value.reason == "STORAGE"
    with pytest.raises(Refusal) as refusal:
        rpc.vport_create(vport="vp0")
    assert refusal.value.reason == "EXISTS"
    assert "vport vp0 is refused" in engine.log.read_text()
    rpc.vport_delete(vport="vp0", force=True)
    assert rpc.vport_create(vport="vp0")["generation"] == 0


def test_the_worker_of_a_vport_holds_only_its_own_mapping(engine, make_vport):
    secret = [{"lun": 0, "vdisk": "secret", "extents": [[0, 20 * MIB, 7 * 512], [MIB, 25 * MIB, MIB]]}]
    make_vport(engine, "vp1", secret)
    make_vport(engine, bind=VF0)
    if os.geteuid() == 0:
        status = Path(f"/proc/{engine.workers()['vp0', 'vf']}/status").read_text()
        assert "\nUid:\t0" not in status
        assert "\nNoNewPrivs:\t1" in status
        assert "\nCapEff:\t0000000000000000" in status
    else:
        pytest.skip("the workers change their user only when the engine is root")


def test_the_state_on_disk_is_private(engine, make_vport):
    make_vport(engine, bind=VF0)
    path = engine.state_dir / "vports/vp0.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert json.loads(path.read_text())["record"]["vf"] == VF0
    assert engine.socket().stat().st_mode & 0o777 == 0o600
    assert (engine.run_dir / "rpc.sock").stat().st_mode & 0o777 == 0o600
    assert engine.socket().parent.stat().st_mode & 0o777 == 0o750


def test_a_worker_that_cannot_be_ended_is_not_waited_for_without_end(monkeypatch):
    """SIGKILL does not reach a process that hangs in its storage; nobody else may hang with it."""

    class Hanging:
        alive = True
        killed = False

        def __init__(self):
            self.ended = asyncio.get_running_loop().create_future()

        def kill(self):
            self.killed = True

    async def kill():
        worker = Hanging()
        await asyncio.wait_for(Vport._kill(worker), 10)
        return worker

    monkeypatch.setattr(vport_workers, "GONE_TIMEOUT", 0.01)
    worker = asyncio.run(kill())
    assert worker.killed
    assert not worker.ended.done()
