# SPDX-License-Identifier: GPL-3.0-or-later
"""What the vports of this host map, held against what is about to happen to a vdisk."""

from __future__ import annotations

from collections.abc import Sequence

from . import _mapping
from ._errors import Refused, VportdDown
from ._plan import Plan
from ._pool import Extent, Pool, beyond, mappable
from ._rpc import Vportd


def luns_by_vport(vportd: Vportd, adapter: str) -> list[tuple[str, _mapping.Lun]]:
    """(vport, LUN) for every LUN that a vport of ``adapter`` maps on this host."""
    return [
        (record["vport"], lun)
        for record in vportd.vports()
        if record["adapter"] == adapter
        for lun in _mapping.from_vportd(vportd.mapping(record["vport"])).luns
    ]


def extents_of(pool: Pool, vdisk: str) -> tuple[tuple[_mapping.Extent, ...], int | None]:
    """Extents of a vdisk that can be mapped, and where its lease lies."""
    found = mappable(pool, vdisk)
    return tuple(_mapping.Extent(*extent) for extent in found.extents), pool.lease_of(found)


class Guard:
    """Refuses to remove or to zero what a vport of this host maps.

    ``must_answer``: a vdisk is removed only when vportd could be asked. Zeroing also goes on without vportd, since
    the extents are new to the vdisk; only a mapping declared by hand can cover them.
    """

    def __init__(self, vportd: Vportd, adapter: str, nsid: int, must_answer: bool) -> None:
        self._vportd = vportd
        self._adapter = adapter
        self._nsid = nsid
        self._must_answer = must_answer

    def refuse(self, pool: Pool, *plans: Plan) -> None:
        """Before anything is touched."""
        removed, wiped = [], []
        for step in (step for planned in plans for step in planned.steps):
            vdisk = pool.vdisk(step.args["name"])
            if vdisk is None:
                continue
            if step.verb == "remove":
                removed.append((vdisk.name, vdisk.extents))
            elif step.verb == "wipe":
                wiped.append((vdisk.name, beyond(vdisk.extents, vdisk.wiped or 0)))
        if removed:
            self._refuse(removed, "it cannot be removed", by_name=True, must_answer=self._must_answer)
        if wiped:
            self.refuse_zeroing(wiped)

    def refuse_zeroing(self, wipes: Sequence[tuple[str, Sequence[Extent]]]) -> None:
        """Once the extents are known: vdisks, and what of each is about to be zeroed."""
        self._refuse(wipes, "nothing was zeroed", by_name=False, must_answer=False)

    def _refuse(
        self, vdisks: Sequence[tuple[str, Sequence[Extent]]], outcome: str, by_name: bool, must_answer: bool
    ) -> None:
        try:
            mapped = luns_by_vport(self._vportd, self._adapter) if self._serves() else []
        except VportdDown as exc:
            if must_answer:
                raise VportdDown(
                    f"{exc} (it has to be asked who maps vdisk {vdisks[0][0]}; check_vports=false is for hosts without "
                    "vports)"
                ) from exc
            return
        for vport, lun in mapped:
            for vdisk, extents in vdisks:
                named = by_name and lun.vdisk == vdisk
                covered = any(
                    one.physical < low + length and low < one.physical + one.length
                    for one in lun.extents
                    for _start, low, length in extents
                )
                if named or covered:
                    raise Refused(
                        f"vdisk {vdisk} is mapped by vport {vport} as LUN {lun.lun}, {outcome}; take it out of that "
                        "mapping first"
                    )

    def _serves(self) -> bool:
        """Whether this host's vports map this very namespace."""
        return any(
            adapter["adapter"] == self._adapter and adapter["nsid"] == self._nsid for adapter in self._vportd.adapters()
        )
