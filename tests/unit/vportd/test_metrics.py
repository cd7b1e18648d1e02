# SPDX-License-Identifier: GPL-3.0-or-later
"""Metrics for a monitoring system: right by the standard, right by what was done, and off unless asked for."""

import json
import re
import socket
import stat

import pytest

from tests.unit.vportd.engine_process import VF0
from tests.unit.vportd.frontend import IN, OK, OUT
from tests.unit.vportd.openmetrics import NotOpenMetrics, parse
from tests.unit.vportd.test_paths import wait_for
from vportd.config import metrics_address
from vportd.errors import ConfigError
from vportd.metrics_server import CONNECTIONS, LONGEST


def ask(path, request=b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"):
    """Return status line, headers and body."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(str(path))
        sock.sendall(request)
        answer = b""
        while part := sock.recv(65536):
            answer += part
    head, __, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    return status, dict(line.split(": ", 1) for line in lines), body.decode()


def value(families, name, suffix="", **labels):
    found = [
        number for one, mine, number in families[name]["samples"] if one == suffix and labels.items() <= mine.items()
    ]
    return sum(found) if found else None


def done(rpc):
    counters = rpc.vport_get(vport="vp0")["luns"][0]["counters"]
    return sum(counters[name] for name in ("reads", "writes", "errors"))


@pytest.fixture
def measured(make_engine):
    return make_engine(settings={"metrics": "RUN/metrics.sock"})


def test_the_metrics_are_openmetrics_and_say_what_was_done_on_which_path(measured, make_vport, front_end):
    rpc = make_vport(measured, bind=VF0)
    path = measured.run_dir / "metrics.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    parse(ask(path)[2])
    queue = front_end(measured.socket()).start()
    for at in range(5):
        assert queue.do(OUT, at * 8, b"m" * 4096)[0] == OK
    rpc.vport_switch(vport="vp0", path="pf")
    assert queue.do(IN, 0, length=8192)[0] == OK
    queue.do(IN, 1 << 30, length=512)
    wait_for(lambda: done(rpc) == 7)  # a worker counts at the end of a pass, after the guest has been told
    status, headers, body = ask(path)
    assert status == "HTTP/1.1 200 OK"
    assert headers["Content-Type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    found = parse(body)
    mine = {"vport": "vp0", "lun": "0"}
    assert value(found, "vportd_requests", "_total", **mine, path="vf", operation="write") == 5
    assert value(found, "vportd_requests", "_total", **mine, path="pf", operation="read") == 1
    assert value(found, "vportd_moved_bytes", "_total", **mine, path="pf", direction="read") == 8192
    assert value(found, "vportd_errors", "_total", **mine, path="pf") == 1
    assert value(found, "vportd_latency_seconds", "_count", **mine, path="vf") == 5
    assert 0 < value(found, "vportd_latency_seconds", "_sum", **mine, path="vf") < 10
    assert value(found, "vportd_vport_path", vport="vp0", vportd_vport_path="pf") == 1
    assert value(found, "vportd_vport_path", vport="vp0", vportd_vport_path="vf") == 0
    assert value(found, "vportd_vport_state", vport="vp0", vportd_vport_state="RUNNING") == 1
    assert value(found, "vportd_vport_events", "_total", vport="vp0", event="switched") == 2
    (lun,) = rpc.vport_get(vport="vp0")["luns"]
    assert lun["paths"]["vf"]["counters"]["writes"] == 5
    assert lun["paths"]["pf"]["counters"]["writes"] == 0
    assert sum(lun["paths"]["pf"]["latency_us"]) + 5 == sum(lun["latency_us"])


def test_there_are_no_metrics_unless_they_are_asked_for(engine, make_vport):
    make_vport(engine)
    assert [path.name for path in engine.run_dir.iterdir() if path.is_socket()] == ["rpc.sock"]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "404 Not Found"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
        (b"nonsense\r\n\r\n", "400 Bad Request"),
        (b"GET /metrics HTTP/1.1\r\n" + b"x" * 2 * LONGEST + b"\r\n\r\n", "431 Request Header Fields Too Large"),
        (b"HEAD /metrics HTTP/1.1\r\n\r\n", "200 OK"),
    ],
)
def test_anything_but_a_request_for_the_metrics_is_refused(request_, status, measured):
    line, __, body = ask(measured.run_dir / "metrics.sock", request_)
    assert line == f"HTTP/1.1 {status}"
    assert (body == "") == request_.startswith(b"HEAD")


def test_those_who_ask_and_do_not_listen_keep_nobody_else_out_for_long(measured):
    path = measured.run_dir / "metrics.sock"
    idle = [socket.socket(socket.AF_UNIX) for __ in range(CONNECTIONS + 1)]
    for sock in idle:
        sock.connect(str(path))
        sock.settimeout(20)
    assert ask(path)[0] == "HTTP/1.1 503 Service Unavailable"
    assert measured.rpc().get_version()["protocol"] == 1
    for sock in idle:
        assert sock.recv(1) == b""  # their time is over
        sock.close()
    assert ask(path)[0] == "HTTP/1.1 200 OK"


def test_the_metrics_are_to_be_had_on_loopback_where_there_is_a_network(make_engine):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    make_engine(settings={"metrics": f"127.0.0.1:{port}"})
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert sock.makefile("rb").read().endswith(b"# EOF\n")


@pytest.mark.parametrize("where", ["0.0.0.0:9753", "127.0.0.1", "127.0.0.1:0", "metrics.sock", 9753, "[::1]:99999"])
def test_metrics_go_to_no_address_but_loopback(where):
    with pytest.raises(ConfigError, match="metrics is"):
        metrics_address(where)
    assert metrics_address("[::1]:9753") == ("::1", 9753)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# TYPE a counter\na_total 1",
        "# TYPE a counter\na 1\n# EOF\n",
        "# TYPE a_b gauge\n# UNIT a_b seconds\na_b 1\n# EOF\n",
        "# TYPE a gauge\na 1\n\n# EOF\n",
        "# TYPE a gauge\na 1\na 2\n# EOF\n",
        "# TYPE a gauge\na{b=1} 1\n# EOF\n",
        '# TYPE a histogram\na_bucket{le="1.0"} 1\na_count 1\na_sum 1\n# EOF\n',
        '# TYPE a histogram\na_bucket{le="1.0"} 2\na_bucket{le="+Inf"} 1\na_count 1\na_sum 1\n# EOF\n',
        '# TYPE a stateset\na{a="x"} 2\n# EOF\n',
    ],
)
def test_the_reader_of_these_tests_is_strict(text):
    with pytest.raises(NotOpenMetrics):
        parse(text)


def test_the_dashboard_asks_for_nothing_but_what_there_is(measured, make_vport, front_end, checkout):
    make_vport(measured, bind=VF0)
    assert front_end(measured.socket()).start().do(IN, 0, length=512)[0] == OK
    there = {
        family + suffix
        for family, one in parse(ask(measured.run_dir / "metrics.sock")[2]).items()
        for suffix, __, __ in one["samples"]
    }
    dashboard = json.loads((checkout / "docs/monitoring/dashboard.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    named = {name for one in asked for name in re.findall(r"\bvportd_\w+(?=[\[{ )]|$)", one)}
    assert len(asked) >= 8
    assert named <= there
    page = (checkout / "docs/monitoring.md").read_text()
    assert {one for one in there if f"`{one}`" not in page and not one.endswith(("_bucket", "_count", "_sum"))} == set()
