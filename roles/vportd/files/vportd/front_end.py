# SPDX-License-Identifier: GPL-3.0-or-later
"""Front end: one vhost-user connection of one LUN (QEMU docs/interop/vhost-user.rst). Keeps what the front end has
set, whoever serves the rings.

Parsing is strict: a message that breaks the protocol ends its own connection and nothing else. Descriptors that came
with a message and were not taken are closed with it.
"""

import asyncio
import fcntl
import os
import socket
import struct
from array import array
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from vportd import vhost_user_spec as spec
from vportd.errors import ProtocolError, VportdError
from vportd.inflight import queue_region_size
from vportd.virtio_spec import (
    SECTOR_SIZE,
    SEG_MAX,
    VIRTIO_BLK_CONFIG,
    VIRTIO_BLK_F_BLK_SIZE,
    VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_INDIRECT_DESC,
    VIRTIO_F_VERSION_1,
    VIRTQ_MAX_SIZE,
)

QUEUES = 4
INFLIGHT_ROOM = 1024
CONFIG_SPACE = 256

FEATURES = sum(
    1 << bit
    for bit in (
        VIRTIO_F_VERSION_1,
        VIRTIO_F_INDIRECT_DESC,
        VIRTIO_F_EVENT_IDX,
        VIRTIO_BLK_F_FLUSH,
        VIRTIO_BLK_F_BLK_SIZE,
        VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_MQ,
        spec.VHOST_F_LOG_ALL,
        spec.VHOST_USER_F_PROTOCOL_FEATURES,
    )
)
PROTOCOL_FEATURES = sum(
    1 << bit
    for bit in (
        spec.VHOST_USER_PROTOCOL_F_MQ,
        spec.VHOST_USER_PROTOCOL_F_LOG_SHMFD,
        spec.VHOST_USER_PROTOCOL_F_REPLY_ACK,
        spec.VHOST_USER_PROTOCOL_F_BACKEND_REQ,
        spec.VHOST_USER_PROTOCOL_F_CONFIG,
        spec.VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
    )
)
LOG_ALL = 1 << spec.VHOST_F_LOG_ALL


class Refused(VportdError):
    """A message that is right, and that the vport does not do now: answered with a non-zero acknowledgement."""


@dataclass(slots=True, eq=False)
class Ring:
    """One queue as the front end has set it. ``base`` = next available index, None when only the rings themselves can
    tell.

    ``running`` = the active worker has it.
    """

    index: int
    size: int = 0
    desc: int = 0
    avail: int = 0
    used: int = 0
    log: int | None = None
    addressed: bool = False
    base: int | None = 0
    kick: int = -1
    call: int = -1
    err: int = -1
    enabled: bool = False
    running: bool = False
    broken: str | None = None


@dataclass(slots=True)
class Shared:
    """A file the front end shares: descriptor, bytes, offset."""

    fd: int
    size: int
    offset: int


class Owner(Protocol):
    """What a front end needs of its LUN."""

    @property
    def block_size(self) -> int:
        """Logical block size, in bytes."""

    @property
    def capacity(self) -> int:
        """Size, in bytes."""

    @property
    def readonly(self) -> bool:
        """True when the guest may not write."""

    def refuse_log(self) -> None:
        """Raise Refused where the dirty log cannot be kept."""

    async def memory_changed(self) -> None:
        """The memory table was replaced."""

    async def log_changed(self) -> None:
        """The dirty log, or what is to be logged, was changed."""

    async def call_changed(self, ring: Ring) -> None:
        """The call descriptor of a running ring was replaced."""

    async def start_ring(self, ring: Ring) -> None:
        """Have a ring served."""

    async def stop_ring(self, ring: Ring) -> None:
        """Have a ring served no more, everything taken done, ``ring.base`` set."""

    async def rings_stopping(self) -> None:
        """GET_VRING_BASE has come and its ring has stopped; the answer goes out when this returns."""


@dataclass(slots=True)
class Message:
    """One message; ``fds`` left in it are closed."""

    request: int
    flags: int
    payload: bytes
    fds: list[int] = field(default_factory=list)

    def unpack(self, layout: str) -> tuple[int, ...]:
        """Return the fields of a payload of exactly this layout. Raises ProtocolError."""
        if len(self.payload) != struct.calcsize(layout):
            raise ProtocolError(
                f"message {self.request} has {len(self.payload)} bytes instead of {struct.calcsize(layout)}"
            )
        return struct.unpack(layout, self.payload)

    def one_fd(self) -> int:
        """Take the only descriptor. Raises ProtocolError."""
        if len(self.fds) != 1:
            raise ProtocolError(f"message {self.request} came with {len(self.fds)} descriptors instead of 1")
        return self.fds.pop()


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)


class FrontEnd:
    """One connection. ``serve`` runs until it ends; ``close`` lets go of every descriptor."""

    def __init__(self, connection: socket.socket, owner: Owner) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.owner = owner
        self.pid, self.uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        self.features = 0
        self.protocol_features = 0
        self.rings = [Ring(index) for index in range(QUEUES)]
        self.memory: list[tuple[int, int, int, int]] = []
        self.memory_fds: list[int] = []
        self.log: Shared | None = None
        self.inflight: Shared | None = None
        self.inflight_stride = 0
        self.backend_channel: socket.socket | None = None
        self._handlers: dict[int, Callable[[Message], Awaitable[bytes | tuple[bytes, int] | None]]] = {
            spec.VHOST_USER_GET_FEATURES: self._get_features,
            spec.VHOST_USER_SET_FEATURES: self._set_features,
            spec.VHOST_USER_SET_OWNER: self._nothing,
            spec.VHOST_USER_RESET_OWNER: self._nothing,
            spec.VHOST_USER_SET_MEM_TABLE: self._set_mem_table,
            spec.VHOST_USER_SET_LOG_BASE: self._set_log_base,
            spec.VHOST_USER_SET_LOG_FD: self._set_log_fd,
            spec.VHOST_USER_SET_VRING_NUM: self._set_vring_num,
            spec.VHOST_USER_SET_VRING_ADDR: self._set_vring_addr,
            spec.VHOST_USER_SET_VRING_BASE: self._set_vring_base,
            spec.VHOST_USER_GET_VRING_BASE: self._get_vring_base,
            spec.VHOST_USER_SET_VRING_KICK: self._set_vring_kick,
            spec.VHOST_USER_SET_VRING_CALL: self._set_vring_call,
            spec.VHOST_USER_SET_VRING_ERR: self._set_vring_err,
            spec.VHOST_USER_GET_PROTOCOL_FEATURES: self._get_protocol_features,
            spec.VHOST_USER_SET_PROTOCOL_FEATURES: self._set_protocol_features,
            spec.VHOST_USER_GET_QUEUE_NUM: self._get_queue_num,
            spec.VHOST_USER_SET_VRING_ENABLE: self._set_vring_enable,
            spec.VHOST_USER_SET_BACKEND_REQ_FD: self._set_backend_req_fd,
            spec.VHOST_USER_GET_CONFIG: self._get_config,
            spec.VHOST_USER_SET_CONFIG: self._set_config,
            spec.VHOST_USER_GET_INFLIGHT_FD: self._get_inflight_fd,
            spec.VHOST_USER_SET_INFLIGHT_FD: self._set_inflight_fd,
        }

    @property
    def comm(self) -> str:
        """The name of the process at the other end."""
        try:
            with open(f"/proc/{self.pid}/comm", encoding="utf-8", errors="replace") as file:
                return file.read().strip()
        except OSError:
            return "?"

    @property
    def logging(self) -> bool:
        """True while the front end wants to know what is written to its memory."""
        return bool(self.features & LOG_ALL)

    def has(self, protocol_feature: int) -> bool:
        """True when the protocol feature was negotiated."""
        return bool(self.protocol_features >> protocol_feature & 1)

    def wanted(self, ring: Ring) -> bool:
        """True when the front end has set all it takes to serve this ring."""
        complete = ring.addressed and ring.size > 0 and ring.kick >= 0 and ring.enabled and bool(self.memory)
        return complete and not (self.logging and self.log is None)

    async def serve(self) -> None:
        """Answer messages until the connection ends. Raises ProtocolError, and VportdError when what was asked cannot
        be done.
        """
        while (message := await self._receive()) is not None:
            try:
                await self._handle(message)
            finally:
                for fd in message.fds:
                    os.close(fd)

    def close(self) -> None:
        """Close the connection and every descriptor that came over it."""
        self.connection.close()
        for ring in self.rings:
            for fd in (ring.kick, ring.call, ring.err):
                _close(fd)
            ring.kick = ring.call = ring.err = -1
        for fd in self.memory_fds:
            os.close(fd)
        self.memory_fds, self.memory = [], []
        for shared in (self.log, self.inflight):
            if shared is not None:
                os.close(shared.fd)
        self.log = self.inflight = None
        if self.backend_channel is not None:
            self.backend_channel.close()
            self.backend_channel = None

    def config_changed(self) -> None:
        """Tell the front end to read the configuration again, where it has asked to be told."""
        if self.backend_channel is not None:
            header = struct.pack(spec.HEADER, spec.VHOST_USER_BACKEND_CONFIG_CHANGE_MSG, spec.VERSION, 0)
            try:
                self.backend_channel.send(header, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except OSError:  # it will read the configuration when it comes back
                return

    def inflight_of(self, ring: Ring) -> tuple[int, int]:
        """Return descriptor and offset of a ring's in-flight region; one of our own where the front end keeps none."""
        if self.inflight is not None and queue_region_size(ring.size) > self.inflight_stride:
            raise ProtocolError(
                f"queue {ring.index} has {ring.size} entries, more than the in-flight region of the front end holds"
            )
        if self.inflight is None:
            self.inflight_stride = queue_region_size(VIRTQ_MAX_SIZE)
            self.inflight = Shared(_memory(QUEUES * self.inflight_stride), QUEUES * self.inflight_stride, 0)
        return self.inflight.fd, self.inflight.offset + ring.index * self.inflight_stride

    # The connection

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        fd = self.connection.fileno()
        loop.add_reader(fd, lambda: None if future.done() else future.set_result(None))
        try:
            await future
        finally:
            loop.remove_reader(fd)

    async def _read(self, size: int, fds: list[int]) -> bytes:
        """Read exactly ``size`` bytes; fewer at the end of the connection. Descriptors are added to ``fds``."""
        data = b""
        while len(data) < size:
            try:
                part, ancillary, flags, _ = self.connection.recvmsg(
                    size - len(data), socket.CMSG_SPACE(64 * 4), socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                await self._readable()
                continue
            except OSError:
                return b""
            for level, kind, raw in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    received = array("i")
                    received.frombytes(raw[: len(raw) // 4 * 4])
                    fds.extend(received)
            if flags & socket.MSG_CTRUNC or len(fds) > spec.MAX_FDS:
                raise ProtocolError("a message with too many descriptors")
            if not part:
                return data
            data += part
        return data

    async def _receive(self) -> Message | None:
        fds: list[int] = []
        try:
            header = await self._read(spec.HEADER_SIZE, fds)
            if len(header) < spec.HEADER_SIZE:
                if header or fds:
                    raise ProtocolError("the connection ended inside a message")
                return None
            request, flags, size = struct.unpack(spec.HEADER, header)
            if flags & spec.VERSION_MASK != spec.VERSION or flags & spec.FLAG_REPLY:
                raise ProtocolError(f"message {request} has flags {flags:#x}")
            if size > spec.MAX_PAYLOAD:
                raise ProtocolError(f"message {request} announces {size} bytes")
            payload = await self._read(size, fds)
            if len(payload) < size:
                raise ProtocolError("the connection ended inside a message")
            message = Message(request, flags, payload, fds)
            fds = []
            return message
        finally:
            for fd in fds:
                os.close(fd)

    async def _handle(self, message: Message) -> None:
        handler = self._handlers.get(message.request)
        if handler is None:
            raise ProtocolError(
                f"message {message.request} is not known, and no feature that would allow it was offered"
            )
        refused = False
        reply: bytes | tuple[bytes, int] | None = None
        try:
            reply = await handler(message)
        except Refused as problem:
            refused = True
            if message.request == spec.VHOST_USER_SET_LOG_BASE:
                reply = struct.pack(spec.U64, 1)
            elif not message.flags & spec.FLAG_NEED_REPLY:
                raise ProtocolError(f"{problem} (and the front end has not asked for an acknowledgement)") from problem
        if reply is None and message.flags & spec.FLAG_NEED_REPLY and self.has(spec.VHOST_USER_PROTOCOL_F_REPLY_ACK):
            reply = struct.pack(spec.U64, int(refused))
        if reply is not None:
            body, fd = reply if isinstance(reply, tuple) else (reply, -1)
            header = struct.pack(spec.HEADER, message.request, spec.VERSION | spec.FLAG_REPLY, len(body))
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd]))] if fd >= 0 else []
            try:
                self.connection.sendmsg([header, body], ancillary, socket.MSG_NOSIGNAL)
            except BlockingIOError as problem:
                raise ProtocolError("the front end does not read its answers") from problem
            except OSError:  # it has gone; the next read says so
                return
            finally:
                _close(fd)

    # Messages

    def _ring(self, index: int) -> Ring:
        if index >= QUEUES:
            raise ProtocolError(f"queue {index} of a device of {QUEUES}")
        return self.rings[index]

    async def _sync(self, ring: Ring) -> None:
        if self.wanted(ring) and not ring.running:
            await self.owner.start_ring(ring)
        elif ring.running and not self.wanted(ring):
            await self.owner.stop_ring(ring)

    async def _sync_all(self) -> None:
        for ring in self.rings:
            await self._sync(ring)

    async def _nothing(self, message: Message) -> None:
        return None

    def offered(self) -> int:
        """Return the feature bits of this LUN."""
        return FEATURES | (1 << VIRTIO_BLK_F_RO if self.owner.readonly else 0)

    async def _get_features(self, message: Message) -> bytes:
        return struct.pack(spec.U64, self.offered())

    async def _set_features(self, message: Message) -> None:
        (features,) = message.unpack(spec.U64)
        # RO may have been offered before the mapping was changed
        if features & ~(self.offered() | 1 << VIRTIO_BLK_F_RO):
            raise ProtocolError(f"features {features:#x} are more than the {self.offered():#x} that were offered")
        if features & LOG_ALL:
            self.owner.refuse_log()
        changed = self.features ^ features
        self.features = features
        if not features >> spec.VHOST_USER_F_PROTOCOL_FEATURES & 1:
            for ring in self.rings:
                ring.enabled = True
        if changed & LOG_ALL:
            await self.owner.log_changed()
        await self._sync_all()

    async def _get_protocol_features(self, message: Message) -> bytes:
        return struct.pack(spec.U64, PROTOCOL_FEATURES)

    async def _set_protocol_features(self, message: Message) -> None:
        (features,) = message.unpack(spec.U64)
        if features & ~PROTOCOL_FEATURES:
            raise ProtocolError(
                f"protocol features {features:#x} are more than the {PROTOCOL_FEATURES:#x} that were offered"
            )
        self.protocol_features = features

    async def _get_queue_num(self, message: Message) -> bytes:
        return struct.pack(spec.U64, QUEUES)

    async def _set_mem_table(self, message: Message) -> None:
        count = struct.unpack_from("<I", message.payload)[0] if len(message.payload) >= 8 else 0
        if not 0 < count <= spec.MAX_MEM_REGIONS or len(message.payload) < 8 + count * spec.MEM_REGION_SIZE:
            raise ProtocolError(f"a memory table of {count} regions in {len(message.payload)} bytes")
        if len(message.fds) != count:
            raise ProtocolError(f"a memory table of {count} regions with {len(message.fds)} descriptors")
        old = self.memory_fds
        regions = []
        for index in range(count):
            gpa, size, user, offset = struct.unpack_from(
                spec.MEM_REGION, message.payload, 8 + index * spec.MEM_REGION_SIZE
            )
            regions.append((gpa, size, user, offset))
        self.memory, self.memory_fds = regions, message.fds[:]
        message.fds.clear()
        for fd in old:
            os.close(fd)
        await self.owner.memory_changed()
        await self._sync_all()

    async def _set_log_base(self, message: Message) -> bytes | None:
        size, offset = message.unpack(spec.LOG)
        self.owner.refuse_log()
        fd = message.one_fd()
        if size == 0 or size + offset > os.fstat(fd).st_size:
            os.close(fd)
            raise ProtocolError(f"a dirty log of {size} bytes at offset {offset} is more than its file has")
        if self.log is not None:
            os.close(self.log.fd)
        self.log = Shared(fd, size, offset)
        await self.owner.log_changed()
        await self._sync_all()
        return struct.pack(spec.U64, 0) if self.has(spec.VHOST_USER_PROTOCOL_F_LOG_SHMFD) else None

    async def _set_log_fd(self, message: Message) -> None:
        os.close(message.one_fd())  # an eventfd for "the log was written"; QEMU does not wait on it

    async def _set_vring_num(self, message: Message) -> None:
        index, size = message.unpack(spec.VRING_STATE)
        ring = self._ring(index)
        if not 0 < size <= VIRTQ_MAX_SIZE or size & (size - 1):
            raise ProtocolError(f"queue {index}: size {size} is not a power of 2 up to {VIRTQ_MAX_SIZE}")
        if ring.running and size != ring.size:
            raise ProtocolError(f"queue {index}: another size while it is running")
        ring.size = size

    async def _set_vring_addr(self, message: Message) -> None:
        index, flags, desc, used, avail, log = message.unpack(spec.VRING_ADDR)
        ring = self._ring(index)
        if desc % 16 or avail % 2 or used % 4:
            raise ProtocolError(f"queue {index}: ring addresses {desc:#x}, {avail:#x}, {used:#x} are not aligned")
        if ring.running and (ring.desc, ring.avail, ring.used) != (desc, avail, used):
            raise ProtocolError(f"queue {index}: other ring addresses while it is running")
        ring.desc, ring.avail, ring.used, ring.addressed = desc, avail, used, True
        wanted = log if flags >> spec.VHOST_VRING_F_LOG & 1 else None
        if wanted != ring.log:
            ring.log = wanted
            await self.owner.log_changed()
        await self._sync(ring)

    async def _set_vring_base(self, message: Message) -> None:
        index, base = message.unpack(spec.VRING_STATE)
        ring = self._ring(index)
        if ring.running:
            raise ProtocolError(f"queue {index}: a base while it is running")
        ring.base = base & 0xFFFF

    async def _get_vring_base(self, message: Message) -> bytes:
        index, _ = message.unpack(spec.VRING_STATE)
        ring = self._ring(index)
        if ring.running:
            await self.owner.stop_ring(ring)
        _close(ring.kick)
        ring.kick = -1
        await self.owner.rings_stopping()
        return struct.pack(spec.VRING_STATE, index, ring.base or 0)

    def _vring_fd(self, message: Message) -> tuple[Ring, int]:
        (value,) = message.unpack(spec.U64)
        ring = self._ring(value & spec.VRING_INDEX_MASK)
        return ring, -1 if value & spec.VRING_NOFD_MASK else message.one_fd()

    async def _set_vring_kick(self, message: Message) -> None:
        ring, fd = self._vring_fd(message)
        if fd < 0:
            raise ProtocolError(f"queue {ring.index}: no kick descriptor, and a ring is not polled for requests")
        if ring.running:
            await self.owner.stop_ring(ring)
        _close(ring.kick)
        ring.kick = fd
        await self._sync(ring)

    async def _set_vring_call(self, message: Message) -> None:
        ring, fd = self._vring_fd(message)
        _close(ring.call)
        ring.call = fd
        if ring.running:
            await self.owner.call_changed(ring)

    async def _set_vring_err(self, message: Message) -> None:
        ring, fd = self._vring_fd(message)
        _close(ring.err)
        ring.err = fd

    async def _set_vring_enable(self, message: Message) -> None:
        index, enable = message.unpack(spec.VRING_STATE)
        if enable > 1:
            raise ProtocolError(f"queue {index}: enable is {enable}")
        ring = self._ring(index)
        ring.enabled = bool(enable)
        await self._sync(ring)

    async def _set_backend_req_fd(self, message: Message) -> None:
        fd = message.one_fd()
        if self.backend_channel is not None:
            self.backend_channel.close()
            self.backend_channel = None
        try:
            self.backend_channel = socket.socket(fileno=fd)
        except OSError as problem:
            os.close(fd)
            raise ProtocolError(f"the back-end channel is not a socket: {problem}") from problem

    def config_space(self) -> bytes:
        """Return the device configuration (virtio 1.3, 5.2.4)."""
        owner = self.owner
        fields = struct.pack(
            VIRTIO_BLK_CONFIG,
            owner.capacity // SECTOR_SIZE,
            0,
            SEG_MAX,
            0,
            0,
            0,
            owner.block_size,
            0,
            0,
            0,
            0,
            0,
            0,
            QUEUES,
        )
        return fields.ljust(CONFIG_SPACE, b"\0")

    async def _get_config(self, message: Message) -> bytes:
        if len(message.payload) < spec.CONFIG_HEADER_SIZE:
            raise ProtocolError("GET_CONFIG without its header")
        offset, size, flags = struct.unpack_from(spec.CONFIG_HEADER, message.payload)
        if offset + size > CONFIG_SPACE or len(message.payload) != spec.CONFIG_HEADER_SIZE + size:
            raise ProtocolError(f"GET_CONFIG of {size} bytes at {offset}")
        return struct.pack(spec.CONFIG_HEADER, offset, size, flags) + self.config_space()[offset : offset + size]

    async def _set_config(self, message: Message) -> None:
        raise Refused("the configuration of the device cannot be written")

    async def _get_inflight_fd(self, message: Message) -> tuple[bytes, int]:
        _, _, queues, size = self._inflight(message)
        if not 0 < queues <= QUEUES or not 0 < size <= VIRTQ_MAX_SIZE:
            raise ProtocolError(f"an in-flight region for {queues} queues of {size}")
        # A guest may make its queue larger than the front end announces (SeaBIOS does), so there is room for that.
        total = queues * queue_region_size(max(size, INFLIGHT_ROOM))
        return struct.pack(spec.INFLIGHT, total, 0, queues, size).ljust(len(message.payload), b"\0"), _memory(total)

    @staticmethod
    def _inflight(message: Message) -> tuple[int, int, int, int]:
        """Return the fields of an in-flight description, which QEMU sends with the padding of its C structure."""
        if len(message.payload) not in (spec.INFLIGHT_SIZE, spec.INFLIGHT_PADDED_SIZE):
            raise ProtocolError(f"message {message.request} has {len(message.payload)} bytes")
        total, offset, queues, size = struct.unpack_from(spec.INFLIGHT, message.payload)
        return total, offset, queues, size

    async def _set_inflight_fd(self, message: Message) -> None:
        total, offset, queues, size = self._inflight(message)
        if any(ring.running for ring in self.rings):
            raise ProtocolError("another in-flight region while rings are running")
        if not 0 < queues <= QUEUES or not 0 < size <= VIRTQ_MAX_SIZE or total < queues * queue_region_size(size):
            raise ProtocolError(f"an in-flight region of {total} bytes for {queues} queues of {size}")
        fd = message.one_fd()
        if os.fstat(fd).st_size < offset + total:
            os.close(fd)
            raise ProtocolError(f"an in-flight region of {total} bytes at {offset} is more than its file has")
        if self.inflight is not None:
            os.close(self.inflight.fd)
        self.inflight = Shared(fd, total, offset)
        self.inflight_stride = total // queues // spec.INFLIGHT_ALIGNMENT * spec.INFLIGHT_ALIGNMENT


def _memory(size: int) -> int:
    """Return a memfd of ``size`` zero bytes that nobody can make shorter."""
    fd = os.memfd_create("vportd-inflight", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd
