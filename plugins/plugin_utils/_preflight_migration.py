# SPDX-License-Identifier: GPL-3.0-or-later
"""Every reason to refuse a live migration, found from facts of both hypervisors before anything is touched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import _preflight_hosts as hosts
from . import _preflight_storage as storage
from . import _preflight_vm as vm
from . import _preflight_vport as vport
from ._preflight import (
    Check,
    Host,
    carry_out,
    record,
    records,
)
from ._preflight_subject import Migration

MODES = ("direct", "stay_mediated", "offline")
_LEAST_QUEUES, _LEAST_INTERRUPTS = 2, 1


def preflight(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Make every check; ``wanted`` is as the filter migration_preflight says. ValueError when it lacks a must."""
    for key in ("vm", "vport", "source", "destination"):
        if not wanted.get(key):
            raise ValueError(f"{key} is missing; give vm, vport, source and destination")
    mode = str(wanted.get("mode") or MODES[0])
    if mode not in MODES:
        raise ValueError(f"mode is {mode}; give one of {', '.join(MODES)}")
    sides = {}
    for key in ("source", "destination"):
        facts = record(wanted[key])
        name = wanted.get(f"{key}_name") or record(facts.get("host")).get("name") or f"the {key}"
        sides[key] = Host(str(name), facts)
    luns = wanted.get("luns")
    resources = record(wanted.get("vf"))
    return carry_out(
        CHECKS,
        Migration(
            vm=str(wanted["vm"]),
            vport=str(wanted["vport"]),
            luns=None if luns is None else tuple(records(luns)),
            pool=str(wanted.get("pool") or ""),
            source=sides["source"],
            destination=sides["destination"],
            destination_address=str(wanted.get("destination_address") or ""),
            source_address=str(wanted.get("source_address") or ""),
            mode=mode,
            require_vf=bool(wanted.get("require_vf", False)),
            require_identity=bool(wanted.get("require_identity", True)),
            queues=int(resources.get("queues") or _LEAST_QUEUES),
            interrupts=int(resources.get("interrupts") or _LEAST_INTERRUPTS),
            clocks=record(wanted.get("clocks")),
            beside=tuple(records(wanted.get("beside"))),
        ),
    )


CHECKS: tuple[Check[Migration], ...] = (
    Check("facts", "both hosts have told their facts", hosts.facts),
    Check("hosts", "they are two hosts, and nothing takes them for one", hosts.hosts),
    Check("libvirt", "libvirt answers on both", hosts.libvirt),
    Check("engine", "vportd answers on both", vport.engine),
    Check("link", "the ports for ssh and for migrations are reached, there and (warning) back", hosts.link),
    Check("libvirt_way", "libvirt of the other host is reached, and it is that host; back: warning", hosts.libvirt_way),
    Check(
        "placement", "the VM runs on the source and nowhere else, and no other VM of its name is there", vm.placement
    ),
    Check("health", "running, no job, no I/O error, no host device; guest agent answers (warning)", vm.health),
    Check("vport", "the vport is there as wanted, its LUNs connected, not suspended, no dirty log", vport.vport),
    Check("disks", "the VM's disks are LUNs of the vport; other disks: warning", vm.disks),
    Check("files", "the kernel, initrd or firmware that QEMU starts from is on the destination", vm.files),
    Check("machine_type", "the destination has the VM's machine type; an older QEMU: warning", vm.machine_type),
    Check("cpu", "the destination can run the CPU that the VM has", vm.cpu),
    Check("memory", "the destination has the memory, for the VMs beside it too", hosts.memory),
    Check("space", "the destination has space for libvirt's and vportd's files", hosts.space),
    Check("ports", "the destination has a free port for the migration", hosts.ports),
    Check("engine_version", "protocol and features of the destination's vportd are enough", vport.engine_version),
    Check("source_path", "the source is on its VF, and not degraded (warnings)", vport.source_path),
    Check("fence", "the vport is fenced on neither side; a fence armed for later: warning", vport.fence),
    Check("leases", "the source holds the lease of every LUN, where there are leases", vport.leases),
    Check("destination_vport", "no vport of this name or with these vdisks is in the way", vport.destination_vport),
    Check("mapping", "the mapping is the same, where the destination has one", vport.mapping),
    Check("storage", "both have the same storage, by NGUID, EUI64 or UUID, and size", storage.storage),
    Check("pool", "both read the same pool in the same state, with all vdisks wanted", storage.pool),
    Check("vf", "the destination has a free VF with the resources; warning, or problem with require_vf", storage.vf),
    Check("clock", "the clocks differ by no more than a second (warning)", hosts.clock),
)
