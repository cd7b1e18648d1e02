# SPDX-License-Identifier: GPL-3.0-or-later
"""The workers of a vport: started, handed what they need, and replaced when they die. At any time at most one takes
requests.

Everything that touches workers runs under ``lock``; a worker's death is met by whoever finds it first, under that
lock, by ``_active``.
"""

import asyncio
import contextlib
import errno
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from vportd import journal
from vportd.adapter import Adapter
from vportd.blk_config import QUEUES
from vportd.errors import RpcError, StorageError, VportdError, WorkerDied, WorkerRefused
from vportd.extents import Extents
from vportd.front_end_state import Ring
from vportd.lun_port import LunPort
from vportd.mapping import Lun
from vportd.storage import open_storage
from vportd.surroundings import Surroundings
from vportd.temporary_memory import TemporaryMemory
from vportd.vport_record import VportRecord
from vportd.worker_client import PROOFS, WorkerClient

START_TIMEOUT = 60.0  # seconds for a worker to start, even under emulation
ANSWER_TIMEOUT = 20.0  # seconds for a worker to answer what needs no drain
GONE_TIMEOUT = 30.0  # seconds for the storage to be done with what a dead worker gave to it, before that is tried again
DEATHS, DEATHS_TIME = 5, 20.0  # so many workers dead in so many seconds are blamed on the front end that they served


def _node(path: str) -> tuple[int, ...] | None:
    """What tells one device at ``path`` from another that is there later; None when there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_rdev


class VportWorkers(VportRecord):
    """A vport with its workers, one a path."""

    def __init__(self, name: str, adapter: Adapter, around: Surroundings, incoming: bool = False) -> None:
        super().__init__(name, adapter, around, incoming)
        self.lock = asyncio.Lock()
        self._workers: dict[str, WorkerClient] = {}
        self._packed: tuple[tuple[Lun, ...], list[dict[str, Any]], TemporaryMemory] | None = None
        self._target = "pf"
        self.binding: list[str] = []  # VFs that it is being bound to
        self._deleted = False
        self._deaths: deque[float] = deque(maxlen=DEATHS)
        self._tasks: set[asyncio.Task[None]] = set()
        self._failing_since = 0.0  # 0: it does not

    async def _spawn(self, path: str) -> WorkerClient:
        """Start a worker for ``path`` and hand it all but the rings; it is suspended. Raises RpcError STORAGE."""
        try:
            device = self.adapter.device(self.adapter.pf) if path == "pf" else self.adapter.vf_device(self.vf or "")
            node = _node(device.path)
            storage = open_storage(device.path)
        except StorageError as problem:
            raise RpcError("STORAGE", f"vport {self.name}: {problem}") from problem
        self.block_size = device.block_size
        if path == "pf":
            self.discards, self.zeroes = device.discards, device.zeroes
        config = self.adapter.config
        uid, gid = self.around.worker_ids or (None, None)
        client = WorkerClient(
            f"{path.upper()} worker of vport {self.name}",
            self.around.lock_fd,
            lambda message: self._on_event(path, message),
            lambda: self._on_exit(path),
        )
        client.hurry = self.counters.hurry[path]
        client.device, client.node = device.path, node
        faults = [] if config.faults is None else [os.open(config.faults, os.O_RDONLY | os.O_CLOEXEC)]
        gate = self.leases.gate.reader()
        try:
            started = await client.call(
                "init",
                [storage, self.counters.fd, gate, *faults],
                START_TIMEOUT,
                vport=self.name,
                path=path,
                block_size=device.block_size,
                latency=config.latency,
                backend=config.backend,
                proofs=PROOFS,
                policy=self.policy_of(path),
                uid=uid,
                gid=gid,
            )
            await self._hand_mapping(client)
            for port in self.connected():
                try:
                    await self._push_memory(client, port)
                    if path == "pf":
                        await self._push_log(client, port)
                except WorkerRefused as problem:
                    self._disown(port, str(problem))
        except (VportdError, TimeoutError) as problem:
            await client.close()
            raise RpcError(
                "STORAGE", f"vport {self.name}: the {path.upper()} worker does not start: {problem}"
            ) from problem
        finally:
            for fd in (storage, gate, *faults):
                os.close(fd)
        if self._deleted:
            await client.close()
            raise RpcError("NOT_FOUND", f"vport {self.name} has been deleted meanwhile")
        self._workers[path] = client
        journal.info(
            f"vport {self.name}: {path.upper()} worker is pid {client.pid}, {device.path} through {started['backend']}"
        )
        return client

    async def _hand_mapping(self, client: WorkerClient) -> None:
        """Hand a worker the mapping, ready for look-ups, in memory that both workers are given."""
        __, records, file = await self._ready(self.luns)
        await client.call("mapping", [file.fd], ANSWER_TIMEOUT, luns=records)

    async def _ready(self, luns: tuple[Lun, ...]) -> tuple[tuple[Lun, ...], list[dict[str, Any]], TemporaryMemory]:
        """Make a mapping ready for look-ups, beside whatever else the engine has to do; once for each."""
        if self._packed is None or self._packed[0] is not luns:
            self._packed = (luns, *await asyncio.to_thread(self._pack, luns))
        return self._packed

    def _pack(self, luns: tuple[Lun, ...]) -> tuple[list[dict[str, Any]], TemporaryMemory]:
        records, content = [], []
        for one in luns:
            sizes, packed = Extents(one.extents.normalised(), one.readonly).pack()
            records.append({"lun": one.lun, "serial": f"{self.name}:{one.lun}", "bytes": len(packed), **sizes})
            content.append(packed)
        return records, TemporaryMemory("vportd-mapping", content)

    @staticmethod
    async def _push_memory(client: WorkerClient, port: LunPort) -> None:
        front = port.front
        if front is not None and front.memory:
            regions = [list(region) for region in front.memory]
            await client.call("memory", front.memory_fds, ANSWER_TIMEOUT, lun=port.lun.lun, regions=regions)

    @staticmethod
    async def _push_log(client: WorkerClient, port: LunPort) -> None:
        front = port.front
        if front is None:
            return
        used = [[ring.index, ring.log if front.logging else None] for ring in front.rings]
        log = front.log if front.logging else None
        fds, size, offset = ([log.fd], log.size, log.offset) if log is not None else ([], 0, 0)
        await client.call("log", fds, ANSWER_TIMEOUT, lun=port.lun.lun, size=size, offset=offset, used=used)

    async def _start_rings(self, client: WorkerClient, port: LunPort, rings: list[Ring], prepare: bool = False) -> None:
        """Give rings of one LUN to a worker; to ``prepare`` is to leave out their positions, which ``place`` tells. A
        ring that its driver has broken stays without a worker.
        """
        front = port.front
        if front is None or not rings:
            return
        fds: list[int] = []
        records = []
        for ring in rings:
            inflight, offset = front.inflight_of(ring)
            fds += [inflight, ring.kick] + ([ring.call] if ring.call >= 0 else [])
            records.append(
                {
                    "index": ring.index,
                    "size": ring.size,
                    "desc": ring.desc,
                    "avail": ring.avail,
                    "used": ring.used,
                    "base": ring.base,
                    "call": ring.call >= 0,
                    "inflight_offset": offset,
                    "used_log": ring.log if front.logging else None,
                }
            )
        answer = await client.call(
            "start", fds, ANSWER_TIMEOUT, lun=port.lun.lun, features=front.features, queues=records, prepare=prepare
        )
        if not prepare:
            self._started(port, answer)

    def _started(self, port: LunPort, answer: dict[str, Any]) -> None:
        front = port.front
        if front is None:
            return
        for index, why in answer["broken"]:
            front.rings[index].broken = why
            front.rings[index].running = False
            self.note("broken", lun=port.lun.lun, queue=index, why=why)
        for index, __, __, resubmitted in answer["queues"]:
            front.rings[index].broken = None
            front.rings[index].running = True
            if resubmitted:
                self.note("resubmitted", lun=port.lun.lun, queue=index, requests=resubmitted)

    def _disown(self, port: LunPort, why: str) -> None:
        """End the connection of a front end whose memory or rings cannot be served."""
        if port.front is None:
            return
        self.note("disowned", lun=port.lun.lun, why=why)
        for ring in port.front.rings:
            ring.running = False
        port.front.connection.shut_down()

    def _running(self) -> list[tuple[LunPort, list[Ring]]]:
        return [
            (port, [ring for ring in port.front.rings if ring.running])
            for port in self.connected()
            if port.front is not None
        ]

    def end_stale(self) -> bool:
        """End the worker whose device was taken away while another has come in its place, so that the next one opens
        that; what it has not done is in the in-flight regions. True when there was one.

        Leases ask at each renewal, so a device that is where it was costs one look at its node.
        """
        client = self._workers.get("pf")
        if client is None or not client.alive or _node(client.device) == client.node:
            return False
        try:
            now = _node(self.adapter.device(self.adapter.pf).path)
        except StorageError:
            return False  # there is none to change to
        if now is None or now == client.node:
            return False
        client.fail("lost its device, which is there anew")
        return True

    def lease_renewed(self) -> None:
        """Have the workers look at the gate again."""
        for client in self._workers.values():
            if client.alive:
                self._begin(self._look_at_gate(client))

    @staticmethod
    async def _look_at_gate(client: WorkerClient) -> None:
        with contextlib.suppress(WorkerDied, TimeoutError):
            await client.call("look", timeout=ANSWER_TIMEOUT)

    def lease_lost(self, why: str) -> None:
        """Fence the vport. Its workers are ended: what they took can be neither done nor waited for."""
        self.fenced, self.fence_on_stop = True, False
        self.fence_why = why
        if self.state == "RUNNING":
            self.stood_since = time.monotonic()
        self.note("lease_lost", why=why)
        journal.error(f"vport {self.name} is fenced: {why}")
        try:
            self.save()
        except RpcError as problem:
            journal.error(f"the fence of vport {self.name} is not on the disk: {problem}")
        for client in self._workers.values():
            client.kill()
        self._begin(self._rest())

    async def _rest(self) -> None:
        async with self.lock:
            if self.fenced:
                self.state = "FROZEN"

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _on_event(self, path: str, message: dict[str, Any]) -> None:
        if message.get("event") == "busy":
            self.sampler.wake()
        elif message.get("event") == "storage":
            self._storage_event(path, message.get("error"))
        elif message.get("event") == "broken":
            lun, index, why = message.get("lun"), message.get("index"), str(message.get("why"))
            self.note("broken", lun=lun, queue=index, why=why)
            port = self.ports.get(lun) if isinstance(lun, int) else None
            if port is not None and port.front is not None and isinstance(index, int) and 0 <= index < QUEUES:
                ring = port.front.rings[index]
                ring.broken = why
                port.tell_broken(ring)

    def _storage_event(self, path: str, code: object) -> None:
        """The storage fails, or is back. On the VF path its worker ends, so that the PF path takes over what failed."""
        name = errno.errorcode.get(code, str(code)) if isinstance(code, int) else str(code)
        if code:
            self.note("storage_failed", worker=path, error=name, policy=self.policy_of(path))
            self._failing_since = time.monotonic()
            if path == "vf" and self._alive("vf"):
                self._workers["vf"].fail(f"lost its storage ({name})")
            elif path == "pf":
                self._begin(self._look_for_another(self._workers["pf"]))
        else:
            self.note("storage_back", worker=path, seconds=time.monotonic() - self._failing_since)
            self._failing_since = 0.0

    async def _look_for_another(self, client: WorkerClient) -> None:
        """While the storage fails: see whether the device is there anew."""
        while self._failing_since and client.alive and not self._deleted:
            self.end_stale()
            await asyncio.sleep(1)

    def _on_exit(self, path: str) -> None:
        client = self._workers.get(path)
        if client is None or client.alive or client.closing or self._deleted:
            return
        if not client.failed:
            self._deaths.append(time.monotonic())
            for port, rings in self._running():
                if rings:
                    port.worker_died()
        self.note("worker_died", worker=path, how=client.exit_text)
        self._begin(self._replace(path))

    async def _replace(self, path: str) -> None:
        """After a death: see that somebody takes requests and that the PF worker is there, trying again until it is
        so.
        """
        while not self._deleted:
            try:
                async with self.lock:
                    await self._active()
                    if not self._alive("pf"):
                        await self._spawn("pf")
                    if path == "vf" and not self._alive("vf") and self.vf is not None and self.degraded is None:
                        self._degrade(f"the VF worker {self._workers['vf'].exit_text} while it was not in use")
                return
            except (VportdError, TimeoutError, OSError) as problem:
                self._degrade(f"no worker: {problem}")
            await asyncio.sleep(1)

    def _alive(self, path: str) -> bool:
        client = self._workers.get(path)
        return client is not None and client.alive

    async def _active(self) -> WorkerClient:
        """Return the worker that takes requests; when it has died, the PF worker takes over first, from the in-flight
        regions.
        """
        while not self._alive(self.path):
            await self._take_over()
        return self._workers[self.path]

    @staticmethod
    async def _kill(client: WorkerClient) -> None:
        """Kill a worker. One that hangs in its storage serves nothing more, and is gone once the storage answers."""
        client.kill()
        await asyncio.wait([client.ended], timeout=GONE_TIMEOUT)

    async def _end(self, client: WorkerClient, problem: Exception) -> None:
        """End a worker that does not do what it has to. Raises RpcError when it cannot be ended."""
        await self._kill(client)
        if client.alive:  # when it has ended the PF path takes over
            raise RpcError("STORAGE", f"vport {self.name}: {problem}, and it cannot be ended") from problem

    async def _take_over(self) -> None:
        dead = self._workers.get(self.path)
        how = dead.exit_text if dead is not None else "is not there"
        began = time.monotonic()
        if self.path == "vf":
            self._degrade(f"the VF worker {how}; the PF path has taken over")
        if dead is not None and not await dead.until_gone(GONE_TIMEOUT):
            raise RpcError(
                "STORAGE",
                f"vport {self.name}: {dead.who} {how}, and the storage is still busy with its requests after "
                f"{GONE_TIMEOUT:.0f} s: nobody takes over before they are done",
            )
        if len(self._deaths) == self._deaths.maxlen and time.monotonic() - self._deaths[0] < DEATHS_TIME:
            self._deaths.clear()
            for port, rings in self._running():
                if rings:
                    self._disown(port, f"{DEATHS} workers have died in {DEATHS_TIME:.0f} s while they served it")
        self.path = self._target = "pf"
        client = self._workers["pf"] if self._alive("pf") else await self._spawn("pf")
        try:
            for port, rings in self._running():
                for ring in rings:
                    ring.base = None
                await self._start_rings(client, port, rings)
            if not self.held:
                await client.call("resume", timeout=ANSWER_TIMEOUT)
        except WorkerDied:
            return
        except (WorkerRefused, TimeoutError) as problem:
            await self._end(client, problem)
            raise RpcError("STORAGE", f"vport {self.name}: the PF worker cannot take over: {problem}") from problem
        self.note("taken_over", how=how, seconds=time.monotonic() - began)
        try:
            self.save()
        except RpcError as problem:  # it serves, and the state file tells only where to begin after a restart
            journal.error(str(problem))

    @contextlib.asynccontextmanager
    async def _locked(self, timeout: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(timeout):
                await self.lock.acquire()
        except TimeoutError as problem:
            raise RpcError(
                "TIMEOUT", f"vport {self.name} was busy with something else for {timeout} s: try again", outstanding=[]
            ) from problem
        try:
            if self._deleted:
                raise RpcError("NOT_FOUND", f"vport {self.name} has been deleted meanwhile")
            yield
        except (WorkerDied, WorkerRefused, TimeoutError) as problem:
            raise RpcError("STORAGE", f"vport {self.name}: {problem}: look at the record, then try again") from problem
        finally:
            self.lock.release()
