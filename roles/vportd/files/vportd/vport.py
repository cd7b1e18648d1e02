# SPDX-License-Identifier: GPL-3.0-or-later
"""Vport: its verbs. Below it, one a file: what it is (``vport_record``), who takes its requests (``vport_workers``),
how that changes (``vport_hand_over``), what front ends ask of it (``vport_rings``).
"""

import asyncio
import contextlib
import os
import time
from typing import Any

from vportd.adapter import Adapter
from vportd.blk_config import QUEUES
from vportd.config import HOST_ID
from vportd.errors import RpcError, VportdError, WorkerDied, WorkerRefused
from vportd.front_end_state import Ring
from vportd.lun_port import LunPort
from vportd.mapping import Lun, only_grows, sha256
from vportd.surroundings import Surroundings
from vportd.vport_record import STATE_VERSION
from vportd.vport_return import VportReturn
from vportd.vport_workers import ANSWER_TIMEOUT
from vportd.worker_client import WorkerClient


class Vport(VportReturn):
    """One vport. Public coroutines are the verbs of the RPC; all of them are idempotent and raise RpcError."""

    def __init__(self, name: str, adapter: Adapter, around: Surroundings, incoming: bool = False) -> None:
        super().__init__(name, adapter, around, incoming)
        self.remapping = asyncio.Lock()  # whoever replaces the mapping or deletes the vport; ``lock`` is held less long
        self._suspended_by_user = False

    async def open(self, path: str = "pf") -> None:
        """Start the workers, on ``path`` where that is possible, then make the sockets. Raises RpcError STORAGE."""
        directory = self.around.run_dir / self.name
        directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        directory.chmod(0o750)
        if self.around.socket_owner is not None:
            os.chown(directory, 0, self.around.socket_owner[1])
        async with self.lock:
            try:
                await self._spawn("pf")
                if self.vf is not None:
                    await self._restore_binding(path)
                if not self.held:
                    await self._workers[self.path].call("resume", timeout=ANSWER_TIMEOUT)
            except (VportdError, TimeoutError):
                await self.close()
                raise
            self._make_ports()
            self.sampler.start()
        self.leases.open()

    async def _restore_binding(self, path: str) -> None:
        """After a restart of the engine: bind again where that is possible, else stay on the PF path and say so."""
        try:
            await self._spawn("vf")
            self.path = self._target = path
            if path != self.wanted:
                self._degrade("it was driven from its VF before the restart, and is on the PF path")
        except RpcError as problem:
            self._degrade(f"VF {self.vf} cannot be bound again after the restart, so it is on the PF path: {problem}")

    def _make_ports(self) -> None:
        for one in self.luns:
            port = self.ports.get(one.lun)
            if port is None:
                path = self.around.run_dir / self.name / f"{one.lun}.sock"
                self.ports[one.lun] = LunPort(self, one, path, self.around.socket_owner)
            else:
                grown = one.capacity != port.lun.capacity
                port.lun = one
                if grown and port.front is not None:
                    port.front.config_changed()

    async def switch(self, path: str, timeout: float) -> dict[str, Any]:
        """Hand the rings over to the other path: suspend, drain, state, resume. Back to RUNNING on the old one at the
        deadline.
        """
        async with self._locked(timeout):
            report = await self._switch(path, timeout)
            if self.wanted != path:
                self.wanted = path
                self.save()
            return report

    async def suspend(self, timeout: float) -> dict[str, Any]:
        """Suspend and drain."""
        async with self._locked(timeout):
            outstanding, seconds, __ = await self._freeze(timeout)
            self._suspended_by_user = True
            self.note("suspended", outstanding=outstanding, drain_seconds=seconds)
            return {"state": self.state, "outstanding": outstanding, "drain_seconds": seconds}

    async def resume(self, path: str | None) -> dict[str, Any]:
        """Take requests again, on ``path`` when one is given."""
        if path is not None:
            self._check_path(path)
        async with self._locked(ANSWER_TIMEOUT):
            if self.fenced:
                raise RpcError("REFUSED", f"vport {self.name} is fenced: unfence it first")
            if self.state != "FROZEN":
                if path is not None and path != self.path:
                    await self._switch(path, ANSWER_TIMEOUT)
                    self.wanted = path
                    self.save()
                return self.record()
            if path is not None and path != self.path:
                await self._move(path)
            if path is not None:
                self.wanted = path
            self._suspended_by_user = False
            await self._thaw()
            stood = time.monotonic() - self.stood_since
            await self._let_go()
            self.save()
            self._need_no_fence()
            self.note("resumed", blackout_seconds=stood)
            return self.record()

    def get_state(self) -> dict[str, Any]:
        """Return the queue state record of a FROZEN vport."""
        self._need_frozen()
        return self.queue_state()

    def _need_frozen(self) -> None:
        if self.state != "FROZEN":
            raise RpcError(
                "BAD_STATE",
                f"vport {self.name} is {self.state}, its queue state changes all the time: suspend it first",
            )

    async def set_state(self, state: object) -> dict[str, Any]:
        """Set the positions of a FROZEN vport's rings."""
        self._need_frozen()
        if not isinstance(state, dict) or state.get("version") != STATE_VERSION:
            version = state.get("version") if isinstance(state, dict) else None
            raise RpcError("INVALID", f"queue state of version {version!r}: this engine knows version {STATE_VERSION}")
        if state.get("checksum") != sha256({key: value for key, value in state.items() if key != "checksum"}):
            raise RpcError("INVALID", "the checksum of the queue state does not fit its content")
        if state.get("vport") != self.name:
            raise RpcError("INVALID", f"the queue state is of vport {state.get('vport')}, not of {self.name}")
        if state.get("generation") != self.generation or state.get("digest") != self.digest:
            raise RpcError(
                "STALE_GENERATION",
                f"the queue state is of generation {state.get('generation')}, the mapping of vport {self.name} is "
                f"of {self.generation}",
                generation=self.generation,
            )
        found = list(self._positions(state))
        async with self._locked(ANSWER_TIMEOUT):
            self._need_frozen()
            client = await self._active()
            for port, ring, last_avail in found:
                if ring.base != last_avail:
                    ring.base = last_avail
                    await self._start_rings(client, port, [ring])
        self.note("state_set")
        return {}

    def _positions(self, state: dict[str, Any]) -> list[tuple[LunPort, Ring, int]]:
        """Return port, ring and position for each queue of a state. Raises RpcError INVALID."""
        found = []
        try:
            for record in state["luns"]:
                port = self.ports.get(record["lun"])
                for queue in record["queues"]:
                    where = f"LUN {record['lun']} queue {queue['index']}"
                    if not all(0 <= queue[key] <= 0xFFFF for key in ("last_avail", "used")):
                        raise RpcError(
                            "INVALID",
                            f"{where}: last_avail {queue['last_avail']}, used {queue['used']}: from 0 to 65535",
                        )
                    if queue["last_avail"] != queue["used"]:
                        raise RpcError(
                            "INVALID",
                            f"{where}: last_avail {queue['last_avail']} is not used {queue['used']}: drain it first, "
                            "requests in flight are not handed over",
                        )
                    if port is None or port.front is None or not 0 <= queue["index"] < QUEUES:
                        raise RpcError("INVALID", f"{where}: no front end has started it here")
                    ring = port.front.rings[queue["index"]]
                    if not ring.running or ring.size != queue["size"]:
                        raise RpcError("INVALID", f"{where}: not started here with size {queue['size']}")
                    found.append((port, ring, queue["last_avail"]))
        except (KeyError, TypeError) as problem:
            raise RpcError("INVALID", f"the queue state is not complete: {problem}") from problem
        return found

    # Fence

    async def fence(self, when: str, following: str | None = None) -> dict[str, Any]:
        """Serve no ring any more, from now or from the next stop of the rings; ``following`` = the host that gets the
        leases then.
        """
        if when not in ("now", "on_stop"):
            raise RpcError("INVALID", f"when is {when!r}: it must be now or on_stop")
        if following is not None and not HOST_ID.fullmatch(following):
            raise RpcError("INVALID", f"next is {following!r}: it must be a host_id, as get_version tells it there")
        falls, began = not self.fenced, time.monotonic()
        if falls:
            if when == "on_stop":
                if not self.fence_on_stop or self.fence_next != following:
                    self.fence_on_stop, self.fence_next = True, following
                    self.save()
                    self.note("fence_armed", next=following)
                return self.record()
            self.fence_next = following
            self._fence_falls()
            self.save()
        try:
            async with self._locked(10):
                await self._freeze(10)
        finally:
            if falls:
                self.note("fenced", when="now", seconds=time.monotonic() - began)
        if self.leases.to_pass:
            await self.leases.give_up()
        return self.record()

    async def unfence(self) -> dict[str, Any]:
        """Serve rings again, with the leases taken back."""
        if self.fenced:
            await self.leases.take()
        if self.fenced or self.fence_on_stop:
            async with self._locked(ANSWER_TIMEOUT):
                self.fenced = self.fence_on_stop = False
                self.fence_next = self.fence_why = None
                self.save()
                stood: dict[str, float] = {}
                if self.state != "RUNNING" and not self._suspended_by_user:
                    await self._thaw()
                    stood["blackout_seconds"] = time.monotonic() - self.stood_since
                self.note("unfenced", **stood)
        return self.record()

    async def take_leases(self, force: bool) -> dict[str, Any]:
        """Become the owner of all leases, with ``force`` also of those whose owner gives no sign of life."""
        await self.leases.take(force)
        self.incoming = False
        self.save()
        self.note("lease_broken" if force else "lease_taken")
        return self.record()

    # Mapping

    def refuse_mapping(self, luns: tuple[Lun, ...]) -> None:
        """Raise RpcError IN_USE when a LUN with a front end would go, shrink or become another vdisk."""
        new = {one.lun: one for one in luns}
        for port in self.connected():
            old, other = port.lun, new.get(port.lun.lun)
            peer = port.peer() or {}
            user = f"front end {peer.get('comm')} (pid {peer.get('pid')}) uses it"
            if other is None:
                raise RpcError("IN_USE", f"LUN {old.lun} ({old.vdisk}) cannot be removed: {user}", **peer)
            if other.vdisk != old.vdisk:
                raise RpcError(
                    "IN_USE", f"LUN {old.lun} cannot change from vdisk {old.vdisk} to {other.vdisk}: {user}", **peer
                )
            if other.capacity < old.capacity:
                raise RpcError(
                    "IN_USE",
                    f"LUN {old.lun} cannot shrink from {old.capacity} to {other.capacity} bytes: {user}",
                    **peer,
                )

    async def set_mapping(self, luns: tuple[Lun, ...], name: str, timeout: float) -> None:
        """Replace the mapping by one that was checked, of which ``name`` is the digest. No request is done half by the
        one and half by the other.
        """
        self.refuse_mapping(luns)
        fresh = await self.leases.claim(luns)
        try:
            await self._set_mapping(luns, name, timeout)
        except BaseException:
            await self.leases.abandon(fresh)
            raise
        await self.leases.settle(fresh)
        self.save()

    async def _set_mapping(self, luns: tuple[Lun, ...], name: str, timeout: float) -> None:
        await self._ready(luns)  # takes a while: before the rings stand still and somebody waits for the lock
        async with self._locked(timeout):
            self.refuse_mapping(luns)
            frozen = bool(self.connected()) and self.state == "RUNNING" and not only_grows(self.luns, luns)
            if frozen:
                await self._freeze(timeout)
            old = self.luns, self.generation
            try:
                self.luns, self.generation = luns, self.generation + 1
                try:
                    self.save()
                except RpcError:
                    self.luns, self.generation = old
                    raise
                self._digest = (luns, name)
                for path in ("pf", "vf"):
                    if self._alive(path):
                        await self._push_mapping(self._workers[path])
                kept = {one.lun for one in luns}
                for lun in set(self.ports) - kept:
                    await self.ports.pop(lun).close()
                    self.counters.forget(lun)
                self._make_ports()
            finally:
                if frozen:
                    await self._thaw()
            self.note("mapping", luns=len(luns))

    async def _push_mapping(self, client: WorkerClient) -> None:
        """Hand the mapping to a worker; one that does not take it is ended, and its successor starts with it."""
        try:
            await self._hand_mapping(client)
        except (WorkerRefused, TimeoutError):
            await self._kill(client)
        except WorkerDied:
            return

    # Binding

    async def bind(self, vf: str, path: str, timeout: float) -> dict[str, Any] | None:
        """Bind to a VF and move to ``path``. Returns the report of the switch, None when there was none."""
        if path not in ("vf", "pf"):
            raise RpcError("INVALID", f"path is {path!r}: it must be vf or pf")
        self.binding.append(vf)
        try:
            return await self._bind(vf, path, timeout)
        finally:
            self.binding.remove(vf)

    async def _bind(self, vf: str, path: str, timeout: float) -> dict[str, Any] | None:
        async with self._locked(timeout):
            if not self.generation:
                raise RpcError("BAD_STATE", f"vport {self.name} has no mapping yet: set it before the binding")
            if self.vf not in (None, vf):
                raise RpcError("IN_USE", f"vport {self.name} is bound to VF {self.vf}: unbind it first", vf=self.vf)
            await self._active()
            if self.vf is None or not self._alive("vf"):
                fresh = self.vf is None
                self.vf = vf
                try:
                    await self._spawn("vf")
                    self.save()
                except RpcError:
                    if fresh:
                        await self._close_vf()
                        self.vf = None
                    raise
                if fresh:
                    self.note("bound", vf=vf)
                if path == self.path:
                    self.degraded = None
            before, self.wanted = self.wanted, path
            try:
                report = None if path == self.path else await self._switch(path, timeout)
            except RpcError:
                self.wanted = before
                raise
            if self.wanted != before:
                self.save()
            return report

    async def unbind(self, timeout: float) -> dict[str, Any] | None:
        """Move to the PF path, then let go of the VF. Returns the report of the switch, None when there was none."""
        async with self._locked(timeout):
            if self.vf is None:
                return None
            report = None
            if self.path == "vf":
                if self.state == "FROZEN":
                    await self._move("pf")
                else:
                    report = await self._switch("pf", timeout)
            await self._close_vf()
            vf, self.vf = self.vf, None
            self.degraded = None
            self.wanted = "pf"
            self.save()
            self.note("unbound", vf=vf)
            return report

    async def _close_vf(self) -> None:
        client = self._workers.pop("vf", None)
        if client is not None and client.alive:
            await client.close()

    async def close(self, forget: bool = False) -> None:
        """End everything of this vport but its state file; ``forget``: also give up its leases."""
        self._deleted = True
        for task in list(self._tasks):
            task.cancel()
        for port in list(self.ports.values()):
            await port.close()
        self.ports.clear()
        for client in list(self._workers.values()):
            if client.alive:
                await client.close()
        await self.leases.close(forget)
        with contextlib.suppress(OSError):
            (self.around.run_dir / self.name).rmdir()
        self.sampler.stop()
        self.counters.close()
