# SPDX-License-Identifier: GPL-3.0-or-later
"""Pools and vdisks on real LVM and a loop device, where the machine has them: its command lines are LVM's to accept."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.iovlab.storage.plugins.module_utils import _libvirt, _pool
from tests.unit.plugins import real
from tests.unit.plugins.machine import MIB, PF, Machine
from tests.unit.plugins.runner import Modules

pytestmark = pytest.mark.xdist_group("lvm")  # one test at a time has volume groups on this machine

SAN: dict[str, Any] = {"pool": "iovlabtest", "adapter": PF}


@pytest.fixture
def lvm(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Modules]:
    with real.lvm(machine, tmp_path, monkeypatch) as modules:
        yield modules


def test_a_pool_and_its_vdisks_live_through_everything(machine: Machine, lvm: Modules) -> None:
    created = lvm.pool(name="iovlabtest", adapter=PF, extent_size="1MiB")
    assert created["changed"], created
    assert created["pool"]["extent_size"] == MIB
    assert not lvm.pool(name="iovlabtest", adapter=PF)["changed"]

    first = lvm.vdisk(**SAN, name="a", size="2MiB")
    assert first["vdisk"]["extents"] == [[0, 5 * MIB, 2 * MIB]], first
    assert first["vdisk"]["lease"] == MIB
    lvm.vdisk(**SAN, name="b", size="1MiB")
    grown = lvm.vdisk(**SAN, name="a", size="4MiB")
    assert grown["vdisk"]["extents"] == [[0, 5 * MIB, 2 * MIB], [2 * MIB, 8 * MIB, 2 * MIB]], grown
    assert grown["vdisk"]["lease"] == MIB
    assert grown["vdisk"]["ready"]
    assert not lvm.vdisk(**SAN, name="a", size="4MiB")["changed"]

    data = machine.device.read_bytes()
    assert data[MIB : 10 * MIB] == bytes(9 * MIB)
    assert data[10 * MIB :].startswith(b"secret--")

    listed = lvm.vdisk_info(**SAN)
    assert [(vdisk["name"], vdisk["wiped"], vdisk["lease"]) for vdisk in listed["vdisks"]] == [
        ("a", 4 * MIB, MIB),
        ("b", MIB, MIB + 4096),
    ]
    assert "does not fit" in lvm.refused("vdisk", **SAN, name="c", size="1GiB")
    assert "still holds 2 vdisks" in lvm.refused("pool", name="iovlabtest", adapter=PF, state="absent")
    for name in ("a", "b"):
        assert lvm.vdisk(**SAN, name=name, state="absent", check_vports=False)["changed"]
    assert lvm.pool(name="iovlabtest", adapter=PF, state="absent")["changed"]
    assert not lvm.pool(name="iovlabtest", adapter=PF, state="absent")["changed"]


def test_no_host_activates_the_pool(machine: Machine, lvm: Modules) -> None:
    lvm.pool(name="iovlabtest", adapter=PF)
    assert _pool.Lvm(machine.host, str(machine.device)).report("vgs", "vg", ["vg_autoactivation"]) == [
        {"vg_autoactivation": ""}
    ]
    lvm.pool(name="iovlabtest", adapter=PF, state="absent")


def test_a_file_system_is_not_overwritten(machine: Machine, lvm: Modules) -> None:
    if shutil.which("mkswap") is None:
        pytest.skip("needs mkswap")
    subprocess.run(["mkswap", "--quiet", str(machine.device.resolve())], check=True)
    before = machine.device.read_bytes()
    assert "holds swap" in lvm.refused("pool", name="iovlabtest", adapter=PF)
    assert machine.device.read_bytes() == before


def test_hypervisor_info_reads_the_pool_as_lvm_tells_it(
    machine: Machine, lvm: Modules, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_libvirt, "probe_interpreters_for_module", lambda *_arguments: None)
    lvm.pool(name="iovlabtest", adapter=PF, extent_size="1MiB")
    lvm.vdisk(**SAN, name="a", size="2MiB")
    (before,) = lvm.hypervisor_info()["pools"]
    assert (before["name"], before["reason"], len(before["uuid"])) == ("iovlabtest", None, 38)
    assert before["vdisks"] == [{"name": "a", "size": 2 * MIB, "ready": True}]
    lvm.vdisk(**SAN, name="a", size="3MiB")
    (after,) = lvm.hypervisor_info()["pools"]
    assert after["uuid"] == before["uuid"]
    assert after["seqno"] > before["seqno"]
    assert after["vdisks"][0]["size"] == 3 * MIB
