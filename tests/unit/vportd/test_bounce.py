# SPDX-License-Identifier: GPL-3.0-or-later
"""Buffers of a guest that O_DIRECT does not take: each byte comes to its place, and no other is touched."""

import mmap
import os
import random
import select

import pytest

from tests.slow_file import NoFuse, loop_device
from vportd import uring
from vportd.storage import BOUNCE, BOUNCE_KEPT, READ, WRITE, Pool, ThreadStorage
from vportd.uring import UringStorage

SIZE = 2 << 20
MARK = 0xEE


def open_direct(path):
    """Open past the page cache where the file system can; return the descriptor and the alignment that it needs."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    except OSError:
        return os.open(path, os.O_RDWR), 512
    try:
        os.preadv(fd, [memoryview(mmap.mmap(-1, 4096))[512:1024]], 512)
    except OSError:
        return fd, 4096
    return fd, 512


class Disk:
    """A back end of class ``kind`` on a file or device."""

    def __init__(self, kind, path):
        self.path = path
        fd, self.alignment = open_direct(path)
        self.storage = kind(fd, self.alignment)

    def do(self, *operations):
        """Do operations of ``(operation, offset, views)`` all at once; return their results."""
        results: dict[int, int] = {}
        poller = select.poll()
        poller.register(self.storage.event_fd, select.POLLIN)
        for number, (operation, offset, views) in enumerate(operations):
            self.storage.submit(number, operation, offset, views)
        self.storage.kick()
        while len(results) < len(operations):
            assert poller.poll(20000), "an operation does not end"
            for number, result in self.storage.reap():
                assert number not in results
                results[number] = result
        return [results[number] for number in range(len(operations))]


@pytest.fixture(params=[ThreadStorage, UringStorage], ids=["threads", "uring"])
def kind(request):
    return request.param


@pytest.fixture
def disk(kind, tmp_path):
    """A back end on a file of random content."""
    path = tmp_path / "storage"
    path.write_bytes(os.urandom(SIZE))
    made = Disk(kind, path)
    yield made
    made.storage.close()


class Buffers:
    """Buffers of these sizes at odd addresses, with bytes between them that must stay what they are."""

    def __init__(self, sizes, numbers, content=None):
        self.area = memoryview(mmap.mmap(-1, sum(sizes) + 64 * len(sizes) + 4096))
        self.area[:] = bytes([MARK]) * len(self.area)
        self.views, at = [], 0
        for size in sizes:
            at += 1 + 2 * numbers.randrange(16) + (at & 1)
            self.views.append(self.area[at : at + size])
            at += size
        if content is not None:
            for view in self.views:
                view[:], content = content[: len(view)], content[len(view) :]

    def content(self):
        return b"".join(self.views)

    def is_marked_around(self):
        for view in self.views:
            view[:] = bytes([MARK]) * len(view)
        return bytes(self.area) == bytes([MARK]) * len(self.area)


def odd_sizes(total, pieces, numbers):
    """Sizes of a number of pieces of ``total`` bytes, most of them odd."""
    cuts = sorted(numbers.sample(range(1, total), pieces - 1))
    return [b - a for a, b in zip([0, *cuts], [*cuts, total], strict=True)]


CASES = [(512, 1), (4096, 1), (4096, 3), (65536, 126), (BOUNCE, 5), (BOUNCE + 4096, 2), (3 * BOUNCE, 7), (720896, 300)]


@pytest.mark.parametrize("seed", range(3))
def test_odd_buffers_are_read_and_written_whole(disk, seed):
    numbers = random.Random(seed)
    image = bytearray(disk.path.read_bytes())
    for total, pieces in CASES:
        length = max(total, disk.alignment)
        offset = numbers.randrange((SIZE - length) // disk.alignment) * disk.alignment
        sizes = odd_sizes(length, pieces, numbers)
        content = numbers.randbytes(length)
        out = Buffers(sizes, numbers, content)
        assert disk.do((WRITE, offset, out.views)) == [length]
        image[offset : offset + length] = content
        assert out.content() == content
        assert out.is_marked_around()
        assert disk.path.read_bytes() == image
        back = Buffers(odd_sizes(length, pieces, numbers), numbers)
        assert disk.do((READ, offset, back.views)) == [length]
        assert back.content() == content
        assert back.is_marked_around()


def test_many_at_once_keep_to_their_own_buffers(disk):
    numbers = random.Random(5)
    step = 24576
    places = [at * step for at in range(SIZE // step)]
    contents = [numbers.randbytes(step) for __ in places]
    out = [Buffers(odd_sizes(step, 3, numbers), numbers, one) for one in contents]
    assert set(disk.do(*((WRITE, at, one.views) for at, one in zip(places, out, strict=True)))) == {step}
    assert disk.path.read_bytes()[: step * len(places)] == b"".join(contents)
    back = [Buffers(odd_sizes(step, 4, numbers), numbers) for __ in places * 4]  # more than the ring has entries
    assert set(disk.do(*((READ, at, one.views) for at, one in zip(places * 4, back, strict=True)))) == {step}
    for content, one in zip(contents * 4, back, strict=True):
        assert one.content() == content
        assert one.is_marked_around()


@pytest.mark.parametrize("length", [8192, BOUNCE, BOUNCE + 8192, 2 * BOUNCE + 8192])
def test_a_read_over_the_end_is_short_and_touches_nothing_after_it(disk, length):
    numbers = random.Random(length)
    image = disk.path.read_bytes()
    for inside in (4096, length - 4096, BOUNCE):
        if inside < length:
            buffers = Buffers(odd_sizes(length, 5, numbers), numbers)
            assert disk.do((READ, SIZE - inside, buffers.views)) == [inside]
            assert buffers.content() == image[-inside:] + bytes([MARK]) * (length - inside)
            assert buffers.is_marked_around()
    assert disk.do((READ, SIZE, Buffers([4096], numbers).views)) == [0]


def test_a_write_over_the_end_of_a_device_fails_and_one_up_to_it_does_not(kind, tmp_path):
    backing = tmp_path / "backing"
    numbers = random.Random(9)
    image = bytearray(os.urandom(SIZE))
    backing.write_bytes(image)
    try:
        with loop_device(backing) as device:
            disk = Disk(kind, device)
            content = numbers.randbytes(BOUNCE + 8192)
            for inside in (len(content), 4096, BOUNCE, BOUNCE + 4096):
                out = Buffers(odd_sizes(len(content), 9, numbers), numbers, content)
                (result,) = disk.do((WRITE, SIZE - inside, out.views))
                assert (result == len(content)) == (inside == len(content))
                back = Buffers(odd_sizes(len(content), 4, numbers), numbers)
                assert disk.do((READ, SIZE - inside, back.views)) == [inside]
                assert back.content() == content[:inside] + bytes([MARK]) * (len(content) - inside)
                image[-inside:] = content[:inside]
            os.fsync(disk.storage.fd)
            assert backing.read_bytes() == image
            disk.storage.close()
    except NoFuse as problem:
        pytest.skip(str(problem))


def test_what_the_kernel_does_in_parts_comes_to_the_same(disk, monkeypatch):
    numbers = random.Random(13)
    limit = [0]

    def less(length):
        """A length such as the kernel may take of it."""
        limit[0] += 1
        return max(disk.alignment, length // 3 // disk.alignment * disk.alignment) if limit[0] % 4 else length

    pack, preadv, pwritev = uring._pack_sqe, os.preadv, os.pwritev

    def pack_less(sqes, at, code, flags, priority, fd, offset, address, length, *rest):
        length = less(length) if code in (uring._OP_READ, uring._OP_WRITE) else length
        pack(sqes, at, code, flags, priority, fd, offset, address, length, *rest)

    monkeypatch.setattr(uring, "_pack_sqe", pack_less)
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: preadv(fd, [views[0][: less(len(views[0]))]], at))
    monkeypatch.setattr(os, "pwritev", lambda fd, views, at: pwritev(fd, [views[0][: less(len(views[0]))]], at))
    image = bytearray(disk.path.read_bytes())
    for length, pieces in ((8192, 3), (65536, 1), (BOUNCE, 9), (2 * BOUNCE + 4096, 200)):
        offset = numbers.randrange((SIZE - length) // 4096) * 4096
        content = numbers.randbytes(length)
        out = Buffers(odd_sizes(length, pieces, numbers), numbers, content)
        assert disk.do((WRITE, offset, out.views)) == [length]
        image[offset : offset + length] = content
        assert disk.path.read_bytes() == image
        back = Buffers(odd_sizes(length, pieces, numbers), numbers)
        assert disk.do((READ, offset, back.views)) == [length]
        assert back.content() == content
        assert back.is_marked_around()
    buffers = Buffers(odd_sizes(65536, 4, numbers), numbers)
    assert disk.do((READ, SIZE - 24576, buffers.views)) == [24576]
    assert buffers.content() == image[-24576:] + bytes([MARK]) * 40960
    assert limit[0] > 20


def test_the_pool_keeps_no_more_than_it_may_and_gives_no_buffer_twice():
    pool = Pool()
    numbers = random.Random(1)
    for __ in range(4):
        taken = [pool.get(numbers.choice([1, 4096, 4097, 100000, BOUNCE, BOUNCE + 1, 1 << 40])) for __ in range(300)]
        assert len({id(one) for one in taken}) == 300
        assert max(len(one) for one in taken) == BOUNCE
        for one in taken:
            pool.put(one)
        kept = sum(len(one) for free in pool._free.values() for one in free)
        assert kept == pool._kept <= BOUNCE_KEPT
    assert len(pool.get(5000)) == 8192
