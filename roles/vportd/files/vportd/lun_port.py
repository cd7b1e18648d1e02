# SPDX-License-Identifier: GPL-3.0-or-later
"""LUN port: the socket of one LUN, and the front end connected to it. One connection at a time; the next is served
when the last has been drained.
"""

import asyncio
import contextlib
import os
import socket
import time
from pathlib import Path
from typing import Any, Protocol

from vportd import journal
from vportd.apart import Apart
from vportd.errors import Refused, VportdError
from vportd.front_end import FrontEnd
from vportd.front_end_state import Ring
from vportd.mapping import Lun
from vportd.pace import CONNECTION, DEATH, Pace


class Server(Protocol):
    """What a LUN port needs of its vport."""

    name: str
    block_size: int
    discards: bool
    zeroes: bool

    def refuse_log(self) -> None: ...
    def note(self, event: str, **detail: object) -> None: ...
    async def memory_changed(self, port: "LunPort") -> None: ...
    async def log_changed(self, port: "LunPort") -> None: ...
    async def call_changed(self, port: "LunPort", ring: Ring) -> None: ...
    async def start_ring(self, port: "LunPort", ring: Ring) -> None: ...
    async def stop_ring(self, port: "LunPort", ring: Ring, gone: bool = False) -> None: ...
    async def rings_stopping(self) -> None: ...
    async def forget(self, port: "LunPort") -> None: ...


def _notify(eventfd: int) -> None:
    """Count an eventfd up, and close it. It waits when the counter is full and the front end wants that."""
    try:
        os.write(eventfd, (1).to_bytes(8, "little"))
    finally:
        os.close(eventfd)


class LunPort:
    """The socket ``path`` of LUN ``lun`` of a vport, owned by ``owner`` = (uid, gid) with mode 0600."""

    def __init__(self, vport: Server, lun: Lun, path: Path, owner: tuple[int, int] | None) -> None:
        self.vport = vport
        self.lun = lun
        self.path = path
        self.front: FrontEnd | None = None
        self._closing = False
        self._pace = Pace()
        self.apart = Apart()
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            self._listener.bind(str(path))
        finally:
            os.umask(mask)
        if owner is not None:
            os.chown(path, *owner)
        self._listener.listen(4)
        self._listener.setblocking(False)
        self._task = asyncio.create_task(self._serve())

    @property
    def address(self) -> str:
        """What the VM knows this LUN by: the serial of the disk."""
        return f"{self.vport.name}:{self.lun.lun}"

    @property
    def block_size(self) -> int:
        """Logical block size, in bytes."""
        return self.vport.block_size

    @property
    def capacity(self) -> int:
        """Size, in bytes."""
        return self.lun.capacity

    @property
    def readonly(self) -> bool:
        """True when the guest may not write."""
        return self.lun.readonly

    @property
    def discards(self) -> bool:
        """True when the storage can discard."""
        return self.vport.discards and not self.lun.readonly

    @property
    def zeroes(self) -> bool:
        """True when the storage can write zeroes by itself."""
        return self.vport.zeroes and not self.lun.readonly

    def peer(self) -> dict[str, Any] | None:
        """Return pid and name of the process that is connected."""
        return None if self.front is None else {"pid": self.front.connection.pid, "comm": self.front.connection.comm}

    async def close(self) -> None:
        """Close the socket and the connection; remove the socket."""
        self._closing = True
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._listener.close()
        self.path.unlink(missing_ok=True)

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._closing:
            try:
                await self._pace.turn(CONNECTION)
                connection, __ = await loop.sock_accept(self._listener)
            except OSError as problem:
                journal.error(f"{self.address}: cannot accept a connection: {problem}")
                await asyncio.sleep(1)
                continue
            front = self.front = FrontEnd(connection, self)
            self.vport.note("connected", lun=self.lun.lun, pid=front.connection.pid, comm=front.connection.comm)
            started = time.monotonic()
            try:
                await front.serve()
            except (VportdError, OSError) as problem:
                self.vport.note("disconnecting", lun=self.lun.lun, why=str(problem))
            except asyncio.CancelledError:
                self.front = None
                front.close()
                raise
            front.connection.shut_down()
            try:
                for ring in front.rings:
                    if ring.running:
                        await self.vport.stop_ring(self, ring, gone=True)
                await self.vport.forget(self)
            except (VportdError, OSError) as problem:
                journal.error(f"{self.address}: after the front end has gone: {problem}")
            finally:
                self.front = None
                front.close()
            self.vport.note("disconnected", lun=self.lun.lun, seconds=time.monotonic() - started)
            with contextlib.suppress(TimeoutError):
                await self.apart.done()

    def worker_died(self) -> None:
        """What it costs the front end that one has died which served it: another is not to be had without end."""
        self._pace.charge(DEATH)

    def tell_broken(self, ring: Ring) -> None:
        """Tell the front end that a ring is broken, where it has asked for that."""
        if ring.err >= 0:
            with contextlib.suppress(OSError):
                copy = os.dup(ring.err)
                self.apart.begin(lambda: _notify(copy))

    # front_end.Owner

    async def turn(self) -> bool:
        """Wait until the next message may be handled; False = the front end asks more than is its due."""
        return await self._pace.turn()

    def refuse_log(self) -> None:
        """Raise Refused where the dirty log cannot be kept."""
        try:
            self.vport.refuse_log()
        except Refused as problem:
            journal.warning(f"{self.address}: {problem}")
            raise

    async def memory_changed(self) -> None:
        """The memory table was replaced."""
        await self.vport.memory_changed(self)

    async def log_changed(self) -> None:
        """The dirty log, or what is to be logged, was changed."""
        await self.vport.log_changed(self)

    async def call_changed(self, ring: Ring) -> None:
        """The call descriptor of a running ring was replaced."""
        await self.vport.call_changed(self, ring)

    async def start_ring(self, ring: Ring) -> None:
        """Have a ring served."""
        await self.vport.start_ring(self, ring)

    async def stop_ring(self, ring: Ring) -> None:
        """Have a ring served no more, everything taken done."""
        await self.vport.stop_ring(self, ring)

    async def rings_stopping(self) -> None:
        """A ring was stopped by GET_VRING_BASE."""
        await self.vport.rings_stopping()
