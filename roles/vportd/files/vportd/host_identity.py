# SPDX-License-Identifier: GPL-3.0-or-later
"""Which host this is: an id that stays as long as the host is installed, and does not give away its machine-id."""

import hashlib
import hmac
from pathlib import Path

_APPLICATION = b"iovlab.storage vportd host id"
_MACHINE_ID = Path("/etc/machine-id")


def host_id() -> str:
    """Return 32 hexadecimal digits made of /etc/machine-id (machine-id(5)); empty where there is none."""
    try:
        machine = _MACHINE_ID.read_text(encoding="ascii").strip()
        key = bytes.fromhex(machine)
    except (OSError, ValueError):
        return ""
    return hmac.new(key, _APPLICATION, hashlib.sha256).hexdigest()[:32] if len(key) == 16 else ""
