# SPDX-License-Identifier: GPL-3.0-or-later
"""Vport: its LUNs, its two paths to the storage, and which of them takes requests. At any time at most one worker does.

A change of who takes requests is always: suspend and drain the one, carry the positions over through this process,
start the other. Everything that touches workers runs under ``lock``; a worker's death is met by whoever finds it
first, under that lock, by ``_active``.
"""

import asyncio
import contextlib
import mmap
import os
import socket
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vportd import journal, state_file
from vportd.adapter import Adapter
from vportd.blk import COUNTERS_SIZE
from vportd.errors import ProtocolError, RpcError, StorageError, VportdError, WorkerDied, WorkerRefused
from vportd.extents import Extents
from vportd.front_end import QUEUES, Refused, Ring
from vportd.lun_port import LunPort
from vportd.mapping import MAX_LUN, Lun, digest, sha256
from vportd.storage import open_storage
from vportd.worker_client import WorkerClient

START_TIMEOUT = 60.0  # seconds for a worker to start, even under emulation
ANSWER_TIMEOUT = 20.0  # seconds for a worker to answer what needs no drain
IDLE_TIMEOUT = 30.0  # seconds for a VF's block device to be idle after its worker has died
DEATHS, DEATHS_TIME = 5, 20.0  # so many workers dead in so many seconds are blamed on the front end that they served
STATE_VERSION = 1
COUNTERS = ("reads", "writes", "flushes", "errors", "bytes_read", "bytes_written", "dirty_pages")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all vports share: directories, who owns sockets and workers (None = leave it), and the lock each worker
    holds.
    """

    run_dir: Path
    state_dir: Path
    socket_owner: tuple[int, int] | None
    worker_ids: tuple[int, int] | None
    lock_fd: int


class Vport:
    """One vport. Public coroutines are the verbs of the RPC; all of them are idempotent and raise RpcError."""

    def __init__(self, name: str, adapter: Adapter, around: Surroundings, incoming: bool = False) -> None:
        self.name = name
        self.adapter = adapter
        self.around = around
        self.incoming = incoming
        self.fenced = False
        self.fence_on_stop = False
        self.state = "RUNNING"
        self.path = "pf"
        self.vf: str | None = None
        self.degraded: str | None = None
        self.generation = 0
        self.luns: tuple[Lun, ...] = ()
        self.ports: dict[int, LunPort] = {}
        self.history: deque[dict[str, Any]] = deque(maxlen=200)
        self.lock = asyncio.Lock()
        self.block_size = 512
        self._workers: dict[str, WorkerClient] = {}
        self._suspended_by_user = False
        self._target = "pf"
        self._deleted = False
        self._deaths: deque[float] = deque(maxlen=DEATHS)
        self._tasks: set[asyncio.Task[None]] = set()
        self._counters_fd = os.memfd_create("vportd-counters", os.MFD_CLOEXEC)
        size = (MAX_LUN + 1) * QUEUES * COUNTERS_SIZE
        os.ftruncate(self._counters_fd, size)
        self._counters = memoryview(mmap.mmap(self._counters_fd, size)).cast("Q")

    # State on disk, history

    @property
    def state_path(self) -> Path:
        """The state file."""
        return self.around.state_dir / "vports" / f"{self.name}.json"

    def save(self) -> None:
        """Write the state file. Raises RpcError STORAGE, and then nothing has changed on disk."""
        record = {
            "vport": self.name,
            "adapter": self.adapter.pf,
            "incoming": self.incoming,
            "fenced": self.fenced,
            "fence_on_stop": self.fence_on_stop,
            "vf": self.vf,
            "path": self.path,
            "generation": self.generation,
            "luns": [one.as_json() for one in self.luns],
        }
        try:
            state_file.save(self.state_path, record)
        except OSError as problem:
            raise RpcError("STORAGE", f"the state of vport {self.name} cannot be written: {problem}") from problem

    def note(self, event: str, **detail: object) -> None:
        """Add one line to the history."""
        entry = {
            "time": time.time(),
            "event": event,
            "path": self.path,
            "generation": self.generation,
            "detail": detail,
        }
        self.history.append(entry)

    def _degrade(self, why: str) -> None:
        self.degraded = why
        self.note("degraded", why=why)
        journal.warning(f"vport {self.name}: {why}")

    # Records

    @property
    def held(self) -> bool:
        """True while no ring of this vport may be served."""
        return self.fenced or self.state != "RUNNING"

    @property
    def digest(self) -> str | None:
        """Digest of the mapping, None before there is one."""
        return digest(self.luns) if self.generation else None

    def connected(self) -> list[LunPort]:
        """Return the LUNs with a front end."""
        return [port for port in self.ports.values() if port.front is not None]

    def outstanding(self) -> int:
        """Return how many requests were taken and are not done."""
        return sum(
            self._counter(port.lun.lun, ring.index, 2)
            for port in self.connected()
            if port.front
            for ring in port.front.rings
            if ring.running
        )

    def _counter(self, lun: int, queue: int, word: int) -> int:
        return int(self._counters[(lun * QUEUES + queue) * (COUNTERS_SIZE // 8) + word])

    def _queue_record(self, lun: int, ring: Ring) -> dict[str, Any]:
        return {
            "index": ring.index,
            "size": ring.size,
            "started": ring.running,
            "last_avail": self._counter(lun, ring.index, 0) if ring.running else (ring.base or 0),
            "used": self._counter(lun, ring.index, 1) if ring.running else (ring.base or 0),
            "outstanding": self._counter(lun, ring.index, 2) if ring.running else 0,
        }

    def _lun_record(self, port: LunPort) -> dict[str, Any]:
        lun, front = port.lun.lun, port.front
        rings = [] if front is None else [ring for ring in front.rings if ring.size]
        return {
            "lun": lun,
            "vdisk": port.lun.vdisk,
            "capacity": port.capacity,
            "readonly": port.readonly,
            "address": port.address,
            "socket": str(port.path),
            "connected": front is not None,
            "front_end": port.peer(),
            "logging": front is not None and front.logging,
            "queues": [self._queue_record(lun, ring) for ring in rings],
            "counters": {
                name: sum(self._counter(lun, queue, 3 + word) for queue in range(QUEUES))
                for word, name in enumerate(COUNTERS)
            },
        }

    def record(self) -> dict[str, Any]:
        """Return all there is to say about this vport."""
        return {
            "vport": self.name,
            "adapter": self.adapter.pf,
            "state": self.state,
            "path": self.path,
            "vf": self.vf,
            "degraded": self.degraded,
            "fenced": self.fenced,
            "fence_on_stop": self.fence_on_stop,
            "incoming": self.incoming,
            "generation": self.generation,
            "digest": self.digest,
            "outstanding": self.outstanding(),
            "luns": [self._lun_record(self.ports[one.lun]) for one in self.luns],
            "history": list(self.history),
        }

    def queue_state(self) -> dict[str, Any]:
        """Return the queue state record: where in each ring the next request lies."""
        luns = []
        for port in self.connected():
            front = port.front
            assert front is not None
            queues = []
            for ring in front.rings:
                if ring.running:
                    record = self._queue_record(port.lun.lun, ring)
                    addresses = {"desc": ring.desc, "avail": ring.avail, "used_ring": ring.used}
                    for name, user in addresses.items():
                        for gpa, size, start, _ in front.memory:
                            if start <= user < start + size:
                                addresses[name] = gpa + user - start
                    queues.append(
                        {
                            "index": ring.index,
                            "size": ring.size,
                            **addresses,
                            "last_avail": record["last_avail"],
                            "used": record["used"],
                            "inflight": [],
                        }
                    )
            luns.append({"lun": port.lun.lun, "features": front.features, "queues": queues})
        state = {
            "version": STATE_VERSION,
            "vport": self.name,
            "generation": self.generation,
            "digest": self.digest,
            "luns": luns,
        }
        return {**state, "checksum": sha256(state)}

    # Workers

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

    async def _restore_binding(self, path: str) -> None:
        """After a restart of the engine: bind again where that is possible, else stay on the PF path and say so."""
        try:
            await self._spawn("vf")
            self.path = self._target = path
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

    async def _spawn(self, path: str) -> WorkerClient:
        """Start a worker for ``path`` and hand it all but the rings; it is suspended. Raises RpcError STORAGE."""
        try:
            device = self.adapter.device(self.adapter.pf) if path == "pf" else self.adapter.vf_device(self.vf or "")
            storage = open_storage(device.path)
        except StorageError as problem:
            raise RpcError("STORAGE", f"vport {self.name}: {problem}") from problem
        self.block_size = device.block_size
        config = self.adapter.config
        uid, gid = self.around.worker_ids or (None, None)
        client = WorkerClient(
            f"{path.upper()} worker of vport {self.name}",
            self.around.lock_fd,
            self._on_event,
            lambda: self._on_exit(path),
        )
        try:
            started = await client.call(
                "init",
                [storage, self._counters_fd],
                START_TIMEOUT,
                vport=self.name,
                path=path,
                block_size=device.block_size,
                latency=config.latency,
                backend=config.backend,
                uid=uid,
                gid=gid,
            )
            await client.call("mapping", timeout=ANSWER_TIMEOUT, luns=self._mapping_for_worker())
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
            os.close(storage)
        self._workers[path] = client
        journal.info(
            f"vport {self.name}: {path.upper()} worker is pid {client.pid}, {device.path} through {started['backend']}"
        )
        return client

    def _mapping_for_worker(self) -> list[dict[str, Any]]:
        return [
            {"lun": one.lun, "serial": f"{self.name}:{one.lun}", "readonly": one.readonly, "extents": one.normalised()}
            for one in self.luns
        ]

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

    async def _start_rings(self, client: WorkerClient, port: LunPort, rings: list[Ring]) -> None:
        """Give rings of one LUN to a worker. A ring that its driver has broken stays without one."""
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
            "start", fds, ANSWER_TIMEOUT, lun=port.lun.lun, features=front.features, queues=records
        )
        for index, why in answer["broken"]:
            front.rings[index].broken = why
            front.rings[index].running = False
            self.note("broken", lun=port.lun.lun, queue=index, why=why)
        for index, _, _, resubmitted in answer["queues"]:
            front.rings[index].broken = None
            front.rings[index].running = True
            if resubmitted:
                self.note("resubmitted", lun=port.lun.lun, queue=index, requests=resubmitted)
                journal.info(f"{port.address} queue {index}: {resubmitted} requests were in flight and are done again")

    def _disown(self, port: LunPort, why: str) -> None:
        """End the connection of a front end whose memory or rings cannot be served."""
        if port.front is None:
            return
        journal.error(f"{port.address}: its front end is disconnected: {why}")
        self.note("disowned", lun=port.lun.lun, why=why)
        for ring in port.front.rings:
            ring.running = False
        with contextlib.suppress(OSError):
            port.front.connection.shutdown(socket.SHUT_RDWR)

    def _running(self) -> list[tuple[LunPort, list[Ring]]]:
        return [
            (port, [ring for ring in port.front.rings if ring.running])
            for port in self.connected()
            if port.front is not None
        ]

    def _on_event(self, message: dict[str, Any]) -> None:
        if message.get("event") == "broken":
            lun, index, why = message.get("lun"), message.get("index"), str(message.get("why"))
            self.note("broken", lun=lun, queue=index, why=why)
            port = self.ports.get(lun) if isinstance(lun, int) else None
            if port is not None and port.front is not None and isinstance(index, int) and 0 <= index < QUEUES:
                ring = port.front.rings[index]
                ring.broken = why
                if ring.err >= 0:
                    with contextlib.suppress(OSError):
                        os.set_blocking(ring.err, False)
                        os.write(ring.err, (1).to_bytes(8, "little"))

    def _on_exit(self, path: str) -> None:
        client = self._workers.get(path)
        if client is None or client.alive or client.closing or self._deleted:
            return
        self._deaths.append(time.monotonic())
        self.note("worker_died", worker=path, how=client.exit_text)
        task = asyncio.create_task(self._replace(path))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

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
            except (VportdError, TimeoutError) as problem:
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

    async def _take_over(self) -> None:
        dead = self._workers.get(self.path)
        how = dead.exit_text if dead is not None else "is not there"
        if self.path == "vf":
            self._degrade(f"the VF worker {how}; the PF path has taken over")
            await self._wait_idle()
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
            client.kill()
            await client.ended
            raise RpcError("STORAGE", f"vport {self.name}: the PF worker cannot take over: {problem}") from problem
        self.note("taken_over", how=how)
        self.save()

    async def _wait_idle(self) -> None:
        """Wait until what a dead VF worker had submitted is done: it must not land after a later write of the guest."""
        try:
            device = self.adapter.vf_device(self.vf or "")
        except StorageError:
            return
        deadline = time.monotonic() + IDLE_TIMEOUT
        while not device.is_idle():
            if time.monotonic() > deadline:
                journal.error(
                    f"vport {self.name}: {device.path} still has requests of the dead VF worker after "
                    f"{IDLE_TIMEOUT:.0f} s"
                )
                return
            await asyncio.sleep(0.005)

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
            yield
        except (WorkerDied, WorkerRefused, TimeoutError) as problem:
            raise RpcError("STORAGE", f"vport {self.name}: {problem}: look at the record, then try again") from problem
        finally:
            self.lock.release()

    # lun_port.Server

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
        if port.front is not None:
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
                    self.incoming = False
                    self.save()
                return

    async def stop_ring(self, port: LunPort, ring: Ring) -> None:
        """Have nothing more taken from a ring, and return when everything taken is done, however long that is."""
        while True:
            async with self.lock:
                client = await self._active()
                if not ring.running:
                    return
                try:
                    answer = await client.call("stop", lun=port.lun.lun, index=ring.index)
                except WorkerDied:
                    continue
                ring.base = answer["last_avail"]
                ring.running = False
                return

    async def rings_stopping(self) -> None:
        """The front end stops its rings: a vport that is to fence itself does so before the answer goes out."""
        if not self.fence_on_stop or self.fenced:
            return
        self.fenced, self.fence_on_stop = True, False
        self.save()
        async with self.lock:
            await self._freeze(None)
        self.note("fenced", when="on_stop")
        journal.info(f"vport {self.name} has fenced itself: its front end has stopped the rings")

    async def forget(self, port: LunPort) -> None:
        """Let go of the memory of a front end that has gone."""
        async with self.lock:
            for client in self._workers.values():
                if client.alive:
                    with contextlib.suppress(WorkerDied, TimeoutError):
                        await client.call("drop", timeout=ANSWER_TIMEOUT, lun=port.lun.lun)

    # Suspend, drain, resume

    async def _freeze(self, timeout: float | None) -> tuple[int, float]:
        """Suspend and drain the active worker; state becomes FROZEN. Returns requests outstanding at first, and
        seconds.

        Raises RpcError TIMEOUT after going back to what was before.
        """
        began = time.monotonic()
        outstanding = self.outstanding()
        if self.state == "FROZEN":
            return 0, 0.0
        self.state = "QUIESCED"
        while True:
            try:
                client = await self._active()
            except RpcError:
                self.state = "FROZEN" if self.fenced else "RUNNING"
                raise
            left = None if timeout is None else max(0.001, timeout - (time.monotonic() - began))
            try:
                answer = await client.call("suspend", timeout=left)
                break
            except WorkerDied:
                continue
            except TimeoutError as problem:
                listed = await self._roll_back(client)
                raise RpcError(
                    "TIMEOUT",
                    f"vport {self.name}: {len(listed)} requests were still outstanding after {timeout} s: it runs "
                    f"on, on the {self.path} path",
                    outstanding=listed,
                ) from problem
        for lun, index, last_avail, used, broken in answer["queues"]:
            port = self.ports.get(lun)
            if port is None or port.front is None:
                continue
            ring = port.front.rings[index]
            ring.base = last_avail
            if last_avail != used and broken is None:
                await self._roll_back(client)
                raise RpcError(
                    "BAD_STATE",
                    f"{port.address} queue {index}: drained, yet last_avail {last_avail} is not used {used}",
                )
            if broken is not None:
                ring.base = None
        self.state = "FROZEN"
        return outstanding, time.monotonic() - began

    async def _roll_back(self, client: WorkerClient) -> list[dict[str, Any]]:
        """Back to RUNNING after a drain that did not end (a fence stays). Returns what was outstanding."""
        listed: list[dict[str, Any]] = []
        with contextlib.suppress(WorkerDied, TimeoutError):
            listed = (await client.call("outstanding", timeout=2))["outstanding"]
        if not self.fenced:
            self.state = "RUNNING"
            with contextlib.suppress(WorkerDied, TimeoutError):
                await client.call("resume", timeout=2)
        self.note("rolled_back", outstanding=len(listed))
        return listed

    async def _thaw(self) -> None:
        """Take requests again, on the path that there is."""
        self.state = "RUNNING"
        while True:
            client = await self._active()
            try:
                await client.call("resume", timeout=ANSWER_TIMEOUT)
                return
            except WorkerDied:
                continue

    async def _move(self, path: str) -> float:
        """Carry the rings of a FROZEN vport to the worker of ``path``, still suspended. Returns the seconds.

        When the new worker fails, the old one still has everything, and RpcError is raised.
        """
        began = time.monotonic()
        old = await self._active()
        try:
            if not self._alive(path):
                await self._spawn(path)
            new = self._workers[path]
            if path == "pf":
                for port in self.connected():
                    await self._push_log(new, port)
            for port, rings in self._running():
                await self._start_rings(new, port, rings)
        except (WorkerDied, WorkerRefused, TimeoutError) as problem:
            if self._alive(path):
                self._workers[path].kill()
            raise RpcError("STORAGE", f"vport {self.name} stays on the {self.path} path: {problem}") from problem
        self.path = self._target = path
        if old.alive:
            with contextlib.suppress(WorkerDied, TimeoutError):
                await old.call("drop", timeout=ANSWER_TIMEOUT, lun=None)
        return time.monotonic() - began

    def _check_path(self, path: str) -> None:
        if path not in ("vf", "pf"):
            raise RpcError("INVALID", f"path is {path!r}: it must be vf or pf")
        if path == "vf" and self.vf is None:
            raise RpcError("BAD_STATE", f"vport {self.name} is not bound to a VF: bind it first")
        if path == "vf" and path != self.path:
            for port in self.connected():
                if port.front is not None and port.front.logging:
                    raise RpcError(
                        "REFUSED",
                        f"{port.address}: its front end logs what is written to its memory, for a migration, and "
                        f"a VF cannot: wait for its end",
                    )

    async def _switch(self, path: str, timeout: float) -> dict[str, Any]:
        """The whole of a switch, under the lock."""
        self._check_path(path)
        before = self.queue_state()
        report: dict[str, Any] = {
            "changed": False,
            "from": self.path,
            "to": path,
            "outstanding": 0,
            "drain_seconds": 0.0,
            "transfer_seconds": 0.0,
            "resume_seconds": 0.0,
            "blackout_seconds": 0.0,
            "state_before": before,
            "state_after": before,
        }
        if path == self.path and self._alive(path):
            return report
        if self.state != "RUNNING" or self.fenced:
            raise RpcError(
                "BAD_STATE",
                f"vport {self.name} is {'fenced' if self.fenced else self.state}: resume it, with the path, or "
                f"unfence it",
            )
        if not self._alive(path):
            await self._spawn(path)
        self._target = path
        began = time.monotonic()
        try:
            report["outstanding"], report["drain_seconds"] = await self._freeze(timeout)
            report["state_before"] = self.queue_state()
            if self.path != path:
                report["transfer_seconds"] = await self._move(path)
            report["state_after"] = self.queue_state()
        except RpcError:
            self._target = self.path
            if self.state == "FROZEN":
                await self._thaw()
            raise
        resuming = time.monotonic()
        await self._thaw()
        now = time.monotonic()
        report.update(changed=True, resume_seconds=now - resuming, blackout_seconds=now - began)
        if path == self.path:
            self.degraded = None
        self.save()
        times = {key: value for key, value in report.items() if key.endswith("seconds")}
        self.note("switched", **{"from": report["from"]}, to=path, outstanding=report["outstanding"], **times)
        journal.info(
            f"vport {self.name}: switched from {report['from']} to {path}, {report['outstanding']} requests drained in "
            f"{report['drain_seconds'] * 1e3:.1f} ms, blackout {report['blackout_seconds'] * 1e3:.1f} ms"
        )
        return report

    async def switch(self, path: str, timeout: float) -> dict[str, Any]:
        """Hand the rings over to the other path: suspend, drain, state, resume. Back to RUNNING on the old one at the
        deadline.
        """
        async with self._locked(timeout):
            return await self._switch(path, timeout)

    async def suspend(self, timeout: float) -> dict[str, Any]:
        """Suspend and drain."""
        async with self._locked(timeout):
            outstanding, seconds = await self._freeze(timeout)
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
                return self.record()
            if path is not None and path != self.path:
                self._target = path
                try:
                    self._check_path(path)
                    await self._move(path)
                finally:
                    self._target = self.path
            self._suspended_by_user = False
            await self._thaw()
            self.save()
            self.note("resumed")
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

    async def fence(self, when: str) -> dict[str, Any]:
        """Serve no ring any more, from now or from the next stop of the rings."""
        if when not in ("now", "on_stop"):
            raise RpcError("INVALID", f"when is {when!r}: it must be now or on_stop")
        if not self.fenced:
            if when == "on_stop":
                if not self.fence_on_stop:
                    self.fence_on_stop = True
                    self.save()
                    self.note("fence_armed")
                return self.record()
            self.fenced, self.fence_on_stop = True, False
            self.save()
            self.note("fenced", when="now")
        if self.state != "FROZEN":
            async with self._locked(10):
                await self._freeze(10)
        return self.record()

    async def unfence(self) -> dict[str, Any]:
        """Serve rings again."""
        if self.fenced or self.fence_on_stop:
            async with self._locked(ANSWER_TIMEOUT):
                self.fenced = self.fence_on_stop = False
                self.save()
                if self.state != "RUNNING" and not self._suspended_by_user:
                    await self._thaw()
                self.note("unfenced")
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

    def _only_grows(self, luns: tuple[Lun, ...]) -> bool:
        """True when every byte mapped now is mapped to the same place, with the same rights."""
        new = {one.lun: one for one in luns}
        for old in self.luns:
            other = new.get(old.lun)
            if other is None or other.readonly != old.readonly:
                return False
            extents = Extents(other.normalised(), False)
            for start, physical, length, locked in old.normalised():
                if extents.pieces(start, length, False) != [(physical, length)]:
                    return False
                if locked != (extents.pieces(start, length, True) is None):
                    return False
        return True

    async def set_mapping(self, luns: tuple[Lun, ...], timeout: float) -> None:
        """Replace the mapping by one that was checked. No request is done half by the one and half by the other."""
        async with self._locked(timeout):
            self.refuse_mapping(luns)
            frozen = bool(self.connected()) and self.state == "RUNNING" and not self._only_grows(luns)
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
                for path in ("pf", "vf"):
                    if self._alive(path):
                        await self._push_mapping(self._workers[path])
                kept = {one.lun for one in luns}
                for lun in set(self.ports) - kept:
                    await self.ports.pop(lun).close()
                    first = lun * QUEUES * (COUNTERS_SIZE // 8)
                    for word in range(first, first + QUEUES * (COUNTERS_SIZE // 8)):
                        self._counters[word] = 0
                self._make_ports()
            finally:
                if frozen:
                    await self._thaw()
            self.note("mapping", luns=len(luns))

    async def _push_mapping(self, client: WorkerClient) -> None:
        """Hand the mapping to a worker; one that does not take it is ended, and its successor starts with it."""
        try:
            await client.call("mapping", timeout=ANSWER_TIMEOUT, luns=self._mapping_for_worker())
        except (WorkerRefused, TimeoutError):
            client.kill()
            await client.ended
        except WorkerDied:
            return

    # Binding

    async def bind(self, vf: str, path: str, timeout: float) -> dict[str, Any] | None:
        """Bind to a VF and move to ``path``. Returns the report of the switch, None when there was none."""
        if path not in ("vf", "pf"):
            raise RpcError("INVALID", f"path is {path!r}: it must be vf or pf")
        async with self._locked(timeout):
            if not self.generation:
                raise RpcError("BAD_STATE", f"vport {self.name} has no mapping yet: set it before the binding")
            if self.vf not in (None, vf):
                raise RpcError("IN_USE", f"vport {self.name} is bound to VF {self.vf}: unbind it first", vf=self.vf)
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
                self.degraded = None
            if path == self.path:
                return None
            return await self._switch(path, timeout)

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
            self.save()
            self.note("unbound", vf=vf)
            return report

    async def _close_vf(self) -> None:
        client = self._workers.pop("vf", None)
        if client is not None and client.alive:
            await client.close()

    async def close(self) -> None:
        """End everything of this vport but its state file."""
        self._deleted = True
        for task in list(self._tasks):
            task.cancel()
        for port in list(self.ports.values()):
            await port.close()
        self.ports.clear()
        for client in list(self._workers.values()):
            if client.alive:
                await client.close()
        with contextlib.suppress(OSError):
            (self.around.run_dir / self.name).rmdir()
        os.close(self._counters_fd)
