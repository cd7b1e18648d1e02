# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab of the scenarios: its hypervisors over ssh, its playbooks as a user runs them, and what runs where."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paramiko
import testinfra
from testinfra.host import Host

PROJECT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
HOME = PROJECT / "build" / "lab" / "molecule"
LOGS = PROJECT / "build" / "log"
_RPC = """
import json, socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect("/run/vportd/rpc.sock")
request = {"jsonrpc": "2.0", "id": 1, "method": sys.argv[1], "params": json.loads(sys.argv[2])}
s.sendall(json.dumps(request).encode() + b"\\n")
print(s.makefile().readline())
"""
_GUEST = """
import base64, json, sys, time
import libvirt, libvirt_qemu
wish = json.loads(sys.argv[1])
domain = libvirt.open("qemu:///system").lookupByName(wish["vm"])
def agent(command, **arguments):
    request = json.dumps({"execute": command, "arguments": arguments})
    return json.loads(libvirt_qemu.qemuAgentCommand(domain, request, 60, 0))["return"]
deadline = time.monotonic() + 180  # a VM that has just been started boots first
while True:
    try:
        agent("guest-ping")
        break
    except libvirt.libvirtError:
        if time.monotonic() > deadline:
            raise
        time.sleep(1)
pid = wish.get("pid")
if pid is None:
    given = {"input-data": base64.b64encode(wish["stdin"].encode()).decode()} if wish["stdin"] else {}
    pid = agent("guest-exec", path=wish["argv"][0], arg=wish["argv"][1:], **{"capture-output": True}, **given)["pid"]
status = {}
deadline = time.monotonic() + 600
while wish["wait"] and not (status := agent("guest-exec-status", pid=pid))["exited"]:
    if time.monotonic() > deadline:
        sys.exit(f"process {pid} in {wish['vm']} has not ended in 600 s")
    time.sleep(0.1)
kinds = ("out-data", "err-data") if status.get("exitcode") else ("out-data",)  # what one that fails complains of
said = "".join(base64.b64decode(status.get(kind, "")).decode() for kind in kinds)
print(json.dumps([pid, status.get("exitcode"), said]))
"""


def wait_until(what: str, condition: Callable[[], Any], timeout: float, pause: float = 0.5) -> Any:
    """The first true value of ``condition``. Fails, naming ``what``, when there is none within ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"within {timeout:g} s there was no {what}"
        time.sleep(pause)
    return value


class Run:
    """A playbook under way, in a process group of its own; its output is in build/log/<name>.log."""

    def __init__(self, name: str, *arguments: str, **variables: object) -> None:
        LOGS.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._ended = False
        command = [
            "ansible-playbook", f"--inventory={PROJECT}/molecule/inventory", f"iovlab.storage.{name}",
            f"--extra-vars={json.dumps(variables)}", *arguments,
        ]  # fmt: skip
        environment = os.environ | {
            "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0",
        }  # fmt: skip
        self._process = subprocess.Popen(
            command, cwd=PROJECT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with open(LOGS / f"{self.name}.log", "a", encoding="utf-8") as log:
            for line in self._process.stdout:
                log.write(line)
                log.flush()
                with self._news:
                    self.lines.append(line)
                    self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def wait_for(self, text: str, timeout: float = 300) -> None:
        """Return when ``text`` is in the output; fails when the playbook ends before, or is late."""
        deadline = time.monotonic() + timeout
        with self._news:
            while not any(text in line for line in self.lines):
                assert not self._ended, f"{self.name} ended without {text!r}:\n{self.output[-3000:]}"
                assert self._news.wait(deadline - time.monotonic()), f"{self.name} is late with {text!r}"

    def kill(self) -> None:
        """SIGKILL to all its processes on this machine."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def end(self, timeout: float = 600) -> int:
        """Its exit code."""
        code = self._process.wait(timeout)
        self._reader.join(30)
        return code


def play(name: str, *arguments: str, **variables: object) -> str:
    """Run a playbook that has to succeed; its output."""
    run = Run(name, *arguments, **variables)
    code = run.end()
    assert code == 0, f"{name} ended with {code}{_panics()}:\n{run.output[-4000:]}"
    return run.output


def _panics() -> str:
    """Which hypervisor's kernel has ended by itself, if one has: in a lab without KVM that is the emulation's."""
    logs = {name: HOME / name / "console.log" for name in ("hv1", "hv2")}
    found = [name for name, log in logs.items() if log.exists() and "Kernel panic" in log.read_text(errors="replace")]
    return "".join(f", the kernel of {name} has panicked (see its console.log)" for name in found)


def refused(name: str, *arguments: str, **variables: object) -> str:
    """Run a playbook that has to fail, in its own words; its output."""
    run = Run(name, *arguments, **variables)
    code = run.end()
    assert code != 0, f"{name} succeeded:\n{run.output[-4000:]}"
    assert "Traceback" not in run.output, run.output
    return re.sub(r"\s+", " ", run.output)


class Lab:
    """What runs where, as libvirt and vportd of each hypervisor say."""

    def __init__(self) -> None:
        self._hosts: dict[str, Host] = {}
        self._off: dict[str, list[str]] = {}
        self._had: dict[str, dict[str, dict[str, Any]]] = {}

    def host(self, name: str) -> Host:
        if name not in self._hosts:
            self._hosts[name] = testinfra.get_host(f"paramiko://{name}", ssh_config=str(HOME / "ssh_config"))
        return self._hosts[name]

    def forget(self, name: str) -> None:
        """The connection to a hypervisor that was rebooted is of no use."""
        host = self._hosts.pop(name, None)
        if host is not None and (client := vars(host.backend).pop("client", None)) is not None:
            client.close()  # testinfra would give the same host, and with it the same connection, again

    def rpc(self, name: str, method: str, **params: object) -> Any:
        """The answer's result, or its error, of vportd on hypervisor ``name``."""
        answer = json.loads(self.host(name).check_output("python3 -c %s %s %s", _RPC, method, json.dumps(params)))
        return answer.get("result", answer.get("error"))

    def guest(self, name: str, vm: str, *argv: str, stdin: str = "") -> tuple[int, str]:
        """Run a program in ``vm``, which is on hypervisor ``name``: its exit code, and what it wrote."""
        __, code, output = self._agent(name, vm=vm, argv=argv, stdin=stdin, wait=True)
        return code, output

    def guest_start(self, name: str, vm: str, *argv: str, stdin: str = "") -> int:
        """Start a program in ``vm``: its number there."""
        return int(self._agent(name, vm=vm, argv=argv, stdin=stdin, wait=False)[0])

    def guest_end(self, name: str, vm: str, pid: int) -> tuple[int, str]:
        """Wait for the end of a program that ``guest_start`` has started: its exit code, and what it wrote."""
        __, code, output = self._agent(name, vm=vm, pid=pid, wait=True)
        return code, output

    def _agent(self, name: str, **wish: object) -> Any:
        return json.loads(self.host(name).check_output("python3 -c %s %s", _GUEST, json.dumps(wish)))

    def power_off(self, name: str) -> None:
        """Pull the plug: its QEMU is killed."""
        ran = [vm for vm, state in self.domains(name).items() if state == "running"]
        self._had[name] = self.vports(name)
        os.kill(int((HOME / name / "qemu.pid").read_text()), signal.SIGKILL)
        self.forget(name)
        self._off[name] = ran

    def power_on(self, moved: str) -> None:
        """Boot what is off, see that its vports are back, and start the VMs that ran there, but for ``moved``."""
        play("lab_up")
        for name, ran in self._off.items():
            now = self.vports(name)
            for vport, had in self._had.pop(name).items():
                if vport != moved:
                    kept = ("vf", "generation", "digest")
                    assert [now[vport][key] for key in kept] == [had[key] for key in kept], f"{vport} after the boot"
            for vm in ran:
                if vm != moved:
                    self.host(name).check_output("virsh -q start %s", vm)
        self._off.clear()

    def reboot(self, name: str) -> None:
        """Reboot, and return when it is up again."""
        before = self._boot(name)
        self.host(name).run("systemctl --no-block reboot")
        wait_until(f"reboot of {name}", lambda: self._boot(name) not in (None, before), 300, 2)
        play("lab_up")

    def _boot(self, name: str) -> str | None:
        """Number of its boot, None while it does not answer."""
        self.forget(name)
        try:
            return str(self.host(name).check_output("cat /proc/sys/kernel/random/boot_id"))
        except (OSError, EOFError, paramiko.SSHException, AssertionError):
            return None

    def domains(self, name: str) -> dict[str, str]:
        """Tenant VMs that libvirt knows there, and their state."""
        listed = self.host(name).check_output("virsh list --all --name").split()
        return {vm: self.host(name).check_output("virsh domstate %s", vm) for vm in listed}

    def vports(self, name: str) -> dict[str, dict[str, Any]]:
        """Records of the vports there, by name."""
        return {record["vport"]: record for record in json.loads(self.host(name).check_output("vportctl list --json"))}

    def place(self, vm: str) -> str:
        """The one hypervisor on which ``vm`` runs."""
        there = [name for name in ("hv1", "hv2") if name not in self._off]
        running = [name for name in there if self.domains(name).get(vm) == "running"]
        assert len(running) == 1, f"{vm} runs on {running}"
        return running[0]

    def settled(self, vm: str, path: str = "vf") -> str:
        """Check that ``vm`` runs in one place, on ``path``, with its vport there alone; the place."""
        place = self.place(vm)
        elsewhere = other(place)
        assert vm not in self.domains(elsewhere), f"{vm} is still known to {elsewhere}"
        assert vm not in self.vports(elsewhere), f"{elsewhere} still has its vport"
        record = self.vports(place)[vm]
        assert (record["path"], record["fenced"], record["fence_on_stop"]) == (path, False, False)
        assert record["degraded"] is None
        assert all(lun["connected"] for lun in record["luns"])
        return place

    def job(self, vm: str, name: str) -> bool:
        """Whether a migration of ``vm`` is under way on hypervisor ``name``."""
        return "Time elapsed" in self.host(name).run("virsh domjobinfo %s", vm).stdout


def other(name: str) -> str:
    return "hv1" if name == "hv2" else "hv2"


def begin(lab: Lab, vm: str, **variables: object) -> tuple[str, Run]:
    """A migration of ``vm`` that has come to the copying of memory; its source."""
    source = lab.place(vm)
    run = Run("migrate", vm=vm, to=other(source), **variables)
    run.wait_for("Phase: live migration")
    wait_until("migration under way", lambda: lab.job(vm, source), 120)
    return source, run
