# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes die at any moment; the VM does not notice."""

import asyncio
import json
import os
import random
import re
import signal
import threading
from pathlib import Path
from typing import Any

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


@pytest.mark.parametrize(
    ("latency", "drained", "path"),
    [([0.005, 0.05], True, "vf"), ([0.005, 0.05], True, "pf"), ([1.0, 5.0], False, "vf")],
)
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


def descriptors(pid):
    """What a process has open beside its standard input and output: what it is -> device and inode of each."""
    found: dict[str, list[tuple[int, int]]] = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        if int(entry.name) > 2:
            name = re.sub(r":\[\d+\]$| \(deleted\)$", "", os.readlink(entry)).rpartition("/")[2]
            status = entry.stat()
            found.setdefault(name, []).append((status.st_dev, status.st_ino))
    return found


def mapped(pid):
    """Files and shared memory in the address space of a process, by inode."""
    lines = [line.split(maxsplit=5) for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    return {int(line[4]) for line in lines if line[4] != "0" and ("/memfd:" in line[5] or ".lease" in line[5])}


def remembers(pid, what):
    """True when it is somewhere in the memory of a process."""
    ranges = [line.split()[:2] for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "[v" not in line]
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for area, rights in ranges:
            if rights.startswith("rw"):
                begin, end = (int(one, 16) for one in area.split("-"))
                if what in os.pread(memory.fileno(), end - begin, begin):
                    return True
    return False


@pytest.mark.parametrize("backend", ["uring", "threads", "file"])
def test_a_worker_has_nothing_open_but_what_it_needs(backend, make_engine, make_vport, front_end):
    engine = make_engine(backend=backend)
    make_vport(engine, "vp1", [{"lun": 0, "vdisk": "b", "extents": [[0, 20 * MIB, MIB]]}])
    make_vport(engine, bind=VF0, path="pf")
    for name in ("vp1", "vp0"):
        assert front_end(engine.socket(name)).start().do(IN, 0, length=512)[0] == OK
    workers = engine.workers()
    for path in ("pf", "vf"):
        found = descriptors(workers["vp0", path])
        kernel = {name: len(found.pop(name)) for name in list(found) if name.startswith("anon_inode:")}
        needed = {"socket", "pipe", "vportd.lock", "storage.img", "vp0.lease", "memfd:vportd-counters"}
        needed |= {"memfd:low", "memfd:high"}  # the guest's memory
        if path == "pf":  # where its ring is
            needed.add("memfd:vportd-inflight")
        assert set(found) == needed
        assert all(len(inodes) == 1 for inodes in found.values())
        assert kernel.pop("anon_inode:[eventpoll]") == 1
        assert kernel.pop("anon_inode:[eventfd]", 0) <= 4  # kick, call, storage, a waking of its own
        assert set(kernel) == ({"anon_inode:[io_uring]"} if backend == "uring" else set())
        other = descriptors(workers["vp1", "pf"])
        shared = {name for name, (inode,) in found.items() if any(inode in inodes for inodes in other.values())}
        assert shared == {"vportd.lock", "storage.img"}
        assert mapped(workers["vp0", path])
        assert not mapped(workers["vp0", path]) & mapped(workers["vp1", "pf"])
    assert mapped(workers["vp0", "pf"]) & mapped(workers["vp0", "vf"])  # both see the same counters


def test_the_worker_of_a_vport_holds_only_its_own_mapping(engine, make_vport, front_end):
    secret = [{"lun": 0, "vdisk": "secret", "extents": [[0, 20 * MIB, 7 * 512], [MIB, 25 * MIB, MIB]]}]
    make_vport(engine, "vp1-secret", secret)
    make_vport(engine, bind=VF0)
    for name in ("vp1-secret", "vp0"):
        assert front_end(engine.socket(name)).start().do(IN, 0, length=512)[0] == OK
    workers = engine.workers()
    if os.geteuid() == 0:
        assert remembers(workers["vp1-secret", "pf"], b"vp1-secret:0")
        assert not remembers(workers["vp0", "vf"], b"vp1-secret")
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
        worker: Any = Hanging()
        await asyncio.wait_for(Vport._kill(worker), 10)
        return worker

    monkeypatch.setattr(vport_workers, "GONE_TIMEOUT", 0.01)
    worker = asyncio.run(kill())
    assert worker.killed
    assert not worker.ended.done()
