# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs in a virtual machine, run by its QEMU guest agent, which libvirt speaks to (QEMU: qga/qapi-schema.json)."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from . import _libvirt
from ._errors import CommandFailed, IovlabError, Refused, StepFailed, TimedOut
from ._migration import RUNNING

CAPTURED = 16 << 20  # bytes of each output that qemu-ga keeps; it throws the rest away
LIBVIRT_STRING = 4 << 20  # bytes of one message to or from the agent that libvirt passes on
STDIN_LIMIT = 3 << 20  # bytes that still fit into such a message in base64, next to the arguments

_PING = 2  # seconds, as are the next three
_REPLY = 20
_RETRY = 0.5
_LOOKS = (0.05, 1.0)  # between two looks at a program: at first, and at most
_PREFIX = re.compile(r"^.*unable to execute QEMU agent command '[^']*': ", re.DOTALL)


def load() -> tuple[ModuleType, ModuleType]:
    """libvirt's binding and its part for QEMU; ImportError where the distribution's package is missing."""
    import libvirt_qemu  # type: ignore[import-not-found, unused-ignore]

    return _libvirt.load(), libvirt_qemu


class _NoAnswer(Exception):
    """The agent is not connected, or was not heard of in time."""


class _Said(Exception):
    """The agent answered with an error."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is known of a program. ``rc`` is 128 + N for one that signal N ended; ``truncated`` names cut outputs."""

    exited: bool = False
    rc: int | None = None
    stdout: str = ""
    stderr: str = ""
    truncated: tuple[str, ...] = ()

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Outcome:
        """From the answer to guest-exec-status; there is output only of a program that has ended."""
        if not answer["exited"]:
            return cls()
        code = answer["exitcode"] if "exitcode" in answer else 128 + answer.get("signal", 0)
        return cls(
            True,
            code,
            _text(answer.get("out-data", "")),
            _text(answer.get("err-data", "")),
            tuple(f"std{name}" for name in ("out", "err") if answer.get(f"{name}-truncated")),
        )

    @property
    def last_line(self) -> str:
        """What the program said last, on standard error if it said anything there."""
        said = self.stderr if self.stderr.strip() else self.stdout
        return next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "nothing was said")


def _text(data: str) -> str:
    return base64.b64decode(data).decode("utf-8", errors="replace")


class Agent:
    """The agent in virtual machine ``name``. Made only for one that runs here; anything else is Refused."""

    def __init__(self, libvirt: ModuleType, qemu: ModuleType, hypervisor: _libvirt.Hypervisor, name: str) -> None:
        self._libvirt = libvirt
        self._qemu = qemu
        self._name = name
        self._what = f"virtual machine {name}"
        guest = hypervisor.guest(name)
        if guest is None:
            raise Refused(f"name: libvirt of {hypervisor.uri} has no virtual machine {name}; correct the name or uri")
        if guest.state != RUNNING:
            raise Refused(f"name: {self._what} is {guest.state}, not running; start or resume it first")
        self._domain = hypervisor.domain(name)

    def wait(self, timeout: float) -> None:
        """Return when the agent answers, which takes a virtual machine that boots a while."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                self._ask("guest-ping", {}, _PING)
                return
            except _NoAnswer as exc:
                if time.monotonic() + _RETRY >= deadline:
                    raise TimedOut(
                        f"the guest agent of {self._what} did not answer within {timeout:g} s ({exc}); look at "
                        "the VM's console, and see that qemu-ga runs in it"
                    ) from exc
            except _Said as exc:
                raise CommandFailed(f"the guest agent of {self._what} refuses guest-ping: {exc}; look at it") from exc
            time.sleep(_RETRY)

    def start(self, argv: Sequence[str], stdin: str | None) -> int:
        """Start a program with its outputs captured; return its pid in the virtual machine."""
        arguments: dict[str, Any] = {"path": argv[0], "arg": list(argv[1:]), "capture-output": True}
        if stdin is not None:
            arguments["input-data"] = base64.b64encode(stdin.encode()).decode()
        try:
            return int(self._ask("guest-exec", arguments, _REPLY)["pid"])
        except _NoAnswer as exc:
            raise StepFailed(
                f"{argv[0]} may or may not have been started in {self._what}, the agent did not say ({exc}); look in "
                "the VM before trying again"
            ) from exc
        except _Said as exc:
            raise Refused(f"argv: {self._what} cannot run {argv[0]}: {exc}; correct argv") from exc

    def look(self, pid: int) -> Outcome:
        """What is known of a program now. The agent forgets a program once it has told its end."""
        try:
            return self._look(pid)
        except _NoAnswer as exc:
            raise TimedOut(f"{self._what} did not tell about pid {pid} ({exc}); ask again", pid=pid) from exc

    def _look(self, pid: int) -> Outcome:
        try:
            return Outcome.of(self._ask("guest-exec-status", {"pid": pid}, _REPLY))
        except _Said as exc:
            raise CommandFailed(
                f"{self._what} does not tell about pid {pid}: {exc}; it was not started by this agent, its end was "
                f"told once already, or its output is above the {LIBVIRT_STRING >> 20} MiB that libvirt passes on",
                pid=pid,
            ) from exc

    def outcome(self, pid: int, timeout: float) -> Outcome:
        """Wait for the end of a program. One that is late runs on."""
        deadline = time.monotonic() + timeout
        pause, longest = _LOOKS
        silence = ""
        while True:
            try:
                found = self._look(pid)
                silence = ""
                if found.exited:
                    return found
            except _NoAnswer as exc:  # it may be just moving to another host, or be very busy
                silence = f", and the agent has stopped answering ({exc})"
            if time.monotonic() >= deadline:
                raise TimedOut(
                    f"pid {pid} in {self._what} has not ended within {timeout:g} s and runs on{silence}; ask later "
                    f"with pid {pid}, or give a longer timeout",
                    pid=pid,
                    exited=False,
                )
            time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
            pause = min(2 * pause, longest)

    def _ask(self, command: str, arguments: Mapping[str, Any], timeout: int) -> Any:
        message = json.dumps({"execute": command, **({"arguments": arguments} if arguments else {})})
        lib = self._libvirt
        try:
            answer = json.loads(self._qemu.qemuAgentCommand(self._domain, message, timeout, 0))
        except lib.libvirtError as exc:
            code, said = exc.get_error_code(), " ".join(str(exc.get_error_message() or exc).split())
            if code in (lib.VIR_ERR_AGENT_UNRESPONSIVE, lib.VIR_ERR_AGENT_UNSYNCED, lib.VIR_ERR_OPERATION_TIMEOUT):
                raise _NoAnswer(said) from exc
            if code in (lib.VIR_ERR_ARGUMENT_UNSUPPORTED, lib.VIR_ERR_OPERATION_UNSUPPORTED):
                raise Refused(
                    f"{self._what} has no guest agent: {said}; give it a virtio channel org.qemu.guest_agent.0"
                ) from exc
            if code in (lib.VIR_ERR_NO_DOMAIN, lib.VIR_ERR_OPERATION_INVALID):
                raise self._gone(arguments.get("pid")) from exc
            raise _Said(_PREFIX.sub("", said)) from exc
        return answer["return"]

    def _gone(self, pid: int | None) -> IovlabError:
        """It stopped or moved away between two commands."""
        if pid is None:
            return StepFailed(f"{self._what} runs here no more; look where it is, and try again there")
        return StepFailed(
            f"{self._what} runs here no more, and pid {pid} with it; if it was migrated, ask for pid {pid} on the "
            "hypervisor that it is on now",
            pid=pid,
        )
