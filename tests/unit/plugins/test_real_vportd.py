# SPDX-License-Identifier: GPL-3.0-or-later
"""The vport modules against the engine itself, its storage being a regular file."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.iovlab.storage.plugins.module_utils import _libvirt
from ansible_collections.iovlab.storage.plugins.module_utils._host import wait_until
from tests.unit.plugins import real
from tests.unit.plugins.machine import MIB, PF, Machine
from tests.unit.plugins.runner import Modules

VF0 = "0000:01:00.1"
LUNS: list[dict[str, Any]] = [
    {"lun": 0, "vdisk": "root", "extents": [[0, "1MiB", "1MiB"], ["1MiB", "4MiB", "1MiB"]]},
    {"lun": 1, "vdisk": "data", "extents": [[0, 8 * MIB, MIB]], "readonly": True},
]


@pytest.fixture
def vportd(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Modules]:
    with real.vportd(machine, tmp_path, monkeypatch) as modules:
        yield modules


def test_the_whole_way_from_vport_to_bound_and_back(vportd: Modules) -> None:
    def state() -> str:
        return real.told(vportd)

    assert vportd.settles("vport", state, name="v1")["vport"]["adapter"] == PF
    assert "no mapping" in vportd.refused("vport_binding", vport="v1")
    pushed = vportd.settles("adapter_mapping", state, vport="v1", luns=LUNS)
    assert (pushed["generation"], pushed["addresses"]) == (1, {"root": "v1:0", "data": "v1:1"})
    assert pushed["digest"].startswith("sha256:")
    bound = vportd.settles("vport_binding", state, vport="v1")
    assert (bound["vport"]["vf"], bound["vport"]["path"]) == (VF0, "vf")
    switched = vportd.settles("vport_binding", state, vport="v1", path="pf")
    assert (switched["switch"]["from"], switched["switch"]["to"]) == ("vf", "pf")
    vportd.settles("vport_fence", state, vport="v1", when="on_stop")
    vportd.settles("vport_fence", state, vport="v1", state="absent")
    vportd.settles("vport_fence", state, vport="v1")
    vportd.settles("vport_fence", state, vport="v1", state="absent")
    assert vportd.settles("vport_binding", state, vport="v1", state="absent")["vport"]["vf"] is None
    assert vportd.settles("adapter_mapping", state, vport="v1", state="absent")["generation"] in (0, 1, 2)
    assert vportd.settles("vport", state, name="v1", state="absent")["vport"] == {}


def test_very_many_extents_go_packed_and_come_back_the_same(vportd: Modules) -> None:
    vportd.vport(name="v1")
    extents: list[list[Any]] = [[512 * at, 512 * (at * 37 % 5000), 512] for at in range(5000)]
    extents[7].append("ro")
    luns = [{"lun": 0, "vdisk": "many", "extents": extents}]
    pushed = vportd.settles("adapter_mapping", lambda: real.told(vportd), vport="v1", luns=luns)
    assert pushed["luns"][0]["extents"] == extents
    extents[9][1] = extents[4000][1]
    words = vportd.refused("adapter_mapping", vport="v1", luns=luns)
    assert "overlaps a physical extent of vdisk many itself" in words


def test_info_reads_samples_when_it_is_asked_for_them(vportd: Modules) -> None:
    vportd.vport(name="v1")
    vportd.adapter_mapping(vport="v1", luns=LUNS)
    assert "samples" not in vportd.vport_info(name="v1")["vports"][0]

    def samples(since: float) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = vportd.vport_info(name="v1", samples_since=since)["vports"][0]["samples"]
        return found

    wait_until(lambda: bool(samples(0)), 10, "the mapping has changed the vport, so there must be a sample")
    last = samples(0)[-1]
    assert (last["path"], last["state"], last["iops"]) == ("pf", "RUNNING", 0)
    assert samples(time.time() + 60) == []


def test_a_stale_generation_and_a_taken_vf_are_refused(vportd: Modules) -> None:
    for name, offset in (("v1", MIB), ("v2", 16 * MIB)):
        vportd.vport(name=name)
        vportd.adapter_mapping(vport=name, luns=[{"lun": 0, "vdisk": name, "extents": [[0, offset, MIB]]}])
    vportd.vport_binding(vport="v1", vf=VF0)
    before = real.told(vportd)
    assert "stale" in vportd.refused("adapter_mapping", vport="v1", luns=LUNS, generation=9)
    assert "bound to vport v1 already" in vportd.refused("vport_binding", vport="v2", vf=VF0)
    assert "of vport v1" in vportd.refused("adapter_mapping", vport="v2", luns=LUNS)
    assert f"bound to VF {VF0}" in vportd.refused("vport", name="v1", state="absent")
    assert real.told(vportd) == before


def test_a_vf_that_a_vport_is_bound_to_is_not_taken_away(machine: Machine, vportd: Modules) -> None:
    vportd.vport(name="v1")
    vportd.adapter_mapping(vport="v1", luns=LUNS)
    vportd.vport_binding(vport="v1")
    before = real.told(vportd)
    assert f"VF {VF0} is in use by vport v1" in vportd.refused("sriov_vf", pf=PF, state="absent")
    assert real.told(vportd) == before


def test_a_vdisk_of_a_pool_is_leased_to_the_host_that_maps_it(machine: Machine, vportd: Modules) -> None:
    def state() -> str:
        return real.told(vportd)

    vportd.pool(name="san", adapter=PF, extent_size="1MiB")
    vportd.vdisk(pool="san", name="web1", size="2MiB", adapter=PF)
    vportd.vport(name="v1")
    mapping = {"vport": "v1", "pool": "san", "luns": [{"lun": 0, "vdisk": "web1"}]}
    vportd.settles("adapter_mapping", state, **mapping)
    info = vportd.vport_info(name="v1")
    (lun,) = info["vports"][0]["luns"]
    assert (lun["lease"]["state"], lun["lease"]["owner"]) == ("held", info["engine"]["host_id"])
    assert not vportd.vport_lease(vport="v1")["changed"]

    # the same block, as if another hypervisor had it
    fenced = vportd.vport_fence(vport="v1", next="f" * 32)
    assert fenced["vport"]["luns"][0]["lease"]["next"] == "f" * 32
    vportd.vport(name="v1", state="absent", force=True)
    vportd.vport(name="v1", incoming=True)
    vportd.adapter_mapping(**mapping)
    assert vportd.vport_info(name="v1")["vports"][0]["luns"][0]["lease"]["state"] == "handed"
    assert vportd.vport_lease(vport="v1", check=True)["steps"] == ["take the leases of vport v1"]


def test_a_vport_whose_lun_is_connected_is_not_deleted(vportd: Modules) -> None:
    vportd.vport(name="v1")
    vportd.adapter_mapping(vport="v1", luns=LUNS)

    def lun() -> dict[str, Any]:
        found: dict[str, Any] = vportd.vport_info(name="v1")["vports"][0]["luns"][0]
        return found

    with socket.socket(socket.AF_UNIX) as front_end:
        front_end.connect(lun()["socket"])
        wait_until(lambda: bool(lun()["connected"]), 5, "vportd saw no front end")
        before = real.told(vportd)
        assert f"process {os.getpid()}" in vportd.refused("vport", name="v1", state="absent")
        assert real.told(vportd) == before


def test_hypervisor_info_tells_the_engine_as_it_is(vportd: Modules, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_libvirt, "probe_interpreters_for_module", lambda *_arguments: None)
    vportd.vport(name="v1")
    vportd.adapter_mapping(vport="v1", luns=LUNS)
    vportd.vport_binding(vport="v1")
    found = vportd.hypervisor_info()["vportd"]
    assert found["reachable"], found["reason"]
    assert found["protocol"] == 1
    assert "fence" in found["features"]
    (record,) = found["vports"]
    assert (record["vport"], record["vf"], record["path"], record["fenced"]) == ("v1", VF0, "vf", False)
    assert [(lun["vdisk"], lun["readonly"], lun["errors"]) for lun in record["luns"]] == [
        ("root", False, 0),
        ("data", True, 0),
    ]
    assert found["free_vfs"] == ["0000:01:00.2"]
