# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests and front ends that break the rules: they harm themselves alone."""

import contextlib
import os
import random
import struct
import time
from pathlib import Path

import pytest

from tests.unit.vportd.engine_process import VF0
from tests.unit.vportd.frontend import (
    DISCARD,
    GET_ID,
    HIGH_GPA,
    HIGH_SIZE,
    IN,
    IOERR,
    OK,
    OUT,
    PROTOCOL,
    USUAL,
    WRITE_ZEROES,
    Closed,
    FrontEnd,
    Queue,
)
from tests.unit.vportd.test_paths import wait_for
from vportd.virtio_spec import MAX_DATA

MIB, GIB = 1 << 20, 1 << 30


@pytest.fixture
def stand(engine, make_vport, front_end):
    """Two vports: a hostile front end on the first, an honest one on the second that must go on working."""
    make_vport(engine, luns=[{"lun": 0, "vdisk": "a", "extents": [[0, 0, 4 * MIB]]}], bind=VF0)
    make_vport(engine, "vp1", [{"lun": 0, "vdisk": "b", "extents": [[0, 8 * MIB, 4 * MIB]]}])
    hostile, honest = front_end(engine.socket()), front_end(engine.socket("vp1"))
    hostile.start()
    honest.start()
    pids = engine.workers()
    yield engine, hostile, honest
    assert honest.queues[0].do(OUT, 0, b"h" * 512)[0] == OK
    assert engine.workers() == pids, "a worker died"
    assert engine.storage.read_bytes()[8 * MIB + 512 : 12 * MIB] == bytes(4 * MIB - 512)


def rings(queue):
    """Ways to break a ring: name -> a function that puts it into guest memory, head 0."""
    header, status, data, table = (queue.slot_base(0) + at for at in (0, 16, 0x1000, 0x400))
    queue.memory.write(header, struct.pack("<IIQ", IN, 0, 0))
    d = queue.descriptor

    def chain(*parts):
        for at, (address, size, flags) in enumerate(parts):
            last = at == len(parts) - 1
            d(at, address, size, flags | (0 if last else 1), 0 if last else at + 1)

    def indirect(size, flags=4, content=()):
        queue.memory.write(table, b"".join(struct.pack("<QIHH", *one) for one in content))
        d(0, table, size, flags, 0)

    usual = [(header, 16, 1, 1), (data, 512, 3, 2), (status, 1, 2, 0)]
    return {
        "a loop": lambda: (d(0, header, 16, 1, 1), d(1, data, 512, 3, 0)),
        "a chain to itself": lambda: d(0, header, 16, 1, 0),
        "a next outside": lambda: d(0, header, 16, 1, queue.size),
        "no status": lambda: chain((header, 16, 0), (data, 512, 0)),
        "a status of no bytes": lambda: chain((header, 16, 0), (data, 512, 2), (status, 0, 2)),
        "a status outside": lambda: chain((header, 16, 0), (data, 512, 2), (HIGH_GPA + HIGH_SIZE, 1, 2)),
        "a status at the end of all": lambda: chain((header, 16, 0), (data, 512, 2), ((1 << 64) - 1, 1, 2)),
        "readable after writable": lambda: chain((header, 16, 0), (data, 512, 2), (data, 16, 0), (status, 1, 2)),
        "an indirect table of no bytes": lambda: indirect(0),
        "an indirect table of a part": lambda: indirect(40),
        "an indirect table too long": lambda: indirect(1 << 24),
        "an indirect table outside": lambda: d(0, HIGH_GPA + HIGH_SIZE - 16, 48, 4, 0),
        "an indirect table with a next": lambda: indirect(48, 5, usual),
        "indirect in indirect": lambda: indirect(48, 4, [(header, 16, 1, 1), (table, 48, 7, 2), (status, 1, 2, 0)]),
        "an indirect loop": lambda: indirect(48, 4, [(header, 16, 1, 1), (data, 512, 3, 2), (status, 1, 3, 0)]),
        "an indirect next outside": lambda: indirect(48, 4, [(header, 16, 1, 1), (data, 512, 3, 9), (status, 1, 2, 0)]),
        "a next in an indirect one after a direct": lambda: (
            indirect(32, 4, usual[1:]),
            d(0, header, 16, 1, 1),
            d(1, table, 32, 5, 2),
            d(2, status, 1, 2, 0),
        ),
        "indirect in indirect after a direct one": lambda: (
            indirect(32, 4, [(table, 48, 5, 1), (status, 1, 2, 0)]),
            d(0, header, 16, 1, 1),
            d(1, table, 32, 4, 0),
        ),
        "an indirect table of a part after a direct one": lambda: (
            indirect(40, 4, usual),
            d(0, header, 16, 1, 1),
            d(1, table, 40, 4, 0),
        ),
        "a chain that is too long with its indirect table": lambda: (
            indirect(16384, 4, [(data, 512, 3, at + 1) for at in range(1023)] + [(status, 1, 2, 0)]),
            d(0, header, 16, 1, 1),
            d(1, table, 16384, 4, 0),
        ),
    }


def test_a_broken_ring_stops_its_queue_and_nothing_else(stand):
    engine, hostile, __ = stand
    queue = hostile.queues[0]
    before = engine.storage.read_bytes()[: 8 * MIB]
    for name in rings(queue):
        for number in range(4):
            queue.descriptor(number, 0, 0, 0, 0)
        log = engine.log.read_text().count("is broken by its driver")
        rings(queue)[name]()
        base = queue.idx
        queue.offer(0)
        os.eventfd_write(queue.kick_fd, 1)
        wait_for(lambda log=log: engine.log.read_text().count("is broken by its driver") > log)
        assert queue.used_idx() == base, name
        hostile.stop_queue(0)
        # the guest resets the device: new rings, and QEMU a new in-flight region
        hostile.disconnect()
        if hostile.inflight is not None:
            os.close(hostile.inflight[1])
            hostile.inflight = None
        queue.memory.write(queue.desc, bytes(0x4000))
        queue.idx = queue.seen = queue.kicked = 0
        hostile.connect()
        hostile.start(1)
        assert queue.do(IN, 0, length=512)[0] == OK, name
    assert engine.storage.read_bytes()[: 8 * MIB] == before


def test_an_index_that_jumps_or_a_head_outside_breaks_the_queue(stand):
    engine, hostile, __ = stand
    queue = hostile.queues[0]
    queue.memory.write(queue.avail + 2, struct.pack("<H", queue.size + 1))
    os.eventfd_write(queue.kick_fd, 1)
    wait_for(lambda: "more than the queue size" in engine.log.read_text())
    hostile.stop_queue(0)
    queue.memory.write(queue.avail, bytes(6))
    hostile.start_queue(0, 0)
    queue.offer(queue.size)
    os.eventfd_write(queue.kick_fd, 1)
    wait_for(lambda: f"head {queue.size}" in engine.log.read_text())


def test_a_head_that_is_in_flight_is_not_taken_twice(make_engine, make_vport, front_end):
    engine = make_engine(latency=0.2)
    make_vport(engine)
    queue = front_end(engine.socket()).start()
    slot = queue.submit(IN, 0, length=512)
    queue.offer(3 * slot)
    queue.kick()
    wait_for(lambda: "which is in flight" in engine.log.read_text())
    assert len(queue.wait(1)) == 1
    time.sleep(0.3)
    assert queue.used_idx() == 1


def test_a_buffer_outside_memory_gets_an_error_and_no_io(stand):
    engine, hostile, __ = stand
    queue = hostile.queues[0]
    before = engine.storage.read_bytes()
    for gpa, size in (
        (HIGH_GPA + HIGH_SIZE, 512),
        (HIGH_GPA - 512, 512),
        (HIGH_GPA + HIGH_SIZE - 512, 1024),
        (1 << 63, 512),
    ):
        for kind in (IN, OUT):
            real = queue.memory.write
            queue.memory.write = lambda at, data, real=real: (
                real(at, data) if at < HIGH_GPA + HIGH_SIZE - 512 and (at >= HIGH_GPA or at < 1 << 19) else None
            )
            slot = queue.submit(kind, 0, b"x" * size, size, buffers=[(gpa, size)])
            queue.memory.write = real
            queue.kick()
            deadline = time.monotonic() + 10
            while queue.seen == queue.used_idx():
                assert time.monotonic() < deadline
            head = 3 * slot
            __, __, status, __ = queue.busy[head]
            assert queue.memory.read(status, 1)[0] == IOERR
            queue.busy[head] = (slot, OUT, status, [])
            queue.reap()
    assert engine.storage.read_bytes() == before


def peak(pid):
    """The most memory that a process has had, in bytes; that of the guest counts as far as it was touched."""
    text = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(text.split("VmHWM:")[1].split()[0])


def large(queue, kind, buffers):
    """Make a request of these buffers available, of which nothing is read back; return its slot."""
    slot = queue.submit(kind, 0, length=1, buffers=buffers)
    __, __, status, __ = queue.busy[3 * slot]
    queue.busy[3 * slot] = (slot, kind, status, [])
    return slot


@pytest.fixture
def make_large(make_engine, make_vport, front_end):
    """Make engine and queue of a LUN of 8 GiB for a guest of that memory."""

    def make(backend, memory):
        engine = make_engine(size=8 * GIB, backend=backend)
        engine.let_discard()
        make_vport(engine, luns=[{"lun": 0, "vdisk": "a", "extents": [[0, 0, 8 * GIB]]}], bind=VF0)
        return engine, front_end(engine.socket(), features=USUAL | 3 << 13, high=memory).start()

    return make


@pytest.mark.parametrize("backend", ["file", "threads", "uring"])
def test_a_request_of_gigabytes_gets_an_error_and_takes_no_memory(backend, make_large):
    engine, queue = make_large(backend, 5 * GIB)
    data = HIGH_GPA + 4 * MIB
    assert queue.do(IN, 0, length=512)[0] == OK
    pid = engine.workers()["vp0", "vf"]
    before, allocated = peak(pid), engine.storage.stat().st_blocks
    for buffers in (
        [(data, 4 * MIB)] * 1022,  # all that a chain may have
        [(data, (1 << 32) - 512)],  # as the common request
        [(data, (1 << 32) - 512)] * 2,
        [(data, MAX_DATA + 512)],
        [(data, MAX_DATA), (data, 1)],
    ):
        for kind in (IN, OUT, DISCARD, WRITE_ZEROES, GET_ID):
            large(queue, kind, buffers)
            queue.kick()
            ((__, status, __, written),) = queue.wait()
            assert (status, written) == (IOERR, 1), (kind, len(buffers))
    large(queue, DISCARD, [(data, MAX_DATA)])
    queue.kick()
    assert queue.wait()[0][1] == IOERR
    assert peak(pid) - before < 8 * MIB
    assert engine.storage.stat().st_blocks == allocated
    assert queue.do(OUT, 0, b"x" * 512)[0] == OK
    assert engine.workers()["vp0", "vf"] == pid


@pytest.mark.parametrize("backend", ["file", "threads", "uring"])
def test_the_largest_request_is_done(backend, make_large):
    engine, queue = make_large(backend, MAX_DATA + 8 * MIB)
    data = HIGH_GPA + 4 * MIB
    queue.memory.write(data + MAX_DATA - 4096, b"e" * 4096)
    for buffers in ([(data, MAX_DATA)], [(data, MAX_DATA - 512), (data + MAX_DATA - 512, 512)]):
        queue.memory.write(data, os.urandom(4096))
        content = queue.memory.read(data, 4096)
        for kind in (OUT, IN):
            large(queue, kind, buffers)
            queue.kick()
            ((__, status, __, written),) = queue.wait()
            assert (status, written) == (OK, MAX_DATA + 1 if kind == IN else 1)
            queue.memory.write(data, bytes(4096) if kind == OUT else content)
        assert queue.memory.read(data, 4096) == content
        with open(engine.storage, "rb") as file:
            assert file.read(4096) == content
            file.seek(MAX_DATA - 4096)
            assert file.read(8192) == b"e" * 4096 + bytes(4096)


def test_bounce_buffers_take_no_more_memory_than_they_may(make_large):
    engine, queue = make_large("uring", HIGH_SIZE)
    assert queue.do(IN, 0, length=512)[0] == OK
    pid = engine.workers()["vp0", "vf"]
    before = peak(pid)
    for __ in range(16):  # 1 GiB in all, in more buffers than one operation of the kernel takes
        large(queue, IN, [(HIGH_GPA + 4 * MIB, 65536)] * 1022)
    queue.kick()
    assert {status for __, status, __, __ in queue.wait(16, 60)} == {OK}
    assert peak(pid) - before < 24 * MIB


def test_random_descriptors_and_rings_never_kill_a_worker(stand):
    _engine, hostile, honest = stand
    queue = hostile.queues[0]
    numbers = random.Random(7)
    spots = [
        0,
        16,
        0x400,
        0x1000,
        HIGH_GPA,
        queue.desc,
        queue.used,
        queue.slot_base(0),
        HIGH_GPA + HIGH_SIZE - 8,
        (1 << 64) - 4,
    ]
    for __ in range(60):
        for number in range(queue.size):
            address = numbers.choice(spots) + numbers.choice([0, 0, 8, 16])
            length = numbers.choice([0, 1, 16, 48, 512, 4096, 1 << 20, (1 << 32) - 1])
            queue.descriptor(
                number, min(address, (1 << 64) - 1), length, numbers.randrange(8), numbers.randrange(queue.size + 2)
            )
        for __ in range(numbers.randrange(1, 9)):
            queue.offer(numbers.randrange(queue.size))
        os.eventfd_write(queue.kick_fd, 1)
        hostile.ask(17)
        hostile.stop_queue(0)
        queue.memory.write(queue.desc, bytes(0x4000))
        queue.idx = 0
        hostile.disconnect()
        if hostile.inflight is not None:
            os.close(hostile.inflight[1])
            hostile.inflight = None
        hostile.connect()
        hostile.start(1)
    assert honest.queues[0].do(IN, 0, length=512)[0] == OK


def test_a_hostile_in_flight_region_is_not_believed(stand):
    engine, hostile, __ = stand
    queue = hostile.queues[0]
    numbers = random.Random(3)
    for __ in range(20):
        hostile.stop_queue(0)
        os.pwrite(
            hostile.inflight[1],
            struct.pack("<QHHHH", 0, 1, queue.size, *(numbers.randrange(1 << 16) for __ in "ab")),
            0,
        )
        os.pwrite(hostile.inflight[1], numbers.randbytes(16 * queue.size), 16)
        hostile.start_queue(0)
    assert engine.process.poll() is None


MESSAGES = {
    "an unknown request": (99, b"", 0, 1),
    "no version": (1, b"", 0, 0),
    "a reply": (1, b"", 0, 5),
    "features not offered": (2, struct.pack("<Q", 1 << 40), 0, 1),
    "features cut short": (2, b"\0" * 7, 0, 1),
    "a queue that is not there": (8, struct.pack("<II", 4, 128), 0, 1),
    "a size that is no power of 2": (8, struct.pack("<II", 1, 100), 0, 1),
    "a size of 0": (8, struct.pack("<II", 1, 0), 0, 1),
    "addresses that are not aligned": (9, struct.pack("<IIQQQQ", 1, 0, 8, 4, 2, 0), 0, 1),
    "a memory table without regions": (5, struct.pack("<II", 0, 0), 0, 1),
    "a memory table of too many": (5, struct.pack("<II", 9, 0) + bytes(288), 8, 1),
    "a memory table without descriptors": (5, struct.pack("<II", 1, 0) + struct.pack("<QQQQ", 0, 4096, 0, 0), 0, 1),
    "memory beyond its file": (5, struct.pack("<II", 1, 0) + struct.pack("<QQQQ", 0, 1 << 40, 0, 0), 1, 1),
    "memory that wraps": (5, struct.pack("<II", 1, 0) + struct.pack("<QQQQ", (1 << 64) - 512, 4096, 0, 0), 1, 1),
    "memory at an offset that wraps": (
        5,
        struct.pack("<II", 1, 0) + struct.pack("<QQQQ", 0, 4096, 0, (1 << 64) - 1),
        1,
        1,
    ),
    "memory that overlaps": (5, struct.pack("<II", 2, 0) + struct.pack("<QQQQ", 0, 4096, 0, 0) * 2, 2, 1),
    "a kick without a descriptor": (12, struct.pack("<Q", 1), 0, 1),
    "a kick that is polled": (12, struct.pack("<Q", 0x101), 0, 1),
    "a call with two": (13, struct.pack("<Q", 1), 2, 1),
    "too many descriptors": (13, struct.pack("<Q", 1), 20, 1),
    "a configuration too long": (24, struct.pack("<III", 0, 300, 0) + bytes(300), 0, 1),
    "a configuration at an offset that wraps": (24, struct.pack("<III", (1 << 32) - 1, 4, 0) + bytes(4), 0, 1),
    "an in-flight region for no queue": (31, struct.pack("<QQHHI", 0, 0, 0, 128, 0), 0, 1),
    "an in-flight region while running": (32, struct.pack("<QQHHI", 4096, 0, 1, 128, 0), 1, 1),
    "enable with another value": (18, struct.pack("<II", 0, 2), 0, 1),
    "a base while running": (10, struct.pack("<II", 0, 7), 0, 1),
    "another size while running": (8, struct.pack("<II", 0, 64), 0, 1),
    "a back-end channel that is none": (21, b"", 1, 1),
    "an announcement of more than there is": (1, b"", 0, 1 | 0xFFFF << 32),
}


def test_a_message_that_breaks_the_protocol_ends_its_connection_alone(stand):
    engine, hostile, honest = stand
    open_files = None
    for name, (request, payload, count, flags) in MESSAGES.items():
        fds = [os.memfd_create("x") for __ in range(count)]
        for fd in fds:
            os.ftruncate(fd, 8192)
        size = len(payload) if flags >> 32 == 0 else flags >> 32
        header = struct.pack("<III", request, flags & 0xFFFFFFFF, size)
        import socket
        from array import array

        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
        hostile.sock.sendmsg([header + payload], rights)
        for fd in fds:
            os.close(fd)
        assert hostile.is_closed(), name
        assert honest.queues[0].do(IN, 0, length=512)[0] == OK, name
        hostile.disconnect()
        hostile.connect()
        hostile.start(1)
        assert hostile.queues[0].do(IN, 0, length=512)[0] == OK, name
        now = len(os.listdir(f"/proc/{engine.process.pid}/fd"))
        assert open_files is None or now <= open_files + 2, f"{name}: descriptors are not closed"
        open_files = now if open_files is None else open_files


def test_random_bytes_end_the_connection(stand):
    engine, hostile, __ = stand
    numbers = random.Random(11)
    for __ in range(40):
        with_fd = numbers.random() < 0.3
        fds = [os.memfd_create("x")] if with_fd else []
        payload = numbers.randbytes(numbers.choice([0, 4, 8, 12, 16, 24, 40, 72, 200]))
        try:
            hostile.send(numbers.randrange(45), payload, fds, numbers.random() < 0.5)
            hostile.sock.shutdown(1)
        except (Closed, OSError):
            pass
        for fd in fds:
            os.close(fd)
        assert hostile.is_closed()
        hostile.disconnect()
        hostile.connect()
        hostile.start(1)
        assert hostile.queues[0].do(IN, 0, length=512)[0] == OK
    assert engine.process.poll() is None
    assert PROTOCOL


def test_memory_that_is_cut_off_kills_no_other_vport(engine, make_vport, front_end):
    make_vport(engine, luns=[{"lun": 0, "vdisk": "a", "extents": [[0, 0, 4 * MIB]]}])
    make_vport(engine, "vp1", [{"lun": 0, "vdisk": "b", "extents": [[0, 8 * MIB, 4 * MIB]]}])
    hostile, honest = front_end(engine.socket()), front_end(engine.socket("vp1"))
    hostile.start()
    honest.start()
    os.ftruncate(hostile.memory.fds[1], 0)
    hostile.memory.maps.pop()
    os.eventfd_write(hostile.queues[0].kick_fd, 1)
    wait_for(lambda: "SIGBUS" in engine.log.read_text())
    assert honest.queues[0].do(IN, 0, length=512)[0] == OK
    assert hostile.is_closed(20)
    hostile.disconnect()
    assert engine.rpc().vport_get(vport="vp1")["state"] == "RUNNING"
    assert front_end(engine.socket()).start().do(IN, 0, length=512)[0] == OK


def test_an_in_flight_counter_at_its_end_is_no_end(engine, make_vport, front_end):
    make_vport(engine)
    hostile = front_end(engine.socket())
    queue = hostile.start()
    hostile.stop_queue(0)
    fd = hostile.inflight[1]
    os.pwrite(fd, struct.pack("<QHHHH", 0, 1, queue.size, 0, 0), 0)
    os.pwrite(fd, struct.pack("<QQ", 1, (1 << 64) - 2), 16 + 16 * 60)  # head 60 is in flight
    base = queue.slot_base(20)
    queue.memory.write(base, struct.pack("<IIQ", IN, 0, 0))
    for head, part in enumerate([(base, 16, 1, 61), (base + 0x1000, 512, 3, 62), (base + 16, 1, 2, 0)], 60):
        queue.descriptor(head, *part)
    queue.offer(60)
    pids = engine.workers()
    hostile.start_queue(0, 0)
    wait_for(lambda: queue.used_idx() == 1, 10)
    queue.seen = queue.used_idx()
    for __ in range(3):  # taken in one go
        queue.submit(IN, 0, length=512)
    queue.kick()
    wait_for(lambda: queue.used_idx() == 4, 10)
    assert engine.workers() == pids


def test_a_head_that_is_under_way_is_not_taken_again_whatever_the_region_says(make_engine, make_vport, front_end):
    engine = make_engine(latency=0.5)
    rpc = make_vport(engine)
    hostile = front_end(engine.socket())
    queue = hostile.start()
    pids = engine.workers()
    slot = queue.submit(IN, 0, length=512)
    queue.kick()
    wait_for(lambda: rpc.vport_get(vport="vp0")["outstanding"] == 1, 10)
    os.pwrite(hostile.inflight[1], bytes(8), 16 + 16 * 3 * slot)
    queue.offer(3 * slot)
    os.eventfd_write(queue.kick_fd, 1)
    wait_for(lambda: "while its request is under way" in engine.log.read_text(), 10)
    wait_for(lambda: queue.used_idx() == 1, 10)
    assert engine.workers() == pids


def test_a_used_index_of_the_guests_making_does_not_keep_a_vport_from_moving(engine, make_vport, front_end):
    rpc = make_vport(engine, bind=VF0)
    hostile = front_end(engine.socket())
    queue = hostile.start()
    hostile.stop_queue(0)
    queue.memory.write(queue.used + 2, struct.pack("<H", 7))
    queue.seen = 7
    hostile.start_queue(0, 0)
    assert rpc.vport_switch(vport="vp0", path="pf")["changed"]
    assert rpc.vport_suspend(vport="vp0")["state"] == "FROZEN"
    rpc.vport_resume(vport="vp0")
    assert queue.do(IN, 0, length=512)[0] == OK
    rpc.vport_fence(vport="vp0")
    assert rpc.vport_get(vport="vp0")["state"] == "FROZEN"


def test_guest_memory_that_was_taken_away_is_no_failure_of_the_storage(make_engine, make_vport, front_end):
    engine = make_engine(backend="uring", error_policy="wait", auto_return=True)
    rpc = make_vport(engine, bind=VF0)
    hostile = front_end(engine.socket())
    queue = hostile.start()
    os.ftruncate(hostile.memory.fds[1], 6 * MIB)
    queue.submit(IN, 0, length=1, buffers=[(HIGH_GPA + 7 * MIB, 512)])
    os.eventfd_write(queue.kick_fd, 1)
    wait_for(lambda: queue.used_idx() == 1, 10)
    record = rpc.vport_get(vport="vp0")
    assert (record["path"], record["degraded"], record["waiting"]) == ("vf", None, 0)


def test_who_has_its_workers_die_again_and_again_waits_for_the_next(engine, make_vport):
    make_vport(engine)
    end = time.monotonic() + 4
    while time.monotonic() < end:
        front = FrontEnd(engine.socket())
        front.sock.settimeout(1)
        with contextlib.suppress(OSError, Closed, AssertionError):
            front.start()
            os.ftruncate(front.memory.fds[1], 0)
            os.eventfd_write(front.queues[0].kick_fd, 1)
            front.is_closed(1)
        front.disconnect()
    assert 0 < engine.log.read_text().count(") died of SIGBUS") < 10


@pytest.mark.parametrize("same", [False, True], ids=["tables", "data"])
def test_many_heads_of_long_chains_take_little_memory(same, make_engine, make_vport, front_end):
    """1024 heads that all name one table of 1024 descriptors; or one buffer over as many extents."""
    engine = make_engine(latency=0.2, backend="uring", size=64 * MIB)
    small = [[at * 4096, (8191 - at) * 4096, 4096] for at in range(8192)]
    make_vport(engine, luns=[{"lun": 0, "vdisk": "a", "extents": small}])
    hostile = front_end(engine.socket())
    hostile.negotiate()
    hostile.set_memory()
    memory, size = hostile.memory, 1024
    queue = Queue(memory, 0, size=128)
    queue.size = size
    base = HIGH_GPA + 2 * MIB
    queue.desc, queue.avail, queue.used = base, base + 0x8000, base + 0xA000
    hostile.queues.append(queue)
    table, header, status, data = (HIGH_GPA + 3 * MIB + at for at in (0, 0x8000, 0x9000, 0x10000))
    memory.write(header, struct.pack("<IIQ", IN, 0, 0))
    if same:
        parts = [(header, 16, 1, 1), (data, 2 * MIB, 3, 2), (status, 1, 2, 0)]
    else:
        middle = [(data, 512, 3, at) for at in range(2, 1024)]
        parts = [(header, 16, 1, 1), *middle, (status, 1, 2, 0)]
    memory.write(table, b"".join(struct.pack("<QIHH", *part) for part in parts))
    for head in range(size):
        queue.descriptor(head, table, 16 * len(parts), 4, 0)
        memory.write(queue.avail + 4 + 2 * head, struct.pack("<H", head))
    hostile.send(8, struct.pack("<II", 0, size))
    hostile.send(10, struct.pack("<II", 0, 0))
    hostile.send(9, hostile.addresses(queue))
    hostile.send(12, struct.pack("<Q", 0), [queue.kick_fd])
    hostile.send(13, struct.pack("<Q", 0), [queue.call_fd])
    assert hostile.acknowledged(18, struct.pack("<II", 0, 1)) == 0
    (pid,) = engine.workers().values()
    before = peak(pid)
    memory.write(queue.avail + 2, struct.pack("<H", size))
    os.eventfd_write(queue.kick_fd, 1)
    wait_for(lambda: queue.used_idx() > 64, 60)
    assert peak(pid) - before < 64 * MIB
    rpc = engine.rpc()
    assert rpc.vport_get(vport="vp0")["outstanding"] <= size
    wait_for(lambda: queue.used_idx() == size, 120)
