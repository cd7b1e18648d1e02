# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts that need no process: translation, in-flight region, dirty log, mapping, state files."""

import itertools
import os
import random
import struct
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.vportd.engine_process import PACKAGES
from vportd import atomic, state_file
from vportd.dirty_log import DirtyLog
from vportd.errors import MemoryFault, RpcError, StateError
from vportd.extents import HOLE, Extents
from vportd.inflight import InflightRegion, queue_region_size
from vportd.mapping import digest, parse_luns
from vportd.memory import MemoryMap, Region
from vportd.storage import rest_of, scatter

MIB4 = 4 << 20


@st.composite
def extents(draw):
    """Extents of blocks, with gaps, some read-only, physically anywhere without an overlap."""
    sizes = draw(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5), st.booleans()), min_size=1, max_size=12))
    order = draw(st.permutations(range(len(sizes))))
    start, found, physical = 0, [], {}
    place = 0
    for number in order:
        physical[number] = place
        place += sizes[number][1] + number % 2
    for number, (gap, size, locked) in enumerate(sizes):
        start += gap
        found.append((start, physical[number], size, locked))
        start += size
    return found


@given(extents(), st.integers(-2, 80), st.integers(0, 40), st.booleans())
def test_translation_is_that_of_a_table_of_blocks(found, start, length, write):
    table = {s + at: (p + at, ro) for s, p, size, ro in found for at in range(size)}
    wanted = [table.get(at) for at in range(start, start + length)]
    pieces = Extents(found, False).pieces(start, length, write)
    if start < 0 or any(one is None or (write and one[1]) for one in wanted):
        assert pieces is None
    elif pieces is None:
        assert length == 0  # nothing asked for, beyond the end
        assert start > max(table)
    else:
        assert [p + at for p, size in pieces for at in range(size)] == [one[0] for one in wanted if one]
        assert all(a[0] + a[1] != b[0] for a, b in itertools.pairwise(pieces))


@given(extents(), st.integers(0, 80))
def test_the_extent_found_for_a_byte_holds_it(found, at):
    start, end, delta, locked = Extents(found, False).one(at)
    inside = [one for one in found if one[0] <= at < one[0] + one[2]]
    if inside:
        assert (start, end, delta + start, bool(locked)) == (
            inside[0][0],
            inside[0][0] + inside[0][2],
            *inside[0][1::2],
        )
    else:
        assert start == end


@given(extents(), st.sampled_from([1, 512, 4096]), st.booleans())
def test_the_table_of_granules_leads_where_the_rows_do(found, size, readonly):
    scaled = [(start * size, physical * size, length * size, locked) for start, physical, length, locked in found]
    made = Extents(scaled, readonly)
    sizes, content = made.pack()
    copy = Extents.unpack(sizes, memoryview(content + b"more"))
    assert copy.deltas == made.deltas
    assert copy.granule == made.granule
    for number, delta in enumerate(copy.deltas):
        for at in (number << copy.granule, ((number + 1) << copy.granule) - 1):
            start, end, wanted, locked = copy.one(at)
            assert delta == (HOLE if start == end or locked else wanted)
    assert len(copy.deltas) in (0, copy.capacity >> copy.granule)


def test_extents_of_lvm_have_a_table_of_granules_and_odd_ones_have_none():
    lvm = Extents([(at * MIB4, (9 - at) * MIB4, MIB4, False) for at in range(10)], False)
    assert (len(lvm.deltas), lvm.granule) == (10, 22)
    odd = Extents([(0, 0, MIB4 + 512, False), (MIB4 + 512, 4 * MIB4, MIB4, False)], False)
    assert len(odd.deltas) == 0


class Killed(Exception):
    pass


class Words:
    """A view whose n-th store is the last before a kill."""

    def __init__(self, view, budget):
        self.view, self.budget = view, budget

    def __getitem__(self, at):
        return self.view[at]

    def __setitem__(self, at, value):
        if self.budget[0] == 0:
            raise Killed
        self.budget[0] -= 1
        self.view[at] = value


@pytest.mark.parametrize("seed", range(4))
def test_a_kill_at_any_store_loses_and_repeats_no_request(seed):
    """The device side of a ring, killed after every possible number of stores, and started again from what is in
    memory.
    """
    from vportd.virtqueue import Virtqueue

    size = 8
    numbers = random.Random(seed)
    for stores in range(60):
        memory_fd = os.memfd_create("m")
        os.ftruncate(memory_fd, 65536)
        memory = MemoryMap([Region(memory_fd, 0, 65536, 0, 0)])
        inflight_fd = os.memfd_create("i")
        os.ftruncate(inflight_fd, queue_region_size(size))
        for head in range(size):
            struct.pack_into("<QIHH", memory.view, 16 * head, 0x8000, 16, 2, 0)
        heads = list(range(size))
        numbers.shuffle(heads)
        for at, head in enumerate(heads):
            struct.pack_into("<H", memory.view, 0x1004 + 2 * at, head)
        struct.pack_into("<H", memory.view, 0x1002, size)

        def start(memory=memory, fd=inflight_fd):
            return Virtqueue(memory, size, 0, 0x1000, 0x2000, 0, InflightRegion(fd, 0, size))

        ring = start()
        assert ring.start(0) == []
        budget = [stores]
        ring.region.words = Words(ring.region.words, budget)
        ring.region.halves = Words(ring.region.halves, budget)
        ring.used64 = Words(ring.used64, budget)
        ring.used16 = Words(ring.used16, budget)
        try:
            open_heads = [head for head, __ in ring.take()]
            numbers.shuffle(open_heads)
            while open_heads:
                count = numbers.randrange(1, 4)
                batch, open_heads = open_heads[:count], open_heads[count:]
                ring.give([(head, 1) for head in batch])
        except Killed:
            pass
        used = struct.unpack_from("<H", memory.view, 0x2002)[0]
        given_back = [struct.unpack_from("<I", memory.view, 0x2004 + 8 * at)[0] for at in range(used)]
        ring = start()
        again = [head for head, __ in ring.start(None)]
        assert [head for head in heads if head in again] == again, "not in the order they were taken in"
        rest = [head for head, __ in ring.take()]
        assert sorted(given_back + again + rest) == sorted(heads)
        os.close(memory_fd)
        os.close(inflight_fd)


@pytest.mark.parametrize("kind", ["libatomic", "futex"])
def test_bits_of_the_dirty_log_survive_two_writers(kind):
    set_bits = atomic.or_byte if kind == "libatomic" else atomic._or_byte_by_futex
    fd = os.memfd_create("log")
    os.ftruncate(fd, 4096)
    logs = [DirtyLog(fd, 4096, 0) for __ in range(2)]
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from vportd import atomic\nfrom vportd.dirty_log import DirtyLog\nimport sys\n"
        "log = DirtyLog(int(sys.argv[2]), 4096, 0)\n"
        "for at in range(256):\n"
        "    for bit in range(0, 8, 2): (atomic.or_byte if sys.argv[3] == 'libatomic' else atomic._or_byte_by_futex)"
        "(log._base + at, 1 << bit)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", program, str(PACKAGES), str(fd), kind], pass_fds=[fd])
    for at in range(256):
        for bit in range(1, 8, 2):
            set_bits(logs[0]._base + at, 1 << bit)
    assert other.wait(30) == 0
    assert os.pread(fd, 257, 0) == b"\xff" * 256 + b"\0"
    os.close(fd)


def test_the_dirty_log_marks_every_page_touched_and_refuses_those_beyond_it():
    fd = os.memfd_create("log")
    os.ftruncate(fd, 8)
    log = DirtyLog(fd, 8, 0)
    log.mark([(4095, 2), (3 * 4096, 4096), (9 * 4096 + 5, 0), (63 * 4096, 1)])
    assert struct.unpack("<Q", os.pread(fd, 8, 0))[0] == 0b1011 | 1 << 63
    assert log.pages == 4
    with pytest.raises(MemoryFault, match="beyond the dirty log"):
        log.mark([(64 * 4096, 1)])
    os.close(fd)


def test_a_state_file_is_whole_or_the_one_before(tmp_path):
    path = tmp_path / "a.json"
    state_file.save(path, {"n": 1})
    stop = threading.Event()
    seen = set()

    def read():
        while not stop.is_set():
            seen.add(state_file.load(path)["n"])

    thread = threading.Thread(target=read)
    thread.start()
    for n in range(2, 60):
        state_file.save(path, {"n": n})
    stop.set()
    thread.join()
    assert seen <= set(range(1, 60))
    assert state_file.load(path) == {"n": 59}
    path.write_text(path.read_text().replace("59", "58"))
    with pytest.raises(StateError, match="checksum"):
        state_file.load(path)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner) | st.dictionaries(st.sampled_from(["lun", "vdisk", "readonly", "extents", "x"]), inner)
        ),
    )
)
def test_no_mapping_of_any_shape_does_worse_than_be_refused(value):
    try:
        luns = parse_luns(value, 512, 1 << 20)
    except RpcError as problem:
        reason = problem.reason
    else:
        reason = "INVALID"
        assert digest(luns).startswith("sha256:")
    assert reason == "INVALID"


@given(st.binary(max_size=200), st.lists(st.integers(1, 40), max_size=8), st.integers(0, 250))
def test_what_is_left_of_buffers_is_what_was_not_done(data, sizes, done):
    views, at = [], 0
    for size in sizes:
        views.append(memoryview(bytearray(data[at : at + size])))
        at += size
    whole = b"".join(views)
    assert b"".join(rest_of(views, done)) == whole[done:]
    scatter(memoryview(b"\xff" * 400), views, min(done, 400))
    assert b"".join(views) == b"\xff" * min(done, len(whole)) + whole[done:]
