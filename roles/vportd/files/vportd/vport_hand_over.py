# SPDX-License-Identifier: GPL-3.0-or-later
"""The hand-over of a vport: suspend and drain one worker, carry the positions over through this process, start the
other.
"""

import contextlib
import time
from typing import Any

from vportd.errors import RpcError, WorkerDied, WorkerRefused
from vportd.front_end_state import Positions
from vportd.vport_workers import ANSWER_TIMEOUT, VportWorkers
from vportd.worker_client import WorkerClient


class VportHandOver(VportWorkers):
    """A vport whose rings can be stopped, moved to the other path, and started."""

    async def _freeze(self, timeout: float | None) -> tuple[int, float, Positions | None]:
        """Suspend and drain the active worker; state becomes FROZEN. Returns requests outstanding at first, seconds,
        and the positions of the rings (None: nothing was drained now).

        Raises RpcError TIMEOUT after going back to what was before.
        """
        began = time.monotonic()
        outstanding = self.outstanding()
        if self.state == "FROZEN":
            return 0, 0.0, None
        if self.state == "RUNNING":
            self.stood_since = began
        self.state = "QUIESCED"
        while True:
            try:
                client = await self._active()
            except RpcError:
                self.state = "QUIESCED" if self.fenced else "RUNNING"  # a fence that comes again drains again
                raise
            if self.leases.lost is not None:  # what was taken may not be done, so there is nothing to wait for
                self.state = "FROZEN"
                return outstanding, time.monotonic() - began, None
            left = None if timeout is None else max(0.001, timeout - (time.monotonic() - began))
            try:
                answer = await client.call("suspend", timeout=left)
                break
            except WorkerDied:
                continue
            except WorkerRefused as problem:
                await self._roll_back(client, began)
                raise RpcError("STORAGE", f"vport {self.name} runs on, on the {self.path} path: {problem}") from problem
            except TimeoutError as problem:
                listed = await self._roll_back(client, began)
                raise RpcError(
                    "TIMEOUT",
                    f"vport {self.name}: {len(listed)} requests were still outstanding after {timeout} s: it runs "
                    f"on, on the {self.path} path",
                    outstanding=listed,
                ) from problem
        positions: Positions = {}
        for lun, index, last_avail, used, broken in answer["queues"]:
            positions[lun, index] = last_avail, used
            port = self.ports.get(lun)
            if port is None or port.front is None:
                continue
            ring = port.front.rings[index]
            ring.base = last_avail
            if last_avail != used and broken is None:
                # The driver has begun with other indices than 0, or has written to the used ring. Nothing is under way,
                # so the next worker goes on from the same two.
                self.note("uneven", lun=lun, queue=index, last_avail=last_avail, used=used)
            if broken is not None:
                ring.base = None
        self.state = "FROZEN"
        return outstanding, time.monotonic() - began, positions

    async def _roll_back(self, client: WorkerClient, began: float) -> list[dict[str, Any]]:
        """Back to RUNNING after a drain that ``began`` then and did not end (a fence stays). Returns what was
        outstanding.
        """
        listed: list[dict[str, Any]] = []
        with contextlib.suppress(WorkerDied, TimeoutError):
            listed = (await client.call("outstanding", timeout=2))["outstanding"]
        if not self.fenced:
            self.state = "RUNNING"
            with contextlib.suppress(WorkerDied, TimeoutError):
                await client.call("resume", timeout=2)
        self.note("rolled_back", outstanding=len(listed), seconds=time.monotonic() - began)
        return listed

    async def _thaw(self) -> None:
        """Take requests again, on the path that there is; a vport that was fenced meanwhile ends FROZEN."""
        while not self._is_fenced():
            self.state = "RUNNING"  # first: when nobody can take them now, whoever takes over later goes on
            client = await self._active()
            if self._is_fenced():
                break
            try:
                await client.call("resume", timeout=ANSWER_TIMEOUT)
                if not self._is_fenced():
                    return
            except WorkerDied:
                continue
            except (WorkerRefused, TimeoutError) as problem:
                await self._end(client, problem)
        await self._freeze(ANSWER_TIMEOUT)

    def _is_fenced(self) -> bool:
        return self.fenced  # which may change in every await

    async def _prepare(self, path: str) -> WorkerClient | None:
        """Give the worker of ``path``, which is suspended, the rings without their positions, while the other one still
        serves them. Returns that worker, or None when it did not work, and is to be tried again without.
        """
        client = self._workers[path]
        try:
            if path == "pf":
                for port in self.connected():
                    await self._push_log(client, port)
            for port, rings in self._running():
                await self._start_rings(client, port, rings, prepare=True)
        except (WorkerDied, WorkerRefused, TimeoutError) as problem:
            await self._end(client, problem)
            return None
        return client

    async def _move(self, path: str) -> None:
        """Carry the rings of a FROZEN vport to the worker of ``path``, still suspended.

        When the new worker fails, the old one still has everything, and RpcError is raised.
        """
        await self._active()
        self._target = path
        try:
            if not self._alive(path):
                await self._spawn(path)
            self._check_path(path)
            new = self._workers[path]
            if path == "pf":
                for port in self.connected():
                    await self._push_log(new, port)
            for port, rings in self._running():
                await self._start_rings(new, port, rings)
        except (WorkerDied, WorkerRefused, TimeoutError) as problem:
            if self._alive(path):
                self._workers[path].kill()
            raise self._stays(problem) from problem
        else:
            self.path = path
        finally:
            self._target = self.path

    async def _go_on(self, path: str, prepared: WorkerClient) -> tuple[float, float, Positions | None]:
        """Have the worker of ``path`` place the rings of a FROZEN vport and take requests, in one go: the guest waits.
        Returns when the rings were in place and when they were served, by time.monotonic(), and their positions then
        (None: not known).

        When it refuses, the old one still has everything, and RpcError is raised. One that ends in it may have taken
        requests: the PF path takes over, from the in-flight regions.
        """
        running = self._running()
        places = [[port.lun.lun, [[ring.index, ring.base] for ring in rings]] for port, rings in running]
        before, self.path, self.state = self.path, path, "RUNNING"
        try:
            answer = await prepared.call("place", timeout=ANSWER_TIMEOUT, luns=places)
        except WorkerRefused as problem:
            self.path, self.state = before, "FROZEN"
            prepared.fail("refused the rings")
            raise self._stays(problem) from problem
        except (WorkerDied, TimeoutError) as problem:
            await self._end(prepared, problem)
            await self._thaw()
            return (now := time.monotonic()), now, None
        positions: Positions = {}
        for (port, __), told in zip(running, answer["luns"], strict=True):
            self._started(port, told)
            positions |= {(port.lun.lun, index): (avail, used) for index, avail, used, __ in told["queues"]}
        return answer["placed"], answer["resumed"], positions

    async def _change(
        self, path: str, prepared: WorkerClient | None, frozen: Positions | None
    ) -> tuple[float, float, Positions | None]:
        """Have a drained vport go on over ``path``. Returns what ``_go_on`` does."""
        self._need_no_fence()
        if path == self.path:  # the other worker has died in the drain, and this one has taken over
            placed = time.monotonic()
            await self._thaw()
            return placed, time.monotonic(), frozen
        if prepared is not None and prepared.alive:
            self._target = path
            self._check_path(path)
            placed, resumed, positions = await self._go_on(path, prepared)
        else:
            await self._move(path)
            placed, positions = time.monotonic(), frozen
            await self._thaw()
            resumed = time.monotonic()
        if self.fenced:  # while the other one took over
            await self._freeze(ANSWER_TIMEOUT)
        if self.path != path:
            raise RpcError("STORAGE", f"vport {self.name} is on the {self.path} path: {self.degraded}")
        return placed, resumed, positions

    def _need_no_fence(self) -> None:
        if self.fenced:
            raise RpcError("BAD_STATE", f"vport {self.name} is fenced: {self.fence_why or 'unfence it first'}")

    def _stays(self, problem: Exception) -> RpcError:
        return RpcError("STORAGE", f"vport {self.name} stays on the {self.path} path: {problem}")

    async def _let_go(self) -> None:
        """Have the worker that does not take requests forget its rings, once the other one serves them."""
        for path, client in self._workers.items():
            if path != self.path and client.alive:
                with contextlib.suppress(WorkerDied, TimeoutError):
                    await client.call("drop", timeout=ANSWER_TIMEOUT, lun=None)

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
        await self._active()  # when it has died it is taken over from first: its rings are in no other worker yet
        if path == self.path:
            if path != report["from"]:
                report["changed"], self.degraded = True, None
                self.save()
            return report
        self._target = path
        try:
            if not self._alive(path):
                await self._spawn(path)
            prepared = await self._prepare(path)
            began = time.monotonic()
            report["outstanding"], report["drain_seconds"], frozen = await self._freeze(timeout)
            drained = time.monotonic()
            placed, resumed, positions = await self._change(path, prepared, frozen)
        except (RpcError, OSError):
            self._target = self.path
            if self.state == "FROZEN":
                await self._thaw()
            await self._let_go()
            raise
        report["state_before"], report["state_after"] = self.queue_state(frozen), self.queue_state(positions)
        await self._let_go()
        report.update(
            changed=True,
            transfer_seconds=placed - drained,
            resume_seconds=resumed - placed,
            blackout_seconds=resumed - began,
        )
        self.degraded = None
        self.save()
        times = {key: value for key, value in report.items() if key.endswith("seconds")}
        self.note("switched", **{"from": report["from"]}, to=path, outstanding=report["outstanding"], **times)
        return report
