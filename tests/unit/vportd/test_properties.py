# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever a driver puts into its memory, and whatever a front end says: the ring and the protocol stand.

The parts run in this process, so that an exception of any unforeseen kind is seen. Descriptors and messages are mostly
right and wrong in some place: wholly random ones end at the first check.
"""

import asyncio
import contextlib
import os
import socket
import struct
import tempfile
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vportd import blk
from vportd.apart import Apart
from vportd.blk_queue import COUNTERS_SIZE, Device, Queue
from vportd.errors import VportdError
from vportd.extents import Extents
from vportd.front_end import FrontEnd
from vportd.inflight import InflightRegion, queue_region_size
from vportd.memory import MemoryMap, Region
from vportd.storage import FileStorage, ThreadStorage
from vportd.storage_errors import StorageErrors
from vportd.virtqueue import Virtqueue

SIZE, MEMORY = 16, 1 << 16
DESC, AVAIL, USED, TABLE, HEADER, DATA = 0, 0x1000, 0x2000, 0x3000, 0x4000, 0x5000
STATUS = 0x8000
BLOCK = 512
# Two extents that may be written, one that may not, a hole; blocks 0-7, 40-47 and 60-63 are nobody's
EXTENTS = [
    (0, 8 * BLOCK, 8 * BLOCK, False),
    (8 * BLOCK, 32 * BLOCK, 8 * BLOCK, True),
    (24 * BLOCK, 16 * BLOCK, 8 * BLOCK, False),
]
WRITABLE = {*range(8, 16), *range(16, 24)}
STORAGE = 64 * BLOCK

addresses = st.one_of(
    st.sampled_from([HEADER, HEADER + 16, DATA, STATUS, TABLE, DESC, AVAIL, USED, MEMORY - 1, MEMORY, (1 << 64) - 1]),
    st.integers(0, MEMORY),
)
lengths = st.one_of(st.sampled_from([0, 1, 16, 32, 48, 512, 1024, 4096, MEMORY, (1 << 32) - 1]), st.integers(0, 8192))
flags = st.integers(0, 7)
descriptors = st.tuples(addresses, lengths, flags, st.integers(0, SIZE + 1))
usual = st.tuples(st.sampled_from([512, 1024, 4096]), st.booleans()).map(
    lambda how: [(HEADER, 16, 1, 1), (DATA, how[0], 1 | how[1] << 1, 2), (STATUS, 1, 2, 0)]
)
# The same with the rest of the chain in an indirect table, of which the content is another matter
usual = st.one_of(usual, usual.map(lambda three: [three[0], (TABLE, 32, 4, 0), three[2]]))
headers = st.tuples(
    st.sampled_from([0, 0, 1, 1, 4, 8, 11, 13, 99]),
    st.one_of(st.integers(0, 40), st.sampled_from([(1 << 55) - 1, (1 << 64) - 1])),
)


@pytest.fixture(params=[FileStorage, lambda fd: ThreadStorage(fd, 1, 2)], ids=["file", "threads"], scope="module")
def storage(request):
    with tempfile.TemporaryFile() as file:
        file.truncate(STORAGE)
        yield request.param(os.dup(file.fileno()))


RING = {
    "table": st.lists(descriptors, min_size=SIZE, max_size=SIZE),
    "start": usual,
    "indirect": st.lists(descriptors, max_size=8),
    "heads": st.lists(st.integers(0, SIZE), min_size=1, max_size=SIZE),
    "jump": st.sampled_from([0, 0, 0, 0, 1, SIZE, 0x7FFF]),
    "header": headers,
    "features": st.sampled_from([1 << 28 | 1 << 29, 1 << 28, 1 << 29, 0, 3 << 13 | 1 << 28]),
}


@given(**RING)
def test_a_ring_of_any_content_breaks_itself_at_most(storage, **case):
    ring_stands(storage, **case)


def ring_stands(storage, table, start, indirect, heads, jump, header, features):
    """Serve a ring of this content; it may break, and touches no block that is not its guest's."""
    descriptors_fd, inflight_fd = os.memfd_create("m"), os.memfd_create("i")
    try:
        os.ftruncate(descriptors_fd, MEMORY)
        os.ftruncate(inflight_fd, queue_region_size(SIZE))
        os.pwrite(storage.fd, b"\xa5" * STORAGE, 0)
        memory = MemoryMap([Region(descriptors_fd, 0, MEMORY, 0, 0)])
        view = memory.view
        for number, one in enumerate([*start, *table[3:]]):
            struct.pack_into("<QIHH", view, DESC + 16 * number, *one)
        for number, one in enumerate(indirect):
            struct.pack_into("<QIHH", view, TABLE + 16 * number, *one)
        struct.pack_into("<IIQ", view, HEADER, header[0], 0, header[1])
        for number, head in enumerate(heads):
            struct.pack_into("<H", view, AVAIL + 4 + 2 * number, head)
        struct.pack_into("<H", view, AVAIL + 2, (len(heads) + jump) & 0xFFFF)
        ring = Virtqueue(memory, SIZE, DESC, AVAIL, USED, features, InflightRegion(inflight_fd, 0, SIZE))
        device = Device(0, "vp0:0", Extents(EXTENTS, False), storage)
        device.memory = memory
        queue = Queue(device, 0, ring, -1, -1, memoryview(bytearray(COUNTERS_SIZE)))
        ring.start(0)
        while blk.service(queue):
            pass
        while queue.outstanding:
            blk.complete(storage.reap(), StorageErrors("report"))
        image = os.pread(storage.fd, STORAGE, 0)
        for block in set(range(STORAGE // BLOCK)) - WRITABLE:
            assert image[block * BLOCK : (block + 1) * BLOCK] == b"\xa5" * BLOCK, f"block {block} is not the guest's"
        assert ring.used <= len(heads) + jump
    except VportdError:
        return  # the ring was refused at its start, as a jump of the index is
    finally:
        os.close(descriptors_fd)
        os.close(inflight_fd)


@given(
    st.lists(st.tuples(st.integers(0, MEMORY), st.integers(0, 8192), st.sampled_from([0, 2])), min_size=1, max_size=12),
    st.integers(0, 12),
    st.permutations(range(SIZE)),
    st.permutations(range(12)),
    st.booleans(),
)
def test_a_chain_is_the_same_however_much_of_it_is_in_an_indirect_table(parts, direct, slots, places, again):
    """The first descriptors in the ring's table, in any slots, and the rest in an indirect table, in any places."""
    direct = min(direct, len(parts))
    fds = [os.memfd_create("m"), os.memfd_create("i")]
    try:
        os.ftruncate(fds[0], MEMORY)
        os.ftruncate(fds[1], queue_region_size(SIZE))
        memory = MemoryMap([Region(fds[0], 0, MEMORY, 0, 0)])
        order = [0, *(place for place in places if place and place < len(parts) - direct)]
        for number, (address, length, kind) in enumerate(parts):
            more = number + 1 < len(parts)
            if number < direct:
                at, following = DESC + 16 * slots[number], slots[number + 1]
            else:
                at = TABLE + 16 * order[number - direct]
                following = order[number - direct + 1] if more else 0
            struct.pack_into("<QIHH", memory.view, at, address, length, kind | more, following if more else 0)
        if direct < len(parts):
            struct.pack_into("<QIHH", memory.view, DESC + 16 * slots[direct], TABLE, 16 * len(order), 4, 0)
        struct.pack_into("<H", memory.view, AVAIL + 4, slots[0])
        struct.pack_into("<H", memory.view, AVAIL + 2, 1)
        ring = Virtqueue(memory, SIZE, DESC, AVAIL, USED, 1 << 28, InflightRegion(fds[1], 0, SIZE))
        assert ring.start(0) == []
        ((head, chain),) = ring.take()
        if again:  # as the next worker finds it
            assert ring.start(None) == [(head, chain)]
        assert head == slots[0]
        assert [chain[at : at + 2] for at in range(0, len(chain), 4)] == [part[:2] for part in parts]
        assert [flag & 6 for flag in chain[2::4]] == [part[2] for part in parts]
    finally:
        for fd in fds:
            os.close(fd)


class Owner:
    """A LUN that does nothing."""

    block_size, capacity, readonly, discards, zeroes = 512, 1 << 20, False, True, True

    def __init__(self):
        self.apart = Apart()

    def refuse_log(self):
        return

    async def start_ring(self, ring):
        ring.running = True

    async def stop_ring(self, ring):
        ring.running = False

    async def _nothing(self, *__):
        return

    async def turn(self):
        return True

    memory_changed = log_changed = call_changed = rings_stopping = _nothing


numbers = st.one_of(st.sampled_from([0, 1, 2, 3, 4, 128, 256, 4096, 1 << 30, (1 << 32) - 1]), st.integers(0, 300))
longs = st.one_of(numbers, st.sampled_from([1 << 40, (1 << 63), (1 << 64) - 1]))
payloads = st.one_of(
    st.builds(lambda a: struct.pack("<Q", a), longs),
    st.builds(lambda a, b: struct.pack("<II", a, b), numbers, numbers),
    st.builds(lambda a, b: struct.pack("<QQ", a, b), longs, longs),
    st.builds(lambda a, b, c, d: struct.pack("<QQHH", a, b, c & 0xFFFF, d & 0xFFFF), longs, longs, numbers, numbers),
    st.builds(lambda a, b: struct.pack("<II4Q", a & 3, 0, *b), numbers, st.tuples(longs, longs, longs, longs)),
    st.builds(lambda b: struct.pack("<Q4Q", 0, *b), st.tuples(longs, longs, longs, longs)),
    st.builds(lambda a, b, c: struct.pack("<III", a, b, 0) + bytes(c), numbers, numbers, st.integers(0, 300)),
    st.binary(max_size=80),
)
messages = st.tuples(st.integers(0, 42), st.sampled_from([1, 1, 1, 9, 9, 5, 0]), payloads, st.integers(0, 3))


@given(st.lists(messages, max_size=12))
def test_a_connection_of_any_messages_ends_at_most_and_keeps_no_descriptor(talk):
    async def serve():
        before = set(os.listdir("/proc/self/fd"))
        mine, theirs = socket.socketpair()
        owner = Owner()
        front = FrontEnd(theirs, owner)

        def read():
            for fd in socket.recv_fds(mine, 1 << 16, 16)[1]:
                os.close(fd)

        for request, header_flags, payload, count in talk:
            fds = [os.memfd_create("x") for __ in range(count)]
            for fd in fds:
                os.ftruncate(fd, 8192)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
            mine.sendmsg([struct.pack("<III", request, header_flags, len(payload)) + payload], rights)
            for fd in fds:
                os.close(fd)
        mine.shutdown(socket.SHUT_WR)
        asyncio.get_running_loop().add_reader(mine, read)
        with contextlib.suppress(VportdError, OSError):
            await front.serve()
        front.close()
        asyncio.get_running_loop().remove_reader(mine)
        mine.close()
        await owner.apart.done()
        assert set(os.listdir("/proc/self/fd")) <= before

    asyncio.run(serve())
