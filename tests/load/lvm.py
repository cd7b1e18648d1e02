# SPDX-License-Identifier: GPL-3.0-or-later
"""Where each logical volume lies, read from the bytes of a physical volume: neither LVM nor the engine is asked.

The label is in one of the first four sectors and names the metadata area; its header names the text that counts, which
goes round in the area (lvm2: lib/format_text/layout.h, lib/label/label.h).
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

SECTOR = 512
_LABEL = struct.Struct("<8sQII8s")  # id, sector, CRC, offset of what follows, type
_PAIR = struct.Struct("<QQ")  # offset and size of a data or metadata area; zeros end a list
_HEADER = struct.Struct("<I16sIQQ")  # CRC, magic, version, start, size
_TEXT = struct.Struct("<QQII")  # offset and size of the text, its CRC, flags
_MAGIC = b" LVM2 x[5A%r0N*>"
_CRC = 0xF597A6CF
_TOKEN = re.compile(r'\s+|#[^\n]*|("(?:[^"\\]|\\.)*")|([\[\]{},=])|([^\s\[\]{},="#]+)')


class Extent(NamedTuple):
    """In bytes of the volume, of the physical volume, and how many."""

    start: int
    physical: int
    length: int


class Group(NamedTuple):
    name: str
    volumes: dict[str, tuple[Extent, ...]]


class NotReadable(Exception):
    """What is on the physical volume is not understood; the message says what."""


def read(image: IO[bytes]) -> Group:
    """The volume group of the physical volume in ``image``, with the extents of its linear volumes."""
    metadata = _parse(_text(image))
    ((name, group),) = ((key, value) for key, value in metadata.items() if isinstance(value, dict))
    size = group["extent_size"] * SECTOR
    ((volume, physical),) = group["physical_volumes"].items()
    start = physical["pe_start"] * SECTOR
    volumes = {}
    for key, logical in group.get("logical_volumes", {}).items():
        extents = []
        for segment in (value for value in logical.values() if isinstance(value, dict)):
            if segment["type"] != "striped" or segment["stripe_count"] != 1 or segment["stripes"][0] != volume:
                raise NotReadable(f"volume {key} is not linear")
            at = start + segment["stripes"][1] * size
            extents.append(Extent(segment["start_extent"] * size, at, segment["extent_count"] * size))
        volumes[key] = tuple(sorted(extents))
    return Group(name, volumes)


def _crc(data: bytes) -> int:
    """A CRC-32 that begins with LVM's number and is not inverted at the end."""
    return zlib.crc32(data, _CRC ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


def _at(image: IO[bytes], offset: int, size: int) -> bytes:
    image.seek(offset)
    data = image.read(size)
    if len(data) != size:
        raise NotReadable(f"there are no {size} bytes at {offset}")
    return data


def _text(image: IO[bytes]) -> str:
    for number in range(4):
        label = _at(image, number * SECTOR, SECTOR)
        name, place, checksum, offset, kind = _LABEL.unpack_from(label)
        if name == b"LABELONE" and kind == b"LVM2 001":
            break
    else:
        raise NotReadable("there is no label of a physical volume")
    if place != number or checksum != _crc(label[20:]):
        raise NotReadable("the label's checksum is wrong")
    pairs = list(_PAIR.iter_unpack(label[offset + 40 : offset + 40 + (SECTOR - offset - 40) // 16 * 16]))
    end = pairs.index((0, 0))  # of the data areas; those of metadata follow
    area, __ = pairs[end + 1]
    if not area:
        raise NotReadable("the physical volume has no metadata area")
    header = _at(image, area, SECTOR)
    checksum, magic, __, __, size = _HEADER.unpack_from(header)
    if magic != _MAGIC or checksum != _crc(header[4:]):
        raise NotReadable("the header of the metadata is damaged")
    offset, length, checksum, __ = _TEXT.unpack_from(header, _HEADER.size)
    first = min(length, size - offset)
    data = _at(image, area + offset, first) + _at(image, area + SECTOR, length - first)
    if not length or checksum != _crc(data):
        raise NotReadable("the metadata's checksum is wrong; is LVM writing it just now?")
    return data.rstrip(b"\0").decode()


def _parse(text: str) -> dict[str, Any]:
    tokens = _tokens(text)
    return _section(tokens, None)


def _tokens(text: str) -> Iterator[str]:
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise NotReadable(f"the metadata cannot be read at {text[position : position + 20]!r}")
        position = match.end()
        if found := match[1] or match[2] or match[3]:
            yield found


def _section(tokens: Iterator[str], end: str | None) -> dict[str, Any]:
    section: dict[str, Any] = {}
    for name in tokens:
        if name == end:
            return section
        section[name] = _section(tokens, "}") if next(tokens) == "{" else _value(tokens)
    if end is not None:
        raise NotReadable("the metadata ends in a section")
    return section


def _value(tokens: Iterator[str]) -> Any:
    first = next(tokens)
    if first != "[":
        return _scalar(first)
    found = []
    for token in tokens:
        if token == "]":
            break
        if token != ",":
            found.append(_scalar(token))
    return found


def _scalar(token: str) -> int | str:
    return re.sub(r"\\(.)", r"\1", token[1:-1]) if token.startswith('"') else int(float(token))
