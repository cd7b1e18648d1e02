# SPDX-License-Identifier: GPL-3.0-or-later
"""What one front end has set up so far: its rings, memory, dirty log and in-flight region. Kept in the engine, whoever
serves the rings.
"""

import fcntl
import os
import socket
import struct
from dataclasses import dataclass

from vportd import vhost_user_spec as spec
from vportd.blk_config import LOG_ALL, QUEUES
from vportd.errors import ProtocolError
from vportd.inflight import queue_region_size
from vportd.virtio_spec import VIRTQ_MAX_SIZE

Positions = dict[tuple[int, int], tuple[int, int]]  # LUN, queue -> next available index, used index


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


def close_fd(fd: int) -> None:
    """Close a descriptor of our own, or an eventfd, unless it is -1."""
    if fd >= 0:
        os.close(fd)


def shared_memory(size: int) -> int:
    """Return a memfd of ``size`` zero bytes that nobody can make shorter."""
    fd = os.memfd_create("vportd-inflight", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd


class FrontEndState:
    """Everything that messages of one connection have set; ``close`` lets go of every descriptor of it. Those that the
    front end has sent become ``released``, for whoever may wait for their end; only eventfds are closed here.
    """

    def __init__(self) -> None:
        self.features = 0
        self.protocol_features = 0
        self.rings = [Ring(index) for index in range(QUEUES)]
        self.status = 0
        self.memory: list[tuple[int, int, int, int]] = []
        self.memory_fds: list[int] = []
        self.log: Shared | None = None
        self.inflight: Shared | None = None
        self.inflight_stride = 0
        self.backend_channel: socket.socket | None = None
        self.released: list[int] = []
        self.told_logging = False

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

    def close(self) -> None:
        """Let go of every descriptor that came over the connection."""
        for ring in self.rings:
            for fd in (ring.kick, ring.call, ring.err):
                close_fd(fd)
            ring.kick = ring.call = ring.err = -1
        self.released += self.memory_fds
        self.memory_fds, self.memory = [], []
        self.released += [shared.fd for shared in (self.log, self.inflight) if shared is not None]
        self.log = self.inflight = None
        self.release_channel()

    def release_channel(self) -> None:
        """Let go of the back-end channel."""
        if self.backend_channel is not None:
            self.released.append(self.backend_channel.detach())
            self.backend_channel = None

    def add_region(self, region: tuple[int, int, int, int], fd: int) -> None:
        """Add a memory region: guest address, bytes, front end's address, offset in ``fd``, which becomes ours. Raises
        ProtocolError.
        """
        if len(self.memory) >= spec.MAX_MEM_SLOTS:
            self.released.append(fd)
            raise ProtocolError(f"one memory region more than {spec.MAX_MEM_SLOTS}")
        self.memory.append(region)
        self.memory_fds.append(fd)

    def remove_region(self, gpa: int, size: int, user: int) -> None:
        """Remove a memory region. Raises ProtocolError when it is not there."""
        at = [number for number, region in enumerate(self.memory) if region[:3] == (gpa, size, user)]
        if not at:
            raise ProtocolError(f"there is no memory region of {size} bytes at guest address {gpa:#x} to remove")
        del self.memory[at[0]]
        self.released.append(self.memory_fds.pop(at[0]))

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
            self.inflight = Shared(shared_memory(QUEUES * self.inflight_stride), QUEUES * self.inflight_stride, 0)
        return self.inflight.fd, self.inflight.offset + ring.index * self.inflight_stride
