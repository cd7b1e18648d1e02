# SPDX-License-Identifier: GPL-3.0-or-later
"""Two things that vportd does right and the C peer, qemu-storage-daemon, does not. Both run the same steps.

What a front end sees is put into words, and each back end is held to the words that are true of it; should a later
peer mend its ways, its test fails and the words here are to be changed.
"""

import os

import pytest

from tests.unit.vportd.frontend import IN, OK, OUT, FrontEnd
from tests.unit.vportd.peer import StorageDaemon, offered
from tests.unit.vportd.test_paths import wait_for

MIB = 1 << 20
# The first read is served at once, the next ones at one a second; writes are not held up.
SLOW_READS = (
    *("--object", "throttle-group,id=slow,x-iops-read=1"),
    *("--blockdev", f"raw,node-name=part,file=image,offset=0,size={4 * MIB}"),
    *("--blockdev", "throttle,node-name=top,throttle-group=slow,file=part"),
)


class Vportd:
    """vportd with storage whose completions are late, and out of order."""

    def __init__(self, make_engine, make_vport):
        self.engine = make_engine(latency=[0.0, 1.5])
        make_vport(self.engine, luns=[{"lun": 0, "vdisk": "a", "extents": [[0, 0, 4 * MIB]]}])
        self.image, self.path = self.engine.storage, self.engine.socket()

    def restart(self):
        self.engine.kill()
        self.engine.start()


class Peer:
    """qemu-storage-daemon with the like."""

    def __init__(self, directory):
        self.image, self.path = directory / "image", directory / "socket"
        self.image.write_bytes(bytes(8 * MIB))
        self.daemon = StorageDaemon(self.image, self.path, SLOW_READS).start()

    def restart(self):
        self.daemon.kill()
        self.daemon.start()


@pytest.fixture(params=["vportd", "qemu-storage-daemon"])
def back_end(request, make_engine, make_vport, tmp_path):
    if request.param == "vportd":
        yield Vportd(make_engine, make_vport)
    else:
        peer = Peer(tmp_path)
        yield peer
        peer.daemon.stop()


@pytest.fixture
def front(back_end):
    features, protocol = offered(back_end.path)
    front = FrontEnd(back_end.path, features=features, protocol=protocol)
    yield front
    front.close()


def test_stop_with_slow_io_outstanding(back_end, front):
    """GET_VRING_BASE: once it is answered the VM's memory belongs to the VM, or to the host it has moved to."""
    queue = front.start()
    slots = [queue.submit(IN, 8 * at, length=4096) for at in range(4)]
    queue.kick()
    wait_for(lambda: queue.used_idx() > 0)
    base = front.stop_queue(0)
    given_back = queue.used_idx()
    for slot in slots:  # the VM goes on elsewhere, and uses this memory for other things
        front.memory.write(queue.slot_base(slot) + 0x1000, b"\xaa" * 4096)
    before = front.memory.pages()
    if isinstance(back_end, Peer):
        wait_for(lambda: front.memory.pages() != before)
    changed = {page for page, content in front.memory.pages().items() if content != before[page]}
    if isinstance(back_end, Vportd):
        assert base == given_back == 4, "answered before everything taken was given back"
        assert not changed
    else:
        assert base == 4 > given_back, "the peer drains now: say so here, and in the documentation"
        buffers = {queue.slot_base(slot) + 0x1000 >> 12 for slot in slots}
        assert changed & buffers, "wrong data: the peer reads into memory that is no longer its own"


def test_kill_with_out_of_order_io_outstanding(back_end, front):
    """kill -9 and a restart: QEMU connects again and goes on from the used index and, where there is one, the
    in-flight region.
    """
    queue = front.start()
    reads = {3 * queue.submit(IN, 8 * at, length=512) for at in range(8)}
    writes = {3 * queue.submit(OUT, 8 * at, os.urandom(512)) for at in range(8, 16)}
    queue.kick()
    order = [*sorted(reads), *sorted(writes)]

    def out_of_order():
        queue.reap()
        done = 16 - len(queue.busy)
        return queue.busy and set(queue.busy) != set(order[done:])

    wait_for(out_of_order)
    back_end.restart()
    queue.reap()
    lost = len(queue.busy)
    assert lost, "nothing was outstanding at the kill"
    front.disconnect()
    front.connect()
    front.start(1)
    os.eventfd_write(queue.kick_fd, 1)
    if isinstance(back_end, Vportd):
        assert [status for __, status, __, __ in queue.wait(lost)] == [OK] * lost
        assert queue.completions == queue.submissions
        assert queue.do(IN, 0, length=512)[0] == OK
    else:
        with pytest.raises(AssertionError, match=r"is not a head!|are outstanding"):
            queue.wait(lost, 12.0)
