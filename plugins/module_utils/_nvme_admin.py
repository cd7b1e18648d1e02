# SPDX-License-Identifier: GPL-3.0-or-later
"""NVMe's Identify command straight to a controller, for what sysfs does not show and without a program to be installed.

Words and offsets of the NVMe base specification 2.0, 5.17 (Identify), and of the NVM command set specification 1.0,
4.1.5.1 (CNS 00h); the ioctl is that of Linux, linux/nvme_ioctl.h.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import uuid

from . import _nvme
from ._errors import CommandFailed

NVME_IOCTL_ADMIN_CMD = 0xC0484E41  # _IOWR('N', 0x41, struct nvme_admin_cmd)
NVME_ADMIN_IDENTIFY = 0x06
CNS_NAMESPACE = 0x00
CNS_NAMESPACE_DESCRIPTORS = 0x03
CNS_SECONDARY_LIST = 0x15
PAGE = 4096  # bytes of every Identify data structure

# struct nvme_passthru_cmd: opcode, flags, reserved, nsid, cdw2, cdw3, metadata, addr, metadata_len, data_len,
# cdw10 to cdw15, timeout_ms, result
COMMAND = struct.Struct("=BBHIIIQQII6III")

_SECONDARIES_OF_A_PAGE = 127
_NIDT_EUI64, _NIDT_NGUID, _NIDT_UUID = 1, 2, 3
_LENGTHS = {_NIDT_EUI64: 8, _NIDT_NGUID: 16, _NIDT_UUID: 16}
_NAMES = {_NIDT_EUI64: "eui64", _NIDT_NGUID: "nguid", _NIDT_UUID: "uuid"}


def identify(device: str, cns: int, nsid: int = 0, cntid: int = 0) -> bytes:
    """The data structure ``cns`` of the controller behind ``device`` (/dev/nvme0); CommandFailed says why not.

    The kernel's own timeout is left as it is: to a command that is late it answers by a reset of the controller, which
    takes every VF offline.
    """
    page = ctypes.create_string_buffer(PAGE)
    command = bytearray(
        COMMAND.pack(
            NVME_ADMIN_IDENTIFY, 0, 0, nsid, 0, 0, 0, ctypes.addressof(page), 0, PAGE, cns | cntid << 16, *[0] * 7
        )
    )
    what = f"Identify (CNS {cns:02X}h) of {device}"
    try:
        descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
        try:
            status = fcntl.ioctl(descriptor, NVME_IOCTL_ADMIN_CMD, command)
        finally:
            os.close(descriptor)
    except OSError as exc:
        remedy = "run as root" if exc.errno in (errno.EACCES, errno.EPERM) else "see dmesg for the device"
        raise CommandFailed(f"{what} failed: {exc.strerror}; {remedy}") from exc
    if status:
        raise CommandFailed(f"{what} ended with NVMe status {status:#06x}; the controller does not have it")
    return page.raw


def namespace_ids(device: str, nsid: int) -> dict[str, str]:
    """``eui64``, ``nguid`` and ``uuid`` of a namespace, those that it has, as the controller itself tells them."""
    found = {}
    refused: CommandFailed | None = None
    try:
        found = parse_descriptors(identify(device, CNS_NAMESPACE_DESCRIPTORS, nsid))
    except CommandFailed as exc:  # a controller before NVMe 1.3
        refused = exc
    try:
        return parse_namespace(identify(device, CNS_NAMESPACE, nsid)) | found
    except CommandFailed:
        if refused is not None:
            raise
        return found


def secondaries(device: str) -> list[_nvme.Secondary]:
    """The whole Secondary Controller List, by VF; a page starts with the first identifier at or above CNTID."""
    found: dict[int, _nvme.Secondary] = {}
    lowest = 0
    while True:
        page = _nvme.parse_secondaries(identify(device, CNS_SECONDARY_LIST, cntid=lowest))
        fresh = {entry.cntlid: entry for entry in page if entry.cntlid not in found}
        found.update(fresh)
        if not fresh or len(page) < _SECONDARIES_OF_A_PAGE:
            return sorted(found.values(), key=lambda entry: entry.vf)
        lowest = max(found) + 1


def parse_descriptors(data: bytes) -> dict[str, str]:
    """Namespace Identification Descriptor list: type, length, two bytes reserved, value; a length of 0 ends it."""
    found = {}
    offset = 0
    while offset + 4 <= len(data):
        kind, length = data[offset], data[offset + 1]
        if length == 0:
            break
        value = data[offset + 4 : offset + 4 + length]
        offset += 4 + length
        if _LENGTHS.get(kind) == len(value) and any(value):
            found[_NAMES[kind]] = str(uuid.UUID(bytes=value)) if kind == _NIDT_UUID else value.hex()
    return found


def parse_namespace(data: bytes) -> dict[str, str]:
    """NGUID (bytes 104 to 119) and EUI64 (120 to 127) of the Identify Namespace structure; zeroes mean none."""
    values = {"nguid": data[104:120], "eui64": data[120:128]}
    return {name: value.hex() for name, value in values.items() if any(value)}
