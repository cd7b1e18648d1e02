# SPDX-License-Identifier: GPL-3.0-or-later
"""guest_exec: a program in a virtual machine is started once, its end is told, and what goes wrong is said."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ansible_collections.iovlab.storage.plugins.module_utils import _guest_agent, _libvirt
from tests.unit.plugins.guest_agent import Libraries
from tests.unit.plugins.runner import Modules

Exec = Callable[..., dict[str, Any]]


@pytest.fixture
def guest(monkeypatch: pytest.MonkeyPatch) -> Iterator[Libraries]:
    libraries = Libraries()
    monkeypatch.setattr(_guest_agent, "load", lambda: libraries.modules)
    monkeypatch.setattr(_guest_agent, "_RETRY", 0.005)
    monkeypatch.setattr(_guest_agent, "_LOOKS", (0.005, 0.01))
    yield libraries
    libraries.agent.close()


@pytest.fixture
def run(guest: Libraries, modules: Modules) -> Exec:
    return lambda **arguments: modules.guest_exec(name="web1", **arguments)


def shell(script: str) -> list[str]:
    return ["sh", "-c", script]


def test_a_program_is_run_and_its_end_told(guest: Libraries, run: Exec) -> None:
    result = run(argv=shell("echo said; echo lamented >&2"))
    assert result["changed"]
    assert (result["rc"], result["exited"], result["truncated"]) == (0, True, [])
    assert (result["stdout"], result["stderr"]) == ("said\n", "lamented\n")
    assert result["steps"] == ["run sh -c 'echo said; echo lamented >&2' in virtual machine web1"]
    assert guest.agent.programs == {}


def test_arguments_and_stdin_reach_the_program_as_they_are(run: Exec) -> None:
    result = run(argv=["sh", "-c", 'printf "%s|" "$@"; cat', "sh", "a b", "", "ü$"], stdin="[job]\nrw=läse\n")
    assert result["stdout"] == "a b||ü$|[job]\nrw=läse\n"


def test_bytes_that_are_no_text_do_not_stop_it(run: Exec) -> None:
    assert run(argv=["printf", r"ok\377"])["stdout"] == "ok�"


def test_a_failure_is_told_with_the_last_line_of_stderr(run: Exec) -> None:
    result = run(argv=shell("echo out; echo first >&2; echo the reason >&2; echo >&2; exit 7"))
    assert result["failed"]
    assert result["msg"].startswith("sh in virtual machine web1 ended with 7: the reason; ")
    assert (result["rc"], result["stdout"], result["changed"], result["exited"]) == (7, "out\n", True, True)


def test_without_stderr_the_last_line_of_stdout_is_told(run: Exec) -> None:
    assert "ended with 1: only this; " in run(argv=shell("echo only this; exit 1"))["msg"]


def test_a_failure_can_be_wanted(run: Exec) -> None:
    result = run(argv=shell("exit 7"), fail_on_error=False)
    assert not result.get("failed")
    assert result["rc"] == 7


def test_a_signal_is_told_as_a_shell_does(run: Exec) -> None:
    assert run(argv=shell("kill -TERM $$"), fail_on_error=False)["rc"] == 128 + signal.SIGTERM


def test_started_now_and_asked_for_later(guest: Libraries, run: Exec) -> None:
    started = run(argv=["cat"], stdin="", wait=False)
    assert (started["changed"], started["exited"], started["rc"], started["stdout"]) == (True, False, None, "")
    ended = run(pid=started["pid"])
    assert (ended["changed"], ended["exited"], ended["rc"], ended["steps"]) == (False, True, 0, [])


def test_a_look_does_not_wait(guest: Libraries, run: Exec) -> None:
    pid = run(argv=["sleep", "1000"], wait=False)["pid"]
    looked = run(pid=pid, wait=False)
    assert (looked["exited"], looked["rc"], looked["changed"]) == (False, None, False)
    os.kill(pid, signal.SIGKILL)
    assert run(pid=pid, fail_on_error=False)["rc"] == 128 + signal.SIGKILL


def test_a_program_that_is_late_runs_on_and_can_be_asked_for(guest: Libraries, run: Exec) -> None:
    late = run(argv=["sleep", "1000"], timeout=0.05)
    assert late["failed"]
    assert late["changed"]
    assert f"pid {late['pid']} in virtual machine web1 has not ended within 0.05 s and runs on; " in late["msg"]
    assert guest.agent.programs[late["pid"]].process.poll() is None
    os.kill(late["pid"], signal.SIGKILL)
    assert run(pid=late["pid"], fail_on_error=False)["rc"] == 137


def test_a_vm_that_boots_is_waited_for(guest: Libraries, run: Exec) -> None:
    guest.agent.boots = 3
    assert run(argv=["true"])["rc"] == 0
    assert [name for name, __ in guest.agent.heard][:5] == ["guest-ping"] * 4 + ["guest-exec"]
    assert all(timeout <= 2 for name, timeout in guest.agent.heard if name == "guest-ping")


def test_an_agent_that_never_answers_is_waited_for_no_longer_than_the_timeout(
    guest: Libraries, modules: Modules
) -> None:
    guest.agent.boots = 1 << 30
    began = time.monotonic()
    message = modules.refused("guest_exec", name="web1", argv=["true"], timeout=0.1)
    assert "did not answer within 0.1 s (Guest agent is not responding: QEMU guest agent is not connected)" in message
    assert time.monotonic() - began < 5
    assert not guest.agent.programs


def test_check_mode_starts_nothing_and_takes_no_result_away(guest: Libraries, modules: Modules) -> None:
    foretold = modules.guest_exec(check=True, name="web1", argv=["true"])
    assert foretold["changed"]
    assert (foretold["pid"], foretold["rc"], foretold["exited"]) == (None, None, False)
    pid = modules.guest_exec(name="web1", argv=["true"], wait=False)["pid"]
    heard = list(guest.agent.heard)
    assert not modules.guest_exec(check=True, name="web1", pid=pid)["changed"]
    assert guest.agent.heard == heard
    assert modules.guest_exec(name="web1", pid=pid)["rc"] == 0


def test_check_mode_finds_a_vm_that_does_not_run(guest: Libraries, modules: Modules) -> None:
    guest.domain.state_now = 5
    assert "is shut off" in modules.refused("guest_exec", check=True, name="web1", argv=["true"])


def test_what_the_agent_threw_away_is_said(guest: Libraries, run: Exec) -> None:
    guest.agent.kept = 3
    result = run(argv=shell("echo long; echo l >&2"))
    assert (result["stdout"], result["stderr"], result["truncated"]) == ("lon", "l\n", ["stdout"])
    assert any(f"stdout of pid {result['pid']} is cut off after 16 MiB" in str(one) for one in result["warnings"])


def test_silence_while_it_runs_is_lived_through(guest: Libraries, run: Exec) -> None:
    def before(name: str) -> None:
        if name == "guest-exec-status":
            guest.agent.boots = max(0, 2 - [heard for heard, __ in guest.agent.heard].count(name))

    guest.agent.before = before
    assert run(argv=["echo", "through"])["stdout"] == "through\n"


def test_silence_to_the_end_is_told(guest: Libraries, run: Exec) -> None:
    guest.agent.deaf_to = {"guest-exec-status"}
    result = run(argv=["true"], timeout=0.05)
    assert "runs on, and the agent has stopped answering (guest agent didn't respond" in result["msg"]


def test_a_start_that_was_not_acknowledged_is_not_repeated(guest: Libraries, modules: Modules) -> None:
    guest.agent.deaf_to = {"guest-exec"}
    message = modules.refused("guest_exec", name="web1", argv=["fio"])
    assert message.startswith("fio may or may not have been started in virtual machine web1")
    assert [name for name, __ in guest.agent.heard].count("guest-exec") == 1


def test_a_vm_that_moved_away_is_named(guest: Libraries, run: Exec) -> None:
    def before(name: str) -> None:
        if name == "guest-exec-status":
            guest.host.domains.clear()

    guest.agent.before = before
    result = run(argv=["sleep", "1000"])
    assert result["failed"]
    assert result["changed"]
    assert f"ask for pid {result['pid']} on the hypervisor that it is on now" in result["msg"]


def test_an_end_is_told_once(run: Exec) -> None:
    pid = run(argv=["true"])["pid"]
    result = run(pid=pid)
    assert result["failed"]
    assert f"does not tell about pid {pid}: Invalid parameter 'pid'; " in result["msg"]


def _nothing(guest: Libraries) -> None:
    pass


def _absent(guest: Libraries) -> None:
    guest.host.domains.clear()


def _paused(guest: Libraries) -> None:
    guest.domain.state_now = 3


def _no_channel(guest: Libraries) -> None:
    guest.agent.channel = False


def _ends_while_waited_for(guest: Libraries) -> None:
    guest.agent.boots = 5

    def before(name: str) -> None:
        if guest.agent.boots < 4:
            guest.domain.state_now = 5

    guest.agent.before = before


@pytest.mark.parametrize(
    ("arrange", "arguments", "said"),
    [
        (_absent, {"argv": ["true"]}, "name: libvirt of qemu:///system has no virtual machine web1; "),
        (_paused, {"argv": ["true"]}, "name: virtual machine web1 is paused, not running; "),
        (_no_channel, {"argv": ["true"]}, "virtual machine web1 has no guest agent: "),
        (_ends_while_waited_for, {"argv": ["true"]}, "virtual machine web1 runs here no more; "),
        (_nothing, {"argv": ["/no/such"]}, "argv: virtual machine web1 cannot run /no/such: Failed to execute child"),
        (_nothing, {}, "argv, pid: exactly one of the two is needed; "),
        (_nothing, {"argv": ["true"], "pid": 1}, "argv, pid: exactly one of the two is needed; "),
        (_nothing, {"argv": []}, "argv: it names no program; "),
        (_nothing, {"pid": 1, "stdin": "x"}, "stdin: a program that runs already gets no more input; "),
        (_nothing, {"argv": ["cat"], "stdin": "x" * (3 << 20) + "x"}, "stdin: 3145729 bytes are above the 3 MiB "),
        (_nothing, {"argv": ["true"], "timeout": 0}, "timeout: 0 is too small; "),
    ],
)
def test_it_is_refused_with_one_line(
    guest: Libraries,
    modules: Modules,
    arrange: Callable[[Libraries], None],
    arguments: dict[str, Any],
    said: str,
) -> None:
    arrange(guest)
    assert modules.refused("guest_exec", name="web1", **arguments).startswith(said)
    assert not guest.agent.programs


def test_without_the_binding_the_package_is_named(modules: Modules, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ImportError("No module named 'libvirt_qemu'")

    monkeypatch.setattr(_guest_agent, "load", missing)
    monkeypatch.setattr(_libvirt, "has_respawned", lambda: True)
    assert "install the package python3-libvirt" in modules.refused("guest_exec", name="web1", argv=["true"])
