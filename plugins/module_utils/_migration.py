# SPDX-License-Identifier: GPL-3.0-or-later
"""Live migration of a virtual machine: what both hosts say, whether it may go, and the steps. No libvirt in here."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ._errors import Refused
from ._plan import Plan, Step

RUNNING = "running"
PROGRESS_SECONDS = 0.5
PROGRESS_LIMIT = 600
_PAGE = 4096
_HERE = frozenset({"localhost", "localhost.localdomain"})


@dataclass(frozen=True, slots=True)
class Guest:
    """A virtual machine as one host knows it. ``state`` is ``running``, ``paused``, ``shut off`` and so on.

    ``busy``: libvirt does some job on it; ``leaving``: that job is a migration to another host.
    """

    name: str
    uuid: str
    state: str
    active: bool
    persistent: bool
    busy: bool
    leaving: bool
    sockets: tuple[str, ...]
    host_devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two hosts."""

    uri: str
    hostname: str
    uuid: str
    guest: Guest | None

    @property
    def runs_it(self) -> bool:
        return self.guest is not None and self.guest.active


def refuse_own_address(uri: str, what: str) -> None:
    """Refused when ``uri`` leads to this very host. Binding a socket tells whether an address is one of our own."""
    host = urlsplit(uri).hostname
    if host is None:
        raise Refused(
            f"{what}: {uri} names no host, so it is this one; give the other hypervisor, such as "
            "qemu+ssh://root@host2/system"
        )
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except OSError as exc:
        raise Refused(
            f"{what}: host {host} of {uri} cannot be resolved: {exc.strerror}; correct the name or give an address"
        ) from exc
    for family, kind, protocol, _name, address in found:
        with socket.socket(family, kind, protocol) as probe:
            try:
                probe.bind(address)
            except OSError:
                continue
        raise Refused(f"{what}: {uri} is this same host; give the other hypervisor")


def plan(name: str, source: Side, destination: Side) -> Plan:
    """From where the virtual machine is to where it should be: running on the destination, unknown to the source."""
    if source.uuid and source.uuid == destination.uuid:
        raise Refused(
            f"destination: {destination.uri} is this same host (host UUID {source.uuid}); give the other hypervisor"
        )
    if source.hostname == destination.hostname and source.hostname not in _HERE:
        raise Refused(
            f"destination: {destination.uri} has the same host name as this host, {source.hostname}; give the other "
            "hypervisor or name it"
        )
    here, there = source.guest, destination.guest
    before = {"name": name, "runs_on": source.hostname if source.runs_it else destination.hostname}
    after = {"name": name, "runs_on": destination.hostname}
    if here is None and there is None:
        raise Refused(
            f"name: there is no virtual machine {name} on {source.hostname} nor on {destination.hostname}; correct "
            "the name"
        )
    if source.runs_it and destination.runs_it:
        raise Refused(
            f"virtual machine {name} runs on {source.hostname} and on {destination.hostname} at once; nothing was "
            "touched, stop the wrong one by hand"
        )
    if destination.runs_it:
        if here is None:
            return Plan(after, after)
        step = Step(
            "undefine", f"undefine virtual machine {name} on {source.hostname}, it runs on {destination.hostname}"
        )
        return Plan(before | {"defined_on": source.hostname}, after, (step,))
    if here is None or (there is not None and there.uuid != here.uuid):
        uuid = there.uuid if there else "?"
        if here is None:
            raise Refused(
                f"virtual machine {name} is not running on {source.hostname} and only defined on "
                f"{destination.hostname}; start it there"
            )
        raise Refused(
            f"another virtual machine {name} (UUID {uuid}) is defined on {destination.hostname}; rename or undefine "
            "that one"
        )
    if here.state != RUNNING:
        raise Refused(
            f"virtual machine {name} is {here.state} on {source.hostname}, not running; start it before it is "
            "migrated live"
        )
    if here.busy:
        raise Refused(
            f"virtual machine {name} has another job running on {source.hostname}; wait for it, or end it with virsh "
            f"domjobabort {name}"
        )
    if here.host_devices:
        raise Refused(
            f"virtual machine {name} holds host device {here.host_devices[0]}, with which it cannot be migrated; "
            "detach that device first"
        )
    return Plan(
        before,
        after,
        (Step("migrate", f"migrate virtual machine {name} from {source.hostname} to {destination.hostname}"),),
    )


def plan_abort(name: str, source: Side) -> Plan:
    """From a virtual machine that is being migrated away to one that stays."""
    guest = source.guest
    if guest is None:
        note = f"there is no virtual machine {name} on {source.hostname}, so no migration of it to abort"
        return Plan({"name": name}, {"name": name}, notes=(note,))
    after = {"name": name, "migrating": False}
    if not guest.busy:
        return Plan(after, after)
    if not guest.leaving:
        raise Refused(
            f"virtual machine {name} has a job on {source.hostname} that is no migration to another host; wait for it, "
            f"or end it with virsh domjobabort {name}"
        )
    step = Step("abort", f"abort the migration of virtual machine {name} on {source.hostname}")
    return Plan(after | {"migrating": True}, after, (step,))


def refuse_post_copy(guest: Guest) -> None:
    """QEMU would refuse it as well, after the preparations: the engine does not serve page faults of a back end."""
    if guest.sockets:
        raise Refused(
            f"post_copy: virtual machine {guest.name} has a disk on {guest.sockets[0]}, and vportd cannot write to "
            "memory that has not arrived yet; leave post_copy out, and use auto_converge or max_downtime if it does "
            "not converge"
        )


class Progress:
    """What libvirt told while the memory was sent: an entry each half second, and at most 600 of them.

    When there are more, every second one is dropped and the others come half as often, so that the whole of a long
    migration stays to be seen.
    """

    def __init__(self, limit: int = PROGRESS_LIMIT) -> None:
        self._limit = limit
        self._interval = PROGRESS_SECONDS
        self.entries: list[dict[str, Any]] = []

    def note(self, now: float, stats: Mapping[str, Any]) -> None:
        """Statistics of a job that runs, at ``now``, seconds since 1970."""
        if self.entries and self.entries[-1]["time"] <= now < self.entries[-1]["time"] + self._interval:
            return
        rate = stats.get("memory_dirty_rate")
        self.entries.append(
            {
                "time": round(now, 3),
                "iteration": stats.get("memory_iteration"),
                "memory_remaining": stats.get("memory_remaining"),
                "memory_transferred": stats.get("memory_processed"),
                "dirty_rate": None if rate is None else rate * stats.get("memory_page_size", _PAGE),
                "throttle": stats.get("auto_converge_throttle", 0),
            }
        )
        if len(self.entries) > self._limit:
            del self.entries[1:-1:2]
            self._interval *= 2


def vports_of(guest: Guest, records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Records of the vports whose LUNs are disks of the guest."""
    by_socket = {lun["socket"]: record for record in records for lun in record["luns"]}
    found: dict[str, Mapping[str, Any]] = {}
    for path in guest.sockets:
        record = by_socket.get(path)
        if record is None:
            raise Refused(
                f"virtual machine {guest.name} has a disk on {path}, which is no vport of this host; correct the "
                "disk's source"
            )
        found[record["vport"]] = record
    return list(found.values())


def refuse_unready_vports(
    vports: Sequence[Mapping[str, Any]], there: Sequence[Mapping[str, Any]] | None, destination: str
) -> None:
    """The vports here must be on path pf; those on the destination, where known, must hold the same mapping."""
    for record in vports:
        name = record["vport"]
        if record["path"] != "pf":
            raise Refused(
                f"vport {name} is on path {record['path']}, where written pages cannot be logged; switch it first "
                "with vport_binding path=pf"
            )
        if record["fenced"]:
            raise Refused(
                f"vport {name} is fenced on this host, its virtual machine does no I/O; lift the fence with "
                "vport_fence state=absent first"
            )
        if there is None:
            continue
        peer = next((other for other in there if other["vport"] == name), None)
        if peer is None:
            raise Refused(
                f"destination {destination} has no vport {name}; create it there with vport incoming=true and push "
                "its mapping"
            )
        if _shape(peer) != _shape(record):
            raise Refused(
                f"vport {name} has LUNs {_shape(record)} here and {_shape(peer)} on destination {destination}; push "
                "the same mapping there"
            )
        if peer["digest"] is None or peer["digest"] != record["digest"]:
            raise Refused(
                f"vport {name} has another mapping on destination {destination} (digest {peer['digest']}, here "
                f"{record['digest']}); push the same mapping there"
            )
        if peer["fenced"]:
            raise Refused(
                f"vport {name} is fenced on destination {destination}; lift the fence there with vport_fence "
                "state=absent first"
            )
        taken = next((lun for lun in peer["luns"] if lun.get("connected")), None)
        if taken is not None:
            raise Refused(
                f"vport {name} on destination {destination} has a virtual machine on LUN {taken['lun']} already; find "
                "out which and stop it"
            )


def _shape(record: Mapping[str, Any]) -> list[str]:
    return sorted(
        f"{lun['lun']}={lun['vdisk']}{' (ro)' if lun.get('readonly') else ''} at {lun['socket']}"
        for lun in record["luns"]
    )


def report(
    stats: Mapping[str, Any], phases: Mapping[str, float], progress: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """libvirt's job statistics in seconds and bytes; None for what libvirt did not tell."""

    def seconds(key: str) -> float | None:
        return stats[key] / 1000 if key in stats else None

    page = stats.get("memory_page_size", _PAGE)
    rate = stats.get("memory_dirty_rate")
    return {
        "phases": dict(phases),
        "total_time": seconds("time_elapsed"),
        "setup_time": seconds("setup_time"),
        "downtime": seconds("downtime"),
        "memory_total": stats.get("memory_total"),
        "memory_transferred": stats.get("memory_processed"),
        "iterations": stats.get("memory_iteration"),
        "dirty_rate": rate * page if rate is not None else None,
        "progress": [dict(entry) for entry in progress],
    }
