# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory that comes and goes one region at a time, and the device status."""

import os
import struct

import pytest

from tests.unit.vportd.frontend import HIGH_GPA, HIGH_SIZE, IN, IOERR, OK, OUT, USUAL_PROTOCOL

MEM_SLOTS, STATUS = 1 << 15, 1 << 16
MAX_SLOTS, ADD, REMOVE, SET_STATUS, GET_STATUS = 36, 37, 38, 39, 40
NEW_GPA, NEW_SIZE, NEW_USER = HIGH_GPA + (1 << 30), 1 << 20, 0x7FAA_0000_0000


@pytest.fixture
def front(engine, make_vport, front_end):
    make_vport(engine)
    front = front_end(engine.socket(), protocol=USUAL_PROTOCOL | MEM_SLOTS | STATUS)
    regions = list(zip(front.memory.table, front.memory.fds, strict=True))

    def set_memory():
        for region, fd in regions:
            assert change(front, ADD, region, [fd]) == 0

    front.set_memory = set_memory
    return front


def change(front, request, region, fds=()):
    return front.acknowledged(request, struct.pack("<QQQQQ", 0, *region), fds)


def test_memory_is_added_and_removed_under_a_running_queue(front):
    queue = front.start()
    assert struct.unpack("<Q", front.ask(MAX_SLOTS))[0] >= 8
    assert queue.do(OUT, 0, b"m" * 4096)[0] == OK
    fd = os.memfd_create("added")
    os.ftruncate(fd, NEW_SIZE)
    region = (NEW_GPA, NEW_SIZE, NEW_USER, 0)
    write, read = queue.memory.write, queue.memory.read
    queue.memory.read = lambda gpa, size: os.pread(fd, size, gpa - NEW_GPA) if gpa >= NEW_GPA else read(gpa, size)
    queue.memory.write = lambda gpa, data: os.pwrite(fd, data, gpa - NEW_GPA) if gpa >= NEW_GPA else write(gpa, data)
    assert queue.do(IN, 0, length=4096, buffers=[(NEW_GPA + 512, 4096)])[0] == IOERR
    assert change(front, ADD, region, [fd]) == 0
    assert queue.do(IN, 0, length=4096, buffers=[(NEW_GPA + 512, 4096)])[:2] == (OK, b"m" * 4096)
    assert change(front, REMOVE, region) == 0
    assert queue.do(IN, 0, length=4096, buffers=[(NEW_GPA + 512, 4096)])[0] == IOERR
    assert queue.do(IN, 0, length=4096)[:2] == (OK, b"m" * 4096)
    os.close(fd)


@pytest.mark.parametrize(
    ("request_", "region", "files"),
    [
        (REMOVE, (NEW_GPA, NEW_SIZE, NEW_USER, 0), 0),
        (ADD, (HIGH_GPA + HIGH_SIZE - 4096, 8192, NEW_USER, 0), 1),
        (ADD, (NEW_GPA, NEW_SIZE, NEW_USER, 0), 0),
        (ADD, ((1 << 64) - 512, 4096, NEW_USER, 0), 1),
        (REMOVE, (HIGH_GPA, HIGH_SIZE, 0, 0), 0),
    ],
)
def test_a_region_that_cannot_be_ends_the_connection(request_, region, files, front):
    front.start()
    fds = [os.memfd_create("bad") for __ in range(files)]
    for fd in fds:
        os.ftruncate(fd, 8192)
    front.send(request_, struct.pack("<QQQQQ", 0, *region), fds)
    for fd in fds:
        os.close(fd)
    assert front.is_closed()


def test_more_regions_than_announced_end_the_connection(front):
    front.start()
    limit = struct.unpack("<Q", front.ask(MAX_SLOTS))[0]
    fd = os.memfd_create("many")
    os.ftruncate(fd, 4096)
    for number in range(limit - 2):
        assert change(front, ADD, (NEW_GPA + number * 4096, 4096, NEW_USER + number * 4096, 0), [fd]) == 0
    assert front.queues[0].do(IN, 0, length=512)[0] == OK
    front.send(ADD, struct.pack("<QQQQQ", 0, 1 << 40, 4096, 1 << 45, 0), [fd])
    os.close(fd)
    assert front.is_closed()


def test_the_status_is_kept_and_zero_stops_the_rings(front):
    queue = front.start()
    assert front.acknowledged(SET_STATUS, struct.pack("<Q", 0xF)) == 0
    assert struct.unpack("<Q", front.ask(GET_STATUS))[0] == 0xF
    assert queue.do(IN, 0, length=512)[0] == OK
    assert front.acknowledged(SET_STATUS, struct.pack("<Q", 0)) == 0
    queue.submit(IN, 0, length=512)
    os.eventfd_write(queue.kick_fd, 1)
    assert struct.unpack("<Q", front.ask(GET_STATUS))[0] == 0
    assert queue.used_idx() == 1
    front.start_queue(0)
    queue.wait(1)
    assert queue.completions == queue.submissions
