# SPDX-License-Identifier: GPL-3.0-or-later
"""Any virtio-blk request, of any kind and framing: what the hot loop in ``blk`` does not do in line."""

import errno
import struct

from vportd.blk_queue import (
    BYTES_READ,
    BYTES_WRITTEN,
    DISCARDS,
    ERRORS,
    FLUSHES,
    READS,
    WRITES,
    ZEROES,
    Device,
    Queue,
    Request,
)
from vportd.errors import MemoryFault, RingBroken
from vportd.memory import MemoryMap
from vportd.storage import DISCARD, FLUSH, READ, WRITE, ZERO, transfer
from vportd.virtio_spec import (
    MAX_DATA,
    MAX_DISCARD_SECTORS,
    MAX_DISCARD_SEGMENTS,
    SECTOR_SIZE,
    VIRTIO_BLK_F_DISCARD,
    VIRTIO_BLK_F_WRITE_ZEROES,
    VIRTIO_BLK_REQ_HEADER,
    VIRTIO_BLK_REQ_HEADER_SIZE,
    VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK,
    VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_SEGMENT,
    VIRTIO_BLK_SEGMENT_SIZE,
    VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
    VIRTQ_DESC_F_WRITE,
)
from vportd.virtqueue import Chain

_FEATURE = {DISCARD: VIRTIO_BLK_F_DISCARD, ZERO: VIRTIO_BLK_F_WRITE_ZEROES}
_header = struct.Struct(VIRTIO_BLK_REQ_HEADER).unpack_from


def general(queue: Queue, head: int, chain: Chain, dirty: list[Chain]) -> int | None:
    """Do any request, of any framing (virtio 1.3, 2.7.4). Returns bytes written when it is done already, None when
    the storage has it.

    Raises RingBroken when there is no place for the status, so that the driver cannot even be told.
    """
    memory = queue.ring.memory
    address, length, flags = chain[-4:-1]
    if not flags & VIRTQ_DESC_F_WRITE or not length:
        raise RingBroken(f"request of head {head} has no status byte")
    status = memory.views(address + length - 1, 1)[0]
    only_status: Chain = (address + length - 1, 1, VIRTQ_DESC_F_WRITE, 0)
    counters = queue.counters
    try:
        readable, writable = _buffers(memory, chain)
        header = b"".join(_cut(readable, 0, VIRTIO_BLK_REQ_HEADER_SIZE))
        if len(header) != VIRTIO_BLK_REQ_HEADER_SIZE:
            raise MemoryFault("short header")
        if sum(map(len, readable)) + sum(map(len, writable)) > VIRTIO_BLK_REQ_HEADER_SIZE + MAX_DATA + 1:
            raise MemoryFault("too much data")
    except MemoryFault:
        counters[ERRORS] += 1
        status[0] = VIRTIO_BLK_S_IOERR
        dirty.append(only_status)
        return 1
    kind, __, sector = _header(header, 0)
    sent = _cut(readable, VIRTIO_BLK_REQ_HEADER_SIZE, None)
    room = _cut(writable, 0, sum(map(len, writable)) - 1)
    storage = queue.device.storage
    result = VIRTIO_BLK_S_IOERR
    written = 1
    if kind in (VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT):
        operation, views = (READ, room) if kind == VIRTIO_BLK_T_IN else (WRITE, sent)
        total = sum(map(len, views))
        pieces = None
        if (
            total % SECTOR_SIZE == 0
            and not (kind == VIRTIO_BLK_T_IN and sent)
            and not (kind == VIRTIO_BLK_T_OUT and room)
        ):
            pieces = queue.device.extents.pieces(sector * SECTOR_SIZE, total, operation == WRITE)
        if pieces is not None and not storage.synchronous and total:
            request = Request(queue, head, chain, operation, total, len(pieces), status)
            request.long = len(chain) + 4 * len(pieces)
            queue.long += request.long
            queue.outstanding[head] = request
            at = 0
            for physical, size in pieces:
                storage.submit(request, operation, physical, _cut(views, at, at + size))
                at += size
            return None
        if pieces is not None:
            at = 0
            for physical, size in pieces:
                if transfer(storage.fd, operation, physical, _cut(views, at, at + size)) != size:
                    break
                at += size
            if at == total:
                result = VIRTIO_BLK_S_OK
                count(counters, operation, total)
            if operation == READ:
                written = total + 1
    elif kind == VIRTIO_BLK_T_FLUSH:
        if not storage.synchronous:
            request = Request(queue, head, only_status, FLUSH, 0, 1, status)
            queue.outstanding[head] = request
            storage.submit(request, FLUSH, 0, [])
            return None
        if transfer(storage.fd, FLUSH, 0, []) == 0:
            result = VIRTIO_BLK_S_OK
            counters[FLUSHES] += 1
    elif kind in (VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES):
        operation = DISCARD if kind == VIRTIO_BLK_T_DISCARD else ZERO
        segments: list[tuple[int, int]] = []
        result = VIRTIO_BLK_S_UNSUPP
        if queue.ring.features >> _FEATURE[operation] & 1:
            result, segments = _segments(queue.device, operation, sent)
        if segments and not storage.synchronous:
            request = Request(queue, head, only_status, operation, 0, len(segments), status)
            request.long = 4 * len(segments)
            queue.long += request.long
            queue.outstanding[head] = request
            for physical, size in segments:
                storage.submit(request, operation, physical, [], size)
            return None
        for physical, size in segments:
            code = transfer(storage.fd, operation, physical, [], size)
            if code < 0:
                result = status_of(code)
                break
        if result == VIRTIO_BLK_S_OK:
            count(counters, operation, 0)
    elif kind == VIRTIO_BLK_T_GET_ID:
        serial = queue.device.serial
        at = 0
        for view in _cut(room, 0, len(serial)):
            view[:] = serial[at : at + len(view)]
            at += len(view)
        result = VIRTIO_BLK_S_OK
        written = at + 1
    else:
        result = VIRTIO_BLK_S_UNSUPP
    if result == VIRTIO_BLK_S_IOERR:
        counters[ERRORS] += 1
    status[0] = result
    dirty.append(only_status if written == 1 else chain)
    return written


def _segments(device: Device, operation: int, sent: list[memoryview]) -> tuple[int, list[tuple[int, int]]]:
    """Return the status so far, and ``(physical, bytes)`` of each piece of a DISCARD or WRITE_ZEROES: all of them or
    none (virtio 1.3, 5.2.6.2).
    """
    count, rest = divmod(sum(map(len, sent)), VIRTIO_BLK_SEGMENT_SIZE)
    if rest or not 0 < count <= MAX_DISCARD_SEGMENTS:
        return VIRTIO_BLK_S_IOERR, []
    allowed = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP if operation == ZERO else 0
    found: list[tuple[int, int]] = []
    for sector, sectors, flags in struct.iter_unpack(VIRTIO_BLK_SEGMENT, b"".join(sent)):
        if flags & ~allowed:
            return VIRTIO_BLK_S_UNSUPP, []
        if not 0 < sectors <= MAX_DISCARD_SECTORS:
            return VIRTIO_BLK_S_IOERR, []
        pieces = device.extents.pieces(sector * SECTOR_SIZE, sectors * SECTOR_SIZE, True)
        if pieces is None:
            return VIRTIO_BLK_S_IOERR, []
        found += pieces
    return VIRTIO_BLK_S_OK, found


def status_of(result: int) -> int:
    """Return the status byte for the errno of an operation that failed."""
    return VIRTIO_BLK_S_UNSUPP if result == -errno.EOPNOTSUPP else VIRTIO_BLK_S_IOERR


def _buffers(memory: MemoryMap, chain: Chain) -> tuple[list[memoryview], list[memoryview]]:
    """Return the device-readable and the device-writable buffers. Raises MemoryFault, and RingBroken when they are
    out of order.
    """
    readable: list[memoryview] = []
    writable: list[memoryview] = []
    low, high, whole = memory.low, memory.high, memory.view
    for at in range(0, len(chain), 4):
        address, length, flags = chain[at : at + 3]
        side = writable if flags & VIRTQ_DESC_F_WRITE else readable
        if side is readable and writable:
            raise RingBroken("a device-readable buffer after a device-writable one (virtio 1.3, 2.7.4.2)")
        if low <= address and address + length <= high:
            if length:
                side.append(whole[address - low : address - low + length])
        elif length:
            side.extend(memory.views(address, length))
    return readable, writable


def _cut(views: list[memoryview], start: int, end: int | None) -> list[memoryview]:
    """Return the buffers of bytes ``start`` to ``end`` of a list of buffers."""
    found = []
    at = 0
    for view in views:
        size = len(view)
        first = max(start - at, 0)
        last = size if end is None else min(end - at, size)
        if first < last:
            found.append(view if last - first == size else view[first:last])
        at += size
    return found


def count(counters: memoryview, operation: int, length: int) -> None:
    """Count one request that went well."""
    if operation == READ:
        counters[READS] += 1
        counters[BYTES_READ] += length
    elif operation == WRITE:
        counters[WRITES] += 1
        counters[BYTES_WRITTEN] += length
    else:
        counters[{FLUSH: FLUSHES, DISCARD: DISCARDS, ZERO: ZEROES}[operation]] += 1
