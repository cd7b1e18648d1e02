# SPDX-License-Identifier: GPL-3.0-or-later
"""Who uses a VF: every kind of user that would lose its device if the VF went away, named.

And which virtual machine would not start again without it: one that libvirt has defined with the VF and that does not
run.
"""

from __future__ import annotations

import os
import re
import stat
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from . import _nvme
from ._host import Host

_PASSERS_BY = ("systemd-udevd", "(udev-worker)", "udevd")  # they open each new device for a moment
_DEFINITIONS = "/etc/libvirt/qemu"
_DEFINITION_LIMIT = 4 << 20  # bytes; libvirt's own are some KiB
_EMULATORS = ("qemu", "kvm", "cloud-hypervisor", "crosvm")


def users_of(host: Host, addresses: Sequence[str], vports: Mapping[str, str]) -> dict[str, list[str]]:
    """One phrase per user of each VF; ``vports`` maps VF address to vport, as vportd tells it."""
    found: dict[str, list[str]] = {}
    processes = list(_running(host)) if addresses else []
    for address in addresses:
        devices = _devices(host, address)
        users = [f"vport {vports[address]}"] if address in vports else []
        users += _holders(host, devices)
        users += _mounts(host, devices)
        users += _by_processes(host, processes, address, devices)
        found[address] = users
    return found


def defined_for(host: Host, addresses: Sequence[str]) -> dict[str, list[str]]:
    """The virtual machines that have each VF in their definition and do not run with it."""
    found: dict[str, list[str]] = {address: [] for address in addresses}
    for name, devices in _definitions(host) if addresses else ():
        for address in devices & set(addresses):
            found[address].append(name)
    processes = list(_running(host)) if any(found.values()) else []
    for address, names in found.items():
        at_work = {_guest_name(process.arguments) for process in processes if _holds_it(process, address)}
        found[address] = [name for name in names if name not in at_work]
    return found


def _definitions(host: Host) -> Iterator[tuple[str, set[str]]]:
    """Each domain that libvirt keeps: its name, and the PCI addresses of this host that it is to get."""
    directory = host.file(_DEFINITIONS)
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith(".xml"))
    except OSError:
        return  # there is no libvirt
    for name in names:
        try:
            with open(os.path.join(directory, name), "rb") as file:
                domain = ET.fromstring(file.read(_DEFINITION_LIMIT))
        except (OSError, ET.ParseError):
            continue  # gone meanwhile, or nothing that libvirt could start either
        sources = domain.iterfind(".//source/address")
        addresses = {address for source in sources if (address := _pci_address(source.attrib)) is not None}
        yield domain.findtext("name") or name.removesuffix(".xml"), addresses


def _pci_address(attributes: Mapping[str, str]) -> str | None:
    """Of <address domain='0x0000' bus='0x01' slot='0x00' function='0x2'/>; None for one of another kind."""
    try:
        domain, bus, slot, function = (
            int(attributes.get(part, "0") if part == "domain" else attributes[part], 0)
            for part in ("domain", "bus", "slot", "function")
        )
    except (KeyError, ValueError):
        return None
    return f"{domain:04x}:{bus:02x}:{slot:02x}.{function:x}"


@dataclass(frozen=True, slots=True)
class _Process:
    """``opened``: path -> ``major:minor`` for a block device, else None."""

    pid: str
    command: str
    arguments: list[str]
    opened: Mapping[str, str | None]


def _devices(host: Host, address: str) -> dict[str, str]:
    """Block devices and their partitions: kernel name -> directory in sysfs."""
    found = {}
    for namespace in _nvme.namespaces(host, address):
        name = os.path.basename(namespace.device)
        base = f"bus/pci/devices/{address}/nvme/{_nvme.controller(host, address)}/{name}"
        found[name] = base
        found.update({part: f"{base}/{part}" for part in host.sysfs.names(base) if re.fullmatch(rf"{name}p\d+", part)})
    return found


def _vfio_nodes(host: Host, address: str) -> list[str]:
    """Device files through which a program holds the function by VFIO."""
    nodes = [host.device(f"vfio/devices/{name}") for name in host.sysfs.names("bus/pci/devices", address, "vfio-dev")]
    group = host.sysfs.link_name("bus/pci/devices", address, "iommu_group")
    if group is not None and host.sysfs.link_name("bus/pci/devices", address, "driver") == "vfio-pci":
        nodes += [host.device(f"vfio/{group}"), host.device(f"vfio/noiommu-{group}")]
    return nodes


def _holders(host: Host, devices: Mapping[str, str]) -> Iterator[str]:
    for name, base in devices.items():
        for holder in host.sysfs.names(base, "holders"):
            mapped = host.sysfs.read("class/block", holder, "dm/name")
            kind = (
                "LVM volume"
                if (host.sysfs.read("class/block", holder, "dm/uuid") or "").startswith("LVM-")
                else "device"
            )
            yield f"{kind} {mapped or holder} on {name}"


def _mounts(host: Host, devices: Mapping[str, str]) -> Iterator[str]:
    numbers = {host.sysfs.read(base, "dev"): name for name, base in devices.items()}
    for line in _lines(os.path.join(host.proc_root, "self/mountinfo")):
        fields = line.split()
        if len(fields) > 4 and fields[2] in numbers:
            yield f"mount of {numbers[fields[2]]} on {fields[4]}"
    for line in _lines(os.path.join(host.proc_root, "swaps")):
        name = os.path.basename(line.split()[0]) if line.split() else ""
        if name in devices:
            yield f"swap on {name}"


def _running(host: Host) -> Iterator[_Process]:
    for pid in _pids(host.proc_root):
        base = os.path.join(host.proc_root, pid)
        command = " ".join(_lines(os.path.join(base, "comm"))) or "?"
        if command not in _PASSERS_BY:
            yield _Process(pid, command, _cmdline(base), _open_files(os.path.join(base, "fd")))


def _by_processes(host: Host, processes: Sequence[_Process], address: str, devices: Mapping[str, str]) -> Iterator[str]:
    nodes = {host.device(name): name for name in devices}
    numbers = {number: name for name, base in devices.items() if (number := host.sysfs.read(base, "dev"))}
    vfio = _vfio_nodes(host, address)
    for process in processes:
        held = next((node for node in vfio if node in process.opened), None)
        block = next((nodes[path] for path in process.opened if path in nodes), None)
        block = block or next((numbers[number] for number in process.opened.values() if number in numbers), None)
        if _holds_it(process, address):
            yield f"virtual machine {_guest_name(process.arguments)} (process {process.pid})"
        elif held:
            yield f"process {process.pid} ({process.command}) by VFIO through {held}"
        elif block:
            yield f"process {process.pid} ({process.command}) with {block} open"


def _holds_it(process: _Process, address: str) -> bool:
    """Whether this is a virtual machine that was started with the VF."""
    emulator = process.arguments and os.path.basename(process.arguments[0]).startswith(_EMULATORS)
    return bool(emulator) and any(address in argument for argument in process.arguments)


def _open_files(directory: str) -> dict[str, str | None]:
    """What a process has open: path -> ``major:minor`` for a block device, else None."""
    found: dict[str, str | None] = {}
    try:
        descriptors = os.listdir(directory)
    except OSError:
        return found  # the process has ended meanwhile
    for descriptor in descriptors:
        path = os.path.join(directory, descriptor)
        try:
            target = os.readlink(path)
            if not target.startswith("/"):
                continue
            found[target] = None
            status = os.stat(path)
        except OSError:
            continue
        if stat.S_ISBLK(status.st_mode):
            found[target] = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    return found


def _pids(proc_root: str) -> list[str]:
    try:
        return sorted((name for name in os.listdir(proc_root) if name.isdigit()), key=int)
    except OSError:
        return []


def _cmdline(base: str) -> list[str]:
    try:
        with open(os.path.join(base, "cmdline"), "rb") as file:
            return file.read().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return []


def _guest_name(arguments: list[str]) -> str:
    """The value of ``-name``: libvirt writes ``guest=web1,debug-threads=on``."""
    if "-name" in arguments[:-1]:
        value = arguments[arguments.index("-name") + 1]
        return value.split(",")[0].removeprefix("guest=")
    return os.path.basename(arguments[0])


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().splitlines()
    except OSError:
        return []
