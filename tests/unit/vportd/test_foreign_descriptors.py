# SPDX-License-Identifier: GPL-3.0-or-later
"""What a front end sends as descriptors may wait when it is closed, asked or written to: it waits alone."""

import asyncio
import contextlib
import fcntl
import os
import socket
import struct
import sys
import threading
import time
from array import array
from pathlib import Path

import pytest

from tests.unit.vportd import confined
from tests.unit.vportd.engine_process import PACKAGES, VF0, Refusal
from tests.unit.vportd.frontend import IN, OK, FrontEnd
from tests.unit.vportd.test_paths import wait_for
from tests.unit.vportd.test_properties import Owner
from vportd import apart, vhost_user_message
from vportd.errors import ProtocolError
from vportd.front_end import FrontEnd as Protocol

MIB = 1 << 20
SET_OWNER, SET_LOG_FD, SET_VRING_ERR = 3, 7, 14
GET_QUEUE_NUM, SET_BACKEND_REQ_FD, GET_INFLIGHT_FD, SET_INFLIGHT_FD = 17, 21, 31, 32
SO_PEEK_OFF = 42
FULL = (1 << 64) - 2  # an eventfd's counter can become no larger, so the next one who writes waits


@pytest.fixture
def two(engine, make_vport, front_end):
    """The hostile front end of vp0, and a way to ask the engine, which has to answer at once."""
    make_vport(engine, luns=[{"lun": 0, "vdisk": "a", "extents": [[0, 0, 4 * MIB]]}], bind=VF0)
    make_vport(engine, "vp1", [{"lun": 0, "vdisk": "b", "extents": [[0, 8 * MIB, 4 * MIB]]}])
    rpc = engine.rpc()
    rpc.sock.settimeout(3)
    hostile = front_end(engine.socket())
    yield hostile, rpc
    rpc.get_version()
    assert front_end(engine.socket("vp1")).start().do(IN, 0, length=512)[0] == OK


def lingering(seconds):
    """A TCP socket whose last close waits: it has data that the other end does not read."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        peer, __ = server.accept()
    ours.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            ours.send(bytes(65536))
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, seconds))
    return ours, peer


@pytest.mark.parametrize(
    ("before", "count"),
    [(b"", 1), (struct.pack("<III", 99, 1, 0), 1), (b"", 200)],
    ids=["received", "never received", "more than there may be"],
)
def test_a_socket_whose_end_takes_long_keeps_nobody_waiting(before, count, two):
    hostile, rpc = two
    hostile.negotiate()
    hostile.ask(GET_QUEUE_NUM)
    ours, peer = lingering(6)
    with peer:
        # The engine is busy with the first ones, so that its copy is the last that is closed.
        hostile.sock.sendall(struct.pack("<III", SET_OWNER, 1, 0) * 500 + before)
        hostile.send(SET_LOG_FD, b"", [hostile.sock.fileno()] * (count - 1) + [ours.fileno()])
        ours.close()
        began = time.monotonic()
        while time.monotonic() - began < 1:
            rpc.get_version()
            time.sleep(0.05)
        assert time.monotonic() - began < 3


def test_a_ring_has_eventfds_and_nothing_else(two):
    hostile, __ = two
    hostile.negotiate()
    reader, writer = os.pipe()
    hostile.send(SET_VRING_ERR, struct.pack("<Q", 0), [writer])
    assert hostile.is_closed(5)
    os.close(reader)
    os.close(writer)


def test_who_waits_to_be_told_of_a_broken_ring_keeps_nobody_waiting(two):
    hostile, rpc = two
    queue = hostile.start()
    err = os.eventfd(0)
    os.eventfd_write(err, FULL)
    hostile.send(SET_VRING_ERR, struct.pack("<Q", 0), [err])
    stop = threading.Event()

    def make_it_wait():
        while not stop.is_set():
            fcntl.fcntl(err, fcntl.F_SETFL, os.O_RDWR)

    thread = threading.Thread(target=make_it_wait)
    thread.start()
    try:
        for __ in range(20):
            queue.memory.write(queue.avail + 2, struct.pack("<H", queue.size + 9))
            os.eventfd_write(queue.kick_fd, 1)
            time.sleep(0.02)
            rpc.get_version()
    finally:
        stop.set()
        thread.join()
        os.close(err)


def test_answers_that_nobody_reads_do_not_use_up_what_may_be_on_its_way(make_engine, make_vport, front_end):
    """As a service the engine has no capability that would exempt it from that limit."""
    command = ["prlimit", "--nofile=300:300", sys.executable, confined.__file__, str(PACKAGES / "vportd.service")]
    engine = make_engine(prefix=command, backend="file")
    make_vport(engine, luns=[{"lun": 0, "vdisk": "a", "extents": [[0, 0, 4 * MIB]]}])
    make_vport(engine, "vp1", [{"lun": 0, "vdisk": "b", "extents": [[0, 8 * MIB, 4 * MIB]]}])
    honest = front_end(engine.socket("vp1")).start()
    assert honest.do(IN, 0, length=512)[0] == OK
    kept = []
    try:
        for __ in range(3):
            front = FrontEnd(engine.socket())
            kept.append(front)
            front.sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                for __ in range(290):
                    header = struct.pack("<III", GET_INFLIGHT_FD, 1, 24)
                    front.sock.send(header + struct.pack("<QQHHI", 0, 0, 1, 128, 0))
            front.sock.shutdown(socket.SHUT_WR)
        time.sleep(1)
        os.kill(engine.workers()["vp1", "pf"], 9)
        assert honest.do(IN, 0, length=512)[0] == OK
        assert "Too many references" not in engine.log.read_text()
    finally:
        for front in kept:
            front.close()
    assert front_end(engine.socket()).start().do(IN, 0, length=512)[0] == OK


def test_a_front_end_cannot_have_its_own_connection_held_open(two, front_end, engine):
    hostile, __ = two
    hostile.start()
    hostile.send(SET_BACKEND_REQ_FD, b"", [hostile.sock.fileno()])
    assert hostile.is_closed(5)
    hostile.disconnect()
    assert front_end(engine.socket()).start().do(IN, 0, length=512)[0] == OK


@pytest.mark.parametrize(
    ("how", "kind", "flags"),
    [
        ("plain", socket.SOCK_STREAM, 0),
        ("plain", socket.SOCK_DGRAM, 0),
        ("plain", socket.SOCK_SEQPACKET, 0),
        ("looked for behind it", socket.SOCK_STREAM, 0),
        ("out of band", socket.SOCK_STREAM, socket.MSG_OOB),
        ("out of band, and read", socket.SOCK_STREAM, socket.MSG_OOB),
    ],
)
def test_nor_in_a_message_that_lies_in_the_channel(how, kind, flags, two, front_end, engine):
    hostile, __ = two
    hostile.start()
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    with ours, theirs:
        if how == "looked for behind it":
            theirs.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 1)
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [hostile.sock.fileno()]))
        ours.sendmsg([b"x"], [rights], flags)  # send_fds of Python 3.13 forgets the flags
        if how == "out of band, and read":
            assert theirs.recv(1, socket.MSG_OOB) == b"x"
        hostile.send(SET_BACKEND_REQ_FD, b"", [theirs.fileno()])
    hostile.disconnect()
    assert front_end(engine.socket()).start().do(IN, 0, length=512)[0] == OK


def test_nor_in_one_that_comes_into_the_channel_later(two, front_end, engine):
    hostile, __ = two
    hostile.start()
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            assert hostile.acknowledged(SET_BACKEND_REQ_FD, b"", [theirs.fileno()]) == 0
        with pytest.raises(BrokenPipeError):
            socket.send_fds(ours, [b"x"], [hostile.sock.fileno()])
    hostile.disconnect()
    assert front_end(engine.socket()).start().do(IN, 0, length=512)[0] == OK


def run(*steps):
    """Await what each of ``steps`` returns, in one loop."""

    async def all_of_them():
        return [await step() for step in steps]

    return asyncio.run(all_of_them())


def test_what_waits_without_end_is_left_behind(monkeypatch):
    monkeypatch.setattr(apart, "PATIENCE", 0.1)
    thread = apart.Apart()
    reader, writer = os.pipe()
    thread.begin(lambda: os.read(reader, 1))
    with pytest.raises(TimeoutError):
        run(thread.done)
    assert run(lambda: thread.do(lambda: 7), thread.done) == [7, None]
    os.close(writer)
    os.close(reader)


def test_a_thread_that_is_not_to_be_had_is_had_later(monkeypatch):
    def none(__):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(apart, "PATIENCE", 0.1)
    thread = apart.Apart()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none)
        thread.begin(lambda: None)
    assert run(lambda: thread.do(lambda: 7)) == [7]


@pytest.mark.parametrize("problem", [OSError(5, "what FUSE says"), TimeoutError("too long")])
def test_a_file_that_cannot_be_asked_is_let_go_of(problem, monkeypatch, tmp_path):
    async def fail(self, call):
        raise problem

    monkeypatch.setattr(apart.Apart, "do", fail)
    ours, theirs = socket.socketpair()
    front = Protocol(theirs, Owner())
    file = (tmp_path / "inflight").open("w+b")
    with ours, file:
        message = struct.pack("<QQHHI", 4096, 0, 1, 128, 0)
        socket.send_fds(ours, [struct.pack("<III", SET_INFLIGHT_FD, 1, len(message)) + message], [file.fileno()])
        with pytest.raises(OSError, match=problem.args[-1]):
            run(front.serve)
        front.close()
    path = str(tmp_path / "inflight")
    links = Path("/proc/self/fd")
    wait_for(lambda: not any(os.path.realpath(link) == path for link in links.iterdir()))


def test_answers_are_not_waited_for_without_end(monkeypatch):
    monkeypatch.setattr(vhost_user_message, "UNREAD", 0.1)
    ours, theirs = socket.socketpair()
    front = Protocol(theirs, Owner())
    with ours:
        ours.sendall(struct.pack("<III", GET_INFLIGHT_FD, 1, 24) + struct.pack("<QQHHI", 0, 0, 1, 128, 0))
        with pytest.raises(ProtocolError, match="does not read its answers"):
            run(front.serve)
        front.close()


def test_a_vport_that_is_being_bound_keeps_no_other_waiting(make_engine, make_vport, front_end):
    engine = make_engine(latency=5)
    rpc = make_vport(engine, luns=[{"lun": 0, "vdisk": "a", "extents": [[0, 0, 4 * MIB]]}])
    make_vport(engine, "vp1", [{"lun": 0, "vdisk": "b", "extents": [[0, 8 * MIB, 4 * MIB]]}])
    queue = front_end(engine.socket()).start()
    queue.submit(IN, 0, length=512)
    queue.kick()
    wait_for(lambda: rpc.vport_get(vport="vp0")["outstanding"] == 1, 10)
    rpc.begin("vport_bind", vport="vp0", vf=VF0, timeout=3)
    time.sleep(0.3)
    other = engine.rpc()
    began = time.monotonic()
    other.mapping_set(vport="vp1", luns=[{"lun": 0, "vdisk": "b", "extents": [[0, 8 * MIB, 5 * MIB]]}])
    with pytest.raises(Refusal) as refused:
        other.vport_bind(vport="vp1", vf=VF0)
    assert "is bound to vport vp0" in str(refused.value)
    assert time.monotonic() - began < 2
    with contextlib.suppress(Refusal):
        rpc.end()
