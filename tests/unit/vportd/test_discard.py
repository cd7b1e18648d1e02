# SPDX-License-Identifier: GPL-3.0-or-later
"""DISCARD and WRITE_ZEROES: offered only by storage that can, and done exactly where the mapping says."""

import struct

import pytest

from tests.unit.vportd.engine_process import VF0
from tests.unit.vportd.frontend import DISCARD, IN, IOERR, OK, OUT, UNSUPP, USUAL, WRITE_ZEROES

MIB = 1 << 20
BITS = 1 << 13 | 1 << 14


def segment(sector, sectors, flags=0):
    return struct.pack("<QII", sector, sectors, flags)


@pytest.fixture(params=["file", "threads", "uring"])
def disk(request, make_engine, make_vport, front_end):
    """Engine and queue of a LUN with two extents, a read-only one and a hole, all of it written."""
    engine = make_engine(backend=request.param)
    engine.let_discard()
    engine.storage.write_bytes(b"\xa5" * engine.size)
    make_vport(engine, bind=VF0)
    front = front_end(engine.socket(), features=USUAL | BITS)
    return engine, front, front.start()


@pytest.mark.parametrize("kind", [DISCARD, WRITE_ZEROES])
def test_zeroes_come_where_the_mapping_says_and_nowhere_else(kind, disk):
    engine, front, queue = disk
    assert front.offered & BITS == BITS
    content = segment(0, 16) + segment(3 * MIB // 512 - 8, 8) + segment(4 * MIB // 512, 4 * 8)
    assert queue.do(kind, data=content) == (OK, b"", 1)
    expected = bytearray(b"\xa5" * engine.size)
    for at, size in ((8 * MIB, 8192), (6 * MIB - 4096, 4096), (16 * MIB, 16384)):
        expected[at : at + size] = bytes(size)
    assert engine.storage.read_bytes() == bytes(expected)
    assert queue.do(IN, 0, length=8192)[:2] == (OK, bytes(8192))
    counters = engine.rpc().vport_get(vport="vp0")["luns"][0]["counters"]
    assert counters[{DISCARD: "discards", WRITE_ZEROES: "write_zeroes"}[kind]] == 1


def test_one_bad_segment_and_none_is_done(disk):
    engine, __, queue = disk
    good = segment(0, 8)
    for content, status in {
        good + segment(3 * MIB // 512, 8): IOERR,  # in the hole
        good + segment(MIB // 512, 8): IOERR,  # read-only
        good + segment((1 << 64) - 1, 8): IOERR,
        good + segment(0, 0): IOERR,
        good + segment(0, (1 << 32) - 1): IOERR,
        good[:-1]: IOERR,
        b"": IOERR,
        good * 17: IOERR,
        segment(0, 8, 2): UNSUPP,
        good + segment(0, 8, 1 << 31): UNSUPP,
    }.items():
        for kind in (DISCARD, WRITE_ZEROES):
            assert queue.do(kind, data=content)[0] == status, content
    assert queue.do(DISCARD, data=segment(0, 8, 1))[0] == UNSUPP
    assert engine.storage.read_bytes() == b"\xa5" * engine.size
    assert queue.do(WRITE_ZEROES, data=segment(0, 8, 1))[0] == OK


def test_storage_that_cannot_does_not_offer_them(engine, make_vport, front_end):
    make_vport(engine)
    front = front_end(engine.socket())
    queue = front.start()
    assert front.offered & BITS == 0
    assert front.get_config()[36:] == bytes(24)
    assert queue.do(DISCARD, data=segment(0, 8))[0] == UNSUPP


@pytest.mark.parametrize(("limit", "bits"), [("discard_max_bytes", 0), ("write_zeroes_max_bytes", 1 << 14)])
def test_discard_is_offered_only_where_zeroes_can_be_written_too(limit, bits, engine, make_vport, front_end):
    engine.let_discard(limit)
    make_vport(engine)
    front = front_end(engine.socket())
    front.negotiate()
    assert front.offered & BITS == bits


def test_a_read_only_lun_does_not_offer_them(engine, make_vport, front_end):
    engine.let_discard()
    make_vport(engine, luns=[{"lun": 0, "vdisk": "a", "readonly": True, "extents": [[0, 0, MIB]]}])
    front = front_end(engine.socket())
    front.negotiate()
    assert front.offered & BITS == 0


def test_limits_are_in_the_configuration(engine, make_vport, front_end):
    engine.let_discard()
    make_vport(engine)
    front = front_end(engine.socket())
    front.negotiate()
    assert struct.unpack_from("<IIIIIB", front.get_config(), 36) == (1 << 20, 16, 1, 1 << 20, 16, 1)


def test_what_was_written_after_a_discard_stays(disk):
    __, __, queue = disk
    assert queue.do(DISCARD, data=segment(0, 64))[0] == OK
    assert queue.do(OUT, 8, b"w" * 4096)[0] == OK
    assert queue.do(IN, 0, length=12288)[:2] == (OK, bytes(4096) + b"w" * 4096 + bytes(4096))
