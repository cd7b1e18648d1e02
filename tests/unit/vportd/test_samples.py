# SPDX-License-Identifier: GPL-3.0-or-later
"""Samples of what a vport does, taken while it does something and not otherwise."""

import itertools
import time

import pytest

from tests.unit.vportd.engine_process import VF0, Refusal
from tests.unit.vportd.frontend import IN, OK, OUT
from tests.unit.vportd.test_paths import Stream, wait_for
from tests.unit.vportd.test_polling import cpu_ticks
from vportd.sampler import KEPT, Look, Sampler, quantile


@pytest.fixture
def quick(make_engine):
    return make_engine(settings={"sample_seconds": 0.05})


def test_samples_say_what_was_done_on_which_path(quick, make_vport, front_end):
    rpc = make_vport(quick, bind=VF0)
    queue = front_end(quick.socket()).start()
    before = time.time()
    with Stream(queue) as stream:
        wait_for(lambda: len(rpc.vport_samples(vport="vp0", since=before)) > 4)
        rpc.vport_switch(vport="vp0", path="pf")
        since = time.time()
        wait_for(lambda: len(rpc.vport_samples(vport="vp0", since=since)) > 4)
    wait_for(lambda: rpc.vport_samples(vport="vp0", since=before)[-1]["iops"] == 0)
    found = rpc.vport_samples(vport="vp0", since=before)
    assert [one["time"] for one in found] == sorted(one["time"] for one in found)
    assert {one["path"] for one in found} == {"vf", "pf"}
    assert rpc.vport_samples(vport="vp0", since=since)[1]["path"] == "pf"
    busy = [one for one in found if one["iops"]]
    assert all(0 < one["latency_p50"] <= one["latency_p99"] <= one["latency_max"] < 20 for one in busy)
    assert all(one["bytes_per_second"] == pytest.approx(one["iops"] * 4096) for one in busy)
    lengths = [after["time"] - one["time"] for one, after in itertools.pairwise(found)]
    done = sum(one["iops"] * seconds for one, seconds in zip(found[1:], lengths, strict=True))
    assert done + found[0]["iops"] * 0.05 == pytest.approx(stream.count, rel=0.1)
    assert found[-1]["state"] == "RUNNING"
    assert found[-1]["outstanding"] == 0


def test_errors_dirty_pages_and_the_longest_latency_are_of_their_second_only(make_engine, make_vport, front_end):
    engine = make_engine(settings={"sample_seconds": 0.3}, latency=0.02)
    rpc = make_vport(engine)
    front = front_end(engine.socket())
    queue = front.start()
    assert front.start_log() == (0, 0)
    wait_for(lambda: (found := rpc.vport_samples(vport="vp0")) and found[-1]["iops"] == 0)
    before = time.time()
    queue.do(IN, 1 << 30, length=512)
    assert queue.do(IN, 0, length=8192)[0] == OK
    wait_for(lambda: len(rpc.vport_samples(vport="vp0", since=before)) >= 2)
    first, *rest = rpc.vport_samples(vport="vp0", since=before)
    assert first["errors"] == 1
    assert first["dirty_pages"] >= 2
    assert 0.02 <= first["latency_max"] < 5
    assert [(one["errors"], one["dirty_pages"], one["latency_max"]) for one in rest] == [(0, 0, 0)] * len(rest)


def test_an_idle_vport_takes_no_samples_and_the_engine_no_cpu(quick, make_vport, front_end):
    rpc = make_vport(quick, bind=VF0)
    queue = front_end(quick.socket()).start()
    assert queue.do(OUT, 0, b"i" * 512)[0] == OK
    wait_for(lambda: (found := rpc.vport_samples(vport="vp0")) and found[-1]["iops"] == 0)
    time.sleep(0.2)
    pids = [quick.process.pid, *quick.workers().values()]
    ticks, count = [cpu_ticks(pid) for pid in pids], len(rpc.vport_samples(vport="vp0"))
    time.sleep(1)
    assert len(rpc.vport_samples(vport="vp0")) == count
    assert sum(map(cpu_ticks, pids)) - sum(ticks) <= 1  # the one call of these lines
    since = time.time()
    assert queue.do(IN, 0, length=512)[0] == OK
    wait_for(lambda: any(one["iops"] for one in rpc.vport_samples(vport="vp0", since=since)))


def test_a_request_that_does_not_come_back_is_in_every_sample(make_engine, make_vport, front_end):
    engine = make_engine(settings={"sample_seconds": 0.05}, latency=0.6)
    rpc = make_vport(engine)
    queue = front_end(engine.socket()).start()
    since = time.time()
    assert queue.do(IN, 0, length=512)[0] == OK
    assert sum(one["outstanding"] for one in rpc.vport_samples(vport="vp0", since=since)) >= 5


def test_samples_of_no_vport_are_refused(quick):
    with pytest.raises(Refusal) as refusal:
        quick.rpc().vport_samples(vport="none")
    assert refusal.value.reason == "NOT_FOUND"


def test_no_more_samples_are_kept_than_said(monkeypatch):
    class Loop:
        def call_later(self, __, what):
            self.next = what

    loop = Loop()
    monkeypatch.setattr("asyncio.get_running_loop", lambda: loop)
    count = iter(range(10**6))
    sampler = Sampler(lambda: Look("pf", "RUNNING", 0, next(count), 0, 0, 0, (0,)), lambda: 0, lambda: None, 1.0)
    sampler.start()
    sampler.wake()
    for __ in range(KEPT + 100):
        loop.next()
    assert len(sampler.since(None)) == KEPT


def test_quantiles_lie_in_their_bucket():
    histogram = [0, 0, 0, 100, 0, 100]  # 4 to 8 us, 16 to 32 us
    assert quantile(histogram, 0.25, 1.0) == pytest.approx(6e-6)
    assert quantile(histogram, 0.99, 1.0) == pytest.approx(31.68e-6)
    assert quantile(histogram, 0.99, 20e-6) == 20e-6
    assert quantile([0, 0], 0.5, 1.0) == 0.0
