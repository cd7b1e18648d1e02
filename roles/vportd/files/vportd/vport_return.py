# SPDX-License-Identifier: GPL-3.0-or-later
"""A vport that was driven from its VF by a failure, and what it does about the failures of its storage: it goes back by
itself, if it is to.
"""

import asyncio
import time

from vportd.adapter import Adapter
from vportd.config import POLICIES
from vportd.errors import RpcError, VportdError, WorkerDied, WorkerRefused
from vportd.surroundings import Surroundings
from vportd.vport_rings import VportRings
from vportd.vport_workers import ANSWER_TIMEOUT

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds before it is tried; twice as many after each time that it did not last
SWITCH_TIMEOUT = 10.0


class VportReturn(VportRings):
    """A vport that returns to its VF."""

    def __init__(self, name: str, adapter: Adapter, around: Surroundings, incoming: bool = False) -> None:
        super().__init__(name, adapter, around, incoming)
        self._return: asyncio.Task[None] | None = None
        self._return_wait = FIRST_WAIT
        self._returned_at = 0.0

    def _degrade(self, why: str) -> None:
        super()._degrade(why)
        self.begin_return()

    def begin_return(self) -> None:
        """Try to go back to the VF from now on, where that is wanted."""
        if not self.returns() or self._return is not None or self._deleted:
            return
        if time.monotonic() - self._returned_at > LONGEST_WAIT:
            self._return_wait = FIRST_WAIT
        self._return = asyncio.create_task(self._go_back())
        self._tasks.add(self._return)
        self._return.add_done_callback(self._end_return)

    def _end_return(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._return = None

    def _is_away(self) -> bool:
        """True while it is on the PF path, and somebody has asked for the VF path last."""
        return bool(self.degraded) and self.returns() and self.vf is not None and self.wanted == "vf"

    async def _go_back(self) -> None:
        began = time.monotonic()
        while not self._deleted and self._is_away():
            await asyncio.sleep(self._return_wait)
            self._return_wait = min(2 * self._return_wait, LONGEST_WAIT)
            try:
                async with self.lock:
                    if not self._is_away():
                        return
                    if self.held or any(port.front and port.front.logging for port in self.connected()):
                        continue  # suspended, fenced, or being migrated
                    if self.path == "vf" and self._alive("vf"):
                        return
                    await self._switch("vf", SWITCH_TIMEOUT)
                self._returned_at = time.monotonic()
                self.note("returned", seconds=self._returned_at - began)
                return
            except (VportdError, TimeoutError, OSError) as problem:
                self.note("not_returned", why=str(problem), next_try=self._return_wait)

    async def set_policy(self, error_policy: str | None, auto_return: bool | None) -> None:
        """Set what is done when the storage fails; None leaves it as it is. Raises RpcError."""
        if error_policy is not None and error_policy not in (*POLICIES, "adapter"):
            raise RpcError("INVALID", f"error_policy is {error_policy!r}: it must be {', '.join(POLICIES)} or adapter")
        async with self._locked(ANSWER_TIMEOUT):
            before = self.error_policy, self.auto_return
            if error_policy is not None:
                self.error_policy = None if error_policy == "adapter" else error_policy
            if auto_return is not None:
                self.auto_return = auto_return
            if (self.error_policy, self.auto_return) == before:
                return
            try:
                self.save()
            except RpcError:
                self.error_policy, self.auto_return = before
                raise
            self.note("policy", error_policy=self.policy_of("pf"), auto_return=self.returns())
            if self._alive("pf"):
                try:
                    await self._workers["pf"].call("policy", timeout=ANSWER_TIMEOUT, policy=self.policy_of("pf"))
                except (WorkerRefused, TimeoutError):
                    self._workers["pf"].kill()  # the next one starts with it
                except WorkerDied:
                    return
        if self.degraded:
            self.begin_return()
