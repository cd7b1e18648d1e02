# SPDX-License-Identifier: GPL-3.0-or-later
"""The hypervisors of the scenario's lab, over ssh by paramiko, and ways to speak to what runs on them."""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from tests.lab.driver import PROJECT, Lab
from tests.lab.load import Load

Rpc = Callable[..., Any]
Guest = Callable[..., str]


SOAK = int(os.environ.get("IOVLAB_SOAK", "1"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Cases marked ``long`` are for `make soak`; `make test` has a case of each kind without them."""
    if SOAK == 1:
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("long")])
        items[:] = [item for item in items if not item.get_closest_marker("long")]


@pytest.fixture(scope="session")
def soak() -> int:
    """How many times longer than usual a loop should run: 1, or what `make soak` says."""
    return SOAK


@pytest.fixture(scope="session")
def lab() -> Lab:
    return Lab()


@pytest.fixture
def written(lab: Lab) -> Iterator[Load]:
    """A load in tenant1 all along; in the end each block, in the VM and outside, is what was written to it last."""
    load = Load(lab, "tenant1", pause=0.1)
    yield load
    load.check()


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
def guest(lab: Lab) -> Guest:
    """``guest(program, *arguments)`` -> what the program wrote in the tenant VM, where it has to succeed."""

    def run(*argv: str) -> str:
        code, output = lab.guest("hv1", "tenant1", *argv)
        assert code == 0, output
        return output

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
        status, __, result = done.stdout.partition("=>")
        assert result, done.stdout + done.stderr
        parsed: dict[str, Any] = json.JSONDecoder().raw_decode(result.lstrip())[0]
        assert "Traceback" not in result, result
        return parsed | {"failed": "FAILED" in status}

    return run
