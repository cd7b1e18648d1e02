# SPDX-License-Identifier: GPL-3.0-or-later
"""Front ends and guests that ask without pause: the other vports, and whoever asks the engine, have their turn."""

import asyncio
import contextlib
import os
import signal
import struct
import subprocess
import sys
import threading
import time

import pytest

from tests.unit.vportd.engine_process import VF0
from tests.unit.vportd.frontend import IN, OK, OUT
from tests.unit.vportd.test_paths import wait_for
from vportd import pace

MIB = 1 << 20
LONG = 20.0  # seconds for what takes some milliseconds, for this machine may be busy with other things

# A front end that connects anew whenever the engine has had enough of it, with a process that takes the answers
FLOOD = """
import os, socket, struct, sys
path, request, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
block = struct.pack("<III", request, 1, 0) * count
while True:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(path)
        if count and not os.fork():
            while sock.recv(1 << 20):
                pass
            os._exit(0)
        while count:
            sock.sendall(block)
    except OSError:
        pass
    sock.close()
"""
GET_FEATURES, SET_OWNER = 1, 3


@contextlib.contextmanager
def flood(path, request, count):
    """``count`` messages at a time, again and again; 0 = connections alone."""
    command = [sys.executable, "-I", "-S", "-c", FLOOD, str(path), str(request), str(count)]
    with subprocess.Popen(command, start_new_session=True) as process:
        try:
            yield process
            assert process.poll() is None
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def cpu(pid):
    """CPU time of a process, in seconds."""
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        user, system = file.read().rpartition(") ")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def luns(name, at):
    return [{"lun": 0, "vdisk": name, "extents": [[0, at * MIB, 4 * MIB]]}]


def rounds(rpc, queue):
    """Seconds for some switches and requests of a vport."""
    began = time.monotonic()
    for turn in range(10):
        assert rpc.vport_switch(vport="vp1", path=("pf", "vf")[turn % 2])["changed"]
        assert queue.do(IN, 0, length=512)[0] == OK
    return time.monotonic() - began


@pytest.mark.parametrize(("request_number", "count"), [(SET_OWNER, 4096), (GET_FEATURES, 4096), (0, 0)])
def test_a_front_end_that_asks_without_pause_keeps_nobody_waiting(request_number, count, engine, make_vport, front_end):
    make_vport(engine, "flooded", luns("a", 0))
    rpc = make_vport(engine, "vp1", luns("b", 8), bind=VF0)
    queue = front_end(engine.socket("vp1")).start()
    rpc.sock.settimeout(LONG)
    alone = rounds(rpc, queue)
    with flood(engine.socket("flooded"), request_number, count):
        wait_for(lambda: rpc.vport_get(vport="flooded")["history"][-1]["event"] in ("connected", "disconnected"), LONG)
        assert rounds(rpc, queue) < 10 * alone + 4
        time.sleep(2)  # what the front end has to its credit is used up
        assert rounds(rpc, queue) < 10 * alone + 4
        before = cpu(engine.process.pid)
        time.sleep(2)
        assert cpu(engine.process.pid) - before < 1, "a flood has the engine work without pause"
    assert front_end(engine.socket("flooded")).start().do(OUT, 0, b"f" * 512)[0] == OK


def test_what_was_saved_up_is_done_at_once_and_more_is_not(monkeypatch):
    monkeypatch.setattr(pace, "CREDIT", 100)
    monkeypatch.setattr(pace, "PER_SECOND", 50)

    async def turns(count):
        found = pace.Pace()
        began = time.monotonic()
        answers = [await found.turn() for __ in range(count)]
        return time.monotonic() - began, answers

    __, answers = asyncio.run(turns(100))
    assert all(answers)
    seconds, answers = asyncio.run(turns(200))
    assert seconds > 1.9  # 100 at 50 a second
    assert not answers[-1]


def test_a_front_end_that_has_gone_leaves_nothing_that_others_wait_for(engine, make_vport, front_end):
    """Its messages are many, and it has no more turns than the next one."""
    make_vport(engine)
    front = front_end(engine.socket())
    front.negotiate()
    block = struct.pack("<III", SET_OWNER, 1, 0) * 512
    front.sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            front.sock.send(block)
    front.disconnect()
    assert front_end(engine.socket()).start().do(IN, 0, length=512)[0] == OK


@pytest.mark.parametrize("backend", ["uring", "threads", "file"])
def test_a_guest_that_floods_its_vport_stalls_no_other(backend, make_engine, make_vport, front_end):
    """All of a queue is used by large requests, scattered in memory and over many extents."""
    engine = make_engine(backend=backend)
    scattered = [[at * 4096, (255 - at) * 8192, 4096] for at in range(256)]
    make_vport(engine, "flooded", [{"lun": 0, "vdisk": "a", "extents": scattered}])
    make_vport(engine, "vp1", luns("b", 8))
    flooded = front_end(engine.socket("flooded")).start()
    queue = front_end(engine.socket("vp1")).start()
    stop = threading.Event()
    done = [0]

    def run():
        while not stop.is_set():
            while flooded.free:
                flooded.submit(IN, 8 * (done[0] % 200), length=65536, segments=7)
            flooded.kick()
            for __, status, __, __ in flooded.wait(1, LONG):
                assert status == OK
                done[0] += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        wait_for(lambda: done[0] > len(flooded.submissions), LONG)
        taken: list[float] = []
        before, began = done[0], time.monotonic()
        while time.monotonic() - began < 4:
            then = time.monotonic()
            status, read, __ = queue.do(IN, 8 * (len(taken) % 100), length=4096)
            taken.append(time.monotonic() - then)
            assert (status, read) == (OK, bytes(4096))
        assert done[0] > before, "there was no flood"
    finally:
        stop.set()
        thread.join(60)
    assert len(taken) > 20
    assert max(taken) < 2
