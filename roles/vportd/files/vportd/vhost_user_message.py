# SPDX-License-Identifier: GPL-3.0-or-later
"""vhost-user messages, strictly: what comes over one connection, and the answers that go back (QEMU
docs/interop/vhost-user.rst).
"""

import asyncio
import fcntl
import select
import socket
import struct
import termios
import time
from array import array
from dataclasses import dataclass, field

from vportd import vhost_user_spec as spec
from vportd.errors import ProtocolError

# What one message can carry (Linux, include/net/scm.h). There is room for all: the kernel closes those that there is no
# room for, and we would wait for that.
SCM_MAX_FD = 253

UNREAD = 60.0


@dataclass(slots=True)
class Message:
    """One message; ``fds`` left in it are let go of."""

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


class Connection:
    """One connection of a front end: ``pid`` and ``uid`` are those of the process at the other end."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.socket = sock
        self.unclaimed: list[int] = []  # descriptors of a message that was not taken
        self.pid, self.uid, __ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))

    @property
    def comm(self) -> str:
        """The name of the process at the other end."""
        try:
            with open(f"/proc/{self.pid}/comm", encoding="utf-8", errors="replace") as file:
                return file.read().strip()
        except OSError:
            return "?"

    def gone(self) -> bool:
        """True when the front end has ended the connection, whatever it sent before."""
        poll = select.poll()
        poll.register(self.socket, select.POLLRDHUP)
        return bool(poll.poll(0))

    def shut_down(self) -> None:
        """End the connection; who reads from it meets its end."""
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:  # it has ended already
            return

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        fd = self.socket.fileno()
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
                part, ancillary, flags, __ = self.socket.recvmsg(
                    size - len(data), socket.CMSG_SPACE(SCM_MAX_FD * 4), socket.MSG_CMSG_CLOEXEC
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

    async def receive(self) -> Message | None:
        """Return the next message, None at the end. Raises ProtocolError."""
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
            self.unclaimed += fds

    async def taken(self) -> None:
        """Wait until the front end has read all its answers, or has closed its end. A descriptor that is on its way
        counts against all of the engine's. Raises ProtocolError when it reads nothing for ``UNREAD`` seconds: it may
        have sent its own end to itself, which then lives as long as ours.
        """
        pause = 0.0
        end = time.monotonic() + UNREAD
        while self._unread():
            if time.monotonic() > end:
                raise ProtocolError("the front end does not read its answers")
            await asyncio.sleep(pause)
            pause = min(0.1, pause * 2 or 0.001)

    def _unread(self) -> int:
        try:
            found = fcntl.ioctl(self.socket, termios.TIOCOUTQ, bytes(4))
        except OSError:
            return 0
        return int.from_bytes(found, "little")

    def reply(self, request: int, body: bytes, fd: int = -1) -> None:
        """Answer ``request``, with a copy of ``fd`` unless that is -1. Raises ProtocolError."""
        header = struct.pack(spec.HEADER, request, spec.VERSION | spec.FLAG_REPLY, len(body))
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd]))] if fd >= 0 else []
        try:
            self.socket.sendmsg([header, body], ancillary, socket.MSG_NOSIGNAL)
        except BlockingIOError as problem:
            raise ProtocolError("the front end does not read its answers") from problem
        except OSError:  # it has gone; the next read says so
            return
