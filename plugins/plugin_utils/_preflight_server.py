# SPDX-License-Identifier: GPL-3.0-or-later
"""What a server can and cannot do for this collection, found from its facts; also of one that nothing is installed on.

A problem needs a person. What the playbook provision.yml does by itself is a warning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ._preflight import (
    Check,
    Finding,
    Host,
    NotAsked,
    Record,
    carry_out,
    cause,
    mebibytes,
    record,
    records,
    some,
    warning,
)

_PROVISION = "run provision.yml, which does it"
_SPACE = 1024 << 20
_MEMORY = 1024 << 20

Findings = Iterator[Finding | str]


@dataclass(frozen=True)
class Server:
    """A host, and the adapters that the inventory says it has; None when that is not known."""

    host: Host
    wanted: tuple[Record, ...] | None

    @property
    def adapters(self) -> list[Record]:
        return [one for one in self.host.listed("adapters") if one.get("totalvfs")]


def preflight(facts: Mapping[str, Any], wanted: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """``ok``, ``servers`` with what was found of each, and ``table``, the lines of a table of them all."""
    servers = {}
    rows: list[Sequence[str]] = [_HEADER]
    for name in facts:
        expected = None if wanted is None or wanted.get(name) is None else tuple(records(wanted[name]))
        server = Server(Host(name, facts[name]), expected)
        servers[name] = carry_out(CHECKS, server)
        rows.append(_row(server, servers[name]))
    return {"ok": all(one["ok"] for one in servers.values()), "servers": servers, "table": _aligned(rows)}


def _facts(s: Server) -> Findings:
    if s.host.failure:
        yield Finding(s.host.failure, "see that it is up, has Python, and that Ansible can log in as root")
        return
    about = s.host.part("host")
    if not about.get("root"):
        yield Finding(f"{s.host.name} was not looked at as root, so much is missing", "let Ansible become root there")
    yield f"{about.get('system')}, Linux {s.host.part('kernel').get('release')}"


def _adapter(s: Server) -> Findings:
    if not s.adapters:
        others = [f"{one.get('pf')} {one.get('model') or ''}".strip() for one in s.host.listed("adapters")]
        yield Finding(
            f"no NVMe adapter with SR-IOV{', only ' + some(others) + ' without' if others else ''}",
            "put one in, or turn SR-IOV on in the firmware of the server and of the drive",
        )
    for one in s.adapters:
        if one.get("driver") != "nvme" or one.get("state") != "live":
            yield Finding(
                f"PF {one.get('pf')} is driven by {one.get('driver') or 'nothing'}, its controller is "
                f"{one.get('state') or 'not there'}",
                "bind the PF to the nvme driver, and see dmesg for why it does not start",
            )
        elif not one.get("namespaces") and not one.get("multipath"):
            yield Finding(f"PF {one.get('pf')} shows no namespace", "create and attach one with nvme-cli")
        yield f"{one.get('pf')} {one.get('model') or ''} {one.get('serial') or ''}".strip()


def _inventory(s: Server) -> Findings:
    if s.wanted is None:
        raise NotAsked("what the inventory has for it was not given")
    for one in s.wanted:
        key = next((key for key in ("pf", "serial", "nqn") if one.get(key) is not None), "pf")
        name, vfs = one.get(key), int(one.get("vfs") or 0)
        found = [adapter for adapter in s.adapters if str(adapter.get(key)) == str(name)]
        adapter = found[0] if len(found) == 1 else None
        pf = adapter.get("pf") if adapter else name
        if adapter is None and found:
            yield Finding(
                f"the inventory has adapter {name}, which {len(found)} are here "
                f"({some([str(one.get('pf')) for one in found])})",
                "give pf in the inventory, the address of one",
            )
        elif adapter is None:
            yield Finding(
                f"the inventory has adapter {name}, which is no NVMe adapter with SR-IOV here (there is: "
                f"{some([str(one.get(key)) for one in s.adapters]) or 'none'})",
                "correct adapters in the inventory",
            )
        elif vfs > int(adapter["totalvfs"]):
            yield Finding(
                f"the inventory wants {vfs} VFs of {pf}, which can have {adapter['totalvfs']}",
                "lower vfs in the inventory",
            )
        elif s.host.namespace(pf, one.get("nsid", 1)) is None and not adapter.get("multipath"):
            yield Finding(
                f"the inventory has namespace {one.get('nsid', 1)} of {pf}, which it does not show",
                "correct nsid in the inventory, or attach the namespace",
            )
        yield f"{vfs} VFs of {pf}"


def _vfs(s: Server) -> Findings:
    for one in s.adapters:
        free = sum(bool(vf.get("free")) for vf in records(one.get("vfs")))
        if one.get("vfs_reason"):
            yield warning(
                f"the VFs of {one.get('pf')} cannot be asked: {cause(one['vfs_reason'])}", "look at it by hand"
            )
        if not one.get("numvfs"):
            yield warning(f"{one.get('pf')} has no VFs yet, of {one.get('totalvfs')}", _PROVISION)
        yield f"{one.get('pf')}: {one.get('numvfs')} of {one.get('totalvfs')} VFs, {free} free"


def _identity(s: Server) -> Findings:
    """Without an identity no migration can prove that it goes to the same storage."""
    for one in s.adapters:
        for namespace in records(one.get("namespaces")):
            ids = record(namespace.get("ids"))
            if not ids:
                yield warning(
                    f"{namespace.get('device')} tells no NGUID, EUI64 or UUID"
                    + (f": {cause(namespace['ids_reason'])}" if namespace.get("ids_reason") else ""),
                    "give the namespace one, or migrations can't prove that both hosts have the same storage",
                )
            for kind, value in sorted(ids.items()):
                yield f"{namespace.get('device')} {kind} {value}"


def _multipath(s: Server) -> Findings:
    merged = s.host.part("kernel").get("nvme_multipath")
    if merged:
        yield Finding(
            "the kernel merges the paths of a shared namespace into one device",
            "add nvme_core.multipath=N to the kernel's command line and boot",
        )
    yield "not known, nvme_core is not loaded" if merged is None else "off"


def _iommu(s: Server) -> Findings:
    if not s.host.part("kernel").get("iommu"):
        yield warning(
            "there is no IOMMU, so that no VF can be given to a program or VM by VFIO",
            "turn it on in the firmware, and on the kernel's command line (intel_iommu=on, or amd_iommu=on)",
        )
    else:
        yield "on"


def _kvm(s: Server) -> Findings:
    kernel = s.host.part("kernel")
    if not kernel.get("kvm"):
        yield warning(
            f"KVM cannot be used ({kernel.get('kvm_reason')}): VMs run, but slowly",
            "turn virtualization on in the firmware, and load kvm_intel or kvm_amd",
        )
    else:
        yield "usable"


def _packages(s: Server) -> Findings:
    found = s.host.part("packages")
    lacking = sorted(name for name, there in found.items() if not there)
    if lacking:
        yield warning(f"not installed: {', '.join(lacking)}", _PROVISION)
    else:
        yield f"all {len(found)}"


def _libvirt(s: Server) -> Findings:
    found = s.host.part("libvirt")
    if not found.get("reachable"):
        installed = s.host.part("packages").get("libvirt-daemon-system")
        yield Finding(
            cause(found.get("reason")),
            "see systemctl status libvirtd" if installed else _PROVISION,
            not installed,
        )
        return
    yield f"libvirt {found.get('version')}, QEMU {found.get('qemu')}"


def _engine(s: Server) -> Findings:
    found = s.host.part("vportd")
    if not found.get("reachable"):
        yield warning(cause(found.get("reason")), _PROVISION)
    else:
        yield f"vportd {found.get('version')} with {len(records(found.get('vports')))} vports"


def _pool(s: Server) -> Findings:
    pools = s.host.listed("pools")
    for one in pools:
        if one.get("name"):
            yield f"{one['name']} on {one.get('device')}, {mebibytes(one.get('free') or 0)} free"
    if not any(one.get("name") for one in pools):
        reasons = [cause(one.get("reason")) for one in pools]
        yield warning(f"it sees no pool{': ' + some(reasons) if reasons else ''}", _PROVISION)


def _room(s: Server) -> Findings:
    available = s.host.part("memory").get("available") or 0
    if available < _MEMORY:
        yield warning(f"{mebibytes(available)} of memory are available", "stop something, or put in more")
    for path, free in sorted(s.host.part("space").items()):
        if free is None or free < _SPACE:
            yield warning(f"{path} has {mebibytes(free or 0)} left", "make room")
    yield f"{mebibytes(available)} of memory"


def _clock(s: Server) -> Findings:
    if s.host.part("clock").get("synchronised"):
        yield "synchronised"
    else:
        yield warning("nothing keeps the clock right", "install and start chrony or systemd-timesyncd")


CHECKS: tuple[Check[Server], ...] = (
    Check("facts", "it is reached, and looked at as root", _facts),
    Check("adapter", "it has a live NVMe PF with SR-IOV and a namespace", _adapter),
    Check("inventory", "the adapters of the inventory are there, with so many VFs and that namespace", _inventory),
    Check("vfs", "VFs are enabled, some are free (warning)", _vfs),
    Check("identity", "each namespace tells an NGUID, EUI64 or UUID (warning)", _identity),
    Check("multipath", "nvme_core.multipath=N", _multipath),
    Check("iommu", "there is an IOMMU (warning)", _iommu),
    Check("kvm", "KVM can be used (warning)", _kvm),
    Check("packages", "Debian's packages are installed (warning)", _packages),
    Check("libvirt", "libvirt answers (warning where it is not installed)", _libvirt),
    Check("engine", "vportd answers (warning)", _engine),
    Check("pool", "a pool is seen (warning)", _pool),
    Check("room", "1 GiB of memory and of disk (warning)", _room),
    Check("clock", "the clock is kept synchronised (warning)", _clock),
)


# The table

_HEADER = ("server", "result", "PF with SR-IOV", "VFs", "free", "IOMMU", "KVM", "multipath", "libvirt", "QEMU",
           "vportd", "pool", "missing")  # fmt: skip


def _row(server: Server, found: Record) -> tuple[str, ...]:
    counts = [_counted(len(found[f"{kind}s"]), kind) for kind in ("problem", "warning") if found[f"{kind}s"]]
    result = ", ".join(counts) or "ok"
    if server.host.failure:
        return (server.host.name, result, *("?",) * (len(_HEADER) - 2))
    facts = server.host.facts
    kernel, libvirt, vportd = record(facts.get("kernel")), record(facts.get("libvirt")), record(facts.get("vportd"))
    vfs = [vf for one in server.adapters for vf in records(one.get("vfs"))]
    multipath = {True: "on", False: "off"}.get(kernel.get("nvme_multipath"), "?")  # type: ignore[arg-type]
    return (
        server.host.name,
        result,
        ", ".join(str(one.get("pf")) for one in server.adapters) or "none",
        f"{len(vfs)}/{sum(int(one.get('totalvfs') or 0) for one in server.adapters)}",
        str(sum(bool(vf.get("free")) for vf in vfs)),
        "yes" if kernel.get("iommu") else "no",
        "yes" if kernel.get("kvm") else "no",
        multipath,
        str(libvirt.get("version") or "no"),
        str(libvirt.get("qemu") or "no"),
        str(vportd.get("version") or "no"),
        ", ".join(str(one["name"]) for one in records(facts.get("pools")) if one.get("name")) or "none",
        ", ".join(name for name, there in record(facts.get("packages")).items() if not there) or "none",
    )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
