# SPDX-License-Identifier: GPL-3.0-or-later
"""libvirt and its part for QEMU, with a guest agent behind them that starts real programs and remembers them."""

from __future__ import annotations

import base64
import json
import subprocess
import threading
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, cast

from tests.unit.plugins.libvirt_hosts import Domain, Network, libvirtError

UNRESPONSIVE, UNSYNCED, UNSUPPORTED, NOT_RUNNING, INTERNAL = 86, 97, 74, 55, 1


class Program:
    """A process, and what it has said, collected while it runs."""

    def __init__(self, argv: list[str], stdin: bytes | None) -> None:
        source = subprocess.DEVNULL if stdin is None else subprocess.PIPE
        self.process = subprocess.Popen(argv, stdin=source, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.outputs = (b"", b"")
        self.collector = threading.Thread(target=self._collect, args=(stdin,))
        self.collector.start()

    def _collect(self, stdin: bytes | None) -> None:
        self.outputs = self.process.communicate(stdin)

    @property
    def ended(self) -> bool:
        return not self.collector.is_alive()


@dataclass
class GuestAgent:
    """The agent in one virtual machine. ``boots`` pings are not answered before the first that is.

    ``before`` is called ahead of every command with its name, for a test to change the world there.
    """

    kept: int = 16 << 20
    boots: int = 0
    channel: bool = True
    programs: dict[int, Program] = field(default_factory=dict)
    heard: list[tuple[str, int]] = field(default_factory=list)
    deaf_to: set[str] = field(default_factory=set)
    before: Any = None

    def command(self, domain: Domain, message: str, timeout: int, flags: int) -> str:
        request = json.loads(message)
        name, arguments = request["execute"], request.get("arguments", {})
        if self.before is not None:
            self.before(name)
        if domain.name not in domain.host.domains:
            raise libvirtError(f"Domain not found: no domain with matching name '{domain.name}'", 42)
        if not domain.isActive():
            raise libvirtError("Requested operation is not valid: domain is not running", NOT_RUNNING)
        if not self.channel:
            raise libvirtError("argument unsupported: QEMU guest agent is not configured", UNSUPPORTED)
        self.heard.append((name, timeout))
        assert flags == 0
        if self.boots:
            self.boots -= 1
            raise libvirtError("Guest agent is not responding: QEMU guest agent is not connected", UNRESPONSIVE)
        if name in self.deaf_to:
            raise libvirtError(f"guest agent didn't respond to '{name}' within '{timeout}' seconds", UNRESPONSIVE)
        commands: dict[str, Any] = {
            "guest-ping": self._ping,
            "guest-exec": self._exec,
            "guest-exec-status": self._status,
        }
        answer = commands[name]
        return json.dumps({"return": answer(**{key.replace("-", "_"): value for key, value in arguments.items()})})

    def _ping(self) -> dict[str, Any]:
        return {}

    def _exec(self, path: str, arg: list[str], capture_output: bool, input_data: str | None = None) -> dict[str, Any]:
        assert capture_output
        try:
            program = Program([path, *arg], None if input_data is None else base64.b64decode(input_data))
        except OSError as exc:
            self._fail("guest-exec", f"Failed to execute child process '{path}' ({exc.strerror})")
        pid = program.process.pid
        self.programs[pid] = program
        return {"pid": pid}

    def _status(self, pid: int) -> dict[str, Any]:
        if pid not in self.programs:
            self._fail("guest-exec-status", "Invalid parameter 'pid'")
        program = self.programs[pid]
        if not program.ended:
            return {"exited": False}
        del self.programs[pid]  # told once
        code = program.process.returncode
        answer: dict[str, Any] = {"exited": True} | ({"signal": -code} if code < 0 else {"exitcode": code})
        for name, data in zip(("out", "err"), program.outputs, strict=True):
            if data:
                answer[f"{name}-data"] = base64.b64encode(data[: self.kept]).decode()
            if len(data) > self.kept:
                answer[f"{name}-truncated"] = True
        return answer

    @staticmethod
    def _fail(command: str, why: str) -> None:
        raise libvirtError(f"internal error: unable to execute QEMU agent command '{command}': {why}", INTERNAL)

    def close(self) -> None:
        for program in self.programs.values():
            program.process.kill()
            program.collector.join()


class Libraries:
    """What ``_guest_agent.load`` returns, on a host with one virtual machine ``web1`` and an agent in it."""

    def __init__(self) -> None:
        network = Network()
        self.host = network.here
        self.domain = self.host.domains["web1"] = Domain(self.host, "web1")
        self.agent = GuestAgent()
        library: Any = network.library
        library.VIR_ERR_AGENT_UNRESPONSIVE = UNRESPONSIVE
        library.VIR_ERR_AGENT_UNSYNCED = UNSYNCED
        library.VIR_ERR_ARGUMENT_UNSUPPORTED = UNSUPPORTED
        library.VIR_ERR_OPERATION_INVALID = NOT_RUNNING
        library.VIR_ERR_OPERATION_TIMEOUT = 68
        library.VIR_ERR_OPERATION_UNSUPPORTED = 84
        qemu: Any = ModuleType("libvirt_qemu")
        qemu.qemuAgentCommand = self.agent.command
        self.modules = cast(ModuleType, library), cast(ModuleType, qemu)
