# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of a migration about the two hosts, their libvirt and the way between them."""

from __future__ import annotations

from ._preflight import (
    Finding,
    Host,
    NotAsked,
    Record,
    Unknown,
    cause,
    mebibytes,
    record,
    warning,
)
from ._preflight_subject import Findings, Migration

_MIB = 1 << 20
OVERHEAD = 128 * _MIB  # what QEMU takes besides the memory of its VM
_LITTLE_MEMORY = 256 * _MIB
_NO_SPACE, _LITTLE_SPACE = 16 * _MIB, 256 * _MIB
_SKEW = 1.0  # seconds


def facts(m: Migration) -> Findings:
    for host in (m.source, m.destination):
        if host.failure:
            yield Finding(host.failure, f"see that {host.name} is up, has Python, and that Ansible can log in as root")
        elif not host.part("host").get("root"):
            yield warning(
                f"the facts of {host.name} were not read as root, so some are missing", "let Ansible become root there"
            )
        else:
            yield f"{host.name}: {host.part('host').get('system')}, Linux {host.part('kernel').get('release')}"


def hosts(m: Migration) -> Findings:
    here, there = m.source.part("host"), m.destination.part("host")
    if here.get("boot") and here.get("boot") == there.get("boot"):
        yield Finding(f"{m.source.name} and {m.destination.name} are one and the same host", "name another hypervisor")
    elif here.get("machine") and here.get("machine") == there.get("machine"):
        yield Finding(
            f"{m.source.name} and {m.destination.name} have the same machine ID, so vportd and LVM take them for one",
            f"give {m.destination.name} its own: empty /etc/machine-id there and boot",
        )
    ids = [record(host.facts.get("libvirt")).get("uuid") for host in (m.source, m.destination)]
    if ids[0] and ids[0] == ids[1]:
        yield Finding(
            f"libvirt has the host UUID {ids[0]} on {m.source.name} and {m.destination.name}, and refuses to migrate",
            f"give {m.destination.name} a host_uuid of its own in /etc/libvirt/libvirtd.conf",
        )
    yield f"{m.source.name} is {here.get('name')}, {m.destination.name} is {there.get('name')}"


def libvirt(m: Migration) -> Findings:
    for host in (m.source, m.destination):
        found = host.part("libvirt")
        if found.get("reachable"):
            yield f"{host.name}: libvirt {found.get('version')}, QEMU {found.get('qemu')}"
        else:
            yield Finding(
                f"{host.name}: {cause(found.get('reason'))}",
                f"start libvirtd on {host.name}, or let the role hypervisor install it",
            )


def _peer(host: Host, other: Host, address: str) -> Record:
    """What ``host`` found when it tried to reach ``other``."""
    peers = host.listed("peers")
    chosen = [one for one in peers if one.get("address") == address] if address else peers
    if len(chosen) != 1:
        raise NotAsked(f"{host.name} was not told to try {address or other.name}; give peers to hypervisor_info")
    return chosen[0]


def link(m: Migration) -> Findings:
    m.only_live()
    for host, other, address, harmless in _ways(m):
        peer = _peer(host, other, address)
        ports = ["migration_port"] + (["ssh"] if "+ssh" in str(peer.get("uri")) else [])
        for name in ports:
            look = record(peer.get(name))
            if look.get("reachable"):
                yield f"{host.name} reaches {other.name} ({name}) in {look.get('seconds')} s"
            else:
                yield Finding(
                    f"{host.name} does not reach {other.name} by {peer.get('address')} ({name}): {look.get('reason')}",
                    f"see that the link is up, and that the firewall of {other.name} lets TCP 22 and "
                    f"{_range(other)} in",
                    harmless,
                )


def _ways(m: Migration) -> list[tuple[Host, Host, str, bool]]:
    """There, which must be, and back, without which the VM can't be migrated back."""
    return [
        (m.source, m.destination, m.destination_address, False),
        (m.destination, m.source, m.source_address, True),
    ]


def _range(host: Host) -> str:
    ports = record(host.facts.get("migration_ports"))
    return f"{ports.get('first', 49152)}-{ports.get('last', 49215)}"


def libvirt_way(m: Migration) -> Findings:
    m.only_live()
    for host, other, address, harmless in _ways(m):
        peer = _peer(host, other, address)
        look = record(peer.get("libvirt"))
        expected = record(other.facts.get("libvirt")).get("uuid")
        if not look.get("reachable"):
            yield Finding(
                f"{host.name} does not reach the libvirt of {other.name} at {peer.get('uri')}: "
                f"{cause(look.get('reason'))}",
                f"see that root of {host.name} can do: virsh -c {peer.get('uri')} list",
                harmless,
            )
        elif expected and look.get("uuid") and look["uuid"] != expected:
            yield Finding(
                f"{peer.get('address')} leads {host.name} to another host, {look.get('hostname')}, not to {other.name}",
                f"correct the migration address of {other.name} in the inventory",
                harmless,
            )
        else:
            yield f"{host.name} reaches the libvirt of {other.name} in {look.get('seconds')} s"


def memory(m: Migration) -> Findings:
    needed, available = m.domain.get("memory"), m.destination.part("memory").get("available")
    if not needed or available is None:
        raise Unknown(f"the memory of {m.vm} or what {m.destination.name} has available is not known")
    with_it = sum(int(one.get("memory") or 0) + OVERHEAD for one in m.beside)
    left = available - needed - OVERHEAD - with_it
    names = " and ".join(str(one.get("name")) for one in m.beside)
    more = f", {names} beside it {mebibytes(with_it)}" if m.beside else ""
    has = f"{m.destination.name} has {mebibytes(available)} available"
    text = f"{m.vm} needs {mebibytes(needed + OVERHEAD)}{more}, {has}"
    if left < 0:
        yield Finding(text, f"stop or move something on {m.destination.name}")
    elif left < _LITTLE_MEMORY:
        yield warning(f"{text}: little is left", f"stop or move something on {m.destination.name}")
    else:
        yield text


def space(m: Migration) -> Findings:
    found = m.destination.part("space")
    for path, free in sorted(found.items()):
        if free is None:
            yield warning(f"the free space of {path} on {m.destination.name} is not known", "look at it with df")
        elif free < _LITTLE_SPACE:
            text = f"{path} on {m.destination.name} has {mebibytes(free)} left"
            yield Finding(text, f"make room on {m.destination.name}", free >= _NO_SPACE)
        else:
            yield f"{path} has {mebibytes(free)}"


def ports(m: Migration) -> Findings:
    m.only_live()
    ports = m.destination.part("migration_ports")
    if not ports.get("free"):
        yield Finding(
            f"no TCP port of {_range(m.destination)} is free on {m.destination.name} for the migration",
            "wait for other migrations, or widen migration_port_max in /etc/libvirt/qemu.conf",
        )
    yield f"{ports.get('free')} of {_range(m.destination)} free"


def clock(m: Migration) -> Findings:
    """The offset of each host's clock from the control node's lies between two bounds; so does their difference."""
    bounds = []
    for key, host in (("source", m.source), ("destination", m.destination)):
        times, clock = record(m.clocks.get(key)), host.part("clock")
        if not times:
            raise NotAsked("the control node's times were not given")
        now, elapsed = float(clock["now"]), float(clock.get("elapsed") or 0)
        bounds.append((now - float(times["after"]), now - (float(times["before"]) + elapsed)))
    (low, high), (other_low, other_high) = bounds
    least, most = other_low - high, other_high - low
    surely = max(least, -most, 0.0)
    if surely > _SKEW:
        late = m.destination.name if least > 0 else m.source.name
        yield warning(
            f"the clock of {late} is at least {surely:.1f} s ahead of the other's; the report merges times of both",
            "synchronise the clocks of both hosts with NTP",
        )
    else:
        yield f"{m.destination.name} is between {least:+.1f} and {most:+.1f} s ahead of {m.source.name}"
