# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of a migration about the engines and the vport."""

from __future__ import annotations

from typing import Any

from ._preflight import (
    Finding,
    NotAsked,
    cause,
    record,
    records,
    some,
    warning,
)
from ._preflight_subject import Findings, Migration


def engine(m: Migration) -> Findings:
    for host in (m.source, m.destination):
        found = host.part("vportd")
        if found.get("reachable"):
            yield f"{host.name}: vportd {found.get('version')}"
        else:
            yield Finding(
                f"{host.name}: {cause(found.get('reason'))}",
                f"start it with systemctl start vportd on {host.name}, or let the role vportd install it",
            )


def engine_version(m: Migration) -> Findings:
    here, there = m.source.vportd, m.destination.vportd
    remedy = f"bring vportd on {m.destination.name} up to date with the role vportd"
    if (there.get("protocol") or 0) < (here.get("protocol") or 0):
        yield Finding(
            f"vportd of {m.destination.name} speaks protocol {there.get('protocol')}, that of {m.source.name} "
            f"{here.get('protocol')}",
            remedy,
        )
    lacking = sorted(set(here.get("features") or []) - set(there.get("features") or []))
    if lacking:
        yield Finding(f"vportd of {m.destination.name} lacks {some(lacking)}, which {m.source.name} has", remedy)
    if here.get("version") != there.get("version"):
        yield warning(
            f"vportd is {here.get('version')} on {m.source.name} and {there.get('version')} on {m.destination.name}",
            "bring both to one version with the role vportd",
        )
    ids = here.get("host_id"), there.get("host_id")
    if ids[0] and ids[0] == ids[1]:
        yield Finding(
            f"vportd has the host ID {ids[0]} on both hosts, so that a lease cannot tell them apart",
            f"give {m.destination.name} its own machine ID: empty /etc/machine-id there and boot",
        )
    yield f"protocol {here.get('protocol')} and {there.get('protocol')}"


def vport(m: Migration) -> Findings:
    found = m.record_on(m.source)
    if found is None:
        yield Finding(f"{m.source.name} has no vport {m.vport}", "correct the vport's name or the source")
        return
    luns = records(found.get("luns"))
    if m.luns is not None and _shape(luns) != _shape(m.luns):
        yield Finding(
            f"vport {m.vport} on {m.source.name} has {some(_shape(luns)) or 'no LUN'}, wanted: {some(_shape(m.luns))}",
            "let the inventory and the mapping agree: correct the one, or push the other with provision.yml",
        )
    if found.get("state") != "RUNNING":
        yield Finding(
            f"vport {m.vport} is {found.get('state')} on {m.source.name}: somebody has suspended it",
            "resume it with vportctl, or wait for who did that",
        )
    for lun in luns:
        if not lun.get("connected"):
            yield Finding(
                f"no VM is connected to LUN {lun.get('lun')} of vport {m.vport} on {m.source.name}",
                f"see that {m.vm} has this disk and that QEMU is connected: journalctl -u vportd",
            )
        if lun.get("logging"):
            yield Finding(
                f"LUN {lun.get('lun')} of vport {m.vport} logs dirty pages: a migration is under way",
                f"wait for its end, or end it with virsh domjobabort {m.vm}",
            )
    yield f"{some(_shape(luns))} on path {found.get('path')}"


def _shape(luns: Any) -> list[str]:
    return [
        f"{lun.get('lun')}={lun.get('vdisk')}{' (ro)' if lun.get('readonly') else ''}"
        for lun in sorted(records(list(luns)), key=lambda lun: int(lun["lun"]))
    ]


def source_path(m: Migration) -> Findings:
    found = m.here
    if found.get("degraded"):
        yield warning(
            f"vport {m.vport} is degraded on {m.source.name}: {found['degraded']}",
            "find out why before the VM moves, or the destination may meet the same",
        )
    elif found.get("path") != "vf":
        yield warning(
            f"vport {m.vport} is on path {found.get('path')} on {m.source.name}, not on a VF",
            "nothing, if that is meant; the migration goes on from there",
        )
    errors = sum(lun.get("errors") or 0 for lun in records(found.get("luns")))
    if errors:
        yield warning(
            f"{errors} requests of vport {m.vport} have failed on {m.source.name} since vportd started",
            "look at journalctl -u vportd and dmesg for the storage",
        )
    yield f"path {found.get('path')}"


def fence(m: Migration) -> Findings:
    for host in (m.source, m.destination):
        found = m.record_on(host) or {}
        if found.get("fenced"):
            yield Finding(
                f"vport {m.vport} is fenced on {host.name}",
                "find out why; if its VM runs nowhere else, lift the fence with vport_fence state=absent",
            )
        elif found.get("fence_on_stop"):
            yield warning(
                f"vport {m.vport} is to be fenced on {host.name} as soon as its VM stops, from an earlier migration",
                "lift it with vport_fence state=absent, if no migration is under way",
            )
    yield "no fence"


def leases(m: Migration) -> Findings:
    owner = m.source.vportd.get("host_id")
    leases = [(lun.get("lun"), record(lun.get("lease"))) for lun in records(m.here.get("luns")) if lun.get("lease")]
    if not leases:
        raise NotAsked(f"vport {m.vport} has no leases")
    for lun, lease in leases:
        if lease.get("state") != "held" or (owner and lease.get("owner") != owner):
            holder = lease.get("owner_name") or lease.get("owner") or "nobody"
            yield Finding(
                f"the lease of LUN {lun} of vport {m.vport} is {lease.get('state')}, its owner {holder}, not held by "
                f"{m.source.name}",
                f"see that {m.source.name} reaches the storage, and find out who has the lease now",
            )
    yield f"{len(leases)} leases"


def destination_vport(m: Migration) -> Findings:
    vdisks = {lun.get("vdisk") for lun in (m.luns or records(m.here.get("luns")))}
    found = m.there
    for other in records(m.destination.vportd.get("vports")):
        both = sorted(str(lun.get("vdisk")) for lun in records(other.get("luns")) if lun.get("vdisk") in vdisks)
        if other is not found and both:
            yield Finding(
                f"vport {other.get('vport')} on {m.destination.name} has vdisk {some(both)} too",
                "delete that vport with vport state=absent, or take the vdisk out of its mapping",
            )
    if found is None:
        yield f"{m.destination.name} has no vport {m.vport} yet"
        return
    taken = [str(lun.get("lun")) for lun in records(found.get("luns")) if lun.get("connected")]
    if taken:
        yield Finding(
            f"vport {m.vport} on {m.destination.name} has a VM on LUN {', '.join(taken)} already",
            "find out which one it is, and stop it or rename one of the two vports",
        )
    elif not found.get("incoming"):
        yield Finding(
            f"vport {m.vport} is on {m.destination.name} already, and not one that waits for a VM to arrive",
            "if it is left over, delete it there with vport state=absent; else rename one of the two",
        )
    else:
        yield f"vport {m.vport} waits on {m.destination.name}"


def mapping(m: Migration) -> Findings:
    here, there = m.here, m.there
    if not here.get("digest"):
        yield Finding(f"vport {m.vport} has no mapping on {m.source.name}", "push it with adapter_mapping")
    elif there is None or not there.get("digest"):
        yield "nothing to compare yet on the destination; vm_migrate compares before it begins"
    elif there.get("digest") != here.get("digest"):
        yield Finding(
            f"vport {m.vport} has another mapping on {m.destination.name} ({there.get('digest')}) than on "
            f"{m.source.name} ({here.get('digest')})",
            f"delete the vport on {m.destination.name} with vport state=absent; the migration makes it again",
        )
    else:
        yield str(here.get("digest"))
