# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine and the modules that run on it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.iovlab.storage.plugins.module_utils import _guest_agent, _lab_image, _lab_vm, _libvirt
from tests.unit.plugins import real
from tests.unit.plugins.guest_agent import Libraries
from tests.unit.plugins.machine import Machine
from tests.unit.plugins.runner import Modules
from tests.unit.plugins.vportd_server import Engine, Server
from tests.unit.plugins.world import Vm, World


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "machine")


@pytest.fixture
def modules(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Modules:
    """Modules whose vportd, unless a test starts one, does not run."""
    return Modules(machine.host, monkeypatch, rpc_socket=str(tmp_path / "rpc.sock"))


@pytest.fixture
def engine(machine: Machine, tmp_path: Path, modules: Modules) -> Iterator[Engine]:
    """vportd, answering on the socket that ``modules`` ask."""
    server = Server(tmp_path / "rpc.sock", Engine(machine.size, str(machine.device)))
    yield server.engine
    server.stop()


@pytest.fixture
def guests(monkeypatch: pytest.MonkeyPatch) -> Iterator[Libraries]:
    libraries = Libraries()
    monkeypatch.setattr(_libvirt, "load", lambda: libraries.modules[0])
    monkeypatch.setattr(_guest_agent, "load", lambda: libraries.modules)
    monkeypatch.setattr(_libvirt, "probe_interpreters_for_module", lambda *_arguments: None)
    yield libraries
    libraries.agent.close()


@pytest.fixture
def world(
    request: pytest.FixtureRequest,
    machine: Machine,
    guests: Libraries,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[World]:
    """On which ground is the fixture's parameter: ``emulated``, the real ``engine``, or the real ``lvm``."""
    lab = tmp_path / "lab"
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(_lab_image, "accelerator", lambda *_arguments: ("tcg", "not asked here"))
    monkeypatch.setattr(_lab_vm, "_STOP_TIMEOUT", 0.2)  # nothing in this VM hears of it
    ground = getattr(request, "param", "emulated")
    if ground == "engine":
        with real.vportd(machine, tmp_path, monkeypatch) as modules:
            yield from _living(World(machine, modules, None, guests, lab))
        return
    engine = request.getfixturevalue("engine")
    if ground == "lvm":
        with real.lvm(machine, tmp_path, monkeypatch) as modules:
            yield from _living(World(machine, modules, engine, guests, lab))
        return
    machine.interceptor = _qemu_img
    yield from _living(World(machine, request.getfixturevalue("modules"), engine, guests, lab))


def _qemu_img(command: list[str]) -> tuple[int, str, str] | None:
    if not command[0].startswith("qemu-"):
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def _living(world: World) -> Iterator[World]:
    try:
        yield world
    finally:
        world.network.aborted.set()
        for thread in world.threads:
            thread.join()
        world.machine.interceptor = _qemu_img
        if (world.lab / "vms").exists():
            world.modules.lab_vm(**Vm("absent")(world))
