# SPDX-License-Identifier: GPL-3.0-or-later
"""An adapter and its VFs as the sriov modules return them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from . import _nvme
from ._errors import Refused, VportdDown
from ._host import Host
from ._kept import Kept
from ._nvme import Resources
from ._rpc import Vportd, bound_vfs, waiting_vfs
from ._sriov import Adapter
from ._sriov_plan import Bindings, plan, wanted
from ._users import defined_for, users_of


def bindings(rpc_socket: str) -> Bindings:
    """As vportd tells it; none where it does not run, though its workers still show as processes."""
    try:
        with Vportd(rpc_socket) as vportd:
            return bindings_of(vportd.adapters(), vportd.vports())
    except VportdDown:
        return Bindings()


def bindings_of(adapters: Iterable[Mapping[str, Any]], records: Iterable[Mapping[str, Any]]) -> Bindings:
    """The same, of what vportd has told already."""
    return Bindings(bound_vfs(adapters), waiting_vfs(records))


def described(host: Host, adapter: Adapter, bound: Bindings) -> dict[str, Any]:
    addresses = [vf.address for vf in adapter.vfs]
    users, defined = users_of(host, addresses, bound.vports), defined_for(host, addresses)
    vfs = [
        asdict(vf)
        | {
            "controller": _nvme.controller(host, vf.address),
            "namespaces": [asdict(namespace) for namespace in _nvme.namespaces(host, vf.address)],
            "users": users[vf.address]
            + [f"virtual machine {name}, shut off, when it is started" for name in defined[vf.address]],
        }
        for vf in adapter.vfs
    ]
    return {
        "pf": adapter.address,
        "serial": adapter.serial,
        "nqn": adapter.nqn,
        "totalvfs": adapter.total,
        "numvfs": adapter.count,
        "vfs": vfs,
    }


def resources(adapter: Adapter) -> dict[str, Any]:
    """The flexible resources: how many there are for VFs, how many one can get, how many are not assigned."""

    def described(kind: str, what: Resources) -> dict[str, int]:
        assigned = sum(getattr(entry, kind) for entry in adapter.secondaries)
        return {
            "total": what.for_secondaries,
            "most": what.most or what.total,
            "free": max(what.for_secondaries - assigned, 0),
        }

    flexible = adapter.capabilities
    return {"queues": described("queues", flexible.queues), "interrupts": described("interrupts", flexible.interrupts)}


def drift(adapter: Adapter, kept: Kept | None) -> list[str]:
    """What would have to be done for the adapter to be as its file says, a sentence each."""
    if kept is None:
        return []
    if kept.serial != adapter.serial:
        return [f"provision this host again: the file is of the adapter with serial number {kept.serial}"]
    try:
        return [step.text for step in plan(adapter, wanted(adapter, kept.vfs)).steps]
    except Refused as exc:
        return [str(exc)]
