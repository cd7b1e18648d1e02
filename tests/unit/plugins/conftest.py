# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine and the modules that run on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.plugins.machine import Machine
from tests.unit.plugins.runner import Modules
from tests.unit.plugins.vportd_server import Engine, Server


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
