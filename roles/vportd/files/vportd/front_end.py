# SPDX-License-Identifier: GPL-3.0-or-later
"""Front end: one vhost-user connection of one LUN, and what each of its messages does (QEMU
docs/interop/vhost-user.rst).

A message that breaks the protocol ends its own connection and nothing else. Descriptors that came with a message and
were not taken are closed with it.
"""

import os
import socket
import struct
from collections.abc import Awaitable, Callable

from vportd import vhost_user_spec as spec
from vportd.apart import is_eventfd
from vportd.blk_config import CONFIG_SPACE, LOG_ALL, PROTOCOL_FEATURES, QUEUES, config_space, offered
from vportd.errors import ProtocolError, Refused
from vportd.front_end_owner import Owner
from vportd.front_end_state import FrontEndState, Ring, Shared, close_fd, shared_memory
from vportd.inflight import queue_region_size
from vportd.vhost_user_message import Connection, Message
from vportd.virtio_spec import VIRTIO_BLK_F_RO, VIRTQ_MAX_SIZE

INFLIGHT_ROOM = 1024  # entries of a queue that its in-flight region has room for, whatever the front end announces


def end_of_pair(fd: int) -> bool:
    """True for a socket of a pair, whose other end cannot send into it from now on, and which has been emptied. Closes
    the descriptor. May wait for as long as any of its owners likes.

    A named one may be a connection to a LUN, and would be kept open by being kept; so would one that lies in a message
    which nobody reads.
    """
    try:
        channel = socket.socket(fileno=fd)
    except OSError:  # no socket
        os.close(fd)
        return False
    with channel:
        try:
            if channel.family != socket.AF_UNIX or channel.type != socket.SOCK_STREAM or channel.getpeername():
                return False
            channel.shutdown(socket.SHUT_RD)
            while channel.recv(65536, socket.MSG_DONTWAIT):
                pass
        except BlockingIOError:
            return True
        except OSError:  # it has no other end
            return False
        return True


class FrontEnd(FrontEndState):
    """One connection. ``serve`` runs until it ends; ``close`` lets go of every descriptor."""

    def __init__(self, connection: socket.socket, owner: Owner) -> None:
        super().__init__()
        self.connection = Connection(connection)
        self.owner = owner
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
            spec.VHOST_USER_GET_MAX_MEM_SLOTS: self._get_max_mem_slots,
            spec.VHOST_USER_ADD_MEM_REG: self._add_mem_reg,
            spec.VHOST_USER_REM_MEM_REG: self._rem_mem_reg,
            spec.VHOST_USER_SET_STATUS: self._set_status,
            spec.VHOST_USER_GET_STATUS: self._get_status,
        }

    def close(self) -> None:
        """End the connection, and let go of it and of every descriptor that came over it."""
        super().close()
        self.connection.shut_down()
        self.released += self.connection.unclaimed
        self.connection.unclaimed = []
        if self.connection.socket.fileno() >= 0:  # what was sent over it and not received is closed with it
            self.released.append(self.connection.socket.detach())
        self._let_go()

    def _let_go(self) -> None:
        released, self.released = self.released, []
        self.owner.apart.close(released)

    async def serve(self) -> None:
        """Answer messages until the connection ends. Raises ProtocolError, and VportdError when what was asked cannot
        be done.
        """
        while (message := await self.connection.receive()) is not None:
            try:
                if not await self.owner.turn() and self.connection.gone():
                    return  # what it has left would keep the next front end waiting
                await self._handle(message)
            finally:
                self.released += message.fds
                waiting = bool(self.released)
                self._let_go()
            if waiting:
                await self.owner.apart.done()

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
            try:
                self.connection.reply(message.request, body, fd)
            finally:
                close_fd(fd)
            if fd >= 0:
                await self.connection.taken()

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
        return offered(self.owner.readonly, self.owner.discards, self.owner.zeroes)

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
        regions = []
        for index in range(count):
            gpa, size, user, offset = struct.unpack_from(
                spec.MEM_REGION, message.payload, 8 + index * spec.MEM_REGION_SIZE
            )
            regions.append((gpa, size, user, offset))
        self.released += self.memory_fds
        self.memory, self.memory_fds = regions, message.fds[:]
        message.fds.clear()
        await self.owner.memory_changed()
        await self._sync_all()

    async def _get_max_mem_slots(self, message: Message) -> bytes:
        return struct.pack(spec.U64, spec.MAX_MEM_SLOTS)

    async def _add_mem_reg(self, message: Message) -> None:
        __, gpa, size, user, offset = message.unpack(spec.SINGLE_MEM_REGION)
        self.add_region((gpa, size, user, offset), message.one_fd())
        await self.owner.memory_changed()
        await self._sync_all()

    async def _rem_mem_reg(self, message: Message) -> None:
        __, gpa, size, user, __ = message.unpack(spec.SINGLE_MEM_REGION)
        self.remove_region(gpa, size, user)
        await self.owner.memory_changed()
        await self._sync_all()

    async def _set_status(self, message: Message) -> None:
        (status,) = message.unpack(spec.U64)
        if status > 0xFF:
            raise ProtocolError(f"device status {status:#x} is more than a byte")
        self.status = status
        if status == 0:  # a reset: no ring runs until its kick descriptor comes again
            for ring in self.rings:
                if ring.running:
                    await self.owner.stop_ring(ring)
                close_fd(ring.kick)
                ring.kick = -1

    async def _get_status(self, message: Message) -> bytes:
        return struct.pack(spec.U64, self.status)

    async def _set_log_base(self, message: Message) -> bytes | None:
        size, offset = message.unpack(spec.LOG)
        self.owner.refuse_log()
        fd, length = await self._file(message)
        if size == 0 or size + offset > length:
            self.released.append(fd)
            raise ProtocolError(f"a dirty log of {size} bytes at offset {offset} is more than its file has")
        if self.log is not None:
            self.released.append(self.log.fd)
        self.log = Shared(fd, size, offset)
        await self.owner.log_changed()
        await self._sync_all()
        return struct.pack(spec.U64, 0) if self.has(spec.VHOST_USER_PROTOCOL_F_LOG_SHMFD) else None

    async def _set_log_fd(self, message: Message) -> None:
        self.released.append(message.one_fd())  # for "the log was written"; QEMU does not wait on it

    async def _file(self, message: Message) -> tuple[int, int]:
        """Take the only descriptor, and the bytes that its file has."""
        fd = message.one_fd()
        message.fds.append(fd)  # until it is known
        found: os.stat_result = await self.owner.apart.do(lambda: os.fstat(fd))
        return message.one_fd(), found.st_size

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
        index, __ = message.unpack(spec.VRING_STATE)
        ring = self._ring(index)
        if ring.running:
            await self.owner.stop_ring(ring)
        close_fd(ring.kick)
        ring.kick = -1
        await self.owner.rings_stopping()
        return struct.pack(spec.VRING_STATE, index, ring.base or 0)

    def _vring_fd(self, message: Message) -> tuple[Ring, int]:
        (value,) = message.unpack(spec.U64)
        ring = self._ring(value & spec.VRING_INDEX_MASK)
        if value & spec.VRING_NOFD_MASK:
            return ring, -1
        fd = message.one_fd()
        if not is_eventfd(fd):
            self.released.append(fd)
            raise ProtocolError(f"queue {ring.index}: the descriptor of message {message.request} is no eventfd")
        return ring, fd

    async def _set_vring_kick(self, message: Message) -> None:
        ring, fd = self._vring_fd(message)
        if fd < 0:
            raise ProtocolError(f"queue {ring.index}: no kick descriptor, and a ring is not polled for requests")
        try:
            if ring.running:
                await self.owner.stop_ring(ring)
        except BaseException:
            close_fd(fd)
            raise
        close_fd(ring.kick)
        ring.kick = fd
        await self._sync(ring)

    async def _set_vring_call(self, message: Message) -> None:
        ring, fd = self._vring_fd(message)
        close_fd(ring.call)
        ring.call = fd
        if ring.running:
            await self.owner.call_changed(ring)

    async def _set_vring_err(self, message: Message) -> None:
        ring, fd = self._vring_fd(message)
        close_fd(ring.err)
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
        message.fds.append(fd)  # until it is known
        copy = os.dup(fd)  # a call that is left behind has a descriptor of its own
        if not await self.owner.apart.do(lambda: end_of_pair(copy)):
            raise ProtocolError("the back-end channel is not one of a socket pair")
        self.release_channel()
        self.backend_channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, message.one_fd())

    async def _get_config(self, message: Message) -> bytes:
        if len(message.payload) < spec.CONFIG_HEADER_SIZE:
            raise ProtocolError("GET_CONFIG without its header")
        offset, size, flags = struct.unpack_from(spec.CONFIG_HEADER, message.payload)
        if offset + size > CONFIG_SPACE or len(message.payload) != spec.CONFIG_HEADER_SIZE + size:
            raise ProtocolError(f"GET_CONFIG of {size} bytes at {offset}")
        owner = self.owner
        space = config_space(owner.capacity, owner.block_size, owner.discards, owner.zeroes)
        return struct.pack(spec.CONFIG_HEADER, offset, size, flags) + space[offset : offset + size]

    async def _set_config(self, message: Message) -> None:
        raise Refused("the configuration of the device cannot be written")

    async def _get_inflight_fd(self, message: Message) -> tuple[bytes, int]:
        __, __, queues, size = self._inflight(message)
        if not 0 < queues <= QUEUES or not 0 < size <= VIRTQ_MAX_SIZE:
            raise ProtocolError(f"an in-flight region for {queues} queues of {size}")
        # A guest may make its queue larger than the front end announces (SeaBIOS does), so there is room for that.
        total = queues * queue_region_size(max(size, INFLIGHT_ROOM))
        answer = struct.pack(spec.INFLIGHT, total, 0, queues, size).ljust(len(message.payload), b"\0")
        return answer, shared_memory(total)

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
        fd, length = await self._file(message)
        if length < offset + total:
            self.released.append(fd)
            raise ProtocolError(f"an in-flight region of {total} bytes at {offset} is more than its file has")
        if self.inflight is not None:
            self.released.append(self.inflight.fd)
        self.inflight = Shared(fd, total, offset)
        self.inflight_stride = total // queues // spec.INFLIGHT_ALIGNMENT * spec.INFLIGHT_ALIGNMENT
