# SPDX-License-Identifier: GPL-3.0-or-later
"""What a VM's requests do to the storage."""

import os
import struct

import pytest

from tests.unit.vportd.engine_process import VF0
from tests.unit.vportd.frontend import (
    CONFIG,
    DISCARD,
    EVENT_IDX,
    FLUSH,
    GET_ID,
    HIGH_GPA,
    IN,
    INDIRECT,
    IOERR,
    LOW_SIZE,
    MQ,
    OK,
    OUT,
    PAGE,
    REPLY_ACK,
    UNSUPP,
    USUAL,
)
from tests.unit.vportd.test_paths import wait_for

MIB = 1 << 20
BACKENDS = ["file", "threads", "uring"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_request_across_extents_lands_exactly_where_the_mapping_says_and_completes_once(
    backend, make_engine, make_vport, front_end
):
    engine = make_engine(backend=backend)
    luns = [{"lun": 3, "vdisk": "a", "extents": [[0, 8 * MIB, MIB], [MIB, 2 * MIB, 4096], [MIB + 4096, 5 * MIB, MIB]]}]
    make_vport(engine, luns=luns, bind=VF0)
    queue = front_end(engine.socket(lun=3)).start()
    expected = bytearray(engine.storage.read_bytes())
    data = os.urandom(64 << 10)
    start = MIB - 20480
    assert queue.do(OUT, start // 512, data, segments=4) == (OK, b"", 1)
    expected[9 * MIB - 20480 : 9 * MIB] = data[:20480]
    expected[2 * MIB : 2 * MIB + 4096] = data[20480:24576]
    expected[5 * MIB : 5 * MIB + len(data) - 24576] = data[24576:]
    assert engine.storage.read_bytes() == bytes(expected)
    assert queue.do(IN, start // 512, length=len(data), segments=3) == (OK, data, len(data) + 1)
    assert queue.completions == queue.submissions


OUTSIDE = {
    "in the hole": (IN, 3 * MIB // 512, 512),
    "out of the hole into an extent": (OUT, 4 * MIB // 512 - 1, 1024),
    "out of an extent into the hole": (IN, 3 * MIB // 512 - 1, 1024),
    "after the end": (IN, 6 * MIB // 512, 512),
    "over the end": (OUT, 6 * MIB // 512 - 1, 1024),
    "at 2^64 bytes": (IN, (1 << 64) // 512 - 1, 512),
    "at 2^64 sectors": (IN, (1 << 64) - 1, 512),
    "a write to a read-only extent": (OUT, MIB // 512, 512),
    "a write over the edge of a read-only extent": (OUT, MIB // 512 - 1, 1024),
    "not whole sectors": (OUT, 0, 100),
}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_request_that_leaves_the_mapping_does_no_io_and_gets_an_error(backend, make_engine, make_vport, front_end):
    engine = make_engine(backend=backend)
    rpc = make_vport(engine, bind=VF0)
    queue = front_end(engine.socket()).start()
    before = engine.storage.read_bytes()
    for name, (kind, sector, size) in OUTSIDE.items():
        mark = b"\x5a" * size
        queue.memory.write(queue.slot_base(queue.free[0]) + 0x1000, mark)
        status, read, __ = queue.do(kind, sector, b"\xff" * size, size)
        assert status == IOERR, name
        assert kind == OUT or read == mark, name
    assert engine.storage.read_bytes() == before
    assert rpc.vport_get(vport="vp0")["luns"][0]["counters"]["errors"] == len(OUTSIDE)


def test_a_read_only_lun_says_so_and_refuses_writes(engine, make_vport, front_end):
    make_vport(engine, luns=[{"lun": 0, "vdisk": "a", "readonly": True, "extents": [[0, 0, MIB]]}])
    front = front_end(engine.socket(), features=USUAL | 1 << 5)
    queue = front.start()
    assert front.offered & 1 << 5
    assert queue.do(OUT, 0, b"x" * 512)[0] == IOERR
    assert queue.do(IN, 0, length=512)[0] == OK
    assert engine.storage.read_bytes()[:512] == bytes(512)


def test_the_configuration_tells_capacity_block_size_and_queues(engine, make_vport, front_end):
    make_vport(engine)
    front = front_end(engine.socket())
    front.negotiate()
    config = front.get_config()
    assert struct.unpack_from("<Q", config, 0)[0] == 6 * MIB // 512
    assert struct.unpack_from("<I", config, 20)[0] == 512
    assert struct.unpack_from("<H", config, 34)[0] == 4
    assert front.get_config(256)[60:] == bytes(196)


@pytest.mark.parametrize("backend", BACKENDS)
def test_flush_identity_and_what_is_not_supported(backend, make_engine, make_vport, front_end):
    engine = make_engine(backend=backend)
    rpc = make_vport(engine, bind=VF0)
    queue = front_end(engine.socket()).start()
    assert queue.do(FLUSH) == (OK, b"", 1)
    assert queue.do(GET_ID, length=20) == (OK, b"vp0:0".ljust(20, b"\0"), 21)
    assert queue.do(GET_ID, length=4)[:2] == (OK, b"vp0:")
    assert queue.do(DISCARD, data=bytes(16))[0] == UNSUPP
    assert queue.do(99, length=512)[0] == UNSUPP
    counters = rpc.vport_get(vport="vp0")["luns"][0]["counters"]
    assert (counters["flushes"], counters["reads"], counters["writes"]) == (1, 0, 0)


@pytest.mark.parametrize("features", [USUAL, USUAL & ~EVENT_IDX, USUAL & ~INDIRECT, USUAL & ~EVENT_IDX & ~INDIRECT])
def test_every_ring_layout_works_with_many_requests_outstanding(features, make_engine, make_vport, front_end):
    engine = make_engine(backend="threads")
    make_vport(engine, bind=VF0)
    queue = front_end(engine.socket(), features=features).start()
    for round_ in range(30):
        written = {}
        for at in range(40):
            written[queue.submit(OUT, at * 8, bytes([round_ + at]) * 4096)] = at
        queue.kick()
        assert {status for __, status, __, __ in queue.wait(40)} == {OK}
        read = {queue.submit(IN, at * 8, length=4096, indirect=features & INDIRECT and at % 2): at for at in range(40)}
        queue.kick()
        for slot, status, data, __ in queue.wait(40):
            assert (status, data) == (OK, bytes([round_ + read[slot]]) * 4096)
    assert queue.completions == queue.submissions


@pytest.mark.parametrize("direct", [1, 2])
def test_an_indirect_table_may_stand_at_the_end_of_direct_descriptors(direct, engine, make_vport, front_end):
    make_vport(engine, bind=VF0)
    queue = front_end(engine.socket()).start()
    for segments in (1, 2, 5):
        data = os.urandom(5120)
        assert queue.do(OUT, 8, data, segments=segments, indirect=True, direct=direct) == (OK, b"", 1)
        assert engine.storage.read_bytes()[8 * MIB + 4096 : 8 * MIB + 9216] == data
        found = queue.do(IN, 8, length=5120, segments=segments, indirect=True, direct=direct)
        assert found == (OK, data, 5121)
    assert queue.completions == queue.submissions


@pytest.mark.parametrize("backend", BACKENDS)
def test_header_data_and_status_may_each_lie_in_any_memory_region(make_engine, make_vport, front_end, backend):
    engine = make_engine(backend=backend)
    make_vport(engine)
    queue = front_end(engine.socket()).start()
    above = queue.data
    queue.free[:] = [0]  # whose header and status are at the base itself
    for base in (above, 0x20000):
        queue.data = base
        for place in (0x1000, LOW_SIZE - 512, HIGH_GPA + 7 * MIB, above + 0x1000):
            data = os.urandom(512)
            assert queue.do(OUT, 3, data, buffers=[(place, 512)])[0] == OK
            assert queue.do(IN, 3, length=512, buffers=[(place, 512)]) == (OK, data, 513)
            assert queue.do(IN, 3, length=512)[:2] == (OK, data)
        for place in (LOW_SIZE - 256, LOW_SIZE, HIGH_GPA - 512):
            assert queue.do(IN, 3, buffers=[(place, 512)])[0] == IOERR


@pytest.mark.parametrize("backend", BACKENDS)
def test_buffers_may_be_odd_and_in_any_region(backend, make_engine, make_vport, front_end):
    engine = make_engine(backend=backend)
    make_vport(engine, bind=VF0)
    queue = front_end(engine.socket()).start()
    data = os.urandom(4096)
    buffers = [(0x1003, 1000), (HIGH_GPA + 7 * MIB + 1, 96), (LOW_SIZE - 3000, 3000)]
    assert queue.do(OUT, 8, data, buffers=buffers)[0] == OK
    assert engine.storage.read_bytes()[8 * MIB + 4096 : 8 * MIB + 8192] == data
    other = [(0x3001, 4000), (HIGH_GPA + 7 * MIB + 11, 96)]
    assert queue.do(IN, 8, length=4096, buffers=other)[:2] == (OK, data)


def test_four_queues_and_several_luns_work_side_by_side(engine, make_vport, front_end):
    luns = [{"lun": n, "vdisk": f"v{n}", "extents": [[0, n % 7 * MIB, MIB]]} for n in (0, 1, 2)]
    rpc = make_vport(engine, luns=luns, bind=VF0)
    fronts = [front_end(engine.socket(lun=n)) for n in (0, 1)]
    for front in fronts:
        front.start(4, slots=12)
    for lun, front in enumerate(fronts):
        for queue in front.queues:
            assert queue.do(OUT, queue.index * 8, bytes([lun * 16 + queue.index]) * 4096)[0] == OK
    image = engine.storage.read_bytes()
    for lun in (0, 1):
        for index in range(4):
            at = lun * MIB + index * 4096
            assert image[at : at + 4096] == bytes([lun * 16 + index]) * 4096
    assert [len(one["queues"]) for one in rpc.vport_get(vport="vp0")["luns"]] == [4, 4, 0]
    assert fronts[0].stop_queue(1) == 1
    assert fronts[0].queues[2].do(IN, 0, length=512)[0] == OK


def test_a_front_end_of_few_features_is_served(engine, make_vport, front_end):
    make_vport(engine)
    queue = front_end(engine.socket(), protocol=MQ | CONFIG).start()
    assert queue.do(IN, 0, length=512)[0] == OK
    plain = front_end(engine.socket(), features=1 << 32, protocol=0, connect=False)
    assert plain.protocol & REPLY_ACK == 0


def test_a_lun_grows_under_a_running_vm_which_is_told(engine, make_vport, front_end):
    rpc = make_vport(engine, luns=[{"lun": 0, "vdisk": "a", "extents": [[0, 0, MIB]]}], bind=VF0)
    front = front_end(engine.socket())
    front.protocol |= 1 << 5
    queue = front.start()
    import socket

    mine, theirs = socket.socketpair()
    front.send(21, fds=[theirs.fileno()])
    front.ask(17)
    assert queue.do(IN, MIB // 512, length=512)[0] == IOERR
    luns = [{"lun": 0, "vdisk": "a", "extents": [[0, 0, MIB], [MIB, 9 * MIB, MIB]]}]
    assert rpc.mapping_set(vport="vp0", expected_generation=1, luns=luns)["generation"] == 2
    assert queue.do(OUT, MIB // 512, b"g" * 512)[0] == OK
    assert engine.storage.read_bytes()[9 * MIB : 9 * MIB + 512] == b"g" * 512
    mine.settimeout(5)
    assert struct.unpack("<III", mine.recv(12)) == (2, 1, 0)
    assert struct.unpack_from("<Q", front.get_config())[0] == 2 * MIB // 512
    mine.close()
    theirs.close()


def test_an_extent_moves_between_two_requests_and_never_inside_one(make_engine, make_vport, front_end):
    engine = make_engine(latency=[0.0, 0.02])
    rpc = make_vport(engine, luns=[{"lun": 0, "vdisk": "a", "extents": [[0, 0, MIB]]}], bind=VF0)
    queue = front_end(engine.socket()).start()
    for __ in range(20):
        queue.submit(OUT, 0, b"a" * 4096)
    queue.kick()
    wait_for(lambda: rpc.vport_get(vport="vp0")["luns"][0]["queues"][0]["last_avail"] == 20)  # all are taken
    rpc.mapping_set(vport="vp0", luns=[{"lun": 0, "vdisk": "a", "extents": [[0, 4 * MIB, MIB]]}])
    queue.reap()
    assert not queue.busy  # what went to the old place was done before the answer
    assert queue.do(OUT, 0, b"b" * 4096)[0] == OK
    image = engine.storage.read_bytes()
    assert image[:PAGE] == b"a" * PAGE
    assert image[4 * MIB : 4 * MIB + PAGE] == b"b" * PAGE
