# SPDX-License-Identifier: GPL-3.0-or-later
"""Leases between real engines: two hosts, one file as the storage that they share."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.unit.vportd.engine_process import PACKAGES, VF0, EngineProcess, Refusal
from tests.unit.vportd.frontend import FLUSH, IN, OK, OUT, Closed, Memory
from tests.unit.vportd.test_paths import Stream, wait_for
from vportd.lease_gate import GRACE
from vportd.lease_protocol import Timing
from vportd.lease_record import CLAIM, FREE, HANDED, HELD, Record, unpack

MIB = 1 << 20
LEASE, SECOND = 24 * MIB, 24 * MIB + 4096
EXTENTS = [[0, 8 * MIB, 4 * MIB]]
LUNS = [{"lun": 0, "vdisk": "root", "extents": EXTENTS, "lease": LEASE}]
IDS = {"hv1": "1" * 32, "hv2": "2" * 32, "hv3": "3" * 32}
QUICK = Timing(1.0, 0.2)
# An engine that ends by SIGKILL at the write of a lease whose state is named, before or after it has landed
KILLED = """
import os, signal, sys
from vportd import lease_disk
from vportd.__main__ import main
when, state = sys.argv.pop(1), sys.argv.pop(1)
write = lease_disk.LeaseDisk.write
def killed(self, offset, record, not_after):
    hit = record.state == state and not os.path.exists("/proc/self/cwd/" + when)
    if when == "before" and hit:
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, offset, record, not_after)
    if when == "after" and hit:
        os.kill(os.getpid(), signal.SIGKILL)
lease_disk.LeaseDisk.write = killed
sys.exit(main())
"""


class HostEngine(EngineProcess):
    """An engine on storage that it shares; in a process group of its own, to be stopped whole."""

    def __init__(self, directory, name, storage, timing=QUICK, **adapter):
        self.name, self.shared, self.timing = name, storage, timing
        self.killed = None
        super().__init__(directory, **adapter)

    def make_storage(self):
        if not self.shared.exists():
            with open(self.shared, "wb") as file:
                file.truncate(self.size)
        self.storage = self.shared

    def configure(self, **adapter):
        super().configure(**adapter)
        config = json.loads(self.config.read_text())
        config |= {"host_id": IDS[self.name[:3]], "host_name": self.name}
        config |= {"lease_renew_seconds": self.timing.renew, "lease_validity_seconds": self.timing.validity}
        self.config.write_text(json.dumps(config))

    def start_to_die(self, when, state):
        """Start an engine that kills itself at a write."""
        arguments = [sys.executable, "-c", KILLED, when, state, "--config", str(self.config)]
        with open(self.log, "ab") as log:
            environment = {**os.environ, "PYTHONPATH": str(PACKAGES)}
            self.process = subprocess.Popen(arguments, env=environment, stderr=log)
        wait_for(lambda: self.answers() or self.process.poll() is not None, 20)
        return self

    def answers(self):
        try:
            self.rpc()
        except OSError:
            return False
        return True

    def signal_all(self, number):
        """To the engine and all its workers, the engine first when they stop, last when they go on."""
        pids = [self.process.pid, *self.workers().values()]
        for pid in pids if number == signal.SIGSTOP else reversed(pids):
            os.kill(pid, number)


@pytest.fixture
def hosts(tmp_path):
    """Make hosts: hosts("hv1", latency=...)."""
    engines = []

    def make(name, start=True, directory=None, **how):
        engine = HostEngine(tmp_path / (directory or name), name, tmp_path / "shared.img", **how)
        engines.append(engine)
        return engine.start() if start else engine

    def directory(*names):
        for name in names:
            (tmp_path / name).mkdir()

    directory("hv1", "hv2", "hv3", "hv1b")
    yield make
    for engine in engines:
        engine.stop()
        text = engine.log.read_text() if engine.log.exists() else ""
        assert "Traceback" not in text, text
        assert "never retrieved" not in text, text


def record(engine, offset=LEASE):
    with open(engine.storage, "rb") as file:
        file.seek(offset)
        return unpack(file.read(4096))


def make(engine, incoming=False, luns=None, name="vp0"):
    rpc = engine.rpc()
    rpc.vport_create(vport=name, incoming=incoming)
    rpc.mapping_set(vport=name, luns=LUNS if luns is None else luns)
    return rpc


def lease(rpc, lun=0, name="vp0"):
    return rpc.vport_get(vport=name)["luns"][lun]["lease"]


def events(rpc, name="vp0"):
    return [one["event"] for one in rpc.vport_get(vport=name)["history"]]


def test_a_vport_holds_the_lease_of_each_lun_and_frees_it_when_it_goes(hosts):
    hv1 = hosts("hv1")
    luns = [*LUNS, {"lun": 1, "vdisk": "data", "extents": [[0, MIB, MIB]], "lease": SECOND}]
    rpc = make(hv1, luns=luns)
    for offset, vdisk in ((LEASE, "root"), (SECOND, "data")):
        found = record(hv1, offset)
        assert (found.state, found.owner, found.owner_name, found.vdisk) == (HELD, IDS["hv1"], "hv1", vdisk)
        assert found.generation == 1
    assert lease(rpc, 1) == {
        "offset": SECOND,
        "state": "held",
        "owner": IDS["hv1"],
        "owner_name": "hv1",
        "generation": 1,
        "next": None,
    }
    stamp = record(hv1).stamp
    wait_for(lambda: record(hv1).stamp > stamp)
    rpc.mapping_set(vport="vp0", luns=LUNS)
    assert record(hv1, SECOND).state == FREE
    rpc.vport_delete(vport="vp0")
    assert record(hv1).state == FREE


def test_the_claims_of_a_mapping_settle_together(hosts):
    hv1 = hosts("hv1")
    luns = [{"lun": n, "vdisk": f"v{n}", "extents": [[0, n * MIB, MIB]], "lease": LEASE + n * 4096} for n in range(8)]
    began = time.monotonic()
    make(hv1, luns=luns)
    assert time.monotonic() - began < 4 * QUICK.settle_unused + 0.5


def test_while_a_lease_settles_other_vports_get_theirs_and_what_is_to_be_mapped_is_taken(hosts):
    """Six vports that ask at once take the time of one. Until then nobody else gets their bytes, or deletes them."""
    names = [f"vp{n}" for n in range(6)]
    luns = [{"lun": 0, "vdisk": f"v{n}", "extents": [[0, n * MIB, MIB]], "lease": LEASE + n * 4096} for n in range(6)]
    slow = Timing(16.0, 0.2)
    hv1 = hosts("hv1", timing=slow)
    rpcs = [hv1.rpc() for __ in names]
    for name in (*names, "late"):
        rpcs[0].vport_create(vport=name)
    began = time.monotonic()
    for rpc, name, lun in zip(rpcs, names, luns, strict=True):
        rpc.begin("mapping_set", vport=name, luns=[lun])
    late, deleting = hv1.rpc(), hv1.rpc()
    wait_for(lambda: record(hv1, LEASE).state == CLAIM)
    deleting.begin("vport_delete", vport="vp0")
    with pytest.raises(Refusal) as refusal:
        late.mapping_set(vport="late", luns=[{"lun": 0, "vdisk": "thief", "extents": [[0, 0, MIB]]}])
    assert "of vport vp0" in refusal.value.message
    assert late.mapping_get(vport="vp0")["generation"] == 0
    for rpc in rpcs:
        assert rpc.end()["generation"] == 1
    assert time.monotonic() - began < 2 * slow.settle_unused
    deleting.end()
    assert record(hv1, LEASE).state == FREE
    assert late.mapping_set(vport="late", luns=[{"lun": 0, "vdisk": "heir", "extents": [[0, 0, MIB]]}])["changed"]


def test_a_read_only_lun_needs_no_lease(hosts):
    shared = [{**LUNS[0], "readonly": True}]
    hv1, hv2 = hosts("hv1"), hosts("hv2")
    for engine in (hv1, hv2):
        rpc = make(engine, luns=shared)
        assert lease(rpc) is None
        assert rpc.mapping_get(vport="vp0")["luns"][0]["lease"] == LEASE
    assert record(hv1) == Record()


def test_what_another_host_holds_is_refused_by_name_and_nothing_is_changed(hosts):
    hv1, hv2 = hosts("hv1"), hosts("hv2")
    make(hv1)
    rpc = hv2.rpc()
    rpc.vport_create(vport="vp0")
    luns = [*LUNS, {"lun": 1, "vdisk": "data", "extents": [[0, MIB, MIB]], "lease": SECOND}]
    with pytest.raises(Refusal) as refusal:
        rpc.mapping_set(vport="vp0", luns=luns)
    assert refusal.value.reason == "IN_USE"
    assert refusal.value.data["owner_name"] == "hv1"
    assert refusal.value.data["generation"] == 1
    assert "held by hv1 (generation 1)" in refusal.value.message
    assert rpc.mapping_get(vport="vp0")["luns"] == []
    assert record(hv1).owner == IDS["hv1"]
    assert record(hv1, SECOND).state == FREE


@pytest.mark.parametrize(
    ("lun", "words"),
    [
        ({"lease": 100}, "multiple of 4096"),
        ({"lease": -4096}, "multiple of 4096"),
        ({"lease": True}, "multiple of 4096"),
        ({"lease": 32 * MIB}, "beyond the storage"),
        ({"lease": 8 * MIB}, "is in the physical bytes"),
        ({"vdisk": "x" * 129}, "at most 128 bytes"),
    ],
)
def test_a_lease_that_cannot_be_is_refused(lun, words, hosts):
    rpc = hosts("hv1").rpc()
    rpc.vport_create(vport="vp0")
    with pytest.raises(Refusal) as refusal:
        rpc.mapping_set(vport="vp0", luns=[{**LUNS[0], **lun}])
    assert refusal.value.reason == "INVALID"
    assert words in refusal.value.message


def test_a_lease_belongs_to_one_lun_of_one_vport(hosts):
    rpc = make(hosts("hv1"))
    rpc.vport_create(vport="vp1")
    other = {"lun": 0, "vdisk": "data", "extents": [[0, MIB, MIB]], "lease": LEASE}
    with pytest.raises(Refusal) as refusal:
        rpc.mapping_set(vport="vp1", luns=[other])
    assert "is that of LUN 0 (root) of vport vp0" in refusal.value.message
    with pytest.raises(Refusal) as refusal:
        rpc.mapping_set(vport="vp1", luns=[other, {**other, "lun": 1, "vdisk": "more", "extents": [[0, 0, MIB]]}])
    assert "is there twice" in refusal.value.message
    with pytest.raises(Refusal) as refusal:
        rpc.mapping_set(vport="vp1", luns=[{"lun": 0, "vdisk": "data", "extents": [[0, LEASE - MIB, 2 * MIB]]}])
    assert "of vport vp1" in refusal.value.message


def test_leases_come_and_go_under_a_running_vm(hosts, front_end):
    hv1 = hosts("hv1")
    rpc = make(hv1, luns=[{key: value for key, value in LUNS[0].items() if key != "lease"}])
    assert lease(rpc) is None
    queue = front_end(hv1.socket()).start()
    with Stream(queue) as stream:
        before = rpc.mapping_get(vport="vp0")["digest"]
        rpc.mapping_set(vport="vp0", luns=LUNS)
        assert rpc.mapping_get(vport="vp0")["digest"] != before
        assert lease(rpc)["state"] == "held"
        count = stream.count
        wait_for(lambda: stream.count > count + 100)
    rpc.mapping_set(vport="vp0", luns=[{key: value for key, value in LUNS[0].items() if key != "lease"}])
    assert record(hv1).state == FREE
    time.sleep(1.5 * QUICK.validity)
    assert queue.do(OUT, 0, b"x" * 512)[0] == OK


@pytest.mark.parametrize("pause", [0.0, 2 * QUICK.settle_long])
def test_the_same_host_goes_on_at_once_after_its_engine_was_killed(pause, hosts, front_end):
    hv1 = hosts("hv1", latency=[0.0, 0.01])
    rpc = make(hv1)
    front = front_end(hv1.socket())
    queue = front.start()
    with Stream(queue) as stream:
        wait_for(lambda: stream.count > 50)
        hv1.kill()
        time.sleep(pause)
        hv1.start()
        began = time.monotonic()
        front.disconnect()
        front.connect()
        front.start(1)
        before = stream.count
        wait_for(lambda: stream.count > before + 50)
        assert time.monotonic() - began < QUICK.settle_long
    rpc = hv1.rpc()
    assert lease(rpc)["generation"] == 1
    assert not rpc.vport_get(vport="vp0")["fenced"]


def test_another_host_with_the_same_id_is_not_this_one(hosts):
    make(hosts("hv1"))
    rpc = hosts("hv1b", directory="hv1b").rpc()
    rpc.vport_create(vport="vp0")
    with pytest.raises(Refusal) as refusal:
        rpc.mapping_set(vport="vp0", luns=LUNS)
    assert "/etc/machine-id" in refusal.value.message


def migrate(source, destination, front_end, **how):
    """A VM on the source under way to the destination: both RPCs, and the source's front end and queue."""
    rpc1 = make(source)
    rpc2 = make(destination, incoming=True)
    assert lease(rpc2)["owner"] == IDS["hv1"]
    front = front_end(source.socket())
    queue = front.start()
    assert queue.do(OUT, 0, b"source".ljust(512))[0] == OK
    rpc1.vport_fence(vport="vp0", when="on_stop", next=rpc2.get_version()["host_id"])
    return rpc1, rpc2, front, queue


def arrive(destination, front_end, front, base):
    """The VM on the destination: the same memory, the rings where the source left them."""
    there = taken_along(destination, front_end, front)
    there.start(1, base)
    return there


def taken_along(destination, front_end, front):
    there = front_end(destination.socket(), memory=front.memory)
    there.queues, front.queues = front.queues, []
    front.memory = Memory()
    return there


def test_a_migration_hands_the_lease_over(hosts, front_end):
    hv1, hv2 = hosts("hv1"), hosts("hv2")
    rpc1, rpc2, front, queue = migrate(hv1, hv2, front_end)
    base = front.stop_queue(0)
    found = record(hv1)
    assert (found.state, found.owner, found.next, found.generation) == (HANDED, IDS["hv1"], IDS["hv2"], 1)
    assert lease(rpc1)["state"] == "handed"
    began = time.monotonic()
    arrive(hv2, front_end, front, base)
    assert queue.do(OUT, 8, b"destination".ljust(512))[0] == OK
    assert time.monotonic() - began < QUICK.settle_unused + 1
    found = record(hv2)
    assert (found.state, found.owner, found.generation) == (HELD, IDS["hv2"], 2)
    wait_for(lambda: not rpc2.vport_get(vport="vp0")["incoming"])
    with pytest.raises(Refusal) as refusal:
        rpc1.vport_unfence(vport="vp0")
    assert (refusal.value.reason, refusal.value.data["owner_name"]) == ("IN_USE", "hv2")
    assert rpc1.vport_get(vport="vp0")["fenced"]
    rpc1.vport_delete(vport="vp0", force=True)
    assert record(hv2).owner == IDS["hv2"]


def test_rings_of_an_arriving_vm_wait_until_the_lease_is_handed(hosts, front_end):
    hv1, hv2 = hosts("hv1"), hosts("hv2")
    rpc1 = make(hv1)
    rpc2 = make(hv2, incoming=True)
    queue = front_end(hv2.socket()).start()
    queue.submit(OUT, 0, b"d" * 512)
    queue.kick()
    wait_for(lambda: "lease_awaited" in events(rpc2))
    time.sleep(3 * QUICK.renew)
    assert queue.reap() == []
    assert hv1.storage.read_bytes()[8 * MIB : 8 * MIB + 512] == bytes(512)
    found = lease(rpc2)
    assert (found["state"], found["owner_name"]) == ("elsewhere", "hv1")
    assert rpc2.vport_get(vport="vp0")["incoming"]
    rpc1.vport_fence(vport="vp0", when="now", next=IDS["hv2"])
    assert queue.wait(1)[0][1] == OK
    assert lease(rpc2)["generation"] == 2
    assert not rpc2.vport_get(vport="vp0")["incoming"]


def test_without_next_the_lease_is_free_after_the_stop(hosts, front_end):
    hv1, hv2 = hosts("hv1"), hosts("hv2")
    rpc1, rpc2, front, queue = migrate(hv1, hv2, front_end)
    rpc1.vport_fence(vport="vp0", when="on_stop")
    base = front.stop_queue(0)
    assert record(hv1).state == FREE
    arrive(hv2, front_end, front, base)
    assert queue.do(OUT, 8, b"destination".ljust(512))[0] == OK
    assert lease(rpc2)["owner"] == IDS["hv2"]


def test_a_migration_that_failed_is_undone_at_once_when_the_destination_gives_it_back(hosts, front_end):
    hv1, hv2 = hosts("hv1"), hosts("hv2")
    rpc1, rpc2, front, queue = migrate(hv1, hv2, front_end)
    base = front.stop_queue(0)
    rpc2.vport_delete(vport="vp0")
    found = record(hv1)
    assert (found.state, found.next) == (HANDED, IDS["hv1"])
    began = time.monotonic()
    rpc1.vport_unfence(vport="vp0")
    assert time.monotonic() - began < QUICK.settle_long / 2
    front.start_queue(0, base)
    assert queue.do(OUT, 8, b"again".ljust(512))[0] == OK
    assert lease(rpc1)["generation"] == 2


def test_without_that_it_is_taken_back_after_the_validity_has_passed(hosts, front_end):
    hv1, hv2 = hosts("hv1"), hosts("hv2")
    rpc1, rpc2, front, queue = migrate(hv1, hv2, front_end)
    base = front.stop_queue(0)
    began = time.monotonic()
    rpc1.vport_unfence(vport="vp0")
    assert time.monotonic() - began > QUICK.validity + QUICK.io_bound
    front.start_queue(0, base)
    assert queue.do(OUT, 8, b"again".ljust(512))[0] == OK
    # and the destination's VM, should it come late, does nothing
    late = front_end(hv2.socket()).start()
    late.submit(OUT, 0, b"late".ljust(512))
    late.kick()
    wait_for(lambda: "lease_awaited" in events(rpc2))
    assert late.reap() == []


def test_an_unfence_before_the_stop_keeps_the_lease(hosts, front_end):
    hv1, hv2 = hosts("hv1"), hosts("hv2")
    rpc1, __, front, queue = migrate(hv1, hv2, front_end)
    rpc1.vport_unfence(vport="vp0")
    base = front.stop_queue(0)
    assert record(hv1).state == HELD
    front.start_queue(0, base)
    assert queue.do(OUT, 8, b"again".ljust(512))[0] == OK


def test_a_lease_of_a_living_host_is_not_broken_and_it_does_not_notice(hosts, front_end):
    hv1, hv2 = hosts("hv1"), hosts("hv2")
    rpc1 = make(hv1)
    queue = front_end(hv1.socket()).start()
    rpc2 = make(hv2, incoming=True)
    with Stream(queue) as stream:
        with pytest.raises(Refusal) as refusal:
            rpc2.lease_break(vport="vp0")
        assert refusal.value.reason == "IN_USE"
        assert "held by hv1 (generation 1), written in the last 0." in refusal.value.message
        count = stream.count
        wait_for(lambda: stream.count > count + 100)
    assert lease(rpc1)["state"] == "held"


@pytest.mark.parametrize("how", [{}, {"backend": "uring"}, {"backend": "threads"}, {"latency": [0.0, 0.02]}])
@pytest.mark.parametrize("busy", [True, False])
def test_a_source_that_comes_back_from_the_dead_writes_nothing(how, busy, hosts, front_end):
    hv1, hv2 = hosts("hv1", **how), hosts("hv2")
    rpc1 = make(hv1)
    rpc1.vport_bind(vport="vp0", vf=VF0)
    rpc1.close()
    hv1.rpcs.clear()
    queue = front_end(hv1.socket()).start()
    rpc2 = make(hv2, incoming=True)
    for number in range(8):
        assert queue.do(OUT, number * 8, b"source".ljust(4096))[0] == OK
    if busy:
        stop = time.monotonic() + 0.5
        while time.monotonic() < stop:
            queue.reap()
            while queue.free:
                queue.submit(OUT, queue.free[0] * 8, os.urandom(4096))
            queue.kick()
    hv1.signal_all(signal.SIGSTOP)
    while queue.free:  # what the guest, whose QEMU is alive, goes on to ask for
        queue.submit(OUT, queue.free[0] * 8, b"dead".ljust(4096))
    queue.kick()
    rpc2.lease_break(vport="vp0")
    other = front_end(hv2.socket()).start()
    for number in range(42):
        assert other.do(OUT, number * 8, b"destination".ljust(4096))[0] == OK
    assert other.do(FLUSH)[0] == OK
    before = hv2.storage.read_bytes()[: 24 * MIB]
    queue.reap()
    hv1.signal_all(signal.SIGCONT)
    wait_for(lambda: "is fenced: the lease of vdisk root is another's" in hv1.log.read_text(), 20)
    time.sleep(QUICK.validity)
    assert hv2.storage.read_bytes()[: 24 * MIB] == before
    assert queue.reap() == []
    rpc1 = hv1.rpc()
    found = rpc1.vport_get(vport="vp0")
    assert (found["fenced"], found["luns"][0]["lease"]["state"]) == (True, "lost")
    assert "held by hv2 (generation 2)" in found["fence_why"]
    with pytest.raises(Refusal) as refusal:
        rpc1.vport_unfence(vport="vp0")
    assert refusal.value.data["owner_name"] == "hv2"
    hv1.stop()
    hv1.start()
    assert hv1.rpc().vport_get(vport="vp0")["fenced"]
    assert other.do(IN, 0, length=512)[0] == OK
    assert hv2.storage.read_bytes()[: 24 * MIB] == before


def test_a_fenced_source_still_lets_its_front_end_stop(hosts, front_end):
    hv1, hv2 = hosts("hv1", latency=[0.3, 0.3]), hosts("hv2")
    rpc1 = make(hv1)
    front = front_end(hv1.socket())
    queue = front.start()
    rpc2 = make(hv2, incoming=True)
    queue.submit(OUT, 0, b"s" * 512)
    queue.kick()
    hv1.signal_all(signal.SIGSTOP)
    rpc2.lease_break(vport="vp0")
    hv1.signal_all(signal.SIGCONT)
    wait_for(lambda: rpc1.vport_get(vport="vp0")["fenced"])
    assert front.stop_queue(0) == 0
    rpc1.vport_delete(vport="vp0", force=True)
    assert lease(rpc2)["state"] == "held"


def test_a_lost_vport_goes_on_when_the_lease_is_free_and_somebody_lifts_its_fence(hosts, front_end):
    hv1, hv2 = hosts("hv1", latency=[0.05, 0.1]), hosts("hv2")
    rpc1 = make(hv1)
    queue = front_end(hv1.socket()).start()
    rpc2 = make(hv2, incoming=True)
    for number in range(8):
        queue.submit(OUT, number * 8, b"s" * 512)
    queue.kick()
    hv1.signal_all(signal.SIGSTOP)
    rpc2.lease_break(vport="vp0")
    hv1.signal_all(signal.SIGCONT)
    wait_for(lambda: rpc1.vport_get(vport="vp0")["fenced"])
    rpc2.vport_delete(vport="vp0")
    time.sleep(QUICK.validity)
    assert rpc1.vport_get(vport="vp0")["fenced"], "another host had the disk since: not by itself"
    assert queue.reap() == []
    rpc1.vport_unfence(vport="vp0")
    assert len(queue.wait(8)) == 8
    assert rpc1.vport_get(vport="vp0")["fence_why"] is None
    assert lease(rpc1)["generation"] == 3


def test_what_could_not_be_handed_over_is_when_the_storage_is_back(hosts, front_end):
    hv1, hv2 = hosts("hv1"), hosts("hv2")
    rpc1, rpc2, front, __ = migrate(hv1, hv2, front_end)
    with open(hv1.storage, "r+b") as file:  # only its lease cannot be used any more
        file.seek(LEASE)
        good = file.read(4096)
        os.kill(hv1.process.pid, signal.SIGSTOP)
        time.sleep(QUICK.validity + 0.2)  # so that it does not put it right as its owner
        file.seek(LEASE)
        file.write(b"nonsense" * 512)
        file.flush()
        os.kill(hv1.process.pid, signal.SIGCONT)
        base = front.stop_queue(0)
        assert "is not given up yet" in hv1.log.read_text()
        assert rpc1.vport_get(vport="vp0")["fenced"]
        there = arrive(hv2, front_end, front, base)
        queue = there.queues[0]
        queue.submit(OUT, 16, b"there".ljust(512))
        queue.kick()
        wait_for(lambda: "lease_awaited" in events(rpc2))
        file.seek(LEASE)
        file.write(good)
        file.flush()
    assert queue.wait(1, 20)[0][1] == OK


GUARDED = """
import os, pathlib, signal, sys
from vportd.lease_gate import Gate, Watch, now
gate = Gate(pathlib.Path(sys.argv[1]))
watch = Watch(gate.reader())
gate.set(now() + 0.3)
assert watch.open()
if sys.argv[2] == "idle":
    watch.idle(-1)
os.kill(os.getpid(), signal.SIGSTOP)
print("it goes on")
"""


@pytest.mark.parametrize(("what", "ends"), [("busy", -signal.SIGALRM), ("idle", 0)])
def test_a_worker_stopped_between_look_and_write_is_dead_before_it_goes_on(what, ends, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", GUARDED, str(tmp_path / "gate"), what],
        env={**os.environ, "PYTHONPATH": str(PACKAGES)},
        stdout=subprocess.PIPE,
    )
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    time.sleep(0.3 + GRACE + 0.2)
    process.send_signal(signal.SIGCONT)
    out, __ = process.communicate(timeout=10)
    assert (process.returncode, out) == (ends, b"" if ends else b"it goes on\n")


def test_requests_wait_while_the_lease_cannot_be_renewed(hosts, front_end):
    hv1 = hosts("hv1")
    rpc = make(hv1)
    queue = front_end(hv1.socket()).start()
    assert queue.do(OUT, 0, b"1" * 512)[0] == OK
    # the engine is stopped, its workers are not: nobody renews, and the workers see to it by themselves
    os.kill(hv1.process.pid, signal.SIGSTOP)
    time.sleep(QUICK.validity + 0.3)
    queue.submit(OUT, 8, b"2" * 512)
    queue.kick()
    time.sleep(0.5)
    assert queue.reap() == []
    assert hv1.storage.read_bytes()[8 * MIB + 4096 : 8 * MIB + 4608] == bytes(512)
    os.kill(hv1.process.pid, signal.SIGCONT)
    assert queue.wait(1, 5)[0][1] == OK
    assert lease(rpc)["state"] == "held"


def test_a_device_that_was_taken_away_and_is_there_anew_is_opened_anew(hosts, front_end):
    hv1 = hosts("hv1")
    rpc = make(hv1)
    queue = front_end(hv1.socket()).start()
    assert queue.do(OUT, 0, b"1" * 512)[0] == OK
    anew = hv1.replace_storage()
    wait_for(lambda: "taken_over" in events(rpc))
    assert queue.do(IN, 0, length=512)[:2] == (OK, b"1" * 512)
    assert queue.do(OUT, 8, b"2" * 512)[0] == OK
    assert anew.read_bytes()[8 * MIB + 4096 : 8 * MIB + 4608] == b"2" * 512
    wait_for(lambda: lease(rpc)["state"] == "held")
    assert "broken" not in events(rpc)


def test_a_vm_that_arrives_while_the_device_is_away_waits_until_it_is_there_anew(hosts, front_end):
    hv1 = hosts("hv1")
    links = [(link, os.readlink(link)) for link in (hv1.directory / "dev").iterdir()]
    rpc = make(hv1, incoming=True)
    for link, __ in links:
        link.unlink()
    anew = hv1.storage.with_name("anew.img")
    anew.write_bytes(hv1.storage.read_bytes())
    os.truncate(hv1.storage, 0)
    queue = front_end(hv1.socket()).start()
    queue.submit(OUT, 0, b"1" * 512)
    queue.kick()
    wait_for(lambda: "lease_awaited" in events(rpc))
    assert queue.reap() == []
    for link, __ in links:
        link.symlink_to(anew)
    assert queue.wait(1, 10)[0][1] == OK
    assert anew.read_bytes()[8 * MIB : 8 * MIB + 512] == b"1" * 512


def test_a_block_that_was_destroyed_is_written_anew_by_its_owner_and_refused_by_others(hosts):
    hv1, hv2 = hosts("hv1"), hosts("hv2")
    rpc = make(hv1)
    with open(hv1.storage, "r+b") as file:
        file.seek(LEASE)
        file.write(b"nonsense" * 512)
    wait_for(lambda: hv1.storage.read_bytes()[LEASE : LEASE + 8] == b"IOVLEASE")
    assert record(hv1).owner == IDS["hv1"]
    assert not rpc.vport_get(vport="vp0")["fenced"]
    rpc.vport_delete(vport="vp0")
    with open(hv1.storage, "r+b") as file:
        file.seek(LEASE)
        file.write(b"nonsense" * 512)
    rpc = hv2.rpc()
    rpc.vport_create(vport="vp0")
    with pytest.raises(Refusal) as refusal:
        rpc.mapping_set(vport="vp0", luns=LUNS)
    assert refusal.value.reason == "STORAGE"
    assert f"zero block {LEASE // 4096}" in refusal.value.message


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("state", [CLAIM, HELD])
def test_an_engine_that_dies_while_it_claims_gets_the_lease_the_next_time(when, state, hosts):
    hv1 = hosts("hv1", start=False)
    hv1.start_to_die(when, state)
    rpc = hv1.rpc()
    rpc.vport_create(vport="vp0")
    rpc.begin("mapping_set", vport="vp0", luns=LUNS)
    assert hv1.process.wait(10) == -signal.SIGKILL
    hv1.start()
    rpc = hv1.rpc()
    assert rpc.mapping_get(vport="vp0")["luns"] == []
    rpc.mapping_set(vport="vp0", luns=LUNS)
    assert lease(rpc)["state"] == "held"


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_source_that_dies_while_it_hands_over_does_so_when_it_is_back(when, hosts, front_end):
    hv1, hv2 = hosts("hv1"), hosts("hv2")
    __, rpc2, front, __ = migrate(hv1, hv2, front_end)
    hv1.stop()
    hv1.start_to_die(when, HANDED)
    front.disconnect()
    front.connect()
    front.start(1)
    front.send(11, bytes(8))
    assert hv1.process.wait(10) == -signal.SIGKILL
    there = arrive(hv2, front_end, front, front.queues[0].used_idx())
    queue = there.queues[0]
    queue.submit(OUT, 16, b"there".ljust(512))
    queue.kick()
    if when == "before":
        wait_for(lambda: "lease_awaited" in events(rpc2))
        assert queue.reap() == []
    hv1.start()
    assert queue.wait(1, 20)[0][1] == OK
    assert lease(rpc2)["state"] == "held"
    assert hv1.rpc().vport_get(vport="vp0")["fenced"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_destination_that_dies_while_it_takes_over_does_so_when_it_is_back(when, hosts, front_end):
    hv1, hv2 = hosts("hv1"), hosts("hv2")
    __, __, front, __ = migrate(hv1, hv2, front_end)
    base = front.stop_queue(0)
    hv2.stop()
    hv2.start_to_die(when, HELD)
    there = taken_along(hv2, front_end, front)
    with contextlib.suppress(Closed):  # it dies at this message or the next
        there.start(1, base)
    assert hv2.process.wait(10) == -signal.SIGKILL
    hv2.start()
    there.disconnect()
    there.connect()
    there.start(1, base)
    queue = there.queues[0]
    assert queue.do(OUT, 16, b"there".ljust(512))[0] == OK
    assert record(hv2).owner == IDS["hv2"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_engine_that_dies_while_it_frees_leaves_nothing_behind(when, hosts):
    hv1, hv2 = hosts("hv1"), hosts("hv2")
    make(hv1)
    hv1.stop()
    hv1.start_to_die(when, FREE)
    hv1.rpc().begin("vport_delete", vport="vp0")
    assert hv1.process.wait(10) == -signal.SIGKILL
    hv1.start()
    rpc = hv1.rpc()
    wait_for(lambda: lease(rpc)["state"] == "held")
    rpc.vport_delete(vport="vp0")
    assert lease(make(hv2))["state"] == "held"
