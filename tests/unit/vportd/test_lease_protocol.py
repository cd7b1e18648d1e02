# SPDX-License-Identifier: GPL-3.0-or-later
"""The protocol of leases on a simulated disk: whatever is slow, stopped or dies, never two hosts may write."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.vportd.lease_simulation import TwoOwners, World
from vportd.errors import LeaseDamaged
from vportd.lease_protocol import NOW, Lease, Timing
from vportd.lease_record import HELD, SIZE, STATES, Record, unpack

NUMBERS = st.integers(0, 2**64 - 1)
IDS = st.one_of(st.just(""), st.integers(1, 2**128 - 1).map("{:032x}".format))


def world(seed, **how):
    chance = random.Random(seed)
    return World(chance, hosts=2 + seed % 2, hostile=chance.choice([0, 0.02, 0.1, 0.3]), **how)


def test_never_two_owners_whatever_is_slow_stopped_or_dies(soak):
    owners = sum(world(seed).run(400) for seed in range(200 * soak))
    assert owners > 500 * soak, "the lease hardly ever changed hands: this has tested nothing"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 4), st.floats(0, 0.6), st.floats(3, 20))
def test_never_two_owners_however_many_and_however_quick(seed, hosts, hostile, ratio):
    World(random.Random(seed), hosts=hosts, hostile=hostile, timing=Timing(2 * ratio, 2)).run(200)


class ShortTakeOver(Timing):
    """A take-over by force that does not wait for the end of the validity."""

    @property
    def settle_long(self):
        return self.validity / 2


class NoSettle(Timing):
    """Claims that do not wait for another claim."""

    settle_unused = settle_free = property(lambda self: 0.0)


class NoBound(Timing):
    """A claim that takes as long as it likes."""

    @property
    def claim_bound(self):
        return 1e9


class NoDoubt(Lease):
    """An own write that came late is believed."""

    doubtful_until = property(lambda self: 0.0, lambda self, value: None)


class FromTheEnd(Lease):
    """The validity counts from the end of a renewal."""

    def _hold(self, began):
        began = yield NOW
        return (yield from super()._hold(began))


@pytest.mark.parametrize(
    "how",
    [
        {"timing": ShortTakeOver()},
        {"timing": NoSettle()},
        {"timing": NoBound()},
        {"kind": NoDoubt},
        {"kind": FromTheEnd},
    ],
)
def test_the_simulation_finds_what_is_wrong_with_a_weaker_protocol(how):
    for seed in range(3000):
        try:
            world(seed, **how).run(400)
        except TwoOwners:
            return
    pytest.fail("it finds nothing")


@given(st.sampled_from(STATES), NUMBERS, NUMBERS, IDS, IDS, IDS, st.text(max_size=60), st.text(max_size=120))
def test_a_record_reads_back_as_it_was_written(state, generation, stamp, owner, nonce, following, name, vdisk):
    name, vdisk = (text.replace("\0", "").encode(errors="ignore").decode() for text in (name, vdisk))
    name = name.encode()[:64].decode(errors="ignore")
    vdisk = vdisk.encode()[:128].decode(errors="ignore")
    record = Record(state, generation, stamp, owner, nonce, following, name, vdisk, 10.0)
    block = record.pack()
    assert len(block) == SIZE
    assert not any(block[512:]), "what counts is in one block of 512 bytes"
    assert unpack(block) == record


def test_a_block_of_zeroes_is_a_lease_that_nobody_has_had():
    assert unpack(bytes(SIZE)) == Record()


@pytest.mark.parametrize("at", [0, 9, 20, 100, 290, 310])
def test_a_record_that_was_changed_is_not_believed(at):
    block = bytearray(Record(HELD, 1, 1, "1" * 32, "2" * 32, "", "hv1", "root", 10.0).pack())
    block[at] ^= 1
    with pytest.raises(LeaseDamaged):
        unpack(bytes(block))
