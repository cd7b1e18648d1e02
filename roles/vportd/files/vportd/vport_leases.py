# SPDX-License-Identifier: GPL-3.0-or-later
"""The leases of a vport: which it is to hold, one task that keeps them, and the gate that its workers look at.

A read-only LUN needs none: it cannot do harm, and several hosts may share it.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from enum import Enum
from typing import Any, Protocol

from vportd import journal, lease_gate
from vportd.errors import LeaseDamaged, LeaseHeld, LeaseLost, LeaseTooLate, RpcError, VportdError
from vportd.lease_disk import LeaseDisk
from vportd.lease_gate import Gate
from vportd.lease_keeper import Keeper
from vportd.lease_protocol import Lease
from vportd.lease_record import CLAIM, HANDED, HELD, Record
from vportd.mapping import Lun
from vportd.surroundings import Surroundings

TRIES = 3  # of a take that this host was too slow for
WAKE_EARLY = 1.0  # seconds before the end of a grant from which on a new one wakes the worker: it may just have looked


class Goal(Enum):
    """What the task is at."""

    REST = "nothing"
    HOLD = "renew"
    TAKE = "take, for a front end waits"
    PASS = "hand over or free, for the vport is fenced"


class Holder(Protocol):
    """What leases need of their vport."""

    name: str
    luns: tuple[Lun, ...]
    fenced: bool
    incoming: bool

    def note(self, event: str, **detail: object) -> None: ...
    def save(self) -> None: ...
    def waited_for(self) -> bool: ...
    def lease_lost(self, why: str) -> None: ...
    def lease_renewed(self) -> None: ...
    def end_stale(self) -> bool: ...


def leased(luns: Iterable[Lun]) -> dict[int, Lun]:
    """Return the LUNs that need a lease, by number."""
    return {one.lun: one for one in luns if one.lease is not None and not one.readonly}


class VportLeases:
    """All leases of one vport. ``passing`` = to whom they go while it is fenced (None: to whoever takes them), kept
    in the state file until that is done; ``known`` = generation held last, by offset.
    """

    def __init__(self, vport: Holder, around: Surroundings, disk: LeaseDisk) -> None:
        self._vport = vport
        self._around = around
        self._disk = disk
        self.gate = Gate(around.run_dir / f"{vport.name}.lease")
        self.goal = Goal.REST
        self.passing: str | None = None
        self.to_pass = False
        self.known: dict[str, int] = {}
        self.lost: str | None = None
        self._keepers: dict[int, Keeper] = {}
        self._task: asyncio.Task[None] | None = None
        self._now = asyncio.Event()
        self._prompt = True  # until a try has failed: then something is not as in a migration that goes well
        self._expired = False
        self._said: str | None = None
        self._busy = asyncio.Lock()

    # The task

    def open(self) -> None:
        """Begin, for a vport that is new or that a state file has brought back."""
        gate, timing = self.gate, self._around.timing
        ended = lease_gate.now() if gate.left_over else gate.written
        doubtful = ended + timing.settle_long if ended or not gate.same_boot else 0.0
        for number, lun in leased(self._vport.luns).items():
            self._keepers[number] = self._keeper(lun, gate.valid_until, doubtful)
        if self._keepers and self._vport.fenced:
            self.goal = Goal.PASS if self.to_pass else Goal.REST
        elif self._keepers and not self._vport.incoming:
            self.goal = Goal.HOLD
        if self.goal is not Goal.HOLD:
            gate.set(0.0 if self._keepers else None)
        else:
            gate.set(gate.valid_until)
        self._start()

    def _keeper(self, lun: Lun, valid_until: float = 0.0, doubtful_until: float = 0.0) -> Keeper:
        assert lun.lease is not None
        lease = Lease(self._around.host, lun.vdisk, self._around.timing, valid_until, doubtful_until)
        return Keeper(lun.lease, lease, self._disk, self.gate, self._around.lease_threads)

    def _start(self) -> None:
        if self._task is None and self.goal is not Goal.REST:
            self._task = asyncio.create_task(self._keep())

    async def _stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    @contextlib.asynccontextmanager
    async def _stopped(self) -> AsyncIterator[None]:
        """The task rests meanwhile, so that nobody else is at the leases."""
        async with self._busy:
            await self._stop()
            try:
                yield
            finally:
                self._start()

    async def _keep(self) -> None:
        while self.goal is not Goal.REST:
            self._now.clear()
            began = lease_gate.now()
            if self.goal is Goal.HOLD:
                await asyncio.gather(*(self._renew(one) for one in self._keepers.values()))
            elif self.goal is Goal.TAKE:
                await self._take_for_front_end()
            else:
                await self._pass()
            if self.goal is Goal.HOLD and lease_gate.now() >= self.gate.valid_until and not self._expired:
                self._expired = True
                why = next((one.problem for one in self._keepers.values() if one.problem), "the storage is slow")
                self._vport.note("lease_expired", why=why)
                journal.warning(f"vport {self._vport.name}: its lease has expired, requests wait: {why}")
            left = self._around.timing.renew - (lease_gate.now() - began)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.01, left)):
                    await self._now.wait()
        self._task = None

    async def _renew(self, keeper: Keeper) -> None:
        lease, known = keeper.lease, dict(self.known)
        try:
            if lease.mine is None:
                await self._run_take(keeper, False, self.known.get(str(keeper.offset)))
            else:
                await keeper.run(lease.renew())
            if self.known != known:
                self._save()
        except LeaseHeld as problem:
            self._lose(f"the lease of vdisk {lease.vdisk} is another's: {problem}")
            return
        except (OSError, VportdError) as problem:
            keeper.problem = str(problem)
            return
        keeper.problem = None
        self._publish()

    async def _run_take(
        self, keeper: Keeper, force: bool = False, known: int | None = None, prompt: bool = True
    ) -> None:
        for left in range(TRIES, -1, -1):
            try:
                await keeper.run(keeper.lease.take(prompt, force, known))
                break
            except LeaseTooLate:
                if not left:
                    raise
        mine = keeper.lease.mine
        if mine is not None and self.known.get(str(keeper.offset)) != mine.generation:
            self.known[str(keeper.offset)] = mine.generation
            journal.info(
                f"vport {self._vport.name}: the lease of vdisk {mine.vdisk} is this host's, "
                f"generation {mine.generation}"
            )

    def _publish(self) -> None:
        """Grant what all leases allow, and wake the worker when it may have found the gate closed. Not while a worker
        has a device that is gone: it would fail what it takes.
        """
        if self._vport.end_stale():
            self.gate.set(0.0)
            self._disk.anew()
            return
        now, before = lease_gate.now(), self.gate.valid_until
        valid = min((one.lease.valid_until for one in self._keepers.values()), default=None)
        self.gate.set(valid)
        if valid is None or valid > now:
            if before < now + WAKE_EARLY:
                self._vport.lease_renewed()
            if self._expired:
                self._expired = False
                self._vport.note("lease_renewed")
                journal.info(f"vport {self._vport.name}: its lease is renewed, requests are taken again")

    def _lose(self, why: str) -> None:
        self.gate.set(0.0)
        self.goal = Goal.REST
        self.lost = why
        self._vport.lease_lost(why)

    # What its vport asks

    async def claim(self, luns: tuple[Lun, ...]) -> dict[int, Keeper]:
        """Get the leases that a new mapping needs and the old one has not; ``settle`` or ``abandon`` follows. Raises
        RpcError IN_USE, STORAGE.
        """
        fresh = {
            number: self._keeper(lun)
            for number, lun in leased(luns).items()
            if (old := self._keepers.get(number)) is None or (old.offset, old.lease.vdisk) != (lun.lease, lun.vdisk)
        }
        if fresh and not self._around.host.host:
            raise RpcError(
                "STORAGE", "this host has no /etc/machine-id to hold leases by: run systemd-machine-id-setup"
            )
        if self._vport.incoming or self._vport.fenced:
            for one in fresh.values():
                with contextlib.suppress(OSError, VportdError):
                    await one.run(one.lease.look())
            return fresh
        await self._take_all(fresh, force=False)
        return fresh

    async def _take_all(self, keepers: dict[int, Keeper], force: bool) -> None:
        """Take leases, all or none. Raises RpcError."""
        before: dict[int, Record] = {}

        async def take(number: int, keeper: Keeper) -> None:
            before[number] = await keeper.run(keeper.lease.look())
            await self._run_take(keeper, force)

        wanted = {number: one for number, one in keepers.items() if one.lease.mine is None}
        results = await asyncio.gather(*(take(*one) for one in wanted.items()), return_exceptions=True)
        failed = [(number, one) for number, one in zip(wanted, results, strict=True) if isinstance(one, BaseException)]
        if not failed:
            return
        for number, one in wanted.items():
            if one.lease.mine is not None:
                old = before[number]
                await self._try_pass(one, old.next if old.state == HANDED and old.next else None)
        number, problem = failed[0]
        raise self._error(number, wanted[number], problem)

    def _error(self, number: int, keeper: Keeper, problem: BaseException) -> BaseException:
        where = f"LUN {number}: the lease of vdisk {keeper.lease.vdisk}"
        if isinstance(problem, LeaseHeld):
            record = problem.record
            return RpcError(
                "IN_USE",
                f"{where} cannot be taken: {problem}",
                owner=record.owner,
                owner_name=record.owner_name,
                generation=record.generation,
                lun=number,
                vdisk=keeper.lease.vdisk,
            )
        if isinstance(problem, LeaseDamaged):
            block = keeper.offset // 4096
            return RpcError(
                "STORAGE",
                f"{where} cannot be read: {problem}: when no host runs this VM, zero block {block} (of 4096 bytes) of "
                f"the storage and try again",
            )
        if isinstance(problem, OSError | VportdError):
            return RpcError("STORAGE", f"{where}: {problem}: look at the storage, then try again")
        return problem

    async def _try_pass(self, keeper: Keeper, to: str | None) -> None:
        try:
            await keeper.run(keeper.lease.pass_on(to))
        except LeaseLost:
            keeper.lease.mine = None
        except (OSError, VportdError) as problem:
            journal.error(
                f"vport {self._vport.name}: the lease of vdisk {keeper.lease.vdisk} cannot be given up and stays "
                f"with this host until it is broken: {problem}"
            )

    async def abandon(self, fresh: dict[int, Keeper]) -> None:
        """Give up what ``claim`` has taken: the mapping was not set after all."""
        for one in fresh.values():
            if one.lease.mine is not None:
                await self._try_pass(one, None)

    async def settle(self, fresh: dict[int, Keeper]) -> None:
        """The mapping is set: hold what was claimed with the rest, give up what is in it no more."""
        async with self._stopped():
            kept = leased(self._vport.luns)
            gone = [one for number, one in self._keepers.items() if number not in kept or number in fresh]
            self._keepers = {
                number: one for number, one in self._keepers.items() if number in kept and number not in fresh
            }
            self._keepers.update(fresh)
            offsets = {str(one.offset) for one in self._keepers.values()}
            self.known = {offset: generation for offset, generation in self.known.items() if offset in offsets}
            idle = self._vport.incoming or self._vport.fenced
            if not self._keepers:
                self.goal = Goal.REST
            elif not idle:
                self.goal = Goal.HOLD
            if idle and self._keepers and self.goal is not Goal.HOLD:
                self.gate.set(0.0)
            else:
                self._publish()
            for one in gone:
                if one.lease.mine is not None:
                    await self._try_pass(one, None)

    def ring_starts(self) -> None:
        """A front end starts a ring: a vport whose VM arrives takes its leases now. The ring waits at the gate."""
        if self._vport.incoming and self.goal is Goal.REST and self._keepers:
            self.goal = Goal.TAKE
            self._start()

    @property
    def waiting(self) -> bool:
        """True while a VM has arrived and its leases have not."""
        return self.goal is Goal.TAKE

    async def _take_for_front_end(self) -> None:
        if not self._vport.waited_for():
            self.goal = Goal.REST
            return
        prompt, self._prompt = self._prompt, False

        async def take(number: int, keeper: Keeper) -> None:
            try:
                if keeper.lease.mine is None:
                    await self._run_take(keeper, prompt=prompt)
                else:
                    await keeper.run(keeper.lease.renew())
                keeper.problem = None
            except (OSError, VportdError) as problem:
                if isinstance(problem, LeaseLost):
                    keeper.lease.mine = None
                keeper.problem = f"LUN {number}: {problem}"

        await asyncio.gather(*(take(*one) for one in self._keepers.items()))
        problem = next((one.problem for one in self._keepers.values() if one.problem), None)
        if problem is None:
            self.goal = Goal.HOLD
            self._vport.incoming = False
            self._save()
            self._vport.note("lease_taken")
            self._publish()
        elif problem != self._said:
            self._vport.note("lease_awaited", why=problem)
            journal.warning(f"vport {self._vport.name}: its rings wait for the lease: {problem}")
        self._said = problem

    def _save(self) -> None:
        try:
            self._vport.save()
        except RpcError as problem:
            journal.error(str(problem))

    async def give_up(self) -> None:
        """The vport is fenced and nothing of it is outstanding: hand its leases to host ``passing``, or free them. What
        cannot be done now is tried again until it is done.
        """
        if not self._keepers:
            return
        self.gate.set(0.0)
        async with self._stopped():
            self.goal = Goal.PASS
            await self._pass()

    async def _pass(self) -> None:
        async def hand(keeper: Keeper) -> str | None:
            try:
                await keeper.run(keeper.lease.pass_on(self.passing))
            except LeaseLost as problem:
                journal.warning(
                    f"vport {self._vport.name}: the lease of vdisk {keeper.lease.vdisk} is not this host's: {problem}"
                )
                keeper.lease.mine = None
            except (OSError, VportdError) as problem:
                return f"the lease of vdisk {keeper.lease.vdisk} is not given up yet: {problem}"
            return None

        found = await asyncio.gather(*(hand(one) for one in self._keepers.values()))
        problem = next((one for one in found if one), None)
        if problem is None:
            self.goal, self.to_pass = Goal.REST, False
            self._vport.note("lease_handed" if self.passing else "lease_freed", to=self.passing)
            self._save()
        elif problem != self._said:
            journal.error(f"vport {self._vport.name}: {problem}")
        self._said = problem

    async def take(self, force: bool = False) -> None:
        """Take all leases, with ``force`` from owners who are gone, and hold them. Raises RpcError."""
        async with self._stopped():
            await self._take_all(self._keepers, force)
            self.lost, self.to_pass = None, False
            self.goal = Goal.HOLD if self._keepers else Goal.REST
            self._publish()

    async def look(self) -> None:
        """Read all records anew. Raises RpcError STORAGE."""
        for number, one in self._keepers.items():
            try:
                await one.run(one.lease.look())
            except (OSError, VportdError) as problem:
                raise self._error(number, one, problem) from problem

    async def close(self, forget: bool) -> None:
        """End the task; ``forget``: the vport is deleted, and nobody else is to wait for what it had."""
        async with self._busy:
            await self._stop()
            self.goal = Goal.REST
            if not forget:
                return
            self.gate.set(0.0)
            for one in self._keepers.values():
                await self._leave(one)
            self.gate.remove()

    async def _leave(self, keeper: Keeper) -> None:
        lease = keeper.lease
        try:
            if lease.mine is None:
                await keeper.run(lease.give_back())
                found = lease.seen
                ours = found is not None and found.owner == self._around.host.host
                if not ours or found is None or (found.state == HANDED and found.next != found.owner):
                    return
            await self._try_pass(keeper, None)
        except (OSError, VportdError) as problem:
            journal.error(f"vport {self._vport.name}: the lease of vdisk {lease.vdisk} cannot be read: {problem}")

    # Records

    def record(self, lun: int) -> dict[str, Any] | None:
        """Return what there is to say about the lease of a LUN; None when it needs none."""
        keeper = self._keepers.get(lun)
        if keeper is None:
            return None
        lease = keeper.lease
        found = lease.mine or lease.seen or Record()
        state = found.state
        if self.lost is not None and lease.mine is None:
            state = "lost"
        elif lease.mine is not None:
            state = HELD if lease_gate.now() < lease.valid_until else "expired"
        elif state in (HELD, CLAIM):  # not as this engine's
            state = "expired" if found.owner == self._around.host.host else "elsewhere"
        return {
            "offset": keeper.offset,
            "state": state,
            "owner": found.owner or None,
            "owner_name": found.owner_name or None,
            "generation": found.generation,
            "next": found.next or None,
        }
