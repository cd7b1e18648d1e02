# SPDX-License-Identifier: GPL-3.0-or-later
"""An adapter and its VFs as the sriov modules return them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from . import _nvme
from ._errors import VportdDown
from ._host import Host
from ._rpc import Vportd
from ._sriov import Adapter
from ._users import users_of


def bound_vfs(rpc_socket: str) -> dict[str, str]:
    """VF -> vport as vportd tells it; none where it does not run, though its workers still show as processes."""
    try:
        with Vportd(rpc_socket) as vportd:
            return vportd.bound_vfs()
    except VportdDown:
        return {}


def described(host: Host, adapter: Adapter, vports: Mapping[str, str]) -> dict[str, Any]:
    users = users_of(host, [vf.address for vf in adapter.vfs], vports)
    vfs = [
        asdict(vf)
        | {
            "controller": _nvme.controller(host, vf.address),
            "namespaces": [asdict(namespace) for namespace in _nvme.namespaces(host, vf.address)],
            "users": users[vf.address],
        }
        for vf in adapter.vfs
    ]
    return {"pf": adapter.address, "totalvfs": adapter.total, "numvfs": adapter.count, "vfs": vfs}
