# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host keeps of its adapters over a reboot: for each PF, a file that says which VFs it has."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import Any

from ._errors import Refused
from ._host import Host
from ._sriov import Request

DIRECTORY = "/etc/iovlab/adapters"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Kept:
    """``serial`` tells whether the PF at that address is still the same adapter."""

    pf: str
    serial: str | None
    vfs: Request

    def content(self) -> dict[str, Any]:
        return {"version": VERSION, "pf": self.pf, "serial": self.serial, "vfs": asdict(self.vfs)}

    def text(self) -> str:
        return json.dumps(self.content(), indent=2) + "\n"


def path_of(pf: str) -> str:
    return f"{DIRECTORY}/{pf}.json"


def files(host: Host) -> list[str]:
    """The files of all adapters."""
    try:
        names = sorted(os.listdir(host.file(DIRECTORY)))
    except OSError:
        return []
    return [f"{DIRECTORY}/{name}" for name in names if name.endswith(".json")]


def load(host: Host, path: str) -> Kept | None:
    """What a file says, None when there is none; Refused when nothing of this collection wrote it."""
    try:
        with open(host.file(path), encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError:
        return None
    try:
        content = json.loads(text)
        if content["version"] != VERSION:
            raise ValueError(f"version {content['version']!r}")
        vfs = content["vfs"]
        if vfs["namespaces"] is not None:
            vfs["namespaces"] = tuple(vfs["namespaces"])
        return Kept(str(content["pf"]), content["serial"], Request(**vfs))
    except (ValueError, KeyError, TypeError) as exc:
        raise Refused(
            f"{path} does not say which VFs there are to be ({exc}); provision this host again, or remove the file"
        ) from None
