# SPDX-License-Identifier: GPL-3.0-or-later
"""Names, addresses and sizes as users write them."""

from __future__ import annotations

import re
from typing import Any

from ._errors import Refused

_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([KMGTP]?)(i?)(B?)\s*$", re.IGNORECASE)
_PCI = re.compile(r"^(?:([0-9a-f]{4}):)?([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])$")
_POWER = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}


def parse_size(value: Any, what: str = "size") -> int:
    """Bytes from a number of bytes or a text such as ``64MiB``; K, M, G, T and P count in 1024 whatever follows them.

    Raises Refused on anything else, and on fractions of a byte.
    """
    match = _SIZE.match(str(value))
    if isinstance(value, bool) or match is None:
        raise Refused(
            f"{what}: {value!r} is not a size; write bytes or a number with KiB, MiB, GiB or TiB, such as 64MiB"
        )
    size = (
        float(match[1]) * 1024 ** _POWER[match[2].upper()]
        if "." in match[1]
        else int(match[1]) * 1024 ** _POWER[match[2].upper()]
    )
    if size != int(size):
        raise Refused(f"{what}: {value!r} is not a whole number of bytes; write a whole number")
    return int(size)


def format_size(size: int) -> str:
    """``67108864`` -> ``64 MiB``: the largest unit that leaves a whole number."""
    for unit in ("PiB", "TiB", "GiB", "MiB", "KiB"):
        factor = 1024 ** _POWER[unit[0]]
        if size >= factor and size % factor == 0:
            return f"{size // factor} {unit}"
    return f"{size} bytes"


def pci_address(value: str, what: str) -> str:
    """``1:00.0`` is refused, ``01:00.0`` -> ``0000:01:00.0``."""
    match = _PCI.match(value.strip().lower())
    if match is None:
        raise Refused(f"{what}: {value!r} is not a PCI address; write it as lspci -D shows it, such as 0000:01:00.0")
    return f"{match[1] or '0000'}:{match[2]}:{match[3]}.{match[4]}"


def checked_name(value: str, what: str, pattern: str, rule: str) -> str:
    """``value`` when all of it matches ``pattern``; Refused with ``rule`` otherwise."""
    if re.fullmatch(pattern, value) is None:
        raise Refused(f"{what}: {value!r} is not a usable name; use {rule}")
    return value


def vport_name(value: str, what: str = "vport") -> str:
    return checked_name(
        value, what, r"[a-z0-9][a-z0-9-]{0,14}", "1 to 15 of a-z, 0-9 and -, the first a letter or digit"
    )


def lvm_name(value: str, what: str) -> str:
    return checked_name(
        value,
        what,
        r"(?!(?:snapshot|pvmove)|.*(?:_mlog|_mimage|_tdata|_tmeta|_cdata|_cmeta|_rimage|_rmeta|_vorigin))"
        r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}",
        "1 to 64 of A-Z, a-z, 0-9, _, . and -, the first a letter or digit, and no word that LVM reserves",
    )
