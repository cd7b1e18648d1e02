# SPDX-License-Identifier: GPL-3.0-or-later
"""Storage back end over io_uring(7), through ctypes: two rings shared with the kernel, one system call a batch."""

import ctypes
import errno
import mmap
import os
import struct

from vportd.atomic import fence
from vportd.storage import (
    FALLOCATE,
    FLUSH,
    READ,
    WRITE,
    Completion,
    Pool,
    Storage,
    Token,
    gather,
    is_aligned,
    rest_of,
    scatter,
)

_SYS_SETUP, _SYS_ENTER, _SYS_REGISTER = 425, 426, 427  # the same on every architecture
_OFF_SQ_RING, _OFF_SQES = 0, 0x10000000
_FEAT_SINGLE_MMAP, _FEAT_NODROP = 1, 2
_OP_READV, _OP_WRITEV, _OP_FSYNC, _OP_FALLOCATE, _OP_READ, _OP_WRITE = 1, 2, 3, 17, 22, 23
_FSYNC_DATASYNC = 1
_SETUP_CLAMP = 1 << 4
_ENTER_GETEVENTS = 1
_REGISTER_FILES = 2
_SQE = struct.Struct("<BBHiQQIIQQQQ")  # opcode, flags, ioprio, fd, off, addr, len, op flags, user_data, rest
_pack_sqe, _cqe = _SQE.pack_into, struct.Struct("<Qi").unpack_from
_IOVEC = struct.Struct("=QQ")
_IOV_MAX = 128
_ENTRIES = 256

_libc = ctypes.CDLL(None, use_errno=True)


def _syscall(number: int, *arguments: int) -> int:
    result: int = _libc.syscall(ctypes.c_long(number), *(ctypes.c_long(argument) for argument in arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


# syscall(2) with its arguments converted once and for all: this one is made for each batch
_enter = ctypes.CFUNCTYPE(ctypes.c_long, *[ctypes.c_long] * 7, use_errno=True)(("syscall", _libc))
_from_buffer, _addressof = ctypes.c_char.from_buffer, ctypes.addressof


def _address(view: memoryview) -> int:
    return _addressof(_from_buffer(view))


class UringStorage(Storage):
    """One ring. At most ``_ENTRIES`` operations are in the kernel; the rest wait here in order."""

    name = "io_uring"

    def __init__(self, fd: int, alignment: int, proofs: "list[int] | None" = None) -> None:
        """``alignment`` = that of O_DIRECT in bytes, or 1. ``proofs`` = descriptors that stay open until all that was
        submitted is done, even when this process has died long before. Raises OSError when the kernel has, or allows,
        no io_uring.
        """
        super().__init__(fd)
        parameters = bytearray(120)
        struct.pack_into("<I", parameters, 8, _SETUP_CLAMP)
        self.event_fd = _syscall(_SYS_SETUP, _ENTRIES, _address(memoryview(parameters)))
        os.set_inheritable(self.event_fd, False)
        features = struct.unpack_from("<I", parameters, 20)[0]
        if features & 3 != _FEAT_SINGLE_MMAP | _FEAT_NODROP:
            os.close(self.event_fd)
            raise OSError(errno.ENOSYS, "io_uring is too old")
        sq_entries, cq_entries = struct.unpack_from("<II", parameters, 0)
        sq = struct.unpack_from("<7I", parameters, 40)  # head, tail, mask, entries, flags, dropped, array
        cq = struct.unpack_from("<6I", parameters, 80)  # head, tail, mask, entries, overflow, cqes
        size = max(sq[6] + 4 * sq_entries, cq[5] + 16 * cq_entries)
        shared, access = mmap.MAP_SHARED | mmap.MAP_POPULATE, mmap.PROT_READ | mmap.PROT_WRITE
        self._ring = memoryview(mmap.mmap(self.event_fd, size, shared, access, offset=_OFF_SQ_RING))
        self._sqes = memoryview(mmap.mmap(self.event_fd, 64 * sq_entries, shared, access, offset=_OFF_SQES))
        words = self._ring[: size // 4 * 4].cast("I")
        self._words = words
        self._sq_tail, self._cq_head, self._cq_tail = sq[1] // 4, cq[0] // 4, cq[1] // 4
        self._sq_mask, self._cq_mask, self._cqes = words[sq[2] // 4], words[cq[2] // 4], cq[5]
        for index in range(sq_entries):
            words[sq[6] // 4 + index] = index
        if proofs:
            numbers = memoryview(bytearray(struct.pack(f"={len(proofs)}i", *proofs)))
            try:
                _syscall(_SYS_REGISTER, self.event_fd, _REGISTER_FILES, _address(numbers), len(proofs))
            except OSError:
                os.close(self.event_fd)
                raise
        self._alignment = alignment
        self._free = list(range(sq_entries))
        self._slots: list[tuple[Token, int, int, list[memoryview], list[memoryview], memoryview | None, int] | None] = [
            None
        ] * sq_entries
        self._waiting: list[tuple[Token, int, int, list[memoryview], int]] = []
        self._iovecs = memoryview(mmap.mmap(-1, sq_entries * _IOV_MAX * 16))
        self._iovecs_at = _address(self._iovecs)
        self._pool = Pool()
        self._queued = 0
        self._tail = words[self._sq_tail]

    @classmethod
    def probe(cls, fd: int, alignment: int, proofs: "list[int] | None" = None) -> "UringStorage | None":
        """Return a back end that has just read the first block through the ring, or None where that does not work."""
        try:
            storage = cls(fd, alignment, proofs)
        except (OSError, ValueError):
            return None
        buffer = memoryview(mmap.mmap(-1, max(mmap.PAGESIZE, alignment)))
        try:
            storage.submit(None, READ, 0, [buffer])
            storage.kick()
            while not (done := storage.reap()):
                _syscall(_SYS_ENTER, storage.event_fd, 0, 1, _ENTER_GETEVENTS, 0, 0)
        except OSError:
            done = [(None, -1)]
        if done[0][1] < 0:
            os.close(storage.event_fd)
            return None
        return storage

    def submit(self, token: Token, operation: int, offset: int, views: list[memoryview], length: int = 0) -> None:
        if operation < FLUSH and len(views) == 1 and self._free:  # the common one, in line
            view = views[0]
            address, size = _addressof(_from_buffer(view)), len(view)
            if not (address | size) & (self._alignment - 1):
                slot = self._free.pop()
                self._slots[slot] = (token, operation, offset, views, views, None, size)
                code = _OP_READ if operation == READ else _OP_WRITE
                tail = self._tail
                at = (tail & self._sq_mask) * 64
                _pack_sqe(self._sqes, at, code, 0, 0, self.fd, offset, address, size, 0, slot, 0, 0, 0)
                self._tail = tail + 1 & 0xFFFFFFFF
                self._queued += 1
                return
        if not self._free:
            self._waiting.append((token, operation, offset, views, length))
            return
        if operation < FLUSH and (
            len(views) > _IOV_MAX or (self._alignment > 1 and not is_aligned(views, self._alignment))
        ):
            self._put_part(token, operation, offset, views, self._pool.get(sum(map(len, views))), 0)
        else:
            self._put(token, operation, offset, views, views, None, length)

    def _put_part(
        self, token: Token, operation: int, offset: int, views: list[memoryview], bounce: memoryview, done: int
    ) -> None:
        """Start as much of an operation as its bounce buffer holds. ``done`` bytes are done, ``views`` is the rest."""
        buffer = bounce[: sum(map(len, views))]
        if operation == WRITE:
            gather(views, buffer)
        self._put(token, operation, offset, views, [buffer], bounce, done)

    def _put(
        self,
        token: Token,
        operation: int,
        offset: int,
        views: list[memoryview],
        buffers: list[memoryview],
        bounce: memoryview | None,
        size: int,
    ) -> None:
        """Start one operation. ``size``: bytes of DISCARD or ZERO; with a bounce buffer, what is done already."""
        slot = self._free.pop()
        self._slots[slot] = (token, operation, offset, views, buffers, bounce, size)
        flags = 0
        if operation == FLUSH:
            code, address, length, flags, offset = _OP_FSYNC, 0, 0, _FSYNC_DATASYNC, 0
        elif operation in FALLOCATE:
            code, address, length = _OP_FALLOCATE, size, FALLOCATE[operation]
        elif len(buffers) == 1:
            code = _OP_READ if operation == READ else _OP_WRITE
            address, length = _address(buffers[0]), len(buffers[0])
        else:
            code = _OP_READV if operation == READ else _OP_WRITEV
            at = slot * _IOV_MAX * 16
            address, length = self._iovecs_at + at, len(buffers)
            for view in buffers:
                _IOVEC.pack_into(self._iovecs, at, _address(view), len(view))
                at += 16
        tail = self._tail
        at = (tail & self._sq_mask) * 64
        _pack_sqe(self._sqes, at, code, 0, 0, self.fd, offset, address, length, flags, slot, 0, 0, 0)
        self._tail = tail + 1 & 0xFFFFFFFF
        self._queued += 1

    def kick(self) -> None:
        if not self._queued:
            return
        fence()
        self._words[self._sq_tail] = self._tail
        while self._queued and not self._closed():
            taken = _enter(_SYS_ENTER, self.event_fd, self._queued, 0, 0, 0, 0)
            if taken < 0:
                code = ctypes.get_errno()
                if code in (errno.EAGAIN, errno.EBUSY, errno.EINTR):
                    break  # the kernel is short of room: the completions that are due come first
                raise OSError(code, os.strerror(code))
            self._queued -= taken

    def reap(self) -> list[Completion]:
        words = self._words
        done: list[Completion] = []
        head = words[self._cq_head]
        tail = words[self._cq_tail]
        if head == tail:
            if self._queued:
                self.kick()
            return done
        fence()
        ring, cqes, mask, slots, free = self._ring, self._cqes, self._cq_mask, self._slots, self._free
        while head != tail:
            slot, result = _cqe(ring, cqes + (head & mask) * 16)
            head = head + 1 & 0xFFFFFFFF
            entry = slots[slot]
            assert entry is not None
            slots[slot] = None
            free.append(slot)
            token, operation, offset, views, buffers, bounce, size = entry
            if bounce is None and result == size > 0 and operation < FLUSH:
                done.append((token, result))
                continue
            if operation < FLUSH:
                total = sum(map(len, buffers))
                if result in (-errno.EAGAIN, -errno.EINTR):
                    self._put(token, operation, offset, views, buffers, bounce, size)
                    continue
                if bounce is not None:
                    if operation == READ and result > 0:
                        scatter(bounce, views, result)
                    if result > 0 and (left := rest_of(views, result)):
                        self._put_part(token, operation, offset + result, left, bounce, size + result)
                        continue
                    self._pool.put(bounce)
                    if result >= 0:
                        result += size
                elif 0 < result < total:  # the rest of a short transfer; what is done already counts as done
                    self._put(token, operation, offset + result, views, rest_of(buffers, result), None, size)
                    continue
                elif result >= 0:
                    result = sum(map(len, views)) - total + result
            done.append((token, result))
        words[self._cq_head] = head
        while self._waiting and self._free:
            self.submit(*self._waiting.pop(0))
        if self._queued:
            self.kick()
        return done

    def timeout(self) -> float:
        return -1 if not self._queued else 0.02 if self._closed() else 0.001

    def close(self) -> None:
        os.close(self.event_fd)
        super().close()
