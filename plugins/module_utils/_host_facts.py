# SPDX-License-Identifier: GPL-3.0-or-later
"""A hypervisor as its kernel shows it: who it is, what it can do, what is left of its memory, disks and ports.

What cannot be told is None, with the reason next to it; nothing in here raises on a host that lacks something.
"""

from __future__ import annotations

import ctypes
import fcntl
import glob
import hashlib
import importlib.util
import os
import re
import time
from collections.abc import Sequence
from typing import Any

from ._host import Host

SPACES = ("/var/lib/libvirt", "/var/lib/vportd")
_KVM_GET_API_VERSION = 0xAE00
_KVM_API_VERSION = 12
_TIME_ERROR = 5  # adjtimex: the clock is not synchronised
_LISTENING = "0A"  # of /proc/net/tcp
_PORTS = (49152, 49215)  # libvirt's, where qemu.conf says nothing else
_PROGRAM_DIRECTORIES = ("usr/bin", "usr/sbin", "bin", "sbin", "usr/local/bin", "usr/local/sbin")
_LIBRARY_DIRECTORIES = ("usr/lib", "usr/lib64", "usr/lib/*-linux-gnu")
_PROGRAMS = {
    "libvirt-clients": "virsh",
    "libvirt-daemon-system": "libvirtd",
    "lvm2": "pvs",
    "nvme-cli": "nvme",
    "pciutils": "lspci",
    "qemu-system-x86": "qemu-system-x86_64",
}
_LIBRARIES = {"libatomic1": "libatomic.so.1"}
_PYTHON = {"python3-libvirt": "libvirt", "python3-lxml": "lxml"}


def identity(host: Host) -> dict[str, Any]:
    """``machine`` is the same as long as the installation is, ``boot`` as long as the kernel runs."""
    machine = _text(os.path.join(host.root, "etc/machine-id"))
    release = re.search(r'^PRETTY_NAME="?([^"\n]*)', _text(os.path.join(host.root, "etc/os-release")) or "", re.M)
    return {
        "name": _kernel(host, "hostname"),
        "machine": hashlib.sha256(f"iovlab.storage/{machine}".encode()).hexdigest()[:32] if machine else None,
        "boot": _kernel(host, "random/boot_id"),
        "system": release[1] if release else None,
        "root": os.geteuid() == 0,
    }


def kernel(host: Host) -> dict[str, Any]:
    """``multipath``: whether the kernel merges the paths of a shared namespace; None when nvme_core is not loaded."""
    multipath = host.sysfs.read("module/nvme_core/parameters/multipath")
    usable, reason = _kvm(host)
    return {
        "release": _kernel(host, "osrelease"),
        "command_line": _text(os.path.join(host.proc_root, "cmdline")),
        "nvme_multipath": None if multipath is None else multipath not in ("N", "0"),
        "iommu": bool(host.sysfs.names("kernel/iommu_groups")),
        "cpu": _cpu(host),
        "kvm": usable,
        "kvm_reason": reason,
        "nested": _nested(host),
    }


def _cpu(host: Host) -> dict[str, Any]:
    """The first CPU, as the kernel shows it."""
    first = (_text(os.path.join(host.proc_root, "cpuinfo")) or "").split("\n\n")[0]
    lines = {key.strip(): value.strip() for key, __, value in (line.partition(":") for line in first.splitlines())}
    return {
        "vendor": lines.get("vendor_id"),
        "model": lines.get("model name"),
        "flags": sorted(set(lines.get("flags", "").split())),
    }


def _kvm(host: Host) -> tuple[bool, str | None]:
    path = host.device("kvm")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            version = fcntl.ioctl(descriptor, _KVM_GET_API_VERSION, 0)
        finally:
            os.close(descriptor)
    except OSError as exc:
        return False, f"{path}: {exc.strerror}"
    return version == _KVM_API_VERSION, None if version == _KVM_API_VERSION else f"{path} has API version {version}"


def _nested(host: Host) -> bool | None:
    values = [host.sysfs.read("module", name, "parameters/nested") for name in ("kvm_intel", "kvm_amd")]
    known = [value for value in values if value is not None]
    return any(value in ("Y", "1") for value in known) if known else None


def packages(host: Host) -> dict[str, bool]:
    """Debian's name of each package that the collection uses -> whether what it brings is on this host."""
    found = {
        package: any(os.access(os.path.join(host.root, place, program), os.X_OK) for place in _PROGRAM_DIRECTORIES)
        for package, program in _PROGRAMS.items()
    }
    for package, library in _LIBRARIES.items():
        places = (os.path.join(host.root, place, library) for place in _LIBRARY_DIRECTORIES)
        found[package] = any(glob.glob(place) for place in places)
    for package, module in _PYTHON.items():
        found[package] = importlib.util.find_spec(module) is not None
    return dict(sorted(found.items()))


def memory(host: Host) -> dict[str, Any]:
    """Bytes; ``available`` is the kernel's own estimate of what programs can still get."""
    lines = dict(
        line.split(":", 1)
        for line in (_text(os.path.join(host.proc_root, "meminfo")) or "").splitlines()
        if ":" in line
    )

    def amount(key: str) -> int | None:
        words = lines.get(key, "").split()
        return int(words[0]) * 1024 if words and words[0].isdigit() else None

    return {"total": amount("MemTotal"), "available": amount("MemAvailable")}


def space(host: Host, paths: Sequence[str] = SPACES) -> dict[str, int | None]:
    """Free bytes where each path is, or will be."""
    found: dict[str, int | None] = {}
    for path in paths:
        place = os.path.join(host.root, path.lstrip("/"))
        while not os.path.isdir(place) and place != os.path.dirname(place):
            place = os.path.dirname(place)
        try:
            status = os.statvfs(place)
        except OSError:
            found[path] = None
            continue
        found[path] = status.f_bavail * status.f_frsize
    return found


def present(host: Host, paths: Sequence[str]) -> dict[str, bool]:
    return {path: os.path.exists(os.path.join(host.root, path.lstrip("/"))) for path in paths}


def migration_ports(host: Host) -> dict[str, int]:
    """The ports that libvirt listens on for incoming migrations, and how many of them nobody else has."""
    settings = _text(os.path.join(host.root, "etc/libvirt/qemu.conf")) or ""
    first, last = (
        int(match[1]) if (match := re.search(rf"^\s*migration_port_{end}\s*=\s*(\d+)", settings, re.M)) else usual
        for end, usual in zip(("min", "max"), _PORTS, strict=True)
    )
    taken = _listening(host)
    return {"first": first, "last": last, "free": sum(port not in taken for port in range(first, last + 1))}


def _listening(host: Host) -> set[int]:
    found = set()
    for name in ("net/tcp", "net/tcp6"):
        for line in (_text(os.path.join(host.proc_root, name)) or "").splitlines():
            fields = line.split()
            if len(fields) > 3 and fields[3] == _LISTENING:
                found.add(int(fields[1].rpartition(":")[2], 16))
    return found


def clock(started: float) -> dict[str, Any]:
    """``now`` in seconds since 1970, ``elapsed`` since ``started`` (by time.monotonic()), and whether NTP or the like
    keeps the clock right; None when the kernel does not say.
    """
    answer = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(512))  # all zero: only asks
    synchronised = None if answer < 0 else answer != _TIME_ERROR
    return {"now": time.time(), "elapsed": time.monotonic() - started, "synchronised": synchronised}


def _kernel(host: Host, name: str) -> str | None:
    return _text(os.path.join(host.proc_root, "sys/kernel", name))


def _text(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return None
