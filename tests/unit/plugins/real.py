# SPDX-License-Identifier: GPL-3.0-or-later
"""What a unit test can have for real: vportd, its storage a regular file, and LVM, on a loop device."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ansible_collections.iovlab.storage.plugins.module_utils._host import wait_until
from tests.unit.plugins.machine import PF, Machine
from tests.unit.plugins.runner import Modules

SOURCE = Path(__file__).resolve().parents[3] / "roles" / "vportd" / "files"


@contextmanager
def engine(machine: Machine, directory: Path) -> Iterator[str]:
    """The real vportd, all its files in ``directory``; the socket that it answers on."""
    for path in (directory.parent, directory, machine.root, machine.dev):
        path.chmod(0o755)
    run_dir, config = directory / "run", directory / "vportd.json"
    settings = {
        "adapters": [{"pf": PF, "nsid": 1}],
        "state_dir": str(directory / "state"),
        "run_dir": str(run_dir),
        "sysfs_root": str(machine.sys),
        "dev_root": str(machine.dev),
        "socket_user": "root",
        "worker_user": "nobody",
    }
    config.write_text(json.dumps(settings))
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    with (directory / "vportd.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "vportd", "--config", str(config)], env=environment, stdout=log, stderr=log
        )
    try:
        wait_until(lambda: process.poll() is not None or (run_dir / "rpc.sock").exists(), 10, "vportd made no socket")
        assert process.poll() is None, (directory / "vportd.log").read_text()
        yield str(run_dir / "rpc.sock")
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def vportd(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Modules]:
    """Modules on a host with two VFs, where the real vportd runs."""
    Modules(machine.host, monkeypatch, rpc_socket=str(tmp_path / "none.sock")).sriov_vf(pf=PF, count=2)
    with engine(machine, tmp_path) as rpc_socket:
        yield Modules(machine.host, monkeypatch, rpc_socket=rpc_socket)


def told(modules: Modules) -> str:
    """A hash over all that vportd tells, but the history, which also has what was asked for in vain."""
    found = modules.vport_info()
    for record in found["vports"]:
        del record["history"]
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


@contextmanager
def lvm(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Modules]:
    """Modules on a machine whose namespace is a loop device, and whose LVM is the real one."""
    image = tmp_path / "image"
    image.write_bytes(b"secret--" * (machine.size // 8))
    loop = _loop(image)
    if loop is None:
        pytest.skip("needs root, a loop device and lvm2")
    machine.device.unlink()
    machine.device.symlink_to(loop)

    def run(command: list[str]) -> tuple[int, str, str]:
        named = [part.replace(str(machine.device), loop) for part in command]
        done = subprocess.run(named, capture_output=True, text=True, check=False, env=os.environ | {"LC_ALL": "C"})
        return done.returncode, done.stdout, done.stderr

    machine.interceptor = lambda command: None if command[0] == "nvme" else run(command)
    try:
        yield Modules(machine.host, monkeypatch, rpc_socket=str(tmp_path / "rpc.sock"))
    finally:
        subprocess.run(["losetup", "--detach", loop], check=True)


def _loop(image: Path) -> str | None:
    if os.geteuid() != 0 or not all(shutil.which(program) for program in ("losetup", "vgcreate", "wipefs")):
        return None
    done = subprocess.run(["losetup", "--find", "--show", str(image)], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
