# SPDX-License-Identifier: GPL-3.0-or-later
"""The preflights: what is right passes, and each thing that is wrong is named with what to do, all of it at once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.iovlab.storage.plugins.filter.migration_preflight import migration_preflight
from ansible_collections.iovlab.storage.plugins.filter.server_preflight import server_preflight
from ansible_collections.iovlab.storage.plugins.plugin_utils import _preflight_migration, _preflight_server
from ansible_collections.iovlab.storage.plugins.plugin_utils._preflight import Check

DOCS = Path(__file__).resolve().parents[3] / "docs" / "preflight.md"
PF, VF1, VF2 = "0000:01:00.0", "0000:01:00.1", "0000:01:00.2"
MIB = 1 << 20
GIB = 1 << 30
KERNEL = "/var/lib/iovlab/tenant/vmlinuz"
SOCKETS = ["/run/vportd/web1/0.sock", "/run/vportd/web1/1.sock"]
NOW = 1767225600.0

Wanted = dict[str, Any]


def lun(number: int, vdisk: str, **changed: Any) -> dict[str, Any]:
    return {
        "lun": number,
        "vdisk": vdisk,
        "capacity": 64 * MIB,
        "readonly": False,
        "socket": SOCKETS[number],
        "connected": True,
        "front_end": {"pid": 77, "comm": "qemu-system-x86"},
        "logging": False,
        "lease": None,
        "errors": 0,
    } | changed


def vport(name: str = "web1", **changed: Any) -> dict[str, Any]:
    return {
        "vport": name,
        "adapter": PF,
        "state": "RUNNING",
        "path": "vf",
        "vf": VF1,
        "degraded": None,
        "fenced": False,
        "fence_on_stop": False,
        "incoming": False,
        "generation": 1,
        "digest": "sha256:4f8b",
        "outstanding": 0,
        "luns": [lun(0, "root"), lun(1, "data")],
    } | changed


def incoming(**changed: Any) -> dict[str, Any]:
    waiting = [lun(0, "root", connected=False), lun(1, "data", connected=False)]
    return vport(path="pf", vf=None, incoming=True, luns=waiting) | changed


def server(number: int) -> dict[str, Any]:
    """What hypervisor_info tells about a server on which all is well."""
    name, other = f"hv{number}", f"10.77.0.{3 - number}"
    vfs = [
        {
            "address": address,
            "index": index,
            "driver": "nvme",
            "state": "live",
            "online": True,
            "queues": 2,
            "interrupts": 2,
            "devices": [f"/dev/nvme{index + 1}n1"],
            "vport": None,
            "users": [],
            "free": True,
        }
        for index, address in enumerate((VF1, VF2))
    ]
    looks = {"reachable": True, "seconds": 0.1, "reason": None}
    return {
        "changed": False,
        "host": {"name": name, "machine": f"m{number}", "boot": f"b{number}", "system": "Debian 13", "root": True},
        "kernel": {
            "release": "6.12.48",
            "command_line": "nvme_core.multipath=N",
            "nvme_multipath": False,
            "cpu": {"vendor": "AuthenticAMD", "model": "EPYC 7302", "flags": ["avx2", "sse4a", "svm"]},
            "iommu": True,
            "kvm": True,
            "kvm_reason": None,
            "nested": False,
        },
        "packages": {"lvm2": True, "libvirt-daemon-system": True, "nvme-cli": True},
        "memory": {"total": 4 * GIB, "available": 3 * GIB},
        "space": {"/var/lib/libvirt": 9 * GIB, "/var/lib/vportd": 9 * GIB},
        "paths": {KERNEL: True},
        "migration_ports": {"first": 49152, "last": 49215, "free": 64},
        "clock": {"now": NOW + number, "elapsed": 0.5, "synchronised": True},
        "adapters": [
            {
                "pf": PF,
                "driver": "nvme",
                "controller": "nvme0",
                "state": "live",
                "model": "SAN",
                "serial": f"S{number}",
                "nqn": f"nqn.san:{number}",
                "totalvfs": 4,
                "numvfs": 2,
                "vfs": vfs,
                "vfs_reason": None,
                "namespaces": [
                    {
                        "nsid": 1,
                        "device": "/dev/nvme0n1",
                        "size": 2 * GIB,
                        "identity": f"nvme.{number}",
                        "ids": {"uuid": "0b9d1f8a-5c1e-4a55-9d3e-2f6f1c1f7a10"},
                        "ids_reason": None,
                    }
                ],
                "multipath": [],
            }
        ],
        "pools": [
            {
                "pf": PF,
                "nsid": 1,
                "device": "/dev/nvme0n1",
                "name": "san",
                "uuid": "wFGp8n",
                "seqno": 7,
                "size": 2 * GIB,
                "free": GIB,
                "vdisks": [{"name": name, "size": 64 * MIB, "ready": True} for name in ("root", "data")],
                "reason": None,
            }
        ],
        "vportd": {
            "reachable": True,
            "reason": None,
            "version": "1.2.3",
            "protocol": 1,
            "features": ["fence", "switch"],
            "host_id": f"id{number}",
            "adapters": [
                {
                    "adapter": PF,
                    "nsid": 1,
                    "device": "/dev/nvme0n1",
                    "vfs": [{"vf": vf, "device": "/dev/nvmeXn1", "vport": None} for vf in (VF1, VF2)],
                }
            ],
            "vports": [],
            "free_vfs": [VF1, VF2],
        },
        "libvirt": {
            "reachable": True,
            "reason": None,
            "uri": "qemu:///system",
            "hostname": name,
            "uuid": f"u{number}",
            "version": "11.3.0",
            "qemu": "10.0.2",
            "types": ["kvm", "qemu"],
            "machines": ["pc-q35-10.0"],
            "cpu": {
                "arch": "x86_64",
                "kind": "kvm",
                "vendor": "AMD",
                "model": "EPYC-Rome",
                "features": ["avx2", "sse4a", "x2apic"],
                "expanded": True,
                "models": ["EPYC"],
            },
            "memory_free": 2 * GIB,
            "domains": [],
            "running": [],
        },
        "domain": None,
        "domain_reason": None,
        "peers": [
            {
                "address": other,
                "uri": f"qemu+ssh://root@{other}/system",
                "ssh": looks,
                "migration_port": looks,
                "libvirt": looks | {"hostname": f"hv{3 - number}", "uuid": f"u{3 - number}"},
            }
        ],
    }


def wanted() -> Wanted:
    """A migration of web1 from hv1 to hv2 with nothing in its way."""
    source, destination = server(1), server(2)
    source["vportd"]["vports"] = [vport()]
    source["vportd"]["adapters"][0]["vfs"][0]["vport"] = "web1"
    about = {
        "name": "web1", "uuid": "1111", "state": "running", "active": True, "memory": 384 * MIB, "persistent": True,
        "job": False,
    }  # fmt: skip
    source["libvirt"]["domains"] = [about]
    source["domain"] = about | {
        "type": "kvm",
        "machine": "pc-q35-10.0",
        "arch": "x86_64",
        "cpu": {
            "mode": "host-passthrough",
            "model": None,
            "vendor": None,
            "xml": None,
            "features": [],
            "expanded": False,
        },
        "disks": [
            {"target": target, "type": "vhostuser", "device": "disk", "source": path}
            for target, path in zip(("vda", "vdb"), SOCKETS, strict=True)
        ],
        "host_devices": [],
        "files": [KERNEL],
        "io_error": False,
        "disk_errors": {},
        "agent": {"configured": True, "connected": True, "answers": True},
    }
    return {
        "vm": "web1",
        "vport": "web1",
        "luns": [{"lun": 0, "vdisk": "root"}, {"lun": 1, "vdisk": "data"}],
        "pool": "san",
        "source": source,
        "destination": destination,
        "source_address": "10.77.0.1",
        "destination_address": "10.77.0.2",
        "clocks": {
            "source": {"before": NOW, "after": NOW + 2},
            "destination": {"before": NOW + 1, "after": NOW + 3},
        },
    }


def named_cpu(w: Wanted, features: list[str] | None = None, expanded: bool = True) -> Any:
    cpu = {"mode": "custom", "model": "EPYC", "features": features or ["avx2"], "expanded": expanded, "xml": "<cpu/>"}
    w["source"]["domain"]["cpu"] = cpu


def result_of(found: dict[str, Any], name: str) -> str:
    (result,) = (check["result"] for check in found["checks"] if check["name"] == name)
    return str(result)


def test_a_migration_with_nothing_in_its_way_passes_every_check() -> None:
    found = migration_preflight(wanted())
    assert found["problems"] == found["warnings"] == []
    assert found["ok"]
    results = {check["name"]: check["result"] for check in found["checks"]}
    assert results == {
        check.name: "skipped" if check.name == "leases" else "ok" for check in _preflight_migration.CHECKS
    }
    assert all(check["detail"] for check in found["checks"])


# (check, what is done to a migration that is fine, what the message must name, what the remedy must name)
Case = tuple[str, Callable[[Wanted], Any], str, str]


def s(w: Wanted) -> Any:
    return w["source"]


def d(w: Wanted) -> Any:
    return w["destination"]


def vm(w: Wanted) -> Any:
    return w["source"]["domain"]


def here(w: Wanted) -> Any:
    return w["source"]["vportd"]["vports"][0]


def arrives(w: Wanted, **changed: Any) -> Any:
    there = d(w)["vportd"]["vports"]
    if not there:
        there.append(incoming())
    there[0].update(changed)


def same_boot(w: Wanted) -> Any:
    d(w)["host"]["boot"] = "b1"


def takes_vfs(w: Wanted) -> Any:
    for vf in d(w)["vportd"]["adapters"][0]["vfs"]:
        vf["vport"] = "other"


def lease(w: Wanted, **changed: Any) -> Any:
    here(w)["luns"][0]["lease"] = {"offset": 4096, "state": "held", "owner": "id1", "owner_name": "hv1"} | changed


def ids(w: Wanted, **values: str) -> Any:
    d(w)["adapters"][0]["namespaces"][0]["ids"] = values


PROBLEMS: list[Case] = [
    (
        "facts",
        lambda w: d(w).update(unreachable=True, msg="No route to host"),
        "hv2 cannot be reached: No route",
        "log in",
    ),
    ("facts", lambda w: d(w).pop("host"), "no facts of the destination", "Python"),
    ("hosts", same_boot, "one and the same host", "another hypervisor"),
    ("hosts", lambda w: d(w)["host"].update(machine="m1"), "same machine ID", "/etc/machine-id"),
    ("hosts", lambda w: d(w)["libvirt"].update(uuid="u1"), "host UUID u1", "host_uuid"),
    (
        "libvirt",
        lambda w: s(w)["libvirt"].update(reachable=False, reason="it is down; start it"),
        "hv1: it is down",
        "libvirtd",
    ),
    (
        "libvirt",
        lambda w: d(w)["libvirt"].update(reachable=False, reason="it is down; start it"),
        "hv2: it is down",
        "libvirtd",
    ),
    (
        "engine",
        lambda w: s(w)["vportd"].update(reachable=False, reason="it is down; start it"),
        "hv1: it is down",
        "vportd",
    ),
    (
        "engine",
        lambda w: d(w)["vportd"].update(reachable=False, reason="it is down; start it"),
        "hv2: it is down",
        "vportd",
    ),
    (
        "link",
        lambda w: s(w)["peers"][0].update(ssh={"reachable": False, "reason": "timed out"}),
        "hv2 by 10.77.0.2 (ssh)",
        "TCP 22",
    ),
    (
        "link",
        lambda w: s(w)["peers"][0].update(migration_port={"reachable": False, "reason": "timed out"}),
        "(migration_port)",
        "49152-49215",
    ),
    (
        "libvirt_way",
        lambda w: s(w)["peers"][0].update(libvirt={"reachable": False, "reason": "Permission denied; log in"}),
        "Permission denied",
        "virsh -c qemu+ssh://root@10.77.0.2/system",
    ),
    (
        "libvirt_way",
        lambda w: s(w)["peers"][0]["libvirt"].update(uuid="u9", hostname="hv9"),
        "another host, hv9",
        "inventory",
    ),
    ("placement", lambda w: s(w)["libvirt"].update(domains=[]), "hv1 has no virtual machine web1", "correct the name"),
    (
        "placement",
        lambda w: s(w)["libvirt"]["domains"][0].update(active=False, state="shut off"),
        "does not run on hv1, it is shut off",
        "virsh start web1",
    ),
    (
        "placement",
        lambda w: d(w)["libvirt"].update(
            domains=[{"name": "web1", "active": True, "state": "running", "uuid": "1111"}]
        ),
        "running on hv2 too",
        "stop the other",
    ),
    (
        "placement",
        lambda w: d(w)["libvirt"].update(domains=[{"name": "web1", "active": False, "state": "shut off", "uuid": "2"}]),
        "another virtual machine web1",
        "undefine",
    ),
    ("health", lambda w: vm(w).update(state="paused"), "web1 is paused", "virsh resume"),
    ("health", lambda w: vm(w).update(state="paused", io_error=True), "after an I/O error", "mend the storage"),
    ("health", lambda w: vm(w).update(job=True), "job running", "domjobabort"),
    ("health", lambda w: vm(w).update(disk_errors={"vda": "no space"}), "disk vda of web1: no space", "storage"),
    ("health", lambda w: vm(w).update(host_devices=["0000:03:00.1"]), "host device 0000:03:00.1", "detach"),
    ("vport", lambda w: s(w)["vportd"].update(vports=[]), "hv1 has no vport web1", "correct"),
    ("vport", lambda w: w.update(luns=[{"lun": 0, "vdisk": "root", "readonly": True}]), "0=root (ro)", "inventory"),
    ("vport", lambda w: here(w).update(state="FROZEN"), "is FROZEN", "resume"),
    ("vport", lambda w: here(w)["luns"][1].update(connected=False), "LUN 1 of vport web1", "QEMU is connected"),
    ("vport", lambda w: here(w)["luns"][1].update(logging=True), "logs dirty pages", "domjobabort"),
    (
        "disks",
        lambda w: vm(w)["disks"][1].update(source="/run/vportd/db1/0.sock"),
        "/run/vportd/db1/0.sock",
        "one vport",
    ),
    ("disks", lambda w: vm(w).update(disks=[]), "no disk of web1", "vport's name"),
    ("files", lambda w: d(w).update(paths={KERNEL: False}), f"hv2 has no {KERNEL}", "from hv1"),
    (
        "machine_type",
        lambda w: vm(w).update(machine="pc-q35-11.0"),
        "no machine type pc-q35-11.0",
        "install a QEMU on hv2",
    ),
    ("cpu", lambda w: d(w)["libvirt"].update(types=["qemu"]), "cannot run a VM of type kvm", "KVM"),
    ("cpu", lambda w: d(w)["libvirt"]["cpu"].update(vendor="Intel"), "Intel", "host-model"),
    ("cpu", lambda w: d(w)["libvirt"]["cpu"].update(features=["avx2"]), "lacks sse4a, x2apic", "host-model"),
    (
        "cpu",
        lambda w: (d(w)["libvirt"]["cpu"].update(model=None), d(w)["kernel"].update(cpu={"vendor": "AuthenticAMD"})),
        "neither libvirt nor the kernel",
        "host-model",
    ),
    (
        "cpu",
        lambda w: (d(w)["libvirt"]["cpu"].update(model=None), d(w)["kernel"]["cpu"]["flags"].remove("svm")),
        "lacks svm",
        "host-model",
    ),
    ("cpu", lambda w: d(w)["libvirt"]["cpu"].update(model="EPYC", expanded=False), "hv2 has EPYC", "host-model"),
    (
        "cpu",
        lambda w: (named_cpu(w), d(w)["libvirt"].update(runs_cpu={"ok": False, "reason": "missing features: avx512f"})),
        "avx512f",
        "both hosts have",
    ),
    ("cpu", lambda w: named_cpu(w, ["avx2", "avx512f"]), "lacks avx512f", "both hosts have"),
    ("cpu", lambda w: vm(w).update(arch="aarch64"), "aarch64", "host of that kind"),
    ("memory", lambda w: d(w)["memory"].update(available=500 * MIB), "needs 512 MiB, hv2 has 500 MiB", "hv2"),
    (
        "memory",
        lambda w: w.update(beside=[{"name": "db1", "memory": 2 * GIB}, {"name": "db2", "memory": GIB}]),
        "web1 needs 512 MiB, db1 and db2 beside it 3328 MiB, hv2 has 3072 MiB",
        "hv2",
    ),
    ("memory", lambda w: d(w)["memory"].update(available=None), "not known", "hypervisor_info"),
    (
        "space",
        lambda w: d(w)["space"].update({"/var/lib/vportd": MIB}),
        "/var/lib/vportd on hv2 has 1 MiB",
        "make room",
    ),
    ("ports", lambda w: d(w)["migration_ports"].update(free=0), "49152-49215", "migration_port_max"),
    ("engine_version", lambda w: s(w)["vportd"].update(protocol=2), "speaks protocol 1", "role vportd"),
    ("engine_version", lambda w: s(w)["vportd"].update(features=["fence", "leases"]), "lacks leases", "role vportd"),
    ("engine_version", lambda w: d(w)["vportd"].update(host_id="id1"), "host ID id1", "machine-id"),
    ("fence", lambda w: here(w).update(fenced=True), "fenced on hv1", "vport_fence"),
    ("fence", lambda w: arrives(w, fenced=True), "fenced on hv2", "vport_fence"),
    (
        "leases",
        lambda w: lease(w, state="lost", owner="id9", owner_name="hv9"),
        "lost, its owner hv9",
        "who has the lease",
    ),
    ("leases", lambda w: lease(w, owner="id2", owner_name="hv2"), "not held by hv1", "who has the lease"),
    ("destination_vport", lambda w: arrives(w, luns=[lun(0, "root")]), "has a VM on LUN 0", "stop it"),
    ("destination_vport", lambda w: arrives(w, incoming=False), "not one that waits", "state=absent"),
    (
        "destination_vport",
        lambda w: d(w)["vportd"]["vports"].append(vport("db1", luns=[lun(0, "data")])),
        "vport db1 on hv2 has vdisk data",
        "delete that vport",
    ),
    ("mapping", lambda w: here(w).update(digest=None), "no mapping on hv1", "adapter_mapping"),
    ("mapping", lambda w: arrives(w, digest="sha256:other"), "sha256:other", "state=absent"),
    (
        "storage",
        lambda w: ids(w, uuid="ffff"),
        "uuid 0b9d1f8a-5c1e-4a55-9d3e-2f6f1c1f7a10 on hv1, ffff on hv2",
        "same namespace",
    ),
    (
        "storage",
        lambda w: d(w)["adapters"][0]["namespaces"][0].update(size=GIB),
        "not of the same size",
        "same namespace",
    ),
    ("storage", ids, "nothing proves", "require_identity"),
    ("storage", lambda w: ids(w, nguid="00ff"), "nothing proves", "require_identity"),
    ("storage", lambda w: d(w)["adapters"][0].update(namespaces=[]), "shows no namespace 1", "attach"),
    ("pool", lambda w: d(w)["pools"][0].update(name=None, reason="holds no pool"), "hv2 sees no pool san", "lvm2"),
    ("pool", lambda w: d(w)["pools"][0].update(uuid="other"), "wFGp8n on hv1, other on hv2", "two pools"),
    ("pool", lambda w: d(w)["pools"][0].update(seqno=8), "change 7 and 8", "try again"),
    ("pool", lambda w: d(w)["pools"][0]["vdisks"].pop(), "no vdisk data as hv2 reads it", "make it"),
    ("pool", lambda w: s(w)["pools"][0]["vdisks"][0].update(ready=False), "not zeroed", "module vdisk"),
    ("vf", lambda w: (takes_vfs(w), w.update(require_vf=True)), "a VF is required", "unbind or add"),
]


def case_id(case: Any) -> str:
    return f"{case[0]}: {case[2]}"


@pytest.mark.parametrize("case", PROBLEMS, ids=case_id)
def test_what_is_wrong_is_refused_with_what_to_do(case: Case) -> None:
    name, spoil, message, fix = case
    given = wanted()
    spoil(given)
    found = migration_preflight(given)
    assert not found["ok"]
    assert result_of(found, name) == "problem"
    hits = [
        one for one in found["problems"] if one["check"] == name and message in one["message"] and fix in one["fix"]
    ]
    assert hits, found["problems"]
    assert all("\n" not in one["message"] + one["fix"] for one in found["problems"])


def test_every_check_has_a_case_that_fails() -> None:
    cases = {case[0] for case in PROBLEMS + WARNINGS}
    assert cases == {check.name for check in _preflight_migration.CHECKS}


WARNINGS: list[Case] = [
    ("facts", lambda w: s(w)["host"].update(root=False), "not read as root", "become"),
    (
        "link",
        lambda w: d(w)["peers"][0].update(ssh={"reachable": False, "reason": "refused"}),
        "hv2 does not reach hv1",
        "TCP 22",
    ),
    (
        "libvirt_way",
        lambda w: d(w)["peers"][0].update(libvirt={"reachable": False, "reason": "no"}),
        "hv2 does not reach",
        "virsh",
    ),
    ("health", lambda w: vm(w)["agent"].update(answers=False), "guest agent", "qemu-guest-agent"),
    ("health", lambda w: vm(w)["agent"].update(connected=False, answers=None), "guest agent", "qemu-guest-agent"),
    ("disks", lambda w: vm(w)["disks"].append({"type": "file", "target": "vdc", "source": "/srv/x"}), "/srv/x", "hv2"),
    ("machine_type", lambda w: d(w)["libvirt"].update(qemu="9.2.4"), "older", "up to date"),
    ("cpu", lambda w: d(w)["libvirt"]["cpu"].update(model="EPYC-Milan"), "hv2 has EPYC-Milan", "host-model"),
    (
        "cpu",
        lambda w: (named_cpu(w, expanded=False), d(w)["libvirt"]["cpu"].update(expanded=False)),
        "cannot be told",
        "when the migration begins",
    ),
    ("memory", lambda w: d(w)["memory"].update(available=700 * MIB), "little is left", "hv2"),
    ("space", lambda w: d(w)["space"].update({"/var/lib/libvirt": 100 * MIB}), "100 MiB left", "make room"),
    ("space", lambda w: d(w)["space"].update({"/var/lib/libvirt": None}), "not known", "df"),
    (
        "engine_version",
        lambda w: d(w)["vportd"].update(version="1.2.4"),
        "1.2.3 on hv1 and 1.2.4 on hv2",
        "one version",
    ),
    ("source_path", lambda w: here(w).update(degraded="the VF's worker died"), "worker died", "before the VM moves"),
    ("source_path", lambda w: here(w).update(path="pf"), "on path pf", "goes on from there"),
    ("source_path", lambda w: here(w)["luns"][0].update(errors=3), "3 requests", "dmesg"),
    ("fence", lambda w: here(w).update(fence_on_stop=True), "as soon as its VM stops", "vport_fence"),
    ("storage", lambda w: (ids(w), w.update(require_identity=False)), "nothing proves", "require_identity"),
    ("vf", takes_vfs, "stays on the PF", "unbind or add"),
    (
        "vf",
        lambda w: w.update(beside=[{"name": "db1", "memory": GIB}, {"name": "db2", "memory": GIB}]),
        "2 free VF on 0000:01:00.0, too few for web1 with db1 and db2 beside it",
        "unbind or add",
    ),
    ("vf", lambda w: w.update(vf={"queues": 3}), "has 2 queues, needed are 3", "unbind or add"),
    ("vf", lambda w: w.update(vf={"interrupts": 5}), "has 2 interrupts, needed are 5", "unbind or add"),
    (
        "vf",
        lambda w: [vf.update(online=False) for vf in d(w)["adapters"][0]["vfs"]],
        "is offline",
        "unbind or add",
    ),
    (
        "vf",
        lambda w: [vf.update(users=["process 7 (fio)"]) for vf in d(w)["adapters"][0]["vfs"]],
        "(fio)",
        "unbind or add",
    ),
    ("vf", lambda w: d(w)["vportd"]["adapters"][0].update(vfs=[]), "no VF at all", "unbind or add"),
    ("clock", lambda w: d(w)["clock"].update(now=NOW + 12), "hv2 is at least 8.5 s ahead", "NTP"),
    ("clock", lambda w: s(w)["clock"].update(now=NOW + 12), "hv1 is at least", "NTP"),
]


@pytest.mark.parametrize("case", WARNINGS, ids=case_id)
def test_what_is_not_in_the_way_is_a_warning(case: Case) -> None:
    name, change, message, fix = case
    given = wanted()
    change(given)
    found = migration_preflight(given)
    assert found["ok"], found["problems"]
    assert result_of(found, name) == "warning"
    assert [
        one for one in found["warnings"] if one["check"] == name and message in one["message"] and fix in one["fix"]
    ], found["warnings"]


PASSES: list[tuple[str, str, Callable[[Wanted], Any]]] = [
    ("a vport that waits for its VM", "destination_vport", arrives),
    ("a waiting vport with the same mapping", "mapping", arrives),
    ("a vport bound to a VF there already", "vf", lambda w: (takes_vfs(w), arrives(w, vf=VF1))),
    ("one VF free of two", "vf", lambda w: d(w)["vportd"]["adapters"][0]["vfs"][0].update(vport="x")),
    ("leases that the source holds", "leases", lease),
    (
        "a VM defined on the destination from an earlier time",
        "placement",
        lambda w: d(w)["libvirt"].update(
            domains=[{"name": "web1", "active": False, "state": "shut off", "uuid": "1111"}]
        ),
    ),
    ("an emulated CPU", "cpu", lambda w: (vm(w).update(type="qemu"), d(w)["libvirt"]["cpu"].update(vendor="Intel"))),
    (
        "a CPU that libvirt has compared",
        "cpu",
        lambda w: (named_cpu(w, ["avx512f"]), d(w)["libvirt"].update(runs_cpu={"ok": True, "reason": None})),
    ),
    ("a CPU that only the kernel describes", "cpu", lambda w: d(w)["libvirt"]["cpu"].update(model=None)),
    ("a named CPU with features that are there", "cpu", named_cpu),
    ("QEMU's default CPU", "cpu", lambda w: vm(w)["cpu"].update(mode=None)),
    ("a newer QEMU", "machine_type", lambda w: d(w)["libvirt"].update(qemu="10.1.0")),
    ("more features of the engine there", "engine_version", lambda w: d(w)["vportd"]["features"].append("leases")),
    (
        "another identity besides the common one",
        "storage",
        lambda w: ids(w, uuid="0B9D1F8A-5C1E-4A55-9D3E-2F6F1C1F7A10", eui64="00ff"),
    ),
    (
        "two adapters, of which one has the pool",
        "storage",
        lambda w: d(w)["vportd"]["adapters"].append({"adapter": "x"}),
    ),
    ("a VM without files of the host", "files", lambda w: vm(w).update(files=[])),
    ("no guest agent at all", "health", lambda w: vm(w).update(agent={"configured": False})),
    (
        "clocks whose difference drowns in the time that asking took",
        "clock",
        lambda w: w["clocks"].update(source={"before": NOW - 9, "after": NOW + 9}),
    ),
]


@pytest.mark.parametrize(("name", "change"), [case[1:] for case in PASSES], ids=[case[0] for case in PASSES])
def test_what_is_right_too_passes(name: str, change: Callable[[Wanted], Any]) -> None:
    given = wanted()
    change(given)
    found = migration_preflight(given)
    assert found["ok"], found["problems"]
    assert result_of(found, name) == "ok"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("pool", lambda w: w.update(pool="")),
        ("link", lambda w: s(w).update(peers=[])),
        ("files", lambda w: d(w).update(paths={})),
        ("clock", lambda w: w.pop("clocks")),
    ],
)
def test_what_was_not_asked_for_is_skipped_and_said_to_be(name: str, change: Callable[[Wanted], Any]) -> None:
    given = wanted()
    change(given)
    assert result_of(migration_preflight(given), name) == "skipped"


def test_a_vm_that_is_shut_down_first_needs_less() -> None:
    given = wanted() | {"mode": "offline"}
    given["source"]["peers"] = given["destination"]["peers"] = []
    d(given)["migration_ports"]["free"] = 0
    d(given)["libvirt"]["cpu"].update(vendor="Intel")
    d(given)["libvirt"].update(qemu="9.2.4")
    vm(given)["host_devices"] = ["0000:03:00.1"]
    found = migration_preflight(given)
    assert found["ok"], found["problems"]
    assert [one["check"] for one in found["warnings"]] == ["health"]
    assert [result_of(found, name) for name in ("link", "libvirt_way", "ports", "cpu")] == ["skipped"] * 3 + ["ok"]
    vm(given)["machine"] = "pc-q35-11.0"
    assert result_of(migration_preflight(given), "machine_type") == "problem"


def test_a_vm_that_is_to_stay_on_the_pf_needs_no_vf() -> None:
    given = wanted() | {"mode": "stay_mediated", "require_vf": True}
    takes_vfs(given)
    found = migration_preflight(given)
    assert found["ok"], found["problems"]
    assert result_of(found, "vf") == "skipped"


def test_a_mode_that_is_none_is_refused() -> None:
    with pytest.raises(AnsibleFilterError, match="mode is fast; give one of direct, stay_mediated, offline"):
        migration_preflight(wanted() | {"mode": "fast"})


def test_everything_wrong_at_once_is_all_listed() -> None:
    given = wanted()
    for name, spoil, _message, _fix in PROBLEMS:
        if name not in ("facts", "libvirt", "engine") and spoil not in _IN_EACH_OTHERS_WAY:
            spoil(given)
    found = migration_preflight(given)
    listed = {one["check"] for one in found["problems"]}
    lacking = {check.name for check in _preflight_migration.CHECKS} - listed
    assert lacking == {"facts", "libvirt", "engine", "source_path", "clock"}, found["problems"]
    assert len(found["problems"]) > 30


def test_two_sides_that_cannot_be_asked_leave_nothing_that_looks_fine() -> None:
    given = wanted()
    for side in ("source", "destination"):
        given[side] = {"unreachable": True, "msg": "No route to host"}
    found = migration_preflight(given)
    assert [one["check"] for one in found["problems"]] == ["facts", "facts"]
    assert {check["result"] for check in found["checks"]} == {"problem", "skipped"}


@pytest.mark.parametrize("part", sorted(set(server(1)) - {"changed", "packages", "domain_reason", "peers"}))
@pytest.mark.parametrize("side", ["source", "destination"])
def test_facts_that_are_missing_never_make_a_check_pass(part: str, side: str) -> None:
    """A part that is left out changes nothing only where nobody looks at it."""
    given = wanted()
    before = {check["name"]: check for check in migration_preflight(copy.deepcopy(given))["checks"]}
    given[side].pop(part)
    after = {check["name"]: check for check in migration_preflight(given)["checks"]}
    unused = {"source": {"memory", "space", "paths", "migration_ports"}, "destination": {"domain"}}
    changed = {name for name in before if before[name] != after[name]}
    if part in unused[side]:
        assert not changed
    else:
        assert changed
        assert all(after[name]["result"] in ("problem", "skipped") for name in changed if name != "facts")
        assert "problem" in {check["result"] for check in after.values()}


@pytest.mark.parametrize(
    "rubbish", [{"libvirt": 7}, {"host": "x"}, {"vportd": []}, {"adapters": "none"}, {"clock": {}}]
)
def test_facts_of_another_shape_are_a_problem_and_no_traceback(rubbish: dict[str, Any]) -> None:
    given = wanted()
    d(given).update(rubbish)
    found = migration_preflight(given)
    assert not found["ok"]


@pytest.mark.parametrize("given", [None, [], "x", {}, {"vm": "web1", "vport": "web1", "source": server(1)}])
def test_input_without_what_to_check_is_refused_in_one_line(given: Any) -> None:
    with pytest.raises(AnsibleFilterError, match="give vm, vport, source"):
        migration_preflight(given)


# What must be left out of the test with everything: it takes away what others spoil.
_IN_EACH_OTHERS_WAY = {
    spoil
    for name, spoil, message, _fix in PROBLEMS
    if message
    in (
        "hv1 has no virtual machine web1",
        "hv1 has no vport web1",
        "no disk of web1",
        "one and the same host",
        "shows no namespace 1",
        "hv2 sees no pool san",
        "cannot run a VM of type kvm",
        "neither libvirt nor the kernel",
    )
}


# Servers


def test_a_server_on_which_all_is_well_passes() -> None:
    found = server_preflight({"hv1": server(1)}, {"hv1": [{"pf": PF, "vfs": 4}]})
    assert found["ok"]
    judged = found["servers"]["hv1"]
    assert judged["problems"] == judged["warnings"] == []
    assert {check["result"] for check in judged["checks"]} == {"ok"}


@pytest.mark.parametrize("name", [{"serial": "S1"}, {"nqn": "nqn.san:1"}])
def test_an_adapter_of_the_inventory_is_found_by_any_name(name: dict[str, str]) -> None:
    facts = server(1)
    assert server_preflight({"hv1": facts}, {"hv1": [{"vfs": 4} | name]})["ok"]
    (key, value), *__ = name.items()
    for wanted, twice, words in (
        ("other", 1, f"adapter other, which is no NVMe adapter with SR-IOV here (there is: {value})"),
        (value, 2, f"adapter {value}, which 2 are here ({PF}, {PF})"),
    ):
        found = server_preflight({"hv1": {**facts, "adapters": facts["adapters"] * twice}}, {"hv1": [{key: wanted}]})
        assert words in found["servers"]["hv1"]["problems"][0]["message"]
    found = server_preflight({"hv1": facts}, {"hv1": [{"vfs": 9} | name]})
    assert f"9 VFs of {PF}" in found["servers"]["hv1"]["problems"][0]["message"]


ServerCase = tuple[str, Callable[[Any], Any], str, str]

SERVER_PROBLEMS: list[ServerCase] = [
    ("facts", lambda f: f.update(unreachable=True, msg="No route to host"), "cannot be reached", "log in"),
    ("facts", lambda f: f["host"].update(root=False), "not looked at as root", "become root"),
    ("adapter", lambda f: f.update(adapters=[]), "no NVMe adapter with SR-IOV", "firmware"),
    ("adapter", lambda f: f["adapters"][0].update(totalvfs=0), f"only {PF} SAN without", "firmware"),
    ("adapter", lambda f: f["adapters"][0].update(driver="vfio-pci", state=None), "driven by vfio-pci", "nvme driver"),
    ("adapter", lambda f: f["adapters"][0].update(namespaces=[]), "shows no namespace", "nvme-cli"),
    ("inventory", lambda f: f["adapters"][0].update(pf="0000:02:00.0"), f"the inventory has adapter {PF}", "inventory"),
    ("inventory", lambda f: f["adapters"][0].update(totalvfs=2), "wants 4 VFs", "lower vfs"),
    ("inventory", lambda f: f["adapters"][0]["namespaces"][0].update(nsid=2), "namespace 1", "correct nsid"),
    ("multipath", lambda f: f["kernel"].update(nvme_multipath=True), "merges", "nvme_core.multipath=N"),
    ("libvirt", lambda f: f["libvirt"].update(reachable=False, reason="it is down; x"), "it is down", "systemctl"),
]
SERVER_WARNINGS: list[ServerCase] = [
    ("vfs", lambda f: f["adapters"][0].update(numvfs=0, vfs=[]), "no VFs yet", "provision.yml"),
    ("vfs", lambda f: f["adapters"][0].update(vfs_reason="no answer; x"), "no answer", "by hand"),
    (
        "identity",
        lambda f: f["adapters"][0]["namespaces"][0].update(ids={}, ids_reason="refused; x"),
        "refused",
        "same storage",
    ),
    ("iommu", lambda f: f["kernel"].update(iommu=False), "no IOMMU", "intel_iommu=on"),
    ("kvm", lambda f: f["kernel"].update(kvm=False, kvm_reason="/dev/kvm: No such file"), "/dev/kvm", "firmware"),
    ("packages", lambda f: f["packages"].update({"lvm2": False}), "lvm2", "provision.yml"),
    (
        "libvirt",
        lambda f: (
            f["libvirt"].update(reachable=False, reason="no binding; x"),
            f["packages"].update({"libvirt-daemon-system": False}),
        ),
        "no binding",
        "provision.yml",
    ),
    ("engine", lambda f: f["vportd"].update(reachable=False, reason="nobody; x"), "nobody", "provision.yml"),
    ("pool", lambda f: f.update(pools=[]), "sees no pool", "provision.yml"),
    ("room", lambda f: f["memory"].update(available=100 * MIB), "100 MiB", "stop something"),
    ("room", lambda f: f["space"].update({"/var/lib/libvirt": MIB}), "1 MiB left", "make room"),
    ("clock", lambda f: f["clock"].update(synchronised=False), "clock", "chrony"),
]


@pytest.mark.parametrize("case", SERVER_PROBLEMS, ids=case_id)
def test_what_a_server_lacks_and_a_person_must_mend_is_a_problem(case: ServerCase) -> None:
    name, spoil, message, fix = case
    facts = server(1)
    spoil(facts)
    found = server_preflight({"hv1": facts}, {"hv1": [{"pf": PF, "vfs": 4}]})
    assert not found["ok"]
    problems = found["servers"]["hv1"]["problems"]
    assert [one for one in problems if one["check"] == name and message in one["message"] and fix in one["fix"]], (
        problems
    )


@pytest.mark.parametrize("case", SERVER_WARNINGS, ids=case_id)
def test_what_provisioning_brings_is_a_warning(case: ServerCase) -> None:
    name, change, message, fix = case
    facts = server(1)
    change(facts)
    found = server_preflight({"hv1": facts})
    assert found["ok"], found["servers"]["hv1"]["problems"]
    warnings = found["servers"]["hv1"]["warnings"]
    assert [one for one in warnings if one["check"] == name and message in one["message"] and fix in one["fix"]], (
        warnings
    )


def test_every_check_of_a_server_has_a_case() -> None:
    cases = {case[0] for case in SERVER_PROBLEMS + SERVER_WARNINGS}
    assert cases == {check.name for check in _preflight_server.CHECKS}


def test_the_table_has_a_line_a_server_with_aligned_columns() -> None:
    gone = {"unreachable": True, "msg": "No route to host"}
    bare = server(3)
    SERVER_WARNINGS[0][1](bare)
    header, first, second, third = server_preflight({"hv1": server(1), "hv2": gone, "hv3": bare})["table"]
    assert header.split()[:2] == ["server", "result"]
    assert first.split()[:6] == ["hv1", "ok", PF, "2/4", "2", "yes"]
    assert second.split()[:4] == ["hv2", "1", "problem", "?"]
    assert third.split()[:3] == ["hv3", "1", "warning"]
    assert header.index("VFs") == first.index("2/4")


@pytest.mark.parametrize("given", [(None, None), ([], None), ({}, [])])
def test_input_that_is_no_dictionary_is_refused(given: tuple[Any, Any]) -> None:
    with pytest.raises(AnsibleFilterError, match="is no dictionary; give one"):
        server_preflight(*given)


def test_the_documentation_lists_every_check_as_it_is() -> None:
    text = DOCS.read_text(encoding="utf-8")
    checks: list[Check[Any]] = [*_preflight_migration.CHECKS, *_preflight_server.CHECKS]
    for check in checks:
        assert f"| `{check.name}` | {check.asks} |" in text
