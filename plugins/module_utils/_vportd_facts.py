# SPDX-License-Identifier: GPL-3.0-or-later
"""vportd as another hypervisor must know it before a migration: what it is, its vports, its free VFs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ._errors import VportdDown, VportdError
from ._rpc import Vportd

ANSWER_TIMEOUT = 5.0
_RECORD = (
    "vport", "adapter", "state", "path", "vf", "degraded", "fenced", "fence_on_stop", "incoming", "generation",
    "digest", "outstanding",
)  # fmt: skip
_LUN = ("lun", "vdisk", "capacity", "readonly", "socket", "connected", "front_end", "logging", "lease")


def vportd(socket: str) -> dict[str, Any]:
    """What the engine says of itself; ``reachable`` is false, with the reason, when it says nothing."""
    try:
        with Vportd(socket, ANSWER_TIMEOUT) as engine:
            about = engine.call("get_version")
            adapters, records = engine.adapters(), engine.vports()
    except (VportdDown, VportdError) as exc:
        return {"reachable": False, "reason": str(exc), "adapters": [], "vports": [], "free_vfs": []}
    return {
        "reachable": True,
        "reason": None,
        "version": about.get("version"),
        "protocol": about.get("protocol"),
        "features": sorted(about.get("features") or []),
        "host_id": about.get("host_id"),
        "adapters": adapters,
        "vports": [_shown(record) for record in records],
        "free_vfs": [
            vf["vf"] for adapter in adapters for vf in adapter.get("vfs", []) if vf["device"] and not vf["vport"]
        ],
    }


def _shown(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record without its history and histograms; ``errors`` counts the requests of a LUN that failed."""
    luns = [
        {key: lun.get(key) for key in _LUN} | {"errors": (lun.get("counters") or {}).get("errors")}
        for lun in record["luns"]
    ]
    return {key: record.get(key) for key in _RECORD} | {"luns": luns}
