# SPDX-License-Identifier: GPL-3.0-or-later
"""All that modules act on, in one: an adapter and LVM, vportd, virtual machines, and a place for a lab."""

from __future__ import annotations

import hashlib
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.iovlab.storage.plugins.module_utils import _lab_vm
from tests.unit.plugins import real
from tests.unit.plugins.guest_agent import Libraries
from tests.unit.plugins.libvirt_hosts import Network
from tests.unit.plugins.machine import MIB, Machine
from tests.unit.plugins.runner import Modules
from tests.unit.plugins.vportd_server import Engine

VOLATILE = ("console.log", "qemu.log", "overlay.qcow2", "san.img")  # a running VM writes them by itself


@dataclass
class World:
    """All that modules act on. ``engine`` is None where the real vportd runs, which ``modules`` can ask."""

    machine: Machine
    modules: Modules
    engine: Engine | None
    guests: Libraries
    lab: Path
    threads: list[threading.Thread] = field(default_factory=list)

    @property
    def network(self) -> Network:
        return self.guests.host.network

    @property
    def vportd(self) -> Engine:
        assert self.engine is not None, "this row needs the emulated vportd"
        return self.engine

    def fingerprint(self) -> str:
        agent = self.guests.agent
        parts = [
            self.machine.fingerprint(),
            repr(self.machine.written),  # a write to sysfs that changes nothing is one all the same
            hashlib.sha256(self.machine.device.read_bytes()).hexdigest(),
            real.told(self.modules) if self.engine is None else self.engine.fingerprint(),
            self.network.fingerprint(),
            repr((self.network.aborted.is_set(), self.network.asked)),
            repr(sum(command == "guest-exec" for command, __ in agent.heard)),
            *self._lab(),
        ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _lab(self) -> Iterator[str]:
        """Files of images and VMs, and which VM runs."""
        for path in sorted(self.lab.rglob("*")):
            yield str(path.relative_to(self.lab))
            if path.is_file() and path.name not in VOLATILE:
                yield hashlib.sha256(path.read_bytes()).hexdigest()
            if path.name == "qemu.pid":
                yield str(Path("/proc", path.read_text().strip()).exists())


@dataclass(frozen=True)
class Vm:
    """Arguments of lab_vm."""

    state: str

    def __call__(self, world: World) -> dict[str, Any]:
        return {
            "lab": "t",
            "name": "hv1",
            "directory": str(world.lab / "vms"),
            "state": self.state,
            "image": {part: str(world.lab / part) for part in ("root", "kernel", "initrd")},
            "memory": 64,
            "cpus": 1,
            "ssh_port": port(world),
            "adapter": {
                "serial": "s",
                "max_vfs": 1,
                "storage": str(world.lab / "san.img"),
                "storage_uuid": "6a1a3c4e-1111-4222-8333-444455556666",
            },
            "seed": [{"path": "/etc/hosts", "content": "127.0.0.1 localhost\n"}],
        }


def port(world: World) -> int:
    """One that is free, the same for all of a row."""
    kept = world.lab / "port"
    if not kept.exists():
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            kept.write_text(str(probe.getsockname()[1]))
    return int(kept.read_text())


def _kernel() -> bytes:
    """What QEMU takes for a Linux kernel (boot protocol 2.6), and which halts the CPU at once."""
    image = bytearray(8192)
    image[0x1F1] = 1  # sectors of set-up code
    image[0x200:0x202] = b"\xfa\xf4"  # cli; hlt
    struct.pack_into("<I", image, 0x202, 0x53726448)  # HdrS
    struct.pack_into("<H", image, 0x206, 0x206)
    struct.pack_into("<I", image, 0x22C, 0x37FFFFFF)  # highest address of the initramfs
    struct.pack_into("<I", image, 0x238, 2047)  # length of the command line
    return bytes(image)


def build_lab(world: World) -> None:
    """What an image is made of, and a VM of; mmdebstrap is a stand-in that makes the files it would."""
    if not all(shutil.which(program) for program in ("qemu-img", _lab_vm.QEMU)):
        pytest.skip("needs QEMU")
    lab, programs = world.lab, world.lab.parent / "bin"
    (lab / "files").mkdir(parents=True)
    (lab / "files" / "packages.txt").write_text("fio\n")
    (lab / "kernel").write_bytes(_kernel())
    (lab / "initrd").write_bytes(b"\0" * 512)
    with (lab / "san.img").open("wb") as file:
        file.truncate(MIB)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(lab / "root"), "1M"], check=True)
    programs.mkdir()
    stand_in = programs / "mmdebstrap"
    stand_in.write_text("#!/bin/sh\nfor name in vmlinuz initrd tenant.initrd; do echo $name >$name; done\n")
    with stand_in.open("a") as script:
        script.write("head -c 65536 /dev/zero >root.ext4\n")
    stand_in.chmod(0o755)
