# SPDX-License-Identifier: GPL-3.0-or-later
"""The protocol of leases, without any I/O: what one host does with the record of one vdisk, and when it may write.

Each operation is a generator that yields what it wants done, ``NOW``, ``READ``, a ``Write`` or a ``Sleep``, and gets
the answer sent in: seconds of this host's clock, a ``Record``, nothing. ``lease_keeper`` does it on a real disk, the
tests on a simulated one, with every delay and crash they can think of. docs/leases.md says why it is right.
"""

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from vportd.errors import LeaseDamaged, LeaseHeld, LeaseLost, LeaseTooLate
from vportd.lease_record import CLAIM, FREE, HANDED, HELD, LONGEST_NAME, LONGEST_VDISK, Record, cut

_Result = TypeVar("_Result")
Script = Generator[Any, Any, _Result]

NOW, READ = "now", "read"


@dataclass(frozen=True, slots=True)
class Write:
    """Write ``record``, but do not begin after ``not_after``: raise LeaseTooLate instead."""

    record: Record
    not_after: float


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Host:
    """Who holds leases: ``host`` is the same as long as the host is installed, ``nonce`` is of one engine process."""

    host: str
    name: str
    nonce: str


@dataclass(frozen=True, slots=True)
class Timing:
    """All times of the protocol, in seconds, from two: how long a renewal is good for, and how often there is one."""

    validity: float = 10.0
    renew: float = 2.0

    @property
    def io_bound(self) -> float:
        """How long it may take from the beginning of a read to the end of the write that rests on it."""
        return self.validity / 2

    @property
    def claim_bound(self) -> float:
        """The same for a claim, and until the write begins for all that are not valid."""
        return self.validity / 10

    @property
    def settle_unused(self) -> float:
        """The wait after a claim of what nobody had, or this host had last."""
        return self.validity / 8

    @property
    def settle_free(self) -> float:
        """The wait after a claim of what another host has freed."""
        return self.renew + self.settle_unused

    @property
    def settle_long(self) -> float:
        """A wait after which nobody is valid who has not been seen: validity, a write in its bound, and a margin."""
        return self.validity + self.io_bound + max(0.2, self.validity / 10)

    def with_record(self, found: Record) -> "Timing":
        """Return the times that are also long enough for who wrote a record."""
        return self if found.validity <= self.validity else replace(self, validity=found.validity)

    @property
    def watch(self) -> float:
        """How long an owner must have done nothing before its lease is claimed by force."""
        return 1.5 * self.renew


class Lease:
    """One host's part in one lease. Valid, and so allowed to write the vdisk, while its clock is below
    ``valid_until``. ``doubtful_until``: a write of this host may have landed late, on another owner's, who will have
    put that right by then. ``seen`` = the record as it was read last.
    """

    def __init__(
        self, me: Host, vdisk: str, timing: Timing, valid_until: float = 0.0, doubtful_until: float = 0.0
    ) -> None:
        """``valid_until`` and ``doubtful_until`` of an engine that was here before."""
        self.me = replace(me, name=cut(me.name, LONGEST_NAME).decode())
        self.vdisk = cut(vdisk, LONGEST_VDISK).decode()
        self.timing = timing
        self.seen: Record | None = None
        self.mine: Record | None = None
        self.valid_until = valid_until
        self.doubtful_until = doubtful_until

    def look(self) -> Script[Record]:
        """Read the record."""
        self.seen = yield READ
        assert self.seen is not None
        return self.seen

    # To get it

    def take(self, prompt: bool = True, force: bool = False, known: int | None = None) -> Script[None]:
        """Become the owner. Raises LeaseHeld, and LeaseTooLate when this host was too slow: try again.

        ``prompt``: what was handed to this host is taken at once; only for who comes after the owner has said that he
        has handed it. ``force``: take it from an owner who gives no sign of life. ``known``: the generation that this
        host held; a later one means that another had it since, which is refused.
        """
        while True:
            began = yield NOW
            found = yield from self.look()
            now = yield NOW
            if known is not None and found.generation > known and found.owner != self.me.host:
                raise LeaseHeld(f"it was held elsewhere since: it is {found}", found)
            timing = self.timing.with_record(found)
            settle = self._settle(found, now, prompt, force, timing)
            if settle is None:  # this host's own
                if now < self.valid_until or now >= self.doubtful_until:
                    self.mine = self._record(HELD, found.generation, found.stamp)
                    if (yield from self._hold(began)):
                        return
                else:
                    yield Sleep(min(self.timing.renew, self.doubtful_until - now))
                continue
            if settle == 0:
                self.mine = self._record(HELD, found.generation + 1, found.stamp)
                if (yield from self._hold(began)):
                    return
                continue
            if force and found.state in (HELD, CLAIM) and found.owner != self.me.host:
                yield from self._watch(found, self.timing.watch)
                began = yield NOW
                found = yield from self._same(found, began)
            claim = self._record(CLAIM, found.generation + 1, found.stamp)
            yield from self._write(claim, began + self.timing.claim_bound)
            ended = yield NOW
            if ended - began > self.timing.claim_bound:
                settle = timing.settle_long
            yield from self._watch(claim, settle)
            began = yield NOW
            yield from self._same(claim, began)
            self.mine = self._record(HELD, claim.generation, claim.stamp)
            if (yield from self._hold(began)):
                return

    def _settle(self, found: Record, now: float, prompt: bool, force: bool, timing: Timing) -> float | None:
        """Return how long to wait after a claim: 0 = there need be none, None = it is this host's own."""
        me = self.me
        if found.state == FREE:
            own = found.owner in ("", me.host)
            return timing.settle_unused if own else timing.settle_free
        if found.owner == me.host and found.owner_name != me.name and not force:
            raise LeaseHeld(
                f"it is {found}, which has the id of this host and is not {me.name}: give each host its own "
                f"/etc/machine-id, or, if it is the same under a new name, break the lease",
                found,
            )
        if found.vdisk != self.vdisk and not force:
            raise LeaseHeld(f"its block is {found} for vdisk {found.vdisk}", found)
        if found.state == HELD and found.owner == me.host:
            return None if found.owner_name == me.name and found.vdisk == self.vdisk else timing.settle_long
        if found.state == HANDED and found.next == me.host:
            return 0.0 if prompt else timing.settle_long
        if found.owner == me.host or force:
            return timing.settle_long
        raise LeaseHeld(f"it is {found}", found)

    def _watch(self, wanted: Record, seconds: float) -> Script[None]:
        """Wait, and look that the record stays. Raises LeaseHeld."""
        now = yield NOW
        end = now + seconds
        while now < end:
            looked = now
            yield Sleep(min(self.timing.renew / 2, end - now))
            yield from self._same(wanted, looked)
            now = yield NOW

    def _same(self, wanted: Record, since: float) -> Script[Record]:
        found = yield from self.look()
        if found != wanted:
            now = yield NOW
            raise LeaseHeld(f"it is {found}, written in the last {now - since:.1f} s", found)
        return found

    # To keep it

    def renew(self) -> Script[None]:
        """Renew it, to be valid for longer. Raises LeaseLost."""
        mine = self.mine
        assert mine is not None
        began = yield NOW
        try:
            found = yield from self.look()
        except LeaseDamaged:
            now = yield NOW
            if now >= self.valid_until:
                raise
            found = Record()  # while this host is valid nobody else has a say in what is there
        now = yield NOW
        self._check(found, now, self.valid_until)
        if now >= self.valid_until and now < self.doubtful_until:
            return
        yield from self._hold(began)

    def _check(self, found: Record, now: float, valid_until: float) -> None:
        """Raise LeaseLost unless the record is this host's.

        While this host is valid nobody else can be the owner: what is there of an earlier generation, or a claim of
        the same, is a write that landed late, and is written over.
        """
        mine = self.mine
        assert mine is not None
        if (found.state, found.owner, found.nonce, found.generation) == (
            HELD,
            mine.owner,
            mine.nonce,
            mine.generation,
        ):
            return
        claimed = found.state == CLAIM and found.generation <= mine.generation + 1
        if now < valid_until and (found.generation < mine.generation or claimed):
            return
        self.valid_until = 0.0
        self.mine = None
        raise LeaseLost(f"it is {found}", found)

    def _hold(self, began: float) -> Script[bool]:
        """Write ``mine`` with a new stamp; True = valid from ``began`` on. Nothing rests on a slow write."""
        assert self.mine is not None
        seen = self.seen.stamp if self.seen is not None else 0
        record = self.mine = replace(self.mine, stamp=max(self.mine.stamp, seen) + 1)
        yield from self._write(record, max(self.valid_until, began + self.timing.claim_bound))
        ended = yield NOW
        if ended < self.valid_until or ended - began <= self.timing.io_bound:
            self.valid_until = max(self.valid_until, began + self.timing.validity)
            return True
        self.doubtful_until = ended + self.timing.settle_long
        return False

    def _write(self, record: Record, not_after: float) -> Script[None]:
        try:
            yield Write(record, not_after)
        except LeaseTooLate:
            raise
        except Exception:  # it may have landed, or land yet
            now = yield NOW
            self.doubtful_until = now + self.timing.settle_long
            raise
        self.seen = record

    # To give it up

    def pass_on(self, to: str | None) -> Script[None]:
        """Hand it to host ``to``, or free it (None). Not valid from here on, whatever comes. Raises LeaseLost."""
        was, self.valid_until = self.valid_until, 0.0
        state = FREE if to is None else HANDED
        began = yield NOW
        found = yield from self.look()
        now = yield NOW
        if found.state == state and found.owner == self.me.host and found.next == (to or ""):
            self.mine = None
            return  # an earlier try has done it
        if self.mine is None:  # of an engine that was here before
            passed = found.state == HANDED and found.next != self.me.host
            if found.owner != self.me.host or found.state == FREE or passed:
                raise LeaseLost(f"it is {found}", found)
            self.mine = replace(found, nonce=self.me.nonce)
        else:
            self._check(found, now, was)
        if was <= now < self.doubtful_until:
            yield from self._settled(found, self.doubtful_until - now)
            began = yield NOW
        record = replace(self.mine, state=state, next=to or "", stamp=max(self.mine.stamp, found.stamp) + 1)
        yield from self._write(record, max(was, began + self.timing.claim_bound))
        ended = yield NOW
        self.mine = None
        if ended >= was and ended - began > self.timing.io_bound:
            yield from self._settled(record, self.timing.settle_long)

    def give_back(self) -> Script[None]:
        """Hand back what was handed to this host and not taken; anything else is left as it is."""
        began = yield NOW
        found = yield from self.look()
        if found.state != HANDED or found.next != self.me.host or found.owner == self.me.host:
            return
        record = replace(found, next=found.owner, stamp=found.stamp + 1)
        yield from self._write(record, began + self.timing.claim_bound)
        ended = yield NOW
        if ended - began > self.timing.io_bound:
            yield from self._settled(record, self.timing.settle_long)

    def _settled(self, record: Record, seconds: float) -> Script[None]:
        """A write was late: go on only when it is sure that it has met nobody's."""
        try:
            yield from self._watch(record, seconds)
        except LeaseHeld as problem:
            raise LeaseLost(str(problem), problem.record) from None

    def _record(self, state: str, generation: int, stamp: int) -> Record:
        me = self.me
        return Record(state, generation, stamp + 1, me.host, me.nonce, "", me.name, self.vdisk, self.timing.validity)
