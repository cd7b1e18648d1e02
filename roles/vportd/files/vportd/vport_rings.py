# SPDX-License-Identifier: GPL-3.0-or-later
"""What the front ends of a vport ask of it: rings started and stopped, memory and dirty log handed on
(``lun_port.Server``).
"""

import contextlib
import time

from vportd.errors import ProtocolError, Refused, WorkerDied, WorkerRefused
from vportd.front_end_state import Ring
from vportd.lun_port import LunPort
from vportd.vport_hand_over import VportHandOver
from vportd.vport_workers import ANSWER_TIMEOUT


class VportRings(VportHandOver):
    """A vport that serves front ends."""

    def refuse_log(self) -> None:
        """Raise Refused on the VF path: what a VF writes cannot be logged."""
        if "vf" in (self.path, self._target):
            raise Refused(
                "the dirty log cannot be kept on the VF path: switch the vport to the PF path before the migration"
            )

    async def memory_changed(self, port: LunPort) -> None:
        """Hand a new memory table to both workers. Raises ProtocolError when it cannot be."""
        async with self.lock:
            for path in ("pf", "vf"):
                try:
                    if self._alive(path):
                        await self._push_memory(self._workers[path], port)
                except WorkerRefused as problem:
                    raise ProtocolError(f"memory table: {problem}") from problem
                except TimeoutError:
                    self._workers[path].kill()
                except WorkerDied:
                    continue

    async def log_changed(self, port: LunPort) -> None:
        """Hand the dirty log to the PF worker; the VF path has none."""
        async with self.lock:
            try:
                if self._alive("pf"):
                    await self._push_log(self._workers["pf"], port)
            except WorkerRefused as problem:
                raise ProtocolError(f"dirty log: {problem}") from problem
            except TimeoutError:
                self._workers["pf"].kill()
            except WorkerDied:
                return
        if port.front is not None and port.front.logging != port.front.told_logging:
            port.front.told_logging = port.front.logging
            self.note("logging", lun=port.lun.lun, on=port.front.logging)

    async def call_changed(self, port: LunPort, ring: Ring) -> None:
        """Hand a new call descriptor to the active worker."""
        async with self.lock:
            with contextlib.suppress(WorkerDied):
                client = await self._active()
                fds = [ring.call] if ring.call >= 0 else []
                await client.call("call", fds, ANSWER_TIMEOUT, lun=port.lun.lun, index=ring.index)

    async def start_ring(self, port: LunPort, ring: Ring) -> None:
        """Have the active worker serve a ring; while the vport is held it has the ring and takes nothing."""
        while True:
            async with self.lock:
                client = await self._active()
                try:
                    await self._start_rings(client, port, [ring])
                except WorkerDied:
                    continue
                except TimeoutError as problem:
                    client.kill()
                    raise ProtocolError(f"the {self.path.upper()} worker does not answer") from problem
                if self.incoming and not self.held:
                    self.leases.ring_starts()
                    if not self.leases.waiting:
                        self.incoming = False
                        self.save()
                return

    async def stop_ring(self, port: LunPort, ring: Ring, gone: bool = False) -> None:
        """Have nothing more taken from a ring, and return when everything taken is done, however long that is. When the
        front end has ``gone``, what waits for the storage is left to its successor.
        """
        while True:
            async with self.lock:
                client = await self._active()
                if not ring.running:
                    return
                try:
                    drain = self.leases.lost is None
                    answer = await client.call("stop", lun=port.lun.lun, index=ring.index, gone=gone, drain=drain)
                except WorkerDied:
                    continue
                ring.base = answer["last_avail"]
                ring.running = False
                return

    async def rings_stopping(self) -> None:
        """The front end stops its rings: a vport that is to fence itself does so before the answer goes out."""
        if not self.fence_on_stop or self.fenced:
            return
        began = time.monotonic()
        self._fence_falls()
        self.save()
        async with self.lock:
            await self._freeze(None)
        self.note("fenced", when="on_stop", seconds=time.monotonic() - began)
        await self.leases.give_up()

    def _fence_falls(self) -> None:
        """Fenced from here on; once all is drained the leases go to the host that was named, or are free."""
        self.fenced, self.fence_on_stop = True, False
        self.leases.to_pass, self.leases.passing = True, self.fence_next

    async def forget(self, port: LunPort) -> None:
        """Let go of the memory of a front end that has gone."""
        async with self.lock:
            for client in self._workers.values():
                if client.alive:
                    with contextlib.suppress(WorkerDied, TimeoutError):
                        await client.call("drop", timeout=ANSWER_TIMEOUT, lun=port.lun.lun)
