# SPDX-License-Identifier: GPL-3.0-or-later
"""The hypervisors of the scenario's lab, over ssh by paramiko, and ways to speak to what runs on them."""

import functools
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from tests.lab.driver import PROJECT, Lab

_GUEST = """
import base64, json, sys, time
import libvirt, libvirt_qemu
domain = libvirt.open("qemu:///system").lookupByName(sys.argv[1])
def agent(command, **arguments):
    request = json.dumps({"execute": command, "arguments": arguments})
    return json.loads(libvirt_qemu.qemuAgentCommand(domain, request, 30, 0))["return"]
deadline = time.monotonic() + 180  # a VM that has just been started boots first
while True:
    try:
        agent("guest-ping")
        break
    except libvirt.libvirtError:
        if time.monotonic() > deadline:
            raise
        time.sleep(1)
pid = agent("guest-exec", path=sys.argv[2], arg=sys.argv[3:], **{"capture-output": True})["pid"]
while not (status := agent("guest-exec-status", pid=pid))["exited"]:
    time.sleep(0.1)
print(json.dumps([status.get("exitcode"), base64.b64decode(status.get("out-data", "")).decode()]))
"""

Rpc = Callable[..., Any]
Guest = Callable[..., str]


@pytest.fixture(scope="session")
def lab() -> Lab:
    return Lab()


@pytest.fixture(scope="session")
def hypervisors(lab: Lab) -> dict[str, Host]:
    return {name: lab.host(name) for name in ("hv1", "hv2")}


@pytest.fixture(scope="session")
def hv1(hypervisors: dict[str, Host]) -> Host:
    """The hypervisor that manages the pool and runs the tenant VM."""
    return hypervisors["hv1"]


@pytest.fixture(scope="session")
def rpc(lab: Lab) -> Rpc:
    """``rpc(method, **params)`` -> the answer's result, or its error, of hv1's vportd."""
    return functools.partial(lab.rpc, "hv1")


@pytest.fixture(scope="session")
def guest(hv1: Host) -> Guest:
    """``guest(program, *arguments)`` -> what the program wrote in the tenant VM, where it has to succeed."""

    def run(*argv: str) -> str:
        done = hv1.run("python3 -c %s tenant1 " + " ".join(map(shlex.quote, argv)), _GUEST)
        assert done.rc == 0, done.stderr
        code, output = json.loads(done.stdout)
        assert code == 0, output
        return str(output)

    return run


@pytest.fixture(scope="session")
def module() -> Callable[..., dict[str, Any]]:
    """``module(host, name, **options)`` -> result of one of the collection's modules, run by Ansible."""

    def run(host: str, name: str, /, **options: object) -> dict[str, Any]:
        command = [
            str(Path(sys.executable).parent / "ansible"), host,
            f"--inventory={PROJECT}/molecule/inventory",
            f"--playbook-dir={PROJECT}/playbooks",
            f"--module-name=iovlab.storage.{name}",
            f"--args={json.dumps(options)}",
            "--one-line",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False, cwd=PROJECT)
        status, _, result = done.stdout.partition("=>")
        assert result, done.stdout + done.stderr
        parsed: dict[str, Any] = json.JSONDecoder().raw_decode(result.lstrip())[0]
        assert "Traceback" not in result, result
        return parsed | {"failed": "FAILED" in status}

    return run
