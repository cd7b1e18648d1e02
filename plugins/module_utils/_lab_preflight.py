# SPDX-License-Identifier: GPL-3.0-or-later
"""What would keep a lab from starting on this control node, found before anything is started."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from . import _lab_vm
from ._errors import CommandFailed
from ._host import Host

MIB = 1 << 20
_HOST_RESERVE = 768  # MiB that stay for everything else on the control node
_IMAGE_SPACE = 5120  # MiB: what a build needs at its widest
_VM_SPACE = 1024  # MiB: what a VM's overlay grows to in a lab's day
_PROGRAMS = {"mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs", "qemu-img": "qemu-utils", "ssh": "openssh-client"}


def problems(host: Host, lab: str, directory: str, cache: str, vms: Sequence[Mapping[str, Any]]) -> list[str]:
    """One sentence for each thing that is in the way. VMs of this lab that already run need nothing more."""
    found = []
    try:
        version = _lab_vm.qemu_version(host)
        if version < _lab_vm.QEMU_FLOOR:
            found.append(
                f"QEMU {'.'.join(map(str, version))} is too old; install {'.'.join(map(str, _lab_vm.QEMU_FLOOR))} "
                "or later"
            )
    except CommandFailed as exc:
        found.append(str(exc))
    search = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    for program, package in _PROGRAMS.items():
        if shutil.which(program, path=search) is None:
            found.append(f"{program} is not installed; install the package {package}")
    to_start = [vm for vm in vms if not _is_running(lab, directory, vm["name"])]
    found += _same_ports(vms)
    for vm in to_start:
        if not _lab_vm.port_is_free(vm["ssh_port"]):
            found.append(
                f"port {vm['ssh_port']} on 127.0.0.1, for {vm['name']}, is taken; choose another lab_ssh_port_base"
            )
    needed, free = sum(vm["memory"] for vm in to_start), available_memory()
    if to_start and needed + _HOST_RESERVE > free:
        found.append(
            f"{len(to_start)} VMs need {needed} MiB of memory and {_HOST_RESERVE} MiB should stay free, but only "
            f"{free} MiB are available; lower lab_vm_memory or stop something"
        )
    for what, path, space in (
        ("the lab", directory, _VM_SPACE * len(to_start)),
        ("images", cache, 0 if _has_image(cache) else _IMAGE_SPACE),
    ):
        room = shutil.disk_usage(_existing(path)).free // MIB
        if room < space:
            found.append(f"{what} need {space} MiB in {path}, but only {room} MiB are free; make room")
    return found


def available_memory() -> int:
    """MiB that programs can still get, after the kernel's own count."""
    with open("/proc/meminfo", encoding="ascii") as file:
        lines = dict(line.split(":", 1) for line in file)
    return int(lines["MemAvailable"].split()[0]) // 1024


def _is_running(lab: str, directory: str, name: str) -> bool:
    process_name = _lab_vm.process_name(lab, name, directory)
    return _lab_vm.running_pid(os.path.join(directory, name), process_name) is not None


def _same_ports(vms: Sequence[Mapping[str, Any]]) -> list[str]:
    ports = [vm["ssh_port"] for vm in vms]
    return [f"port {port} is given to more than one VM" for port in sorted(set(ports)) if ports.count(port) > 1]


def _has_image(cache: str) -> bool:
    images = os.path.join(cache, "images")
    return os.path.isdir(images) and any(os.path.isdir(os.path.join(images, name)) for name in os.listdir(images))


def _existing(path: str) -> str:
    """The nearest directory at or above ``path`` that exists."""
    path = os.path.abspath(path)
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path
