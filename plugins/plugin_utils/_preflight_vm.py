# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of a migration about the VM, and whether the destination can run it."""

from __future__ import annotations

from typing import Any

from ._preflight import (
    Finding,
    Host,
    NotAsked,
    Record,
    Unknown,
    record,
    records,
    some,
    warning,
)
from ._preflight_subject import Findings, Migration

RUNNING = "running"
_OF_THE_HOST = ("host-passthrough", "maximum")


def placement(m: Migration) -> Findings:
    found = {}
    for host in (m.source, m.destination):
        found[host.name] = next((one for one in records(host.libvirt.get("domains")) if one.get("name") == m.vm), None)
    here, there = found[m.source.name], found[m.destination.name]
    if here is None:
        yield Finding(f"{m.source.name} has no virtual machine {m.vm}", "correct the name or the source")
    elif not here.get("active"):
        yield Finding(
            f"{m.vm} does not run on {m.source.name}, it is {here.get('state')}",
            f"name the hypervisor that it runs on as the source, or start it with virsh start {m.vm}",
        )
    else:
        yield f"{m.vm} is {here.get('state')} on {m.source.name}"
    if there is None:
        return
    if there.get("active"):
        yield Finding(
            f"{m.vm} is {there.get('state')} on {m.destination.name}"
            + (" too" if here is not None and here.get("active") else ""),
            "find out which one is right and stop the other, before both write to the same vdisks",
        )
    elif here is not None and there.get("uuid") != here.get("uuid"):
        yield Finding(
            f"another virtual machine {m.vm} (UUID {there.get('uuid')}) is defined on {m.destination.name}",
            f"rename or undefine that one: virsh undefine {m.vm}",
        )


def health(m: Migration) -> Findings:
    vm = m.domain
    state = vm.get("state")
    if vm.get("active") and state != RUNNING:
        why = " after an I/O error" if vm.get("io_error") else ""
        yield Finding(
            f"{m.vm} is {state}{why}",
            "mend the storage, then virsh resume it" if why else f"find out why, then virsh resume {m.vm}",
        )
    if vm.get("job"):
        yield Finding(
            f"{m.vm} has a job running: a migration, a backup or the like",
            f"wait for its end, or end it with virsh domjobabort {m.vm}",
        )
    for disk, error in sorted(record(vm.get("disk_errors")).items()):
        yield Finding(
            f"QEMU has an I/O error on disk {disk} of {m.vm}: {error}",
            "mend the storage, then restart or resume the VM",
        )
    for device in vm.get("host_devices") or []:
        if m.mode == "offline":
            yield warning(f"{m.vm} holds host device {device}", f"see that {m.destination.name} has it free as well")
        else:
            yield Finding(
                f"{m.vm} holds host device {device}, with which it cannot be migrated live",
                f"detach that device with virsh detach-device {m.vm}, or migrate it in mode offline",
            )
    agent = record(vm.get("agent"))
    if agent.get("configured") and (not agent.get("connected") or agent.get("answers") is False):
        yield warning(
            f"the guest agent of {m.vm} does not answer", "see that qemu-guest-agent runs in the VM, and is not hung"
        )
    yield f"{m.vm} is {state}"


def disks(m: Migration) -> Findings:
    """Every disk is a LUN of the vport, or it must be on storage that both have."""
    vm = m.domain
    sockets = {lun.get("socket") for lun in records(m.here.get("luns"))}
    used = 0
    for disk in records(vm.get("disks")):
        if disk.get("type") == "vhostuser":
            if disk.get("source") in sockets:
                used += 1
            else:
                yield Finding(
                    f"disk {disk.get('target')} of {m.vm} is on {disk.get('source')}, no LUN of vport {m.vport}",
                    "let all disks of the VM be LUNs of one vport, or correct the vport's name",
                )
        elif disk.get("source"):
            yield warning(
                f"disk {disk.get('target')} of {m.vm} is {disk.get('source')}, which this collection does not move",
                f"see that {m.destination.name} has the same storage there, or detach the disk",
            )
    if not used:
        yield Finding(f"no disk of {m.vm} is a LUN of vport {m.vport}", "correct the vport's name")
    yield f"{used} disks on LUNs of vport {m.vport}"


def files(m: Migration) -> Findings:
    wanted = [str(path) for path in m.domain.get("files") or []]
    there = m.destination.part("paths")
    if not wanted:
        yield "QEMU starts from no file of the host"
        return
    if not any(path in there for path in wanted):
        raise NotAsked(f"{m.destination.name} was not told to look for {some(wanted)}; give paths to hypervisor_info")
    for path in wanted:
        if not there.get(path):
            yield Finding(
                f"{m.destination.name} has no {path}, which QEMU needs to start {m.vm}",
                f"copy it there from {m.source.name}",
            )
    yield some(wanted)


def machine_type(m: Migration) -> Findings:
    machine = m.domain.get("machine")
    there = m.destination.libvirt
    if machine not in (there.get("machines") or []):
        yield Finding(
            f"QEMU {there.get('qemu')} of {m.destination.name} has no machine type {machine}, which {m.vm} has",
            f"install a QEMU on {m.destination.name} that has it (qemu-system-x86_64 -machine help lists them)",
        )
    here_version, there_version = (_numbers(host.libvirt.get("qemu")) for host in (m.source, m.destination))
    if there_version < here_version and m.mode != "offline":
        yield warning(
            f"QEMU of {m.destination.name} ({there.get('qemu')}) is older than that of {m.source.name} "
            f"({m.source.libvirt.get('qemu')})",
            f"bring {m.destination.name} up to date; QEMU promises migration to the same or a newer version only",
        )
    yield str(machine)


def _numbers(version: Any) -> tuple[int, ...]:
    return tuple(int(part) for part in str(version or "").split(".") if part.isdigit())


def cpu(m: Migration) -> Findings:
    vm, cpu = m.domain, record(m.domain.get("cpu"))
    here, there = record(m.source.libvirt.get("cpu")), record(m.destination.libvirt.get("cpu"))
    kind = vm.get("type")
    if kind not in (m.destination.libvirt.get("types") or []):
        yield Finding(
            f"{m.destination.name} cannot run a VM of type {kind}, which {m.vm} is",
            f"see that KVM can be used on {m.destination.name}: {m.destination.part('kernel').get('kvm_reason') or ''}",
        )
    elif vm.get("arch") and vm.get("arch") != there.get("arch") and kind == "kvm":
        yield Finding(
            f"{m.vm} is {vm.get('arch')}, {m.destination.name} is {there.get('arch')}", "choose a host of that kind"
        )
    elif kind != "kvm":
        yield f"QEMU emulates the CPU ({kind})"
    elif cpu.get("mode") in _OF_THE_HOST and m.mode == "offline":
        yield f"it starts with the CPU of {m.destination.name}"
    elif cpu.get("mode") in _OF_THE_HOST:
        yield from _same_cpu(m, here, there)
    elif not cpu.get("model"):
        yield "QEMU's default CPU"
    else:
        yield from _named_cpu(m, cpu, there)


def _same_cpu(m: Migration, here: Record, there: Record) -> Findings:
    """host-passthrough: nobody else looks whether the destination has what the guest uses."""
    remedy = "start the VM with cpu mode host-model or a named model that both have, or migrate it in mode offline"
    if not here.get("model") or not there.get("model"):
        here, there = (_kernel_cpu(host) for host in (m.source, m.destination))
    if not here.get("features") or not there.get("features"):
        raise Unknown("neither libvirt nor the kernel describes the CPU of both hosts", fix=remedy)
    if here.get("vendor") != there.get("vendor"):
        yield Finding(
            f"{m.vm} has the CPU of {m.source.name} ({here.get('vendor')}), and {m.destination.name} has one of "
            f"{there.get('vendor')}",
            remedy,
        )
        return
    lacking = sorted(set(here.get("features") or []) - set(there.get("features") or []))
    if lacking:
        yield Finding(
            f"{m.vm} has the CPU of {m.source.name}, of which {m.destination.name} lacks {some(lacking)}", remedy
        )
    elif here.get("model") != there.get("model"):
        both = here.get("expanded") and there.get("expanded")
        found = warning if both else Finding
        yield found(
            f"{m.vm} has the CPU of {m.source.name} ({here.get('model')}), and {m.destination.name} has "
            f"{there.get('model')}",
            remedy,
        )
    yield f"{here.get('model')} on {m.source.name}, {there.get('model')} on {m.destination.name}"


def _kernel_cpu(host: Host) -> Record:
    """What the kernel shows of a host's CPU, in the shape that libvirt's description has."""
    cpu = record(host.part("kernel").get("cpu"))
    return {"vendor": cpu.get("vendor"), "model": cpu.get("model"), "features": cpu.get("flags"), "expanded": True}


def _named_cpu(m: Migration, cpu: Record, there: Record) -> Findings:
    verdict = record(m.destination.libvirt.get("runs_cpu"))
    remedy = "start the VM with a CPU model that both hosts have"
    lacking = sorted(set(cpu.get("features") or []) - set(there.get("features") or []))
    comparable = there.get("expanded") and there.get("features")
    if verdict.get("ok") is False:
        yield Finding(
            f"{m.destination.name} cannot run the CPU of {m.vm} ({cpu.get('model')}): {verdict['reason']}", remedy
        )
    elif verdict.get("ok"):
        yield f"{cpu.get('model')}, by libvirt's comparison"
    elif comparable and lacking:
        yield Finding(f"{m.destination.name} lacks {some(lacking)} of the CPU of {m.vm} ({cpu.get('model')})", remedy)
    elif not comparable:
        yield warning(
            f"whether {m.destination.name} runs the CPU of {m.vm} ({cpu.get('model')}) cannot be told",
            "libvirt looks at it again when the migration begins, and refuses what cannot be",
        )
    yield str(cpu.get("model"))
