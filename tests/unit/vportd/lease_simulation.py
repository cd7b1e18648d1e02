# SPDX-License-Identifier: GPL-3.0-or-later
"""Some hosts, one lease on one simulated disk, and a clock that jumps: every step of the protocol may be slow, every
host may stop or die between any two steps, and a write may land long after it was begun.
"""

import heapq
import itertools
from typing import Any

from vportd.errors import LeaseHeld, LeaseLost, LeaseTooLate
from vportd.lease_protocol import NOW, READ, Host, Lease, Sleep, Timing, Write
from vportd.lease_record import FREE, Record, unpack


class TwoOwners(AssertionError):
    """Two hosts may write at the same time."""


class Disk:
    def __init__(self):
        self.block = Record().pack()


class Engine:
    """One host: its process, what survives the process, and what it does next."""

    def __init__(self, world, number):
        self.world, self.number = world, number
        self.name = f"hv{number}"
        self.host = f"{number + 1:032x}"
        self.lives = itertools.count(1)
        self.known = None
        self.note = [0.0, 0.0, 0]  # valid until, last write ended, writes under way
        self.life = 0
        self.alive = False
        self.script: Any = None
        self.prompt = False
        self.done: Any = None
        self.boot(0.0)

    def boot(self, now, same_boot=True):
        self.life = next(self.lives)
        self.alive = True
        me = Host(self.host, self.name, f"{self.life:032x}")
        timing = self.world.timing
        if same_boot:
            ended = now if self.note[2] else self.note[1]
            doubtful = ended + timing.settle_long if self.note[1] or self.note[2] else 0.0
            self.lease = self.world.kind(me, "vdisk", timing, self.note[0], doubtful)
        else:
            self.lease = self.world.kind(me, "vdisk", timing, 0.0, now + timing.settle_long)
        self.note[2] = 0
        self.script = None
        self.world.at(now, self.life_of(self.choose))

    def life_of(self, action):
        life = self.life

        def run(now):
            if self.alive and self.life == life:
                action(now)

        return run

    @property
    def valid_until(self):
        return self.lease.valid_until if self.alive else 0.0

    # What it does

    def choose(self, now):
        chance = self.world.random.random()
        lease, timing = self.lease, self.world.timing
        other = self.world.random.choice([one for one in self.world.engines if one is not self])
        self.done = None
        if lease.mine is not None:
            if chance < 0.9:
                self.begin(lease.renew(), now)
            elif chance < 0.97:
                self.done = other.may_take
                self.begin(lease.pass_on(other.host), now)
            else:
                self.begin(lease.pass_on(None), now)
            return
        if chance < 0.5:
            self.world.at(now + timing.renew, self.life_of(self.choose))
            return
        prompt, self.prompt = self.prompt, False
        if chance < 0.6 and prompt:
            owner = self.owner()
            self.done = owner.may_take if owner else None
            self.begin(lease.give_back(), now)
        elif chance < 0.75:
            self.begin(lease.take(prompt, force=True), now)
        else:
            self.begin(lease.take(prompt), now)

    def may_take(self):
        """What was handed to this host was handed by who has said so since."""
        self.prompt = True

    def owner(self):
        record = unpack(self.world.disk.block)
        return next((one for one in self.world.engines if one.host == record.owner), None)

    def begin(self, script, now):
        self.script = script
        self.advance(None, now)

    def advance(self, value, now, error=None):
        try:
            while True:
                step = self.script.throw(error) if error is not None else self.script.send(value)
                error = None
                self.note[0] = self.lease.valid_until
                if step != NOW:
                    break
                value = now
        except StopIteration:
            if self.done is not None:
                self.done()
            if self.lease.mine is not None and self.lease.valid_until > now:
                self.world.owners.add((self.number, self.lease.mine.generation))
            return self.finish(now)
        except (LeaseHeld, LeaseLost, LeaseTooLate, OSError):
            if self.lease.valid_until <= now and not isinstance(error, LeaseTooLate):
                self.lease.mine = self.lease.mine if self.lease.doubtful_until > now else None
            return self.finish(now)
        finally:
            self.note[0] = self.lease.valid_until
        world = self.world
        if isinstance(step, Sleep):
            return world.at(now + step.seconds + world.delay(), self.life_of(lambda t: self.advance(None, t)))
        # between two steps the process may be stopped for long
        return world.at(now + world.stop(), self.life_of(lambda t: self.issue(step, t)))

    def finish(self, now):
        self.note[0] = self.lease.valid_until
        self.world.at(now + self.world.timing.renew * self.world.random.uniform(0.1, 1.0), self.life_of(self.choose))

    def issue(self, step, now):
        world, life = self.world, self.life
        if step == READ:

            def sample(t):
                found = unpack(world.disk.block)
                world.at(t + world.delay(), self.life_of(lambda then: self.advance(found, then)))

            world.at(now + world.delay(), self.life_of(sample))
            return
        assert isinstance(step, Write)
        if now > step.not_after:
            self.advance(None, now, LeaseTooLate("late"))
            return
        self.note[2] += 1
        landing = now + (world.delay(True) if step.record.state != FREE else world.random.uniform(0, 0.02))
        failing = world.random.random() < 0.02

        def land(t):
            if not failing or world.random.random() < 0.5:
                world.disk.block = step.record.pack()
            world.at(t + world.delay(), answered)

        def answered(t):
            # a process is not gone before its write is
            if self.life == life:
                self.note[1], self.note[2] = t, self.note[2] - 1
                if self.alive:
                    self.advance(None, t, OSError("failed") if failing else None)
                else:
                    self.note[2] += 1  # it died and has not noted that the write has ended
                    self.world.at(t, lambda then: self.boot(then, self.same_boot))

        world.at(landing, land)

    # What happens to it

    def crash(self, now):
        if not self.alive:
            return
        self.alive = False
        self.same_boot = self.world.random.random() < 0.7
        if self.note[2]:
            return  # comes back when its write has ended
        self.life = next(self.lives)
        self.world.at(now + self.world.random.choice([0.01, 0.5, 20.0]), lambda then: self.boot(then, self.same_boot))


class World:
    def __init__(self, random, hosts=2, timing=None, kind=Lease, hostile=0.15):
        self.random, self.timing, self.kind = random, timing or Timing(), kind
        self.hostile = hostile
        self.disk = Disk()
        self.events: list[Any] = []
        self.order = itertools.count()
        self.engines: list[Engine] = []
        for number in range(hosts):
            self.engines.append(Engine(self, number))
        self.owners: set[tuple[int, int]] = set()  # (host, generation) that were valid

    def at(self, when, what):
        heapq.heappush(self.events, (when, next(self.order), what))

    def delay(self, write=False):
        """Seconds of a step in the kernel or on the disk."""
        if self.random.random() < self.hostile * (1 if write else 0.3):
            return self.random.uniform(0, 2.5 * self.timing.validity)
        return self.random.expovariate(200)

    def stop(self):
        """Seconds that the process stands still between two steps."""
        if self.random.random() < self.hostile * 0.5:
            return self.random.uniform(0, 4 * self.timing.validity)
        return self.random.expovariate(2000)

    def run(self, until):
        self.at(self.random.uniform(1, 60), self.disaster)
        while self.events:
            now, __, what = heapq.heappop(self.events)
            if now > until:
                break
            what(now)
            valid = [one.name for one in self.engines if one.valid_until > now]
            if len(valid) > 1:
                raise TwoOwners(f"at {now:.3f}: {', '.join(valid)}")
        return len(self.owners)

    def disaster(self, now):
        self.random.choice(self.engines).crash(now)
        self.at(now + self.random.uniform(1, 60), self.disaster)
