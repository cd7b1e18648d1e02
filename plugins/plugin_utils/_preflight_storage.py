# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of a migration about the storage, the pool and the VFs."""

from __future__ import annotations

from ._preflight import (
    Finding,
    Host,
    NotAsked,
    Record,
    Unknown,
    cause,
    record,
    records,
    some,
)
from ._preflight_subject import Findings, Migration


def _place(m: Migration, host: Host, vport: Record | None) -> tuple[str, int]:
    """PF and nsid of the namespace that the vport's mapping is about on ``host``."""
    engine = record(host.facts.get("vportd"))
    adapters = records(engine.get("adapters"))
    if vport is not None:
        adapters = [one for one in adapters if one.get("adapter") == vport.get("adapter")]
    if len(adapters) != 1 and m.pool:
        pools = [one for one in host.listed("pools") if one.get("name") == m.pool]
        if len(pools) == 1:
            return str(pools[0].get("pf")), int(pools[0]["nsid"])
    if len(adapters) != 1:
        host.vportd  # noqa: B018 (raises Unknown when that is the reason)
        raise Unknown(
            f"{host.name} has {len(adapters)} adapters, and none of them is known to hold the storage of {m.vport}",
            fix=f"give the pool's name, and see that vportd of {host.name} serves its adapter",
        )
    return str(adapters[0].get("adapter")), int(adapters[0]["nsid"])


def _vport_or_none(m: Migration, host: Host) -> Record | None:
    return m.record_on(host) if record(host.facts.get("vportd")).get("reachable") else None


def storage(m: Migration) -> Findings:
    shown: list[Record] = []
    for host in (m.source, m.destination):
        pf, nsid = _place(m, host, _vport_or_none(m, host))
        namespace = host.namespace(pf, nsid)
        if namespace is None:
            yield Finding(
                f"adapter {pf} of {host.name} shows no namespace {nsid}",
                "attach the namespace to the PF, and boot with nvme_core.multipath=N",
            )
        else:
            shown.append(namespace)
    if len(shown) < 2:
        return
    here, there = shown
    ids = record(here.get("ids")), record(there.get("ids"))
    common = sorted(set(ids[0]) & set(ids[1]))
    differing = [kind for kind in common if str(ids[0][kind]).lower() != str(ids[1][kind]).lower()]
    remedy = f"attach the same namespace to the adapter of {m.destination.name}, or correct adapters in the inventory"
    for kind in differing:
        yield Finding(
            f"the storage is not the same: {kind} {ids[0][kind]} on {m.source.name}, {ids[1][kind]} on "
            f"{m.destination.name}",
            remedy,
        )
    if here.get("size") != there.get("size"):
        yield Finding(
            f"the storage is not of the same size: {here.get('size')} bytes on {m.source.name}, {there.get('size')} on "
            f"{m.destination.name}",
            remedy,
        )
    if not common:
        lacking = [host for host, known in zip((m.source, m.destination), ids, strict=True) if not known]
        reasons = [
            f"{host.name}: {cause(one.get('ids_reason'))}"
            for host, one in zip((m.source, m.destination), shown, strict=True)
            if one.get("ids_reason")
        ]
        who = " and ".join(host.name for host in lacking) or "one of each kind on the two hosts"
        yield Finding(
            "nothing proves that both hosts have the same storage: no NGUID, EUI64 or UUID to compare from "
            f"{who}{' (' + some(reasons) + ')' if reasons else ''}",
            "give the namespace a UUID or NGUID, or set require_identity to false to go by the pool alone",
            not m.require_identity,
        )
    elif not differing:
        yield f"{', '.join(f'{kind} {ids[0][kind]}' for kind in common)}, {here.get('size')} bytes"


def pool(m: Migration) -> Findings:
    if not m.pool:
        raise NotAsked("no pool is named")
    found = {}
    for host in (m.source, m.destination):
        pools = host.listed("pools")
        one = next((one for one in pools if one.get("name") == m.pool), None)
        if one is None:
            others = [
                f"{one.get('device')}: {cause(one.get('reason')) if one.get('reason') else one['name']}"
                for one in pools
            ]
            yield Finding(
                f"{host.name} sees no pool {m.pool}{' (' + some(others) + ')' if others else ''}",
                f"see that the adapter of {host.name} has the pool's namespace and lvm2 is installed there",
            )
        else:
            found[host.name] = one
    if len(found) < 2:
        return
    here, there = found[m.source.name], found[m.destination.name]
    if here.get("uuid") != there.get("uuid"):
        yield Finding(
            f"pool {m.pool} is not the same one: {here.get('uuid')} on {m.source.name}, {there.get('uuid')} on "
            f"{m.destination.name}",
            "correct the adapters in the inventory; two pools must not have one name",
        )
    elif here.get("seqno") != there.get("seqno"):
        yield Finding(
            f"{m.source.name} and {m.destination.name} read different states of pool {m.pool} (change "
            f"{here.get('seqno')} and {there.get('seqno')})",
            "if the pool is being changed now, try again; else one of the two sees a copy of the storage",
        )
    for vdisk in sorted({str(lun.get("vdisk")) for lun in m.luns or ()}):
        for name, pool in found.items():
            one = next((one for one in records(pool.get("vdisks")) if one.get("name") == vdisk), None)
            if one is None:
                yield Finding(f"pool {m.pool} has no vdisk {vdisk} as {name} reads it", "correct the name, or make it")
            elif not one.get("ready"):
                yield Finding(
                    f"vdisk {vdisk} of pool {m.pool} was not zeroed to its end, as {name} reads it",
                    "run the module vdisk for it again on the pool's manager",
                )
    yield f"{m.pool}, UUID {here.get('uuid')}"


def vf(m: Migration) -> Findings:
    if m.mode == "stay_mediated":
        raise NotAsked("the VM is to stay on the PF")
    there = m.there
    if there is not None and there.get("vf"):
        yield f"vport {m.vport} is bound to {there['vf']} already"
        return
    pf, _nsid = _place(m, m.destination, there)
    engine = {
        str(vf.get("vf")): vf
        for adapter in records(m.destination.vportd.get("adapters"))
        if adapter.get("adapter") == pf
        for vf in records(adapter.get("vfs"))
    }
    own = next((one for one in m.destination.listed("adapters") if one.get("pf") == pf), {})
    known = {vf.get("address"): vf for vf in records(own.get("vfs"))}
    fit, unfit = [], []
    for address in sorted(engine):
        reason = _unfit(m, engine[address], known.get(address, {}))
        if reason:
            unfit.append(f"{address} {reason}")
        else:
            fit.append(address)
    if len(fit) > len(m.beside):
        yield f"{', '.join(fit)} free"
        return
    if fit:
        names = " and ".join(str(one.get("name")) for one in m.beside)
        text = f"{m.destination.name} has {len(fit)} free VF on {pf}, too few for {m.vm} with {names} beside it"
    else:
        why = some(unfit) or "it has no VF at all"
        text = f"{m.destination.name} has no free VF for vport {m.vport} on {pf}: {why}"
    yield Finding(
        f"{text}; {'a VF is required' if m.require_vf else 'the VM stays on the PF there'}",
        f"unbind or add a VF on {m.destination.name}",
        not m.require_vf,
    )


def _unfit(m: Migration, engine: Record, vf: Record) -> str:
    """Why a VF cannot be taken; empty when it can."""
    if engine.get("vport"):
        return f"has vport {engine['vport']}"
    if vf.get("users"):
        return f"is used by {vf['users'][0]}"
    if vf.get("online") is False:
        return "is offline"
    if not engine.get("device"):
        return "shows no block device"
    for key, least in (("queues", m.queues), ("interrupts", m.interrupts)):
        amount = vf.get(key)
        if amount is not None and amount < least:
            return f"has {amount} {key}, needed are {least}"
    return ""
