# SPDX-License-Identifier: GPL-3.0-or-later
"""A migration that is wanted, and what both sides told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ._preflight import (
    Finding,
    Host,
    NotAsked,
    Record,
    Unknown,
    records,
)

Findings = Iterator[Finding | str]


@dataclass(frozen=True)
class Migration:
    """What is wanted, and what both sides are. ``luns`` None and ``pool`` empty: not compared.

    ``beside``: the VMs, each with ``name`` and ``memory`` (bytes), that come to the same destination at the same time.
    """

    vm: str
    vport: str
    luns: tuple[Record, ...] | None
    pool: str
    source: Host
    destination: Host
    destination_address: str
    source_address: str
    mode: str
    require_vf: bool
    require_identity: bool
    queues: int
    interrupts: int
    clocks: Record
    beside: tuple[Record, ...]

    def only_live(self) -> None:
        """Ends a check that is about a VM that goes on running while its memory is sent."""
        if self.mode == "offline":
            raise NotAsked(f"{self.vm} is shut down first, so this does not matter")

    @property
    def domain(self) -> Record:
        """The VM, as its source told it."""
        self.source.libvirt  # noqa: B018 (raises Unknown with the better reason)
        found = self.source.facts.get("domain")
        if not isinstance(found, Mapping):
            reason = self.source.facts.get("domain_reason") or f"the facts of {self.source.name} are without {self.vm}"
            raise Unknown(str(reason), "placement", "give domain to hypervisor_info")
        return found

    def record_on(self, host: Host) -> Record | None:
        return next((one for one in records(host.vportd.get("vports")) if one.get("vport") == self.vport), None)

    @property
    def here(self) -> Record:
        """The vport on the source."""
        found = self.record_on(self.source)
        if found is None:
            raise Unknown(f"{self.source.name} has no vport {self.vport}", "vport")
        return found

    @property
    def there(self) -> Record | None:
        """The vport on the destination, if it is there already."""
        return self.record_on(self.destination)
