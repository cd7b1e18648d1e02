# SPDX-License-Identifier: GPL-3.0-or-later
"""A worker looks for requests for a moment before it waits for a notification, and never when there is nothing."""

import os
import struct
import time
from pathlib import Path

from tests.unit.vportd.engine_process import VF0
from tests.unit.vportd.frontend import IN, OK
from vportd import blk
from vportd.blk_queue import COUNTERS_SIZE, Device, Queue
from vportd.extents import Extents
from vportd.inflight import InflightRegion, queue_region_size
from vportd.memory import MemoryMap, Region
from vportd.storage import FileStorage
from vportd.virtqueue import Virtqueue


def cpu_ticks(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_an_idle_vport_uses_no_cpu_however_busy_it_was(engine, make_vport, front_end):
    make_vport(engine, bind=VF0)
    queue = front_end(engine.socket()).start()
    for __ in range(500):
        assert queue.do(IN, 0, length=512)[0] == OK
    workers = engine.workers().values()
    before = [cpu_ticks(pid) for pid in workers]
    time.sleep(1)
    assert [cpu_ticks(pid) for pid in workers] == before
    assert queue.do(IN, 0, length=512)[0] == OK


def test_a_command_that_waits_ends_the_passes_and_never_what_was_in_flight(tmp_path):
    memory_fd, inflight_fd = os.memfd_create("m"), os.memfd_create("i")
    os.ftruncate(memory_fd, 1 << 16)
    os.ftruncate(inflight_fd, queue_region_size(8))
    memory = MemoryMap([Region(memory_fd, 0, 1 << 16, 0, 0)])
    for slot in range(2):  # two reads of the first sector, each of three descriptors
        header = 0x1000 + 0x100 * slot
        parts = ((header, 16, 1), (0x2000, 512, 3), (header + 16, 1, 2))
        for at, (address, length, flags) in enumerate(parts):
            struct.pack_into("<QIHH", memory.view, 16 * (3 * slot + at), address, length, flags, 3 * slot + at + 1)
        struct.pack_into("<H", memory.view, 0x404 + 2 * slot, 3 * slot)
    path = tmp_path / "storage"
    path.write_bytes(bytes(4096))
    storage = FileStorage(os.open(path, os.O_RDWR))
    device = Device(0, "vp0:0", Extents([(0, 0, 4096, False)], False), storage)
    device.memory = memory
    ring = Virtqueue(memory, 8, 0, 0x400, 0x600, 0, InflightRegion(inflight_fd, 0, 8))
    queue = Queue(device, 0, ring, -1, -1, memoryview(bytearray(COUNTERS_SIZE)))
    ring.start(0)
    struct.pack_into("<H", memory.view, 0x402, 1)
    assert len(ring.take()) == 1  # by a worker that died
    struct.pack_into("<H", memory.view, 0x402, 2)
    queue.again = ring.start(None)
    queue.hurry = b"\1"
    assert blk.service(queue)  # there is more to take
    assert (ring.used, ring.last_avail) == (1, 1)
    queue.hurry = b"\0"
    assert not blk.service(queue)
    assert (ring.used, ring.last_avail) == (2, 2)
    storage.close()
    os.close(memory_fd)
    os.close(inflight_fd)
