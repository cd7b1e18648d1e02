# SPDX-License-Identifier: GPL-3.0-or-later
"""What the journal is told, over a real socket of datagrams."""

import socket
import struct
import time

import pytest

from tests.unit.vportd.engine_process import VF0, Refusal
from tests.unit.vportd.frontend import IN, OK
from tests.unit.vportd.test_paths import wait_for
from vportd import journal


def fields(datagram):
    """Read the journal's native protocol."""
    found = {}
    while datagram:
        line, __, rest = datagram.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (length,) = struct.unpack_from("<Q", rest)
            value, rest = rest[8 : 8 + length], rest[8 + length :]
            assert rest[:1] == b"\n"
            rest = rest[1:]
        assert name.decode().replace("_", "").isalnum()
        assert name.decode() == name.decode().upper()
        assert name[:1] not in b"_0123456789"
        found[name.decode()] = value.decode()
        datagram = rest
    return found


@pytest.fixture
def messages(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "journal"))
        sock.settimeout(10)
        yield sock


def read(sock, event):
    while (found := fields(sock.recv(65536))).get("VPORT_EVENT") != event:
        assert found["SYSLOG_IDENTIFIER"] == "vportd"
    return found


def test_each_change_is_a_message_with_its_fields(messages, make_engine, make_vport, front_end):
    environment = {"VPORTD_JOURNAL": messages.getsockname(), "JOURNAL_STREAM": "STDERR"}
    engine = make_engine(environment=environment)
    rpc = make_vport(engine, bind=VF0)
    assert read(messages, "created")["VPORT"] == "vp0"
    switched = read(messages, "switched")
    assert (switched["VPORT_FROM"], switched["VPORT_TO"], switched["GENERATION"]) == ("pf", "vf", "1")
    assert front_end(engine.socket()).start().do(IN, 0, length=512)[0] == OK
    assert read(messages, "connected")["VPORT_COMM"]
    report = rpc.vport_switch(vport="vp0", path="pf")
    switched = read(messages, "switched")
    assert int(switched["DURATION_USEC"]) == round(report["blackout_seconds"] * 1e6)
    assert (switched["VPORT_PATH"], switched["VPORT_STATE"], switched["PRIORITY"]) == ("pf", "RUNNING", "6")
    assert "from vf, to pf" in switched["MESSAGE"]
    seconds = rpc.vport_suspend(vport="vp0")["drain_seconds"]
    suspended = read(messages, "suspended")
    assert (suspended["VPORT_STATE"], int(suspended["DURATION_USEC"])) == ("FROZEN", round(seconds * 1e6))
    messages.close()
    rpc.vport_resume(vport="vp0")  # the journal has gone: the message is a line
    assert "vport vp0: resumed" in engine.log.read_text()
    assert "switched" not in engine.log.read_text()


def test_a_vport_that_stood_still_says_how_long(messages, make_engine, make_vport, front_end):
    environment = {"VPORTD_JOURNAL": messages.getsockname(), "JOURNAL_STREAM": "STDERR"}
    engine = make_engine(environment=environment, latency=0.4)
    rpc = make_vport(engine)
    front = front_end(engine.socket())
    queue = front.start()

    def taken(event):
        found = read(messages, event)
        assert (found["VPORT"], found["GENERATION"]) == ("vp0", "1")
        return int(found["DURATION_USEC"]) * 1e-6

    queue.submit(IN, 0, length=512)
    queue.kick()
    wait_for(lambda: rpc.vport_get(vport="vp0")["outstanding"])
    with pytest.raises(Refusal):
        rpc.vport_suspend(vport="vp0", timeout=0.1)
    assert 0.1 <= taken("rolled_back") < 5
    began = time.monotonic()
    rpc.vport_suspend(vport="vp0")
    time.sleep(0.3)
    rpc.vport_resume(vport="vp0")
    assert 0.3 <= taken("resumed") <= time.monotonic() - began
    for when, stop in (("now", lambda: None), ("on_stop", front.stop_queue)):
        queue.wait(len(queue.busy))
        queue.submit(IN, 0, length=512)
        queue.kick()
        wait_for(lambda: rpc.vport_get(vport="vp0")["outstanding"])
        began = time.monotonic()
        rpc.vport_fence(vport="vp0", when=when)
        stop()
        assert 0 < taken("fenced") <= time.monotonic() - began
        time.sleep(0.3)
        rpc.vport_unfence(vport="vp0")
        assert 0.3 <= taken("unfenced") <= time.monotonic() - began
    rpc.vport_fence(vport="vp0", when="on_stop")
    rpc.vport_unfence(vport="vp0")
    assert "DURATION_USEC" not in read(messages, "unfenced")  # it never stood still


def test_without_the_journal_behind_it_a_message_is_a_line(messages, make_engine, make_vport):
    environment = {"VPORTD_JOURNAL": messages.getsockname(), "JOURNAL_STREAM": "1:1"}
    engine = make_engine(environment=environment)
    make_vport(engine, bind=VF0)
    assert "<6>vportd: vport vp0: switched: from pf, to vf" in engine.log.read_text()
    messages.setblocking(False)
    with pytest.raises(BlockingIOError):
        messages.recv(1)


def test_a_value_of_several_lines_cannot_make_fields_of_its_own():
    found = fields(journal.datagram({"VPORT_WHY": "one\nPRIORITY=0\n", "message": "plain", "_uid": 7, "9-x": ""}))
    assert found == {"VPORT_WHY": "one\nPRIORITY=0\n", "MESSAGE": "plain", "UID": "7", "X": ""}
