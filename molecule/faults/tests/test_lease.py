# SPDX-License-Identifier: GPL-3.0-or-later
"""A hypervisor whose engine stood still, and whose disks another took meanwhile, writes nothing when it goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from tests.lab.driver import HOME, Lab, other, play, wait_until
from tests.lab.load import BLOCKS, MIB, Load

VM = "tenant1"
Module = Callable[..., dict[str, Any]]


def _content(extents: list[list[int]]) -> str:
    """Hash of what the load writes to on the first LUN, read from the storage's own file."""
    start, physical, length = extents[0][:3]
    assert start <= 4 * MIB < start + length
    with open(HOME / "storage.img", "rb") as image:
        image.seek(physical + 4 * MIB - start)
        return hashlib.sha256(image.read(BLOCKS * 4096)).hexdigest()


def test_back_from_the_dead(lab: Lab, module: Module) -> None:
    load = Load(lab, VM)
    source = lab.place(VM)
    there = other(source)
    luns = lab.rpc(source, "mapping_get", vport=VM)["luns"]
    wanted = [{"lun": lun["lun"], "vdisk": lun["vdisk"]} for lun in luns]
    lab.host(source).check_output("systemctl freeze vportd.service")
    try:
        assert module(there, "vport", name=VM, incoming=True)["changed"]
        assert module(there, "adapter_mapping", vport=VM, pool="san", luns=wanted)["changed"]
        taken = module(there, "vport_lease", **{"vport": VM, "break": True})
        assert not taken["failed"], taken
        before = _content(luns[0]["extents"])
    finally:
        lab.host(source).check_output("systemctl thaw vportd.service")
    wait_until("fence of the one that came back", lambda: lab.vports(source)[VM]["fenced"], 60)
    writes = [lun["counters"]["writes"] for lun in lab.vports(source)[VM]["luns"]]
    assert _content(luns[0]["extents"]) == before
    assert "held by" in str(module(source, "vport_fence", vport=VM, state="absent")["msg"])

    assert module(there, "vport", name=VM, state="absent")["changed"]
    assert module(source, "vport_fence", vport=VM, state="absent")["changed"]
    wait_until("write after that", lambda: lab.vports(source)[VM]["luns"][0]["counters"]["writes"] > writes[0] + 10, 60)
    load.check()
    play("recover", vm=VM)  # its VF worker was ended when it woke up, so it is on the PF
    assert lab.settled(VM) == source
