# SPDX-License-Identifier: GPL-3.0-or-later
"""State files: one JSON object each, with a checksum; after ``save`` returns it is on the disk, the old one or the
new one at any time before.
"""

import json
import os
from pathlib import Path
from typing import Any

from vportd.errors import StateError
from vportd.mapping import sha256

VERSION = 1


def save(path: Path, record: dict[str, Any]) -> None:
    """Write ``record`` to ``path`` atomically and durably. Raises OSError, and then the old file stands."""
    write(path, json.dumps({"version": VERSION, "checksum": sha256(record), "record": record}, indent=1).encode())


def write(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` atomically and durably. Raises OSError, and then the old file stands."""
    temporary = path.with_name(path.name + ".new")
    with open(temporary, "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _sync_directory(path.parent)


def load(path: Path) -> dict[str, Any]:
    """Read a record back. Raises StateError when it is not what ``save`` wrote."""
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise StateError(f"{path}: {problem}") from problem
    if not isinstance(whole, dict) or whole.get("version") != VERSION or not isinstance(whole.get("record"), dict):
        raise StateError(f"{path}: not a state file of version {VERSION}")
    record: dict[str, Any] = whole["record"]
    if whole.get("checksum") != sha256(record):
        raise StateError(f"{path}: the checksum does not fit the content")
    return record


def remove(path: Path) -> None:
    """Delete a state file durably; it need not be there."""
    path.unlink(missing_ok=True)
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
