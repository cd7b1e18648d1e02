# SPDX-License-Identifier: GPL-3.0-or-later
"""Extents too many for a state file: a file of their own beside it, named by its content, so that it is written once
and never changed.
"""

import hashlib
import os
import re
from pathlib import Path
from typing import Any

from vportd import state_file
from vportd.errors import StateError
from vportd.extent_table import ExtentTable
from vportd.mapping import Lun

MANY = 4096  # more extents than that do not go into the state file
_NAME = re.compile(r"[a-z0-9-]+\.[0-9a-f]{64}\.extents")


def save(directory: Path, vport: str, luns: tuple[Lun, ...]) -> list[dict[str, Any]]:
    """Return the records of the LUNs for the state file, after files that they name are on the disk. Raises OSError."""
    records = []
    for one in luns:
        if len(one.extents) <= MANY:
            records.append(one.as_json())
            continue
        path = directory / f"{vport}.{one.extents.sha256}.extents"
        if not path.exists():
            state_file.write(path, one.extents.pack())
        lease = {} if one.lease is None else {"lease": one.lease}
        records.append({"lun": one.lun, "vdisk": one.vdisk, "readonly": one.readonly, "extents": path.name, **lease})
    return records


def load(directory: Path, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records with the extents of files that they name. Raises StateError."""
    found = []
    for record in records:
        name = record["extents"]
        if isinstance(name, str):
            if not _NAME.fullmatch(name):
                raise StateError(f"{name!r} is no name of a file of extents")
            try:
                content = (directory / name).read_bytes()
            except OSError as problem:
                raise StateError(f"{name}: {problem}") from problem
            if hashlib.sha256(content).hexdigest() != name.split(".")[1]:
                raise StateError(f"{name}: the content does not fit its checksum")
            record = {**record, "extents": ExtentTable.unpack(content)}
        found.append(record)
    return found


def forget(directory: Path, vport: str, luns: tuple[Lun, ...]) -> None:
    """Remove the files of a vport that its LUNs do not use."""
    used = {f"{vport}.{one.extents.sha256}.extents" for one in luns if len(one.extents) > MANY}
    for path in directory.glob(f"{vport}.*.extents"):
        if path.name not in used:
            os.unlink(path)
