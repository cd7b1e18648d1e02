# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the scripts of ``lease_protocol`` on a disk, in threads, so that the engine never waits for the storage."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from vportd import lease_gate
from vportd.errors import VportdError
from vportd.lease_disk import LeaseDisk
from vportd.lease_gate import Gate
from vportd.lease_protocol import NOW, READ, Lease, Script, Sleep, Write

_Result = TypeVar("_Result")


class Keeper:
    """The lease of one LUN: ``lease`` on the block at ``offset``."""

    def __init__(self, offset: int, lease: Lease, disk: LeaseDisk, gate: Gate, threads: ThreadPoolExecutor) -> None:
        self.offset = offset
        self.lease = lease
        self.problem: str | None = None  # why it could not be renewed the last time
        self._disk = disk
        self._gate = gate
        self._threads = threads

    async def run(self, script: Script[_Result]) -> _Result:
        """Run a script to its end. Cancelled, it first sees a write through, and what the script makes of it."""
        answer: Any = None
        problem: Exception | None = None
        try:
            while True:
                step = script.throw(problem) if problem is not None else script.send(answer)
                answer, problem = None, None
                try:
                    if step == NOW:
                        answer = lease_gate.now()
                    elif isinstance(step, Sleep):
                        await asyncio.sleep(step.seconds)
                    elif step == READ:
                        answer = await self._thread(self._disk.read, self.offset)
                    else:
                        assert isinstance(step, Write)
                        await self._write(step, script)
                except (OSError, VportdError) as caught:
                    problem = caught
        except StopIteration as end:
            result: _Result = end.value
            return result
        finally:
            script.close()

    async def _thread(self, call: Callable[..., Any], *arguments: object) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)

    async def _write(self, step: Write, script: Script[Any]) -> None:
        loop = asyncio.get_running_loop()
        self._gate.writing(1)
        future = loop.run_in_executor(self._threads, self._disk.write, self.offset, step.record, step.not_after)
        cancelled: asyncio.CancelledError | None = None
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError as problem:
                cancelled = problem
        self._gate.writing(-1)
        if cancelled is None:
            future.result()
            return
        try:
            failed = future.exception()
            following = script.throw(failed) if failed is not None else script.send(None)
            while following == NOW:
                following = script.send(lease_gate.now())
        except (StopIteration, OSError, VportdError):  # it has noted how that went
            pass
        raise cancelled
