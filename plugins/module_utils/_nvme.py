# SPDX-License-Identifier: GPL-3.0-or-later
"""NVMe controllers and namespaces of a PCI function: what sysfs shows, and nvme-cli for the rest.

Words of the NVMe base specification 2.0: VQ and VI resources (8.26), Primary Controller Capabilities (5.17.2.15, CNS
14h), Secondary Controller List (5.17.2.16, CNS 15h), Virtualization Management (5.38).
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ._errors import CommandFailed, Refused
from ._host import Host

CLASS_NVME = "0x0108"
COMMAND_TIMEOUT = 30.0  # seconds; options are given in their short form, which is the same in all versions of nvme-cli
_CONTROLLER = re.compile(r"nvme\d+")
_NAMESPACE = re.compile(r"nvme\d+n(\d+)")
_MULTIPATH_MEMBER = re.compile(r"nvme\d+c\d+n\d+")
_ENTRIES = 127  # of one Secondary Controller List


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace as one controller shows it. ``size`` in bytes; ``identity`` is the same through every one."""

    nsid: int
    device: str
    size: int
    identity: str | None


@dataclass(frozen=True, slots=True)
class Resources:
    """What the primary controller can hand out. ``total`` 0 = not flexible; ``most`` = limit for one secondary."""

    total: int
    assigned_to_primary: int
    most: int

    @property
    def for_secondaries(self) -> int:
        return max(self.total - self.assigned_to_primary, 0)


@dataclass(frozen=True, slots=True)
class Capabilities:
    queues: Resources
    interrupts: Resources


@dataclass(frozen=True, slots=True)
class Secondary:
    """An entry of the Secondary Controller List; ``vf`` is the VF number, the first VF being 1."""

    cntlid: int
    vf: int
    online: bool
    queues: int
    interrupts: int


def controller(host: Host, address: str) -> str | None:
    """``nvme0`` for a function whose controller the kernel drives, else None."""
    return next(
        (name for name in host.sysfs.names("bus/pci/devices", address, "nvme") if _CONTROLLER.fullmatch(name)), None
    )


def controller_state(host: Host, address: str) -> str | None:
    name = controller(host, address)
    return host.sysfs.read("bus/pci/devices", address, "nvme", name, "state") if name else None


def namespaces(host: Host, address: str) -> list[Namespace]:
    """The namespaces that the function's controller shows, by nsid."""
    name = controller(host, address)
    found = []
    for entry in host.sysfs.names("bus/pci/devices", address, "nvme", name) if name else []:
        match = _NAMESPACE.fullmatch(entry)
        if match is None or name is None:
            continue
        base = ("bus/pci/devices", address, "nvme", name, entry)
        identity = next(
            (value for key in ("wwid", "nguid", "uuid", "eui") if (value := host.sysfs.read(*base, key))), None
        )
        nsid = host.sysfs.read_int(*base, "nsid")
        sectors = host.sysfs.read_int(*base, "size") or 0
        found.append(
            Namespace(
                nsid=int(match[1]) if nsid is None else nsid,
                device=host.device(entry),
                size=sectors * 512,
                identity=identity,
            )
        )
    return sorted(found, key=lambda namespace: namespace.nsid)


def multipath_members(host: Host, address: str) -> list[str]:
    """Namespaces that native multipath hides behind one device of the whole subsystem."""
    name = controller(host, address)
    entries = host.sysfs.names("bus/pci/devices", address, "nvme", name) if name else []
    return [entry for entry in entries if _MULTIPATH_MEMBER.fullmatch(entry)]


def refuse_multipath(host: Host, address: str) -> None:
    members = multipath_members(host, address)
    if members:
        raise Refused(
            f"{address} shows its namespace only as multipath member {members[0]}, so its own way to the storage "
            "cannot be used; "
            "boot this host with nvme_core.multipath=N"
        )


def namespace(host: Host, address: str, nsid: int) -> Namespace:
    """Namespace ``nsid`` of an adapter's PF; Refused with the reason when there is none."""
    if not host.sysfs.exists("bus/pci/devices", address):
        raise Refused(f"there is no PCI device {address} on this host; lspci -D lists the addresses")
    if controller(host, address) is None:
        raise Refused(f"{address} has no NVMe controller driven by the kernel; bind the PF to the nvme driver")
    refuse_multipath(host, address)
    shown = namespaces(host, address)
    for candidate in shown:
        if candidate.nsid == nsid:
            return candidate
    listed = ", ".join(str(candidate.nsid) for candidate in shown) or "none"
    raise Refused(
        f"adapter {address} shows no namespace {nsid} (it shows: {listed}); correct nsid or attach the namespace to "
        "the PF"
    )


def secondaries(host: Host, device: str) -> list[Secondary]:
    """The whole Secondary Controller List of the primary controller ``device`` (/dev/nvme0).

    nvme-cli's JSON is used where it is complete. Where it is not (the keys changed between versions), the structure
    itself is read: its layout is the specification's.
    """
    found: dict[int, Secondary] = {}
    lowest = 0
    while True:
        page = _secondary_page(host, device, lowest)
        fresh = [entry for entry in page if entry.cntlid not in found]
        found.update({entry.cntlid: entry for entry in fresh})
        if len(page) < _ENTRIES or not fresh:
            return sorted(found.values(), key=lambda entry: entry.vf)
        lowest = max(found) + 1


def _secondary_page(host: Host, device: str, lowest: int) -> list[Secondary]:
    arguments = ["nvme", "list-secondary", device, "-c", str(lowest)]
    try:
        return parse_secondaries_json(host.output([*arguments, "-o", "json"], COMMAND_TIMEOUT))
    except ValueError:
        return parse_secondaries(host.output_bytes([*arguments, "-o", "binary"], COMMAND_TIMEOUT))


def parse_secondaries_json(text: str) -> list[Secondary]:
    """ValueError when the text is not JSON or an entry lacks a field."""
    reply = json.loads(text)
    entries = (
        reply
        if isinstance(reply, list)
        else _first(reply, "secondary-controllers", "secondary_controllers", "sc_entry")
    )
    if not isinstance(entries, list):
        raise ValueError("no list of secondary controllers")
    return [
        Secondary(
            cntlid=_number(_first(entry, "secondary-controller-identifier", "secondary_controller_identifier", "scid")),
            vf=_number(_first(entry, "virtual-function-number", "virtual_function_number", "vfn")),
            online=_number(_first(entry, "secondary-controller-state", "secondary_controller_state", "scs")) & 1 == 1,
            queues=_number(_first(entry, "num-virtual-queues", "number-of-vq-flexible-resources-assigned", "nvq")),
            interrupts=_number(
                _first(entry, "num-virtual-interrupts", "number-of-vi-flexible-resources-assigned", "nvi")
            ),
        )
        for entry in entries
    ]


def parse_secondaries(data: bytes) -> list[Secondary]:
    """The Secondary Controller List structure: a count, then entries of 32 bytes from offset 32."""
    if len(data) < 32 or len(data) < 32 + 32 * min(data[0], _ENTRIES):
        raise CommandFailed(
            f"nvme list-secondary gave {len(data)} bytes, which is no Secondary Controller List; update nvme-cli"
        )
    found = []
    for index in range(min(data[0], _ENTRIES)):
        scid, _pcid, scs, vfn, nvq, nvi = struct.unpack_from("<HHB3xHHH", data, 32 + 32 * index)
        found.append(Secondary(cntlid=scid, vf=vfn, online=bool(scs & 1), queues=nvq, interrupts=nvi))
    return found


def capabilities(host: Host, device: str) -> Capabilities:
    """Primary Controller Capabilities of ``device``."""
    arguments = ["nvme", "primary-ctrl-caps", device]
    try:
        reply = json.loads(host.output([*arguments, "-o", "json"], COMMAND_TIMEOUT))
        return Capabilities(
            queues=Resources(*(_number(_first(reply, key)) for key in ("vqfrt", "vqrfap", "vqfrsm"))),
            interrupts=Resources(*(_number(_first(reply, key)) for key in ("vifrt", "virfap", "vifrsm"))),
        )
    except ValueError:
        data = host.output_bytes([*arguments, "-o", "binary"], COMMAND_TIMEOUT)
    if len(data) < 96:
        raise CommandFailed(
            f"nvme primary-ctrl-caps {device} gave {len(data)} bytes, which is no capabilities structure; update "
            "nvme-cli"
        )
    vqfrt, _vqrfa, vqrfap, _vqprt, vqfrsm = struct.unpack_from("<IIHHH", data, 32)
    vifrt, _virfa, virfap, _viprt, vifrsm = struct.unpack_from("<IIHHH", data, 64)
    return Capabilities(Resources(vqfrt, vqrfap, vqfrsm), Resources(vifrt, virfap, vifrsm))


def active_nsids(host: Host, device: str) -> list[int]:
    """NSIDs attached to ``device``, from the controller itself: the kernel may not have scanned them yet."""
    return _numbers(host.output(["nvme", "list-ns", device, "-o", "json"], COMMAND_TIMEOUT), "nsid_list", "nsid")


def attachments(host: Host, device: str) -> dict[int, list[int]] | None:
    """Controller identifier -> NSIDs attached to it, as the primary controller ``device`` tells.

    None where it cannot tell: both lists are of Namespace Management, which an adapter need not have.
    """
    found: dict[int, list[int]] = {}
    try:
        allocated = host.output(["nvme", "list-ns", device, "-a", "-o", "json"], COMMAND_TIMEOUT)
        for nsid in _numbers(allocated, "nsid_list", "nsid"):
            listed = host.output(["nvme", "list-ctrl", device, "-n", str(nsid), "-o", "json"], COMMAND_TIMEOUT)
            for cntlid in _numbers(listed, "ctrl_list", "ctrl_id"):
                found.setdefault(cntlid, []).append(nsid)
    except CommandFailed:
        return None
    return found


def _numbers(text: str, array: str, key: str) -> list[int]:
    """The numbers of a list in nvme-cli's JSON, or in its plain lines (``[   0]:0x1``) where it knows no JSON."""
    try:
        reply = json.loads(text)
        entries: Iterable[Any] = _first(reply, array) if isinstance(reply, dict) else reply
        return [_number(_first(entry, key) if isinstance(entry, dict) else entry) for entry in entries]
    except (ValueError, TypeError):
        return [int(number, 16) for number in re.findall(r"\]\s*:\s*(0x[0-9a-fA-F]+)", text)]


def _first(mapping: Any, *keys: str) -> Any:
    if isinstance(mapping, dict):
        for key in keys:
            if key in mapping:
                return mapping[key]
    raise ValueError(f"none of {keys}")


def _number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"{value!r} is not a number")
    return value if isinstance(value, int) else int(value, 0)
