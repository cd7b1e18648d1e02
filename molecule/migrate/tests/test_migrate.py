# SPDX-License-Identifier: GPL-3.0-or-later
"""Two VMs change places, both at once, there and back, while each writes to its disks and notes what it wrote."""

from __future__ import annotations

from tests.lab.driver import Lab, other, play
from tests.lab.load import Load

VMS = ("tenant1", "tenant2")


def test_every_write_is_there_once_and_in_its_place(lab: Lab, soak: int) -> None:
    loads = [Load(lab, vm) for vm in VMS]
    for __ in range(2 * soak):
        places = {vm: lab.place(vm) for vm in VMS}
        play("migrate", migrate_moves=[{"vm": vm, "to": other(place)} for vm, place in places.items()])
        for vm, place in places.items():
            assert lab.settled(vm) == other(place)
    for load in loads:
        load.check()
