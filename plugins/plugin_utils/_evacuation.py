# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the VMs of a hypervisor can go: by memory, then by free VFs. Nothing is moved here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.iovlab.storage.plugins.plugin_utils._preflight_hosts import OVERHEAD

Record = Mapping[str, Any]


def evacuation_plan(
    vms: Sequence[Record], hosts: Mapping[str, Record], source: str, wanted: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Spread ``vms`` of ``source`` over ``hosts``.

    ``vms``: ``name`` and ``memory`` (bytes). ``hosts``: by name of those that may take VMs ``free_memory`` (bytes) and
    ``free_vfs``. ``wanted``: where a VM has to go, by its name.

    Returns ``ok``, ``moves`` (each ``vm``, ``source``, ``to``, ``path``) and ``problems``. The largest VM is
    placed first, on the hypervisor with a free VF that has most memory left. Without a free VF anywhere it still has a
    place, on path ``pf``; without memory for it and for its QEMU it has none, and that is a problem.
    """
    free = {name: {"memory": int(host["free_memory"]), "vfs": int(host["free_vfs"])} for name, host in hosts.items()}
    moves, problems = [], []
    for vm in sorted(vms, key=lambda one: (-int(one["memory"]), str(one["name"]))):
        name, memory = str(vm["name"]), int(vm["memory"]) + OVERHEAD
        choice = (wanted or {}).get(name)
        if choice is not None and choice not in free:
            problems.append(f"{name} has to go to {choice}, which takes no VMs now; bring it up or choose another")
            continue
        fits = [host for host in free if free[host]["memory"] >= memory and choice in (None, host)]
        if not fits:
            most = max((free[host]["memory"] for host in free if choice in (None, host)), default=0)
            problems.append(
                f"{name} needs {memory >> 20} MiB with its QEMU, and no hypervisor that may take it has more than "
                f"{most >> 20} MiB left; free some memory there or stop a VM"
            )
            continue
        host = max(fits, key=lambda one: (free[one]["vfs"] > 0, free[one]["memory"]))
        path = "vf" if free[host]["vfs"] > 0 else "pf"
        free[host]["memory"] -= memory
        free[host]["vfs"] -= path == "vf"
        moves.append({"vm": name, "source": source, "to": host, "path": path})
    return {"ok": not problems, "moves": moves, "problems": problems}
