# SPDX-License-Identifier: GPL-3.0-or-later
"""A half-finished migration: from what every hypervisor says of one VM to the steps that bring it to one end.

Nothing is remembered from the migration itself: where the VM runs, what its vports and their leases say is enough, so
it does not matter what was killed, or when.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_RUNS = frozenset({"running", "blocked"})

Record = Mapping[str, Any]


class _Refused(Exception):
    """Why nothing may be done, and what a person has to do."""


def migration_recovery(hosts: Mapping[str, Record], vm: str, to: str | None = None) -> dict[str, Any]:
    """Steps to one end of a migration of ``vm``.

    ``hosts``: by hypervisor ``reachable``, ``lost`` (said to be off for good), ``domain`` (None, or ``state``,
    ``active``, ``job``), ``vport`` (None, or vportd's record). ``to``: where to start the VM if it runs nowhere.

    Returns ``ok``, ``message``, ``end`` (hypervisor or None) and ``steps``, each with ``host``, ``verb`` and ``text``.
    The steps are in order: first whatever must not run is ended, then the VM goes on in one place, then the others are
    released. A VM that was shut down, with no migration begun, stays so.
    """
    try:
        end, steps = _plan(hosts, vm, to)
    except _Refused as why:
        return {"ok": False, "message": str(why), "end": None, "steps": []}
    off = not steps and not (hosts[end]["domain"] or {}).get("active")
    message = f"{vm} {'is shut off' if off else 'runs'} on {end}" + (
        "" if steps else ", and nothing is left of a migration"
    )
    silent = [name for name, host in hosts.items() if not _known(host)]
    if silent:
        message += f"; {_and(silent)} could not be asked, run this again when it is back"
    return {"ok": True, "message": message, "end": end, "steps": steps}


def _plan(hosts: Mapping[str, Record], vm: str, to: str | None) -> tuple[str, list[dict[str, str]]]:
    asked = {name: host for name, host in hosts.items() if host["reachable"] and not host["lost"]}
    silent = [name for name, host in hosts.items() if not _known(host)]
    for name, host in hosts.items():
        if host["lost"] and host["reachable"]:
            raise _Refused(f"{name} is said to be lost, yet it answers; leave it out of lost, or power it off first")
    if to is not None and to not in asked:
        raise _Refused(f"to: {to} cannot be asked; name a hypervisor that is up ({_and(asked) or 'there is none'})")
    busy = [name for name, host in asked.items() if (host["domain"] or {}).get("job")]
    if busy:
        raise _Refused(f"a migration of {vm} is under way on {_and(busy)}; wait for its end, or abort it first")
    active = [name for name, host in asked.items() if (host["domain"] or {}).get("active")]
    running = [name for name in active if asked[name]["domain"]["state"] in _RUNS]
    if len(running) > 1:
        holders = [name for name in running if _holds(asked[name])]
        hint = f"; the lease of its disks is held by {holders[0]}" if len(holders) == 1 else ""
        raise _Refused(f"{vm} runs on {_and(running)} at once{hint}; decide which one is right and end the other")
    if not active and (owner := _shut_off(hosts)) is not None and to is None:
        return owner, []
    halves = [name for name in active if name not in running and (asked[name]["vport"] or {}).get("incoming")]
    if halves and halves == active:
        if not (silent or _from_here(hosts)):
            raise _Refused(
                f"{vm} is only left on {_and(active)}, to which its memory had not come whole; end it there "
                f"(virsh destroy {vm}) and run this again"
            )
        active = []  # of no use once what it came from is gone
    end = running[0] if running else _stopped(asked, active, vm) if active else _started(asked, vm, to, silent)
    vport = asked[end]["vport"]
    if vport is not None and vport["fenced"] and silent and not _leased(vport):
        raise _Refused(
            f"{vm} is fenced on {end} and may run on {_and(silent)}, which cannot be asked; bring that back, or power "
            "it off and say that it is lost"
        )
    return end, _steps(hosts, asked, vm, end, active, halves)


def _stopped(asked: Mapping[str, Record], active: Sequence[str], vm: str) -> str:
    """Of the hypervisors with a stopped VM the one where it goes on: never one to which it only was on its way."""
    whole = [name for name in active if not (asked[name]["vport"] or {}).get("incoming")]
    if len(whole) > 1:
        holders = [name for name in whole if _holds(asked[name])]
        if len(holders) != 1:
            raise _Refused(f"{vm} is stopped on {_and(whole)}; decide where it shall go on and end it elsewhere")
        return holders[0]
    return whole[0]


def _from_here(hosts: Mapping[str, Record]) -> bool:
    """Whether it is known where the VM was on its way from, and that it has not left there: a hypervisor is lost, or
    has a vport that is not fenced. A fenced one may just have let go of a VM that by now runs where half a copy was.
    """
    vports = [host["vport"] for host in hosts.values() if host["vport"] is not None and not host["vport"]["incoming"]]
    return any(host["lost"] for host in hosts.values()) or any(not vport["fenced"] for vport in vports)


def _shut_off(hosts: Mapping[str, Record]) -> str | None:
    """The hypervisor of a VM that is off with no trace of a migration: one vport in all, no fence, nobody silent."""
    owners = [name for name, host in hosts.items() if host["vport"] is not None]
    if len(owners) != 1 or not all(host["reachable"] for host in hosts.values()):
        return None
    vport = hosts[owners[0]]["vport"]
    return None if vport["incoming"] or vport["fenced"] or vport["fence_on_stop"] else owners[0]


def _started(asked: Mapping[str, Record], vm: str, to: str | None, silent: Sequence[str]) -> str:
    """The VM runs nowhere: where it is to be started."""
    if silent:
        raise _Refused(
            f"{vm} runs on none of {_and(asked)}, and may run on {_and(silent)}, which cannot be asked; bring that "
            "back, or power it off and say that it is lost"
        )
    if not asked:
        raise _Refused("no hypervisor can be asked")
    owners = [name for name, host in asked.items() if _holds(host)]
    known = [name for name, host in asked.items() if host["vport"] is not None and not host["vport"]["incoming"]]
    candidates = [to] if to is not None else owners or known or [name for name in asked if asked[name]["vport"]]
    return candidates[0] if candidates else next(iter(asked))


def _steps(
    hosts: Mapping[str, Record],
    asked: Mapping[str, Record],
    vm: str,
    end: str,
    active: Sequence[str],
    halves: Sequence[str],
) -> list[dict[str, str]]:
    steps = []

    def step(host: str, verb: str, text: str) -> None:
        steps.append({"host": host, "verb": verb, "text": text})

    for name in asked:
        if name in halves:
            step(name, "destroy", f"end the copy of {vm} on {name}, which has not come whole")
        elif name in active and name != end:
            step(name, "destroy", f"end the stopped copy of {vm} on {name}")
    here = asked[end]
    vport, domain = here["vport"], here["domain"]
    # A vport to which the VM was on its way goes first: with it go the leases back to where they came from, at once.
    early = [name for name, host in asked.items() if name != end and (host["vport"] or {}).get("incoming")]
    for name in early:
        step(name, "release", f"unbind and delete its vport on {name}")
    if vport is not None and (vport["fenced"] or vport["fence_on_stop"]):
        step(end, "unfence", f"lift the fence of its vport on {end}")
    if end not in active:
        for name, host in asked.items():
            if name != end and host["vport"] is not None and name not in early:
                step(name, "release", f"unbind and delete its vport on {name}")
        if vport is None or vport["incoming"]:
            lost = [name for name, host in hosts.items() if host["lost"]]
            step(end, "vport", f"make its vport on {end}" + (f", in place of {_and(lost)}" if lost else ""))
        step(end, "start", f"start {vm} on {end}")
    elif domain["state"] not in _RUNS:
        step(end, "resume", f"let {vm} go on, on {end}")
    for name, host in asked.items():
        if name == end:
            continue
        if host["domain"] is not None:
            step(name, "undefine", f"undefine {vm} on {name}")
        if host["vport"] is not None and end in active and name not in early:
            step(name, "release", f"unbind and delete its vport on {name}")
    if vport is None or vport["path"] != "vf" or vport["degraded"]:
        step(end, "to_vf", f"take its path through a VF of {end}, if one is free")
    return steps


def _known(host: Record) -> bool:
    return bool(host["reachable"] or host["lost"])


def _leases(vport: Record | None) -> list[Record]:
    return [lun["lease"] for lun in (vport or {}).get("luns", ()) if lun.get("lease")]


def _leased(vport: Record | None) -> bool:
    return bool(_leases(vport))


def _holds(host: Record) -> bool:
    """Whether this hypervisor's engine has the leases of the VM's disks, or without leases, its vport is in use."""
    vport = host["vport"]
    if vport is None or vport["fenced"]:
        return False
    leases = _leases(vport)
    return all(lease["state"] == "held" for lease in leases) if leases else not vport["incoming"]


def _and(words: Iterable[str]) -> str:
    return " and ".join(words)
