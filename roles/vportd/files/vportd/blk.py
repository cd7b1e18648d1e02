# SPDX-License-Identifier: GPL-3.0-or-later
"""virtio-blk requests (virtio 1.3, 5.2.6): the one loop that both paths use, between a virtqueue and the storage."""

import os
import struct
import time

from vportd.blk_general import count, general, status_of
from vportd.blk_queue import (
    BUCKETS,
    BYTES_READ,
    BYTES_WRITTEN,
    DIRTY_PAGES,
    ERRORS,
    HISTOGRAM,
    LATENCY,
    READS,
    WORST,
    WRITES,
    Queue,
    Request,
)
from vportd.errors import MemoryFault, RingBroken
from vportd.extents import HOLE
from vportd.storage import FLUSH, READ, Completion
from vportd.virtio_spec import (
    MAX_DATA,
    SECTOR_SIZE,
    VIRTIO_BLK_REQ_HEADER,
    VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK,
    VIRTQ_DESC_F_WRITE,
)
from vportd.virtqueue import UNDER_WAY, Chain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vportd.storage_errors import StorageErrors

ROUNDS = 16  # passes over one queue before the other queues and the control channel get their turn

PATIENCE = 50e-6  # seconds that an empty ring is looked into at most, before the driver is asked for a notification

# Bits that no length has which is done in line: parts of a sector, and MAX_DATA (a power of 2) or more
_ODD = SECTOR_SIZE - 1 | 0xFFFFFFFF & -MAX_DATA

_OTHER = (2, 0, 0)  # the header of a request that is not done in line

Batches = dict[Queue, tuple[list[tuple[int, int]], list[Chain]]]

_clock = time.perf_counter
_header = struct.Struct(VIRTIO_BLK_REQ_HEADER).unpack_from


def service(queue: Queue) -> bool:
    """Take and start every available request, giving back at once those that are done at once; True = there is more
    to take.

    Never raises for anything that the guest does: a ring that cannot go on sets ``queue.broken``.

    Shape: one pass over all that is available, locals instead of attributes, no object for a request that completes
    here. The common request - header, one buffer, status, each whole in a memory region and at best in the largest,
    inside the extent of the one before - is done in line; any other goes through ``general``.
    """
    device = queue.device
    ring = queue.ring
    gap = _clock() - queue.waiting_since
    if gap < PATIENCE:  # it has come back soon: looking for it would have found it
        queue.patience = min(PATIENCE, max(queue.patience, 2 * gap))
    memory = ring.memory
    low, high, view, whole = memory.low, memory.high, memory.view, memory.whole
    storage = device.storage
    synchronous = storage.synchronous
    submit = storage.submit
    fd = storage.fd
    extents = device.extents
    find, deltas, granule, granules = extents.one, extents.deltas, extents.granule, len(extents.deltas)
    start, end, delta, locked = 0, 0, 0, 1
    outstanding = queue.outstanding
    preadv, pwritev, unpack, odd = os.preadv, os.pwritev, _header, _ODD
    reads = writes = bytes_read = bytes_written = 0
    done: list[tuple[int, int]] = []
    dirty: list[Chain] = []
    again, queue.again = queue.again, []
    more = False
    hurry = queue.hurry
    ring.hush()
    try:
        for turn in range(ROUNDS + 1):
            more = turn == ROUNDS or (hurry[0] != 0 and not again)
            if more:
                break
            if queue.long > 4 * UNDER_WAY:
                queue.full = True
                queue.again += again
                break
            taken = again or (() if queue.held else ring.take())
            if not taken:
                if queue.held or not (_await(queue) or ring.listen()):
                    break
                ring.hush()
                continue
            again = []
            queue.taken = began = _clock()
            log = device.log
            todo = iter(taken)
            for head, chain in todo:
                if head in outstanding:  # and somebody has changed the in-flight region, which said so
                    raise RingBroken(f"head {head} is offered again while its request is under way")
                if len(chain) == 12:
                    header, size, out, __, data, length, flags, __, status, one, back, __ = chain
                    if size == 16 and one == 1 and not out & 2 and back & 2:
                        if low <= header <= high - 16 and low <= data <= high - length and low <= status < high:
                            kind, __, sector = unpack(view, header - low)
                            data -= low
                            buffer, answer, at = view[data : data + length], view, status - low
                        else:  # as in a guest that has memory below and above 4 GiB
                            first, buffer, answer, at = whole(header, 16), whole(data, length), whole(status, 1), 0
                            kind, __, sector = unpack(first) if first and buffer and answer else _OTHER
                        position = sector << 9
                        if length and not length & odd and kind < 2 and (flags & 2 == 0) == kind:
                            stop = position + length
                            if position < start or stop > end:
                                number = position >> granule
                                if (
                                    number < granules
                                    and stop <= (number + 1) << granule
                                    and (delta := deltas[number]) != HOLE
                                ):
                                    start, end, locked = number << granule, (number + 1) << granule, 0
                                else:
                                    start, end, delta, locked = find(position)
                            if start <= position and stop <= end and not (kind and locked):
                                if synchronous:
                                    try:
                                        if kind:
                                            count = pwritev(fd, (buffer,), position + delta)
                                        else:
                                            count = preadv(fd, (buffer,), position + delta)
                                    except OSError:
                                        count = -1
                                    if count == length:
                                        answer[at] = 0
                                        if kind:
                                            writes += 1
                                            bytes_written += length
                                            done.append((head, 1))
                                        else:
                                            reads += 1
                                            bytes_read += length
                                            done.append((head, length + 1))
                                        if log is not None:
                                            dirty.append(chain)
                                        continue
                                else:
                                    request = Request(queue, head, chain, kind, length, 1, answer[at : at + 1])
                                    outstanding[head] = request
                                    submit(request, kind, position + delta, [buffer])
                                    continue
                written = general(queue, head, chain, dirty)
                if written is not None:
                    done.append((head, written))
                elif queue.long > 4 * UNDER_WAY:  # the others when some of these are done
                    queue.again = list(todo)
            if done:
                batch, written_to, done, dirty = done, dirty, [], []
                _count_latency(queue.counters, int((_clock() - began) * 1e6), len(batch))
                _give(queue, batch, written_to)
            if not synchronous:
                storage.kick()
    except (RingBroken, MemoryFault) as problem:
        _break(queue, problem, done, dirty)
        more = False
    counters = queue.counters
    if reads:
        counters[READS] += reads
        counters[BYTES_READ] += bytes_read
    if writes:
        counters[WRITES] += writes
        counters[BYTES_WRITTEN] += bytes_written
    queue.publish()
    queue.waiting_since = _clock()
    return more


def _count_latency(counters: memoryview, microseconds: int, requests: int) -> None:
    bucket = microseconds.bit_length()
    counters[HISTOGRAM + (bucket if bucket < BUCKETS else BUCKETS - 1)] += requests
    counters[LATENCY] += microseconds * requests
    if microseconds > counters[WORST]:
        counters[WORST] = microseconds


def _await(queue: Queue) -> bool:
    """Look into an empty ring for a little while before the driver is asked for a notification; True = something came.

    How long adapts to the driver: it is nothing at first, becomes more when the next request came soon after the queue
    had gone to wait for it, and less when looking was in vain. So an idle queue soon takes no time at all. Never while
    the storage has requests, for their completions must not wait, nor before another queue of this worker.
    """
    if queue.patience <= 0 or queue.outstanding or not queue.alone:
        return False
    avail, last = queue.ring.avail, queue.ring.last_avail
    end = _clock() + queue.patience
    while _clock() < end:
        for __ in range(8):
            if avail[1] != last:
                queue.patience = min(PATIENCE, queue.patience * 1.25)
                return True
    queue.patience = queue.patience / 2 if queue.patience > PATIENCE / 16 else 0.0
    return False


def _break(queue: Queue, problem: Exception, done: list[tuple[int, int]], dirty: list[Chain]) -> None:
    """Note why the queue takes nothing more; what was done before that is still given back."""
    queue.broken = str(problem)
    queue.device.storage.kick()
    if done:
        try:
            _give(queue, done, dirty)
        except MemoryFault as second:
            queue.broken = str(second)


def _give(queue: Queue, done: list[tuple[int, int]], dirty: list[Chain]) -> None:
    """Give back one batch: first the dirty log of what was written, then the used ring and its own pages, then the
    notification.
    """
    log = queue.device.log
    ring = queue.ring
    if log is None:
        if ring.give(done):
            queue.signal()
        return
    before = log.pages
    log.mark(
        [
            (chain[at], chain[at + 1])
            for chain in dirty
            for at in range(0, len(chain), 4)
            if chain[at + 2] & VIRTQ_DESC_F_WRITE
        ]
    )
    notify = ring.give(done)
    if queue.used_log is not None:
        log.mark([(queue.used_log, 6 + 8 * ring.size)])
    queue.counters[DIRTY_PAGES] += log.pages - before
    if notify:
        queue.signal()


def _finish(request: Request, now: float, batches: "Batches") -> None:
    queue = request.queue
    batch = batches.get(queue)
    if batch is None:
        batch = batches[queue] = ([], [])
    _count_latency(queue.counters, int((now - request.taken) * 1e6), 1)
    del queue.outstanding[request.head]
    queue.long -= request.long
    batch[0].append((request.head, request.total + 1 if request.operation == READ else 1))
    batch[1].append(request.dirty)


def leave(request: Request) -> None:
    """Forget a request that has failed: it is begun anew, or left to another worker."""
    request.queue.long -= request.long
    del request.queue.outstanding[request.head]


def again(queue: Queue, requests: list[Request]) -> None:
    """Begin requests anew that the storage has failed; their time goes on."""
    try:
        chains = [(request.head, queue.ring.chain(request.head)) for request in requests]
    except (RingBroken, MemoryFault) as problem:
        chains = []
        queue.broken = str(problem)
    for request in requests:
        leave(request)
    if queue.broken is not None:
        return
    queue.again += chains
    service(queue)
    for request in requests:
        if request.head in queue.outstanding:
            queue.outstanding[request.head].taken = request.taken


def complete(completions: list[Completion], errors: "StorageErrors") -> list[Queue]:
    """Give back the requests whose last operation is among ``completions``; return the queues touched. ``errors`` may
    hold those that have failed.

    An operation that moved fewer bytes than it should makes its request fail.
    """
    now = _clock()
    failed: list[Request] = []
    batches: Batches = {}
    for token, result in completions:
        assert isinstance(token, Request)
        token.left -= 1
        if result < 0:
            token.failed = result
        else:
            token.missing -= result
        if token.left:
            continue
        if token.failed or token.missing:
            failed.append(token)
            continue
        count(token.queue.counters, token.operation, token.total)
        token.status[0] = VIRTIO_BLK_S_OK
        _finish(token, now, batches)
    if failed:
        for token in errors.take(failed):
            token.queue.counters[ERRORS] += 1
            token.status[0] = status_of(token.failed) if token.operation > FLUSH else VIRTIO_BLK_S_IOERR
            _finish(token, now, batches)
    for queue, (done, dirty) in batches.items():
        try:
            _give(queue, done, dirty)
        except MemoryFault as problem:
            queue.broken = str(problem)
        queue.publish()
    return list(batches)
