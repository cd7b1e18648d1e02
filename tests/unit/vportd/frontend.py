# SPDX-License-Identifier: GPL-3.0-or-later
"""A vhost-user front end with a virtio-blk driver, for tests: real socket, memfd guest memory, eventfds, split
virtqueue.
"""

import contextlib
import os
import select
import socket
import struct
import time
from array import array
from mmap import mmap
from typing import Any

IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13
TO_DEVICE = (OUT, DISCARD, WRITE_ZEROES)
OK, IOERR, UNSUPP = 0, 1, 2
VERSION_1, EVENT_IDX, INDIRECT = 1 << 32, 1 << 29, 1 << 28
PROTOCOL, LOG_ALL = 1 << 30, 1 << 26
BLK = 1 << 2 | 1 << 6 | 1 << 9
MQ, LOG_SHMFD, REPLY_ACK, BACKEND_REQ, CONFIG, INFLIGHT = 1 << 0, 1 << 1, 1 << 3, 1 << 5, 1 << 9, 1 << 12
USUAL = VERSION_1 | EVENT_IDX | INDIRECT | PROTOCOL | BLK
USUAL_PROTOCOL = MQ | LOG_SHMFD | REPLY_ACK | CONFIG | INFLIGHT

LOW_SIZE = 1 << 20
HIGH_GPA = 4 << 30
HIGH_SIZE = 8 << 20
LOW_USER, HIGH_USER = 0x7F00_0000_0000, 0x7F55_0000_0000
SLOT = 72 << 10  # bytes of guest memory for one request
PAGE = 4096


class Closed(Exception):
    """The engine has closed the connection."""


class Memory:
    """Guest memory: two regions, the higher one larger, with the gap between them that a PC has."""

    def __init__(self, high=HIGH_SIZE):
        self.fds = [os.memfd_create("low"), os.memfd_create("high")]
        for fd, size in zip(self.fds, (LOW_SIZE, high), strict=True):
            os.ftruncate(fd, size)
        self.maps = [mmap(self.fds[0], LOW_SIZE), mmap(self.fds[1], high)]
        self.table = [(0, LOW_SIZE, LOW_USER, 0), (HIGH_GPA, high, HIGH_USER, 0)]

    def at(self, gpa):
        return (self.maps[1], gpa - HIGH_GPA) if gpa >= HIGH_GPA else (self.maps[0], gpa)

    def write(self, gpa, data):
        area, at = self.at(gpa)
        area[at : at + len(data)] = bytes(data)

    def read(self, gpa, size):
        area, at = self.at(gpa)
        return area[at : at + size]

    def user(self, gpa):
        return gpa - HIGH_GPA + HIGH_USER if gpa >= HIGH_GPA else gpa + LOW_USER

    def pages(self):
        """All pages by number, for comparing."""
        return {
            (base + at) // PAGE: area[at : at + PAGE]
            for base, area in ((0, self.maps[0]), (HIGH_GPA, self.maps[1]))
            for at in range(0, len(area), PAGE)
        }

    def close(self):
        for fd in self.fds:
            os.close(fd)
        self.maps.clear()


class Queue:
    """A split virtqueue as a driver has it. Request ``slot`` uses descriptors 3 * slot to 3 * slot + 2 and its own
    buffers.
    """

    def __init__(self, memory, index, size=128, features=USUAL, slots=42, base=None):
        self.memory, self.index, self.size = memory, index, size
        self.event_idx, self.indirect = bool(features & EVENT_IDX), bool(features & INDIRECT)
        base = HIGH_GPA + index * 0x4000 if base is None else base
        self.desc, self.avail, self.used = base, base + 16 * size, base + 16 * size + 0x1000
        memory.write(base, bytes(0x4000))
        self.data = HIGH_GPA + 0x40000 + index * (slots * SLOT if index else 0)
        self.kick_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.call_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.idx = 0
        self.seen = 0
        self.kicked = 0
        self.free = list(range(min(slots, size // 3)))
        self.busy = {}
        self.completions = [0] * size
        self.submissions = [0] * size

    def descriptor(self, number, address, length, flags, following):
        self.memory.write(self.desc + 16 * number, struct.pack("<QIHH", address, length, flags, following))

    def slot_base(self, slot):
        return self.data + slot * SLOT

    def offer(self, head):
        self.memory.write(self.avail + 4 + 2 * (self.idx % self.size), struct.pack("<H", head))
        self.idx = (self.idx + 1) & 0xFFFF
        self.memory.write(self.avail + 2, struct.pack("<H", self.idx))

    def submit(self, kind, sector=0, data=b"", length=0, segments=1, indirect=None, buffers=None, direct=0):
        """Make one request available; return its slot. ``buffers`` = [(gpa, bytes)] instead of the slot's own. So many
        of its descriptors as ``direct`` says stand before the one of the indirect table.
        """
        slot = self.free.pop(0)
        base = self.slot_base(slot)
        header, status, table, area = base, base + 16, base + 0x400, base + 0x1000
        self.memory.write(header, struct.pack("<IIQ", kind, 0, sector))
        self.memory.write(status, b"\xee")
        size = len(data) if kind in TO_DEVICE else length
        if buffers is None:
            step = (size // segments + 511) // 512 * 512 if segments > 1 else size
            buffers = [(area + at, min(step, size - at)) for at in range(0, size, step)] if size else []
        at = 0
        for gpa, count in buffers:
            if kind in TO_DEVICE:
                self.memory.write(gpa, data[at : at + count])
            at += count
        parts = [
            (header, 16, 0),
            *((gpa, count, 0 if kind in TO_DEVICE else 2) for gpa, count in buffers),
            (status, 1, 2),
        ]
        indirect = self.indirect if indirect is None else indirect
        if len(parts) > 3:
            indirect = True
        packed = [
            (address, count, flags | (at + 1 < len(parts)), at + 1) for at, (address, count, flags) in enumerate(parts)
        ]
        head = 3 * slot
        if indirect:
            for at, (address, count, flags, following) in enumerate(packed[:direct]):
                self.descriptor(head + at, address, count, flags, head + following)
            packed = [(*one[:3], one[3] - direct) for one in packed[direct:]]
            self.memory.write(table, b"".join(struct.pack("<QIHH", *one) for one in packed))
            self.descriptor(head + direct, table, 16 * len(packed), 4, 0)
        else:
            for at, (address, count, flags, following) in enumerate(packed):
                self.descriptor(head + at, address, count, flags, head + following if flags & 1 else 0)
        self.busy[head] = (slot, kind, status, buffers)
        self.submissions[head] += 1
        self.offer(head)
        return slot

    def kick(self):
        if self.event_idx:
            event = struct.unpack("<H", self.memory.read(self.used + 4 + 8 * self.size, 2))[0]
            old, self.kicked = self.kicked, self.idx
            if not (self.idx - event - 1) & 0xFFFF < (self.idx - old) & 0xFFFF:
                return
        elif struct.unpack("<H", self.memory.read(self.used, 2))[0] & 1:
            return
        os.eventfd_write(self.kick_fd, 1)

    def used_idx(self):
        return struct.unpack("<H", self.memory.read(self.used + 2, 2))[0]

    def reap(self):
        """Take what is used: list of (slot, status, data read, bytes written)."""
        found = []
        while self.seen != self.used_idx():
            at = self.used + 4 + 8 * (self.seen % self.size)
            head, written = struct.unpack("<II", self.memory.read(at, 8))
            assert head in self.busy, f"id {head} is not a head!"
            slot, kind, status, buffers = self.busy.pop(head)
            self.completions[head] += 1
            data = b"".join(self.memory.read(gpa, count) for gpa, count in buffers) if kind not in TO_DEVICE else b""
            found.append((slot, self.memory.read(status, 1)[0], data, written))
            self.free.append(slot)
            self.seen = (self.seen + 1) & 0xFFFF
        if self.event_idx:
            self.memory.write(self.avail + 4 + 2 * self.size, struct.pack("<H", self.seen))
        return found

    def wait(self, count=1, timeout=10.0):
        """Return at least ``count`` completions."""
        deadline = time.monotonic() + timeout
        found = self.reap()
        while len(found) < count:
            left = deadline - time.monotonic()
            assert left > 0, (
                f"{len(found)} of {count} requests completed in {timeout} s, {len(self.busy)} are outstanding"
            )
            select.select([self.call_fd], [], [], left)
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self.call_fd)
            found += self.reap()
        return found

    def do(self, kind, sector=0, data=b"", length=0, **how):
        """One request, to its end: (status, data read, bytes written)."""
        slot = self.submit(kind, sector, data, length, **how)
        self.kick()
        ((done, status, read, written),) = self.wait(1)
        assert done == slot
        return status, read, written

    def close(self):
        os.close(self.kick_fd)
        os.close(self.call_fd)


class FrontEnd:
    """One vhost-user connection."""

    def __init__(self, path, features=USUAL, protocol=USUAL_PROTOCOL, memory=None, connect=True, high=HIGH_SIZE):
        self.path, self.features, self.protocol = str(path), features, protocol
        self.memory = memory or Memory(high)
        self.queues = []
        self.inflight = None
        self.log_fd = -1
        self.sock: Any = None
        if connect:
            self.connect()

    def connect(self, timeout=10.0):
        """Connect, waiting for the socket to be there."""
        deadline = time.monotonic() + timeout
        while True:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                self.sock.connect(self.path)
                break
            except OSError:
                self.sock.close()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        self.sock.settimeout(30)

    def send(self, request, payload=b"", fds=(), need_reply=False, flags=1):
        header = struct.pack("<III", request, flags | (8 if need_reply else 0), len(payload))
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
        try:
            self.sock.sendmsg([header + payload], rights)
        except (BrokenPipeError, ConnectionResetError):
            raise Closed from None

    def receive(self, request):
        data, fds = b"", array("i")
        want = 12
        while len(data) < want:
            try:
                part, ancillary, __, __ = self.sock.recvmsg(want - len(data), 1024)
            except ConnectionResetError:
                raise Closed from None
            if not part:
                raise Closed
            for __, __, raw in ancillary:
                fds.frombytes(raw)
            data += part
            if len(data) == 12:
                want += struct.unpack_from("<I", data, 8)[0]
        got, flags, __ = struct.unpack_from("<III", data)
        assert (got, flags) == (request, 5)
        return data[12:], list(fds)

    def ask(self, request, payload=b"", fds=()):
        self.send(request, payload, fds)
        return self.receive(request)[0]

    def acknowledged(self, request, payload=b"", fds=()):
        """Send with NEED_REPLY; return the acknowledgement (0 = done)."""
        self.send(request, payload, fds, need_reply=bool(self.protocol & REPLY_ACK))
        return struct.unpack("<Q", self.receive(request)[0])[0] if self.protocol & REPLY_ACK else 0

    def negotiate(self):
        self.offered = struct.unpack("<Q", self.ask(1))[0]
        if self.features & PROTOCOL:
            offered = struct.unpack("<Q", self.ask(15))[0]
            assert self.protocol & ~offered == 0
            self.send(16, struct.pack("<Q", self.protocol))
        self.send(3)
        self.send(2, struct.pack("<Q", self.features))

    def set_memory(self):
        regions = b"".join(struct.pack("<QQQQ", *one) for one in self.memory.table)
        assert self.acknowledged(5, struct.pack("<II", len(self.memory.table), 0) + regions, self.memory.fds) == 0

    def get_config(self, size=60):
        return self.ask(24, struct.pack("<III", 0, size, 0) + bytes(size))[12:]

    def share_inflight(self, queues=4, size=128):
        """GET_INFLIGHT_FD the first time; SET_INFLIGHT_FD of the same region every time."""
        if self.inflight is None:
            self.send(31, struct.pack("<QQHHI", 0, 0, queues, size, 0))
            payload, (fd,) = self.receive(31)
            self.inflight = (payload, fd)
        self.send(32, self.inflight[0], [self.inflight[1]])

    def start(self, count=1, base=None, **how):
        """Bring the device up with ``count`` queues, new ones or (after a reconnect) those there are. ``base``
        overrides SET_VRING_BASE.
        """
        self.negotiate()
        if self.protocol & INFLIGHT:
            self.share_inflight()
        self.set_memory()
        for index in range(count):
            if index >= len(self.queues):
                self.queues.append(Queue(self.memory, index, features=self.features, **how))
            self.start_queue(index, base)
        return self.queues[0]

    def addresses(self, queue, log=False):
        user = self.memory.user
        return struct.pack(
            "<IIQQQQ", queue.index, int(log), user(queue.desc), user(queue.used), user(queue.avail), queue.used
        )

    def start_queue(self, index, base=None):
        queue = self.queues[index]
        self.send(8, struct.pack("<II", index, queue.size))
        self.send(10, struct.pack("<II", index, queue.used_idx() if base is None else base))
        self.send(9, self.addresses(queue))
        self.send(12, struct.pack("<Q", index), [queue.kick_fd])
        self.send(13, struct.pack("<Q", index), [queue.call_fd])
        if self.features & PROTOCOL:
            assert self.acknowledged(18, struct.pack("<II", index, 1)) == 0

    def stop_queue(self, index=0, disable=True):
        """SET_VRING_ENABLE 0, GET_VRING_BASE; return the base."""
        if disable and self.features & PROTOCOL:
            self.send(18, struct.pack("<II", index, 0))
        return struct.unpack("<II", self.ask(11, struct.pack("<II", index, 0)))[1]

    def disconnect(self):
        if self.sock is not None:
            self.sock.close()
            self.sock = None

    def is_closed(self, timeout=10.0):
        """True when the engine closes the connection in time."""
        self.sock.settimeout(timeout)
        try:
            while self.sock.recv(4096):
                pass
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False
        return True

    # Dirty log

    def start_log(self, with_reply=True):
        """SET_LOG_BASE, SET_FEATURES with LOG_ALL, SET_VRING_ADDR with the LOG flag, as QEMU does. Returns (base
        reply, features reply).
        """
        size = (HIGH_GPA + HIGH_SIZE) // PAGE // 8
        if self.log_fd < 0:
            self.log_fd = os.memfd_create("log")
            os.ftruncate(self.log_fd, size)
            self.log = mmap(self.log_fd, size)
        base = struct.unpack("<Q", self.ask(6, struct.pack("<QQ", size, 0), [self.log_fd]))[0]
        features = self.acknowledged(2, struct.pack("<Q", self.features | LOG_ALL))
        if base == 0 == features:
            for queue in self.queues:
                self.send(9, self.addresses(queue, log=True))
            self.ask(17)  # everything before it has been handled
        return base, features

    def stop_log(self):
        assert self.acknowledged(2, struct.pack("<Q", self.features)) == 0
        for queue in self.queues:
            self.send(9, self.addresses(queue))
        self.ask(17)

    def logged(self):
        """The numbers of the pages that are set."""
        return {at * 8 + bit for at, byte in enumerate(self.log[:]) if byte for bit in range(8) if byte & 1 << bit}

    def close(self):
        self.disconnect()
        for queue in self.queues:
            queue.close()
        if self.inflight is not None:
            os.close(self.inflight[1])
        if self.log_fd >= 0:
            os.close(self.log_fd)
        self.memory.close()
