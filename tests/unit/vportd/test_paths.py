# SPDX-License-Identifier: GPL-3.0-or-later
"""Suspend, drain, hand-over between the paths, the dirty log, the fence."""

import contextlib
import os
import random
import threading
import time

import pytest

from tests.unit.vportd.engine_process import VF0, Refusal
from tests.unit.vportd.frontend import IN, LOG_ALL, OK, OUT, PAGE

MIB = 1 << 20


class Stream:
    """Verified reads and writes, many outstanding, until stopped: each slot's block is what was last written there."""

    def __init__(self, queue):
        self.queue, self.blocks, self.count = queue, {}, 0
        self.stop = threading.Event()
        self.problem = None
        self.thread = threading.Thread(target=self._run)
        self.random = random.Random(1)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *__):
        self.stop.set()
        self.thread.join(60)
        assert self.problem is None, self.problem

    def _check(self, found):
        for slot, status, data, __ in found:
            assert status == OK
            self.count += 1
            if data:
                assert data == self.blocks[slot], f"slot {slot} read what was not written last"

    def _run(self):
        queue = self.queue
        try:
            while not self.stop.is_set():
                while queue.free:
                    slot = queue.free[0]
                    if slot not in self.blocks or self.random.random() < 0.5:
                        self.blocks[slot] = self.random.randbytes(4096)
                        queue.submit(OUT, slot * 8, self.blocks[slot])
                    else:
                        queue.submit(IN, slot * 8, length=4096)
                queue.kick()
                self._check(queue.wait(1, 20))
            self._check(queue.wait(len(queue.busy), 20))
            assert queue.completions == queue.submissions
        except AssertionError as problem:
            self.problem = problem


@pytest.mark.parametrize("how", [{}, {"latency": [0.0, 0.02]}, {"backend": "uring"}, {"backend": "threads"}])
def test_a_hand_over_in_a_stream_of_requests_loses_and_repeats_none(how, make_engine, make_vport, front_end, soak):
    engine = make_engine(**how)
    rpc = make_vport(engine, bind=VF0)
    queue = front_end(engine.socket()).start()
    with Stream(queue) as stream:
        for turn in range(8 * soak):
            before = stream.count
            report = rpc.vport_switch(vport="vp0", path=("pf", "vf")[turn % 2])
            assert report["changed"]
            for name in ("state_before", "state_after"):
                (ring,) = report[name]["luns"][0]["queues"]
                assert ring["last_avail"] == ring["used"]
            assert report["state_before"] == report["state_after"]
            deadline = time.monotonic() + 10
            while stream.count < before + 100 and stream.problem is None:
                assert time.monotonic() < deadline
                time.sleep(0.005)
    assert rpc.vport_get(vport="vp0")["path"] == "vf"
    (disk,) = rpc.vport_get(vport="vp0")["luns"]
    assert disk["counters"]["errors"] == 0
    assert disk["counters"]["reads"] + disk["counters"]["writes"] == stream.count


def test_suspend_waits_for_every_outstanding_request(make_engine, make_vport, front_end):
    engine = make_engine(latency=0.3)
    rpc = make_vport(engine, bind=VF0)
    queue = front_end(engine.socket()).start()
    for at in range(10):
        queue.submit(OUT, at * 8, b"s" * 4096)
    queue.kick()
    wait_for(lambda: rpc.vport_get(vport="vp0")["outstanding"] == 10)
    report = rpc.vport_suspend(vport="vp0")
    assert report["state"] == "FROZEN"
    assert report["outstanding"] == 10
    assert 0.1 < report["drain_seconds"] < 5
    assert len(queue.reap()) == 10
    queue.submit(IN, 0, length=512)
    os.eventfd_write(queue.kick_fd, 1)
    time.sleep(0.5)
    assert queue.reap() == []  # the VM goes on adding, nobody takes
    assert rpc.vport_suspend(vport="vp0")["state"] == "FROZEN"
    state = rpc.vport_get_state(vport="vp0")
    assert state["luns"][0]["queues"][0]["last_avail"] == 10 == state["luns"][0]["queues"][0]["used"]
    rpc.vport_set_state(vport="vp0", state=state)
    assert rpc.vport_resume(vport="vp0", path="pf")["path"] == "pf"
    assert queue.wait(1)[0][1] == OK


def test_a_suspend_past_its_deadline_runs_on_where_it_was_and_lists_what_is_outstanding(
    make_engine, make_vport, front_end
):
    engine = make_engine(latency=0.8)
    rpc = make_vport(engine, bind=VF0)
    queue = front_end(engine.socket()).start()
    queue.submit(OUT, 0, b"s" * 4096)
    queue.submit(IN, 0, length=512)
    queue.kick()
    wait_for(lambda: rpc.vport_get(vport="vp0")["outstanding"] == 2)
    for call in (rpc.vport_suspend, lambda **how: rpc.vport_switch(path="pf", **how)):
        with pytest.raises(Refusal) as refusal:
            call(vport="vp0", timeout=0.1)
        assert (refusal.value.reason, refusal.value.code) == ("TIMEOUT", -32006)
        assert {one["operation"] for one in refusal.value.data["outstanding"]} == {"read", "write"}
        record = rpc.vport_get(vport="vp0")
        assert (record["state"], record["path"]) == ("RUNNING", "vf")
    assert len(queue.wait(2)) == 2
    assert queue.do(IN, 0, length=512)[0] == OK


@pytest.mark.parametrize("disable", [True, False])
def test_get_vring_base_answers_only_when_all_that_was_taken_is_done(disable, make_engine, make_vport, front_end):
    engine = make_engine(latency=[0.2, 0.4])
    rpc = make_vport(engine, bind=VF0)
    front = front_end(engine.socket())
    front.start(2, slots=12)
    for queue in front.queues:
        for at in range(8):
            queue.submit(OUT, (queue.index * 8 + at) * 8, b"d" * 4096)
        queue.kick()
    wait_for(lambda: rpc.vport_get(vport="vp0")["outstanding"] == 16)
    assert front.stop_queue(0, disable) == 8
    assert len(front.queues[0].reap()) == 8
    assert len(front.queues[1].wait(8)) == 8
    front.start_queue(0, base=8)
    assert front.queues[0].do(IN, 0, length=512)[0] == OK
    assert front.stop_queue(0) == 9


def test_every_page_the_device_writes_is_in_the_dirty_log(make_engine, make_vport, front_end):
    engine = make_engine(latency=[0.0, 0.005])
    rpc = make_vport(engine)
    front = front_end(engine.socket())
    queue = front.start()
    for at in range(30):
        assert queue.do(OUT, at * 128, os.urandom(65536))[0] == OK if at < 8 else True
    before = front.memory.pages()
    assert front.start_log() == (0, 0)
    for at in range(40):
        queue.submit(IN, at % 8 * 128, length=(1 + at % 16) * 4096, segments=1 + at % 3)
    driver = front.memory.pages()  # what the driver itself has written by now
    queue.kick()
    queue.wait(40)
    after = front.memory.pages()
    changed = {page for page in after if after[page] != driver[page]}
    # the driver's own writes while it waits: the used_event in the available ring's page
    changed -= {(queue.avail + 4 + 2 * queue.size) // PAGE} - {queue.used // PAGE}
    assert before != after
    assert changed
    assert changed <= front.logged()
    assert queue.used // PAGE in front.logged()
    assert rpc.vport_get(vport="vp0")["luns"][0]["counters"]["dirty_pages"] > 0
    assert rpc.vport_get(vport="vp0")["luns"][0]["logging"]
    front.log[:] = bytes(len(front.log))
    front.stop_log()
    assert queue.do(IN, 0, length=4096)[0] == OK
    assert front.logged() == set()


def test_a_vf_keeps_no_dirty_log_and_a_logged_vport_does_not_move_to_one(engine, make_vport, front_end):
    rpc = make_vport(engine, bind=VF0)
    front = front_end(engine.socket())
    queue = front.start()
    base, features = front.start_log()
    assert base != 0
    assert features != 0
    assert queue.do(IN, 0, length=512)[0] == OK
    assert "cannot be kept on the VF path" in engine.log.read_text()
    rpc.vport_switch(vport="vp0", path="pf")
    assert front.start_log() == (0, 0)
    with pytest.raises(Refusal) as refusal:
        rpc.vport_switch(vport="vp0", path="vf")
    assert refusal.value.reason == "REFUSED"
    front.stop_log()
    assert rpc.vport_switch(vport="vp0", path="vf")["changed"]
    assert front.features & LOG_ALL == 0


def test_switching_is_idempotent(engine, make_vport, front_end):
    rpc = make_vport(engine, bind=VF0)
    assert rpc.vport_switch(vport="vp0", path="vf")["changed"] is False
    assert rpc.vport_bind(vport="vp0", vf=VF0)["switch"] is None
    assert rpc.vport_unbind(vport="vp0")["switch"]["to"] == "pf"
    assert rpc.vport_unbind(vport="vp0") == {"vport": rpc.vport_get(vport="vp0"), "switch": None}


def test_a_fence_now_stops_the_rings_until_it_is_undone(engine, make_vport, front_end):
    rpc = make_vport(engine, bind=VF0)
    queue = front_end(engine.socket()).start()
    record = rpc.vport_fence(vport="vp0", when="now")
    assert (record["fenced"], record["state"]) == (True, "FROZEN")
    queue.submit(OUT, 0, b"f" * 512)
    os.eventfd_write(queue.kick_fd, 1)
    with pytest.raises(Refusal) as refusal:
        rpc.vport_resume(vport="vp0")
    assert refusal.value.reason == "REFUSED"
    time.sleep(0.2)
    assert engine.storage.read_bytes()[8 * MIB : 8 * MIB + 512] == bytes(512)
    assert rpc.vport_unfence(vport="vp0")["state"] == "RUNNING"
    assert queue.wait(1)[0][1] == OK


@pytest.mark.parametrize("seed", range(3))
def test_a_fence_at_any_moment_of_a_hand_over_ends_it_with_nothing_outstanding(
    seed, make_engine, make_vport, front_end
):
    engine = make_engine(latency=[0.0, 0.004])
    rpc = make_vport(engine, bind=VF0)
    queue = front_end(engine.socket()).start()
    chance = random.Random(seed)
    with Stream(queue) as stream:
        for turn in range(6):
            fence = threading.Timer(chance.uniform(0.0, 0.012), engine.rpc().vport_fence, (), {"vport": "vp0"})
            fence.start()
            with contextlib.suppress(Refusal):
                rpc.vport_switch(vport="vp0", path=("pf", "vf")[turn % 2])
            fence.join()
            record = rpc.vport_get(vport="vp0")
            assert (record["state"], record["fenced"], record["outstanding"]) == ("FROZEN", True, 0)
            time.sleep(0.05)  # what was given back has been seen
            before = stream.count
            time.sleep(0.1)
            assert stream.count == before
            rpc.vport_unfence(vport="vp0")
            wait_for(lambda before=before: stream.count > before + 50 or stream.problem)
            record = rpc.vport_get(vport="vp0")
            assert (record["state"], record["degraded"]) == ("RUNNING", None)


def test_a_fence_on_stop_holds_before_the_answer_goes_out_and_over_a_restart(engine, make_vport, front_end):
    rpc = make_vport(engine)
    front = front_end(engine.socket())
    queue = front.start()
    assert queue.do(IN, 0, length=512)[0] == OK
    record = rpc.vport_fence(vport="vp0", when="on_stop")
    assert (record["fenced"], record["fence_on_stop"]) == (False, True)
    assert queue.do(IN, 0, length=512)[0] == OK
    assert front.stop_queue(0) == 2
    record = rpc.vport_get(vport="vp0")
    assert (record["fenced"], record["fence_on_stop"], record["state"]) == (True, False, "FROZEN")
    front.start_queue(0, base=2)
    queue.submit(OUT, 0, b"f" * 512)
    os.eventfd_write(queue.kick_fd, 1)
    time.sleep(0.2)
    assert queue.reap() == []
    assert engine.storage.read_bytes()[8 * MIB : 8 * MIB + 512] == bytes(512)
    front.disconnect()
    engine.kill()
    engine.start()
    rpc = engine.rpc()
    assert rpc.vport_get(vport="vp0")["fenced"]
    front.connect()
    front.start(1)
    time.sleep(0.2)
    assert queue.reap() == []
    rpc.vport_unfence(vport="vp0")
    assert queue.wait(1)[0][1] == OK


def test_a_memory_table_is_replaced_under_running_requests(make_engine, make_vport, front_end):
    engine = make_engine(latency=[0.01, 0.03])
    make_vport(engine, bind=VF0)
    front = front_end(engine.socket())
    queue = front.start()
    with Stream(queue) as stream:
        for __ in range(10):
            front.set_memory()
            time.sleep(0.02)
    assert stream.count > 0


def test_a_call_descriptor_is_replaced_and_may_be_none(engine, make_vport, front_end):
    make_vport(engine, bind=VF0)
    front = front_end(engine.socket())
    queue = front.start()
    front.send(13, (0x100).to_bytes(8, "little"))
    front.ask(17)
    queue.submit(IN, 0, length=512)
    queue.kick()
    wait_for(lambda: queue.used_idx() == 1)
    front.send(13, bytes(8), [queue.call_fd])
    assert queue.wait(1)[0][1] == OK
    assert queue.do(IN, 0, length=512)[0] == OK


def wait_for(condition, timeout=10.0):
    """Return when ``condition()`` is true; fail when it is not in time."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
