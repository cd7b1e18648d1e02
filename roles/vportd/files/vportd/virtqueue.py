# SPDX-License-Identifier: GPL-3.0-or-later
"""Split virtqueue, device side (virtio 1.3, 2.7): takes descriptor chains, gives them back. Knows nothing of block
devices.

A chain is a flat tuple ``(addr, len, flags, next) * n`` in chain order, as ``struct.unpack_from`` gives it: the
fewest objects a request.
"""

import struct

from vportd.atomic import fence
from vportd.errors import MemoryFault, RingBroken
from vportd.inflight import InflightRegion
from vportd.memory import MemoryMap
from vportd.virtio_spec import (
    MAX_CHAIN,
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_INDIRECT_DESC,
    VIRTQ_AVAIL_F_NO_INTERRUPT,
    VIRTQ_DESC,
    VIRTQ_DESC_F_INDIRECT,
    VIRTQ_DESC_F_NEXT,
    VIRTQ_DESC_SIZE,
    VIRTQ_MAX_SIZE,
    VIRTQ_USED_F_NO_NOTIFY,
)

Chain = tuple[int, ...]

_one = struct.Struct(VIRTQ_DESC).unpack_from
_tables: dict[int, struct.Struct] = {}
_NEXT = VIRTQ_DESC_F_NEXT

_INDIRECT = VIRTQ_DESC_F_INDIRECT

# Of chains longer than the usual three: no more than about so many descriptors are taken in one go, or are under way. A
# guest can have all its heads name the same table of 1024, and each would take some hundred KiB of the worker's memory.
PASS, UNDER_WAY = 8192, 16384


def _table(count: int) -> struct.Struct:
    """Return the Struct of ``count`` descriptors in a row."""
    found = _tables.get(count)
    if found is None:
        found = _tables[count] = struct.Struct("<" + VIRTQ_DESC[1:] * count)
    return found


_three = _table(3).unpack_from


class Virtqueue:
    """One split virtqueue.

    ``last_avail`` is the free-running 16-bit index of the next entry of the available ring to take, ``used`` that of
    the next used entry to give. Every number read from guest memory is checked before it is used; a ring that
    violates the standard raises RingBroken.
    """

    __slots__ = (
        "memory",
        "size",
        "mask",
        "features",
        "event_idx",
        "indirect",
        "region",
        "last_avail",
        "used",
        "desc",
        "avail",
        "used16",
        "used64",
        "addresses",
    )

    def __init__(
        self, memory: MemoryMap, size: int, desc: int, avail: int, used: int, features: int, region: InflightRegion
    ) -> None:
        """Look up a ring of ``size`` entries at the front end's addresses. Raises RingBroken, MemoryFault."""
        if not 0 < size <= VIRTQ_MAX_SIZE or size & (size - 1):
            raise RingBroken(f"queue size {size} is not a power of 2 up to {VIRTQ_MAX_SIZE}")
        if desc % 16 or avail % 2 or used % 4:
            raise RingBroken(f"ring addresses {desc:#x}, {avail:#x}, {used:#x} are not aligned (virtio 1.3, 2.7)")
        self.size = size
        self.mask = size - 1
        self.features = features
        self.event_idx = bool(features >> VIRTIO_F_EVENT_IDX & 1)
        self.indirect = bool(features >> VIRTIO_F_INDIRECT_DESC & 1)
        self.region = region
        self.addresses = (desc, avail, used)
        self.remap(memory)
        self.used = self.used16[1]
        self.last_avail = self.used

    def remap(self, memory: MemoryMap) -> None:
        """Find the ring again in another memory table. Raises MemoryFault, and then keeps the old one."""
        desc, avail, used = self.addresses
        size = self.size
        desc_view = memory.user_view(desc, VIRTQ_DESC_SIZE * size)
        avail_view = memory.user_view(avail, 6 + 2 * size)
        used_view = memory.user_view(used, 6 + 8 * size)
        self.memory = memory
        self.desc = desc_view
        self.avail = avail_view.cast("H")
        self.used16 = used_view.cast("H")
        self.used64 = used_view[4 : 4 + 8 * size].cast("Q")

    def start(self, base: int | None) -> list[tuple[int, Chain]]:
        """Set the position: ``base``, or the one that the used index and the in-flight region give; return the chains
        to submit again.

        Chains found in flight always win over ``base``: they were taken, and their requests were not given back.
        """
        self.used = self.used16[1]
        heads = self.region.recover(self.used)
        again = []
        length = 0
        for head in heads:
            again.append((head, self.chain(head)))
            length += len(again[-1][1]) >> 2
            if length > PASS + UNDER_WAY + MAX_CHAIN + 3 * self.size:
                raise RingBroken("the requests in flight have more descriptors than were taken")
        if heads or base is None:
            self.last_avail = (self.used + len(heads)) & 0xFFFF
        else:
            self.last_avail = base
        pending = (self.avail[1] - self.last_avail) & 0xFFFF
        if pending > self.size:
            raise RingBroken(
                f"available index {self.avail[1]} is {pending} ahead of {self.last_avail}, more than the queue "
                f"size {self.size}"
            )
        return again

    def take(self) -> list[tuple[int, Chain]]:
        """Take every available chain: list of ``(head, chain)``, each noted in the in-flight region. Raises
        RingBroken, MemoryFault.
        """
        avail = self.avail
        last = self.last_avail
        count = (avail[1] - last) & 0xFFFF
        if not count:
            return []
        size = self.size
        if count > size:
            raise RingBroken(f"available index {avail[1]} is {count} ahead of {last}, more than the queue size {size}")
        last_three = size - 2  # from this head on there are no three descriptors left
        mask = self.mask
        desc = self.desc
        words = self.region.words
        counter = self.region.counter
        memory = self.memory
        low, high, view = memory.low, memory.high, memory.view
        indirect = self.indirect
        long = 0
        taken: list[tuple[int, Chain]] = []
        add = taken.append
        try:
            for position in range(last, last + count):
                head = avail[2 + (position & mask)]
                if head >= size:
                    raise RingBroken(f"available ring offers head {head} of a queue of {size}")
                slot = 2 + 2 * head
                if words[slot] & 0xFF:
                    raise RingBroken(f"available ring offers head {head}, which is in flight")
                chain: Chain = _three(desc, head << 4) if head < last_three else _one(desc, head << 4)
                flags = chain[2]
                if flags & _INDIRECT:
                    address, length = chain[0], chain[1]
                    if not indirect or flags & _NEXT or not length or length & 15 or length > MAX_CHAIN * 16:
                        raise RingBroken(
                            f"descriptor {head}: indirect table of {length} bytes with flags {flags:#x} is not allowed"
                        )
                    n = length >> 4
                    offset = address - low
                    if offset >= 0 and address + length <= high:
                        chain = (_three if n == 3 else _table(n).unpack_from)(view, offset)
                    else:
                        chain = _table(n).unpack(memory.read(address, length))
                    if (
                        n != 3
                        or chain[2] & 5 != 1
                        or chain[6] & 5 != 1
                        or chain[10] & 5
                        or chain[3] != 1
                        or chain[7] != 2
                    ):
                        chain = self._walk(chain, n, 0)
                elif (
                    head >= last_three
                    or flags & 5 != 1
                    or chain[3] != head + 1
                    or chain[6] & 5 != 1
                    or chain[7] != head + 2
                    or chain[10] & 5
                ):
                    chain = self.chain(head)
                words[slot + 1] = counter
                words[slot] = 1
                counter += 1
                add((head, chain))
                if len(chain) > 12:
                    long += len(chain)
                    if long > 4 * PASS:
                        break
        except (RingBroken, MemoryFault):
            if not taken:  # those before the bad one are done first; the next call meets it again
                raise
        finally:
            self.region.counter = counter & 0xFFFFFFFF_FFFFFFFF
            self.last_avail = (last + len(taken)) & 0xFFFF
        return taken

    def chain(self, head: int) -> Chain:
        """Return the chain that starts at ``head``, of whatever shape: descriptors of the table itself, of which the
        last may refer to an indirect table (virtio 1.3, 2.7.5.3.2). Raises RingBroken, MemoryFault.
        """
        size = self.size
        desc = self.desc
        chain: Chain = ()
        index = head
        for __ in range(min(size, MAX_CHAIN)):
            one = _one(desc, index << 4)
            address, length, flags, following = one
            if flags & _INDIRECT:
                if not self.indirect or flags & _NEXT or not length or length & 15 or length > MAX_CHAIN * 16:
                    raise RingBroken(
                        f"descriptor {index}: indirect table of {length} bytes with flags {flags:#x} is not allowed"
                    )
                n = length >> 4
                chain += self._walk(_table(n).unpack(self.memory.read(address, length)), n, 0)
                if len(chain) > 4 * MAX_CHAIN:
                    raise RingBroken(f"descriptor chain of head {head} is longer than {MAX_CHAIN}")
                return chain
            chain += one
            if not flags & _NEXT:
                return chain
            index = following
            if index >= size:
                raise RingBroken(f"descriptor chain of head {head} goes on at {index} of a queue of {size}")
        raise RingBroken(f"descriptor chain of head {head} does not end")

    @staticmethod
    def _walk(table: Chain, count: int, index: int) -> Chain:
        """Bring an indirect table of ``count`` descriptors into chain order. Raises RingBroken."""
        order = []
        for __ in range(count):
            at = index * 4
            flags = table[at + 2]
            if flags & _INDIRECT:
                raise RingBroken("an indirect table inside an indirect table (virtio 1.3, 2.7.5.3.1)")
            order.append(index)
            if not flags & _NEXT:
                break
            index = table[at + 3]
            if index >= count:
                raise RingBroken(f"indirect table of {count} goes on at {index}")
        else:
            raise RingBroken(f"indirect table of {count} descriptors does not end")
        if order == list(range(len(order))):
            return table[: 4 * len(order)]
        return tuple(field for at in order for field in table[4 * at : 4 * at + 4])

    def give(self, done: list[tuple[int, int]]) -> bool:
        """Give back ``(head, bytes written)`` with one update of the used index; True = the driver wants a
        notification.
        """
        used64 = self.used64
        words = self.region.words
        halves = self.region.halves
        mask = self.mask
        before = used = self.used
        batch = halves[6]
        for head, written in done:
            used64[used & mask] = head | written << 32
            words[2 + 2 * head] = 1 | batch << 48
            halves[6] = batch = head
            used += 1
        self.used = used = used & 0xFFFF
        self.used16[1] = used
        for head, __ in done:
            words[2 + 2 * head] &= ~0xFF
        halves[7] = used
        fence()
        if self.event_idx:
            event = self.avail[2 + self.size]
            return (used - event - 1) & 0xFFFF < (used - before) & 0xFFFF
        return not self.avail[0] & VIRTQ_AVAIL_F_NO_INTERRUPT

    def listen(self) -> bool:
        """Ask the driver for a notification of the next chain; True = one came meanwhile, so take again."""
        if self.event_idx:
            self.used16[2 + 4 * self.size] = self.last_avail
        else:
            self.used16[0] = 0
        fence()
        return self.avail[1] != self.last_avail

    def hush(self) -> None:
        """Tell the driver that no notification is needed now (with EVENT_IDX the stale event index does that)."""
        if not self.event_idx:
            self.used16[0] = VIRTQ_USED_F_NO_NOTIFY
