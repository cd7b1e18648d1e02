# SPDX-License-Identifier: GPL-3.0-or-later
"""vport, adapter_mapping, vport_binding and vport_fence against a vportd on a Unix socket."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.plugins.machine import MIB, NQN, PF, SERIAL, Machine
from tests.unit.plugins.runner import Modules
from tests.unit.plugins.vportd_server import HOST_ID, Engine

VF0, VF1, VF2 = "0000:01:00.1", "0000:01:00.2", "0000:01:00.3"
LUNS: list[dict[str, Any]] = [
    {"lun": 0, "vdisk": "root", "extents": [[0, "1MiB", "1MiB"], ["1MiB", "2MiB", "1MiB"]]},
    {"lun": 1, "vdisk": "data", "extents": [[0, 8 * MIB, MIB], [2 * MIB, 4 * MIB, MIB, "ro"]], "readonly": True},
]


@pytest.fixture
def v1(modules: Modules, engine: Engine) -> Modules:
    """A vport with a mapping."""
    modules.vport(name="v1")
    modules.adapter_mapping(vport="v1", luns=LUNS)
    return modules


def _connect(engine: Engine, vport: str, lun: int = 0) -> None:
    engine.connected[vport, lun] = {"pid": 4242, "comm": "qemu-system-x86"}


def test_a_vport_comes_and_goes(modules: Modules, engine: Engine) -> None:
    result = modules.settles("vport", engine.fingerprint, name="v1", incoming=True)
    assert (result["vport"]["adapter"], result["vport"]["incoming"]) == (PF, True)
    assert modules.settles("vport", engine.fingerprint, name="v1", state="absent")["vport"] == {}


def test_a_vport_with_a_running_vm_is_not_deleted(v1: Modules, engine: Engine) -> None:
    _connect(engine, "v1")
    before = engine.fingerprint()
    message = v1.refused("vport", name="v1", state="absent")
    assert "in use by qemu-system-x86 (process 4242)" in message
    assert engine.fingerprint() == before
    assert "vport_delete" not in engine.calls
    assert v1.vport(name="v1", state="absent", force=True)["changed"]


def test_a_bound_vport_is_not_deleted(v1: Modules, engine: Engine) -> None:
    v1.vport_binding(vport="v1")
    before = engine.fingerprint()
    assert f"bound to VF {VF0}" in v1.refused("vport", name="v1", state="absent")
    assert engine.fingerprint() == before


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"name": "Web_1"}, "'Web_1' is not a usable name"),
        ({"name": "a-name-that-is-too-long"}, "1 to 15"),
        ({"name": "v1", "adapter": "0000:02:00.0"}, "does not serve adapter 0000:02:00.0"),
        ({"name": "v1", "adapter": "one"}, "'one' is not a PCI address"),
    ],
)
def test_a_vport_that_cannot_be_is_refused(
    modules: Modules, engine: Engine, arguments: dict[str, Any], word: str
) -> None:
    before = engine.fingerprint()
    assert word in modules.refused("vport", **arguments)
    assert engine.fingerprint() == before


def test_a_vport_does_not_move_to_another_adapter(v1: Modules, engine: Engine) -> None:
    engine.adapters.append(engine.adapters[0] | {"adapter": "0000:02:00.0", "vfs": []})
    before = engine.fingerprint()
    assert f"is on adapter {PF}" in v1.refused("vport", name="v1", adapter="0000:02:00.0")
    assert "2 adapters" in v1.refused("vport", name="v2")
    assert engine.fingerprint() == before


BY_NAME: list[tuple[str, dict[str, Any]]] = [
    ("vport", {"name": "v1"}),
    ("vport", {"name": "v2"}),
    ("vport", {"name": "v1", "state": "absent"}),
    ("adapter_mapping", {"vport": "v1", "luns": LUNS[:1]}),
    ("adapter_mapping", {"vport": "v1", "state": "absent"}),
]


@pytest.mark.parametrize("check", [False, True], ids=["run", "check"])
@pytest.mark.parametrize(("module", "arguments"), BY_NAME)
def test_an_adapter_that_no_name_or_more_than_one_fits_is_refused(
    machine: Machine, v1: Modules, engine: Engine, module: str, arguments: dict[str, Any], check: bool
) -> None:
    before = engine.fingerprint()
    assert f"{PF} has {SERIAL}); correct it, or give adapter" in v1.refused(module, check, **arguments, serial="OTHER")
    assert "mutually exclusive" in v1.run(module, check, {**arguments, "adapter": PF, "nqn": NQN})["msg"]
    machine.double()
    for name in ({"serial": SERIAL}, {"nqn": NQN}):
        message = v1.refused(module, check, **arguments, **name)
        assert f"2 adapters ({PF}, 0000:05:00.0); give adapter, the address of one" in message
    assert engine.fingerprint() == before


@pytest.mark.parametrize("name", [{"serial": "SERIAL-05"}, {"nqn": "nqn.2019-08.org.example:05"}])
def test_a_name_picks_one_of_several_adapters(
    machine: Machine, v1: Modules, engine: Engine, name: dict[str, Any]
) -> None:
    second = "0000:05:00.0"
    machine.double()
    machine.write(f"bus/pci/devices/{second}/nvme/nvme0/serial", "SERIAL-05")
    machine.write(f"bus/pci/devices/{second}/nvme/nvme0/subsysnqn", "nqn.2019-08.org.example:05")
    before = engine.fingerprint()
    assert f"does not serve adapter {second}" in v1.refused("vport", name="v2", **name)
    engine.adapters.append(engine.adapters[0] | {"adapter": second, "vfs": []})
    before = engine.fingerprint()
    assert f"is on adapter {PF}" in v1.refused("vport", name="v1", **name)
    assert f"is on adapter {PF}, not {second}" in v1.refused("adapter_mapping", vport="v1", luns=LUNS, **name)
    assert engine.fingerprint() == before
    assert v1.settles("vport", engine.fingerprint, name="v2", **name)["vport"]["adapter"] == second


def test_what_is_planned_ahead_names_the_address(modules: Modules) -> None:
    result = modules.vport(check=True, planned=True, name="v1", serial=SERIAL)
    assert result["steps"] == [f"create vport v1 on adapter {PF}"]
    assert "no NVMe adapter" in modules.refused("vport", check=True, planned=True, name="v1", serial="OTHER")


def test_the_mapping_is_pushed_and_the_vm_gets_addresses(modules: Modules, engine: Engine) -> None:
    modules.vport(name="v1")
    result = modules.settles("adapter_mapping", engine.fingerprint, vport="v1", luns=LUNS)
    assert result["generation"] == 1
    assert result["digest"] == engine.mappings["v1"]["digest"]
    assert result["addresses"] == {"root": "v1:0", "data": "v1:1"}
    assert engine.mappings["v1"]["luns"] == [
        {"lun": 0, "vdisk": "root", "readonly": False, "extents": [[0, MIB, 2 * MIB]]},
        {"lun": 1, "vdisk": "data", "readonly": True, "extents": [[0, 8 * MIB, MIB], [2 * MIB, 4 * MIB, MIB, "ro"]]},
    ]


def test_another_writing_of_the_same_mapping_changes_nothing(v1: Modules, engine: Engine) -> None:
    again = [LUNS[1], {"lun": 0, "vdisk": "root", "extents": [[0, MIB, 2 * MIB]]}]
    assert not v1.adapter_mapping(vport="v1", luns=again, generation=0)["changed"]
    assert engine.mappings["v1"]["generation"] == 1


def test_extents_are_looked_up_in_the_pool(machine: Machine, modules: Modules, engine: Engine) -> None:
    modules.pool(name="san", adapter=PF, extent_size="1MiB")
    modules.vdisk(pool="san", name="web1", size="2MiB", adapter=PF)
    modules.vport(name="v1")
    luns = [{"lun": 5, "vdisk": "web1"}]
    modules.settles("adapter_mapping", engine.fingerprint, vport="v1", pool="san", luns=luns, adapter=PF, nsid=1)
    assert engine.mappings["v1"]["luns"][0]["extents"] == [[0, 5 * MIB, 2 * MIB]]
    assert engine.mappings["v1"]["luns"][0]["lease"] == MIB

    before = engine.fingerprint()
    message = modules.refused("adapter_mapping", vport="v1", pool="san", luns=[{"lun": 0, "vdisk": "nix"}])
    assert "no vdisk nix in pool san (it has: web1)" in message
    modules.vdisk(pool="san", name="raw", size="1MiB", adapter=PF, wipe=False)
    message = modules.refused("adapter_mapping", vport="v1", pool="san", luns=[{"lun": 0, "vdisk": "raw"}])
    assert "wiped up to 0 of 1048576" in message
    assert "nix" in modules.refused("adapter_mapping", vport="v1", luns=[{"lun": 0, "vdisk": "web1", "pool": "nix"}])
    assert engine.fingerprint() == before


def _one(*extents: list[Any], lun: int = 0, vdisk: str = "x") -> list[dict[str, Any]]:
    return [{"lun": lun, "vdisk": vdisk, "extents": list(extents)}]


@pytest.mark.parametrize(
    ("luns", "word"),
    [
        (_one([0, MIB, MIB]) + _one([0, 2 * MIB, MIB], vdisk="y"), "lun: 0 is used twice"),
        (_one([0, MIB, MIB]) + _one([0, 2 * MIB, MIB], lun=1), "vdisk: x is mapped twice"),
        (_one([0, MIB, MIB], [512, 4 * MIB, MIB]), "overlaps the extent before it"),
        (_one([0, MIB, MIB], [MIB, MIB + 512, MIB]), "overlaps a physical extent of vdisk x itself"),
        (_one([0, MIB, MIB]) + _one([0, MIB, MIB], lun=1, vdisk="y"), "overlaps a physical extent of vdisk x"),
        (_one([0, 24 * MIB - 512, MIB]), "out of range"),
        (_one([0, 100, MIB]), "not aligned"),
        (_one([0, MIB, 0]), "no length"),
        (_one([0, MIB]), "is not [start, physical, length]"),
        (_one([0, MIB, MIB, "rx"]), "is not [start, physical, length]"),
        (_one([0, "one", MIB]), "'one' is not a size"),
        (_one([0, -512, MIB]), "-512"),
        (_one(), "no extents"),
        (_one([0, MIB, MIB], lun=256), "lun: 256"),
        ([{"lun": 0, "vdisk": "x"}], "neither extents nor a pool"),
        (_one([0, 20 * MIB, MIB]), "vdisk theirs of vport v2"),
    ],
)
@pytest.mark.parametrize("check", [False, True])
def test_a_bad_mapping_is_refused_before_it_is_sent(
    v1: Modules, engine: Engine, luns: list[dict[str, Any]], word: str, check: bool
) -> None:
    v1.vport(name="v2")
    v1.adapter_mapping(vport="v2", luns=_one([0, 20 * MIB, MIB], vdisk="theirs"))
    engine.calls.clear()
    before = engine.fingerprint()
    assert word in v1.refused("adapter_mapping", check=check, vport="v1", luns=luns)
    assert engine.fingerprint() == before
    assert "mapping_set" not in engine.calls


def test_a_stale_generation_is_refused(v1: Modules, engine: Engine) -> None:
    before = engine.fingerprint()
    message = v1.refused("adapter_mapping", vport="v1", luns=LUNS[:1], generation=7)
    assert "7 is stale" in message
    assert "generation 1" in message
    assert engine.fingerprint() == before


def test_a_writer_that_came_between_is_not_overwritten(v1: Modules, engine: Engine) -> None:
    def other_writer(method: str) -> None:
        if method == "mapping_set" and engine.mappings["v1"]["generation"] == 1:
            engine.mappings["v1"]["generation"] = 2

    engine.on_call = other_writer
    result = v1.adapter_mapping(vport="v1", luns=LUNS[:1])
    assert result["failed"]
    assert result["reason"] == "STALE_GENERATION"
    assert "generation 1 is stale" in result["msg"]
    assert len(engine.mappings["v1"]["luns"]) == 2


def test_a_lun_in_use_is_not_removed_nor_shrunk(v1: Modules, engine: Engine) -> None:
    _connect(engine, "v1", 0)
    before = engine.fingerprint()
    assert "LUN 0 of vport v1 is in use by qemu" in v1.refused("adapter_mapping", vport="v1", luns=LUNS[1:])
    assert "cannot shrink" in v1.refused("adapter_mapping", vport="v1", luns=_one([0, MIB, MIB], vdisk="root"))
    assert "in use by qemu" in v1.refused("adapter_mapping", vport="v1", state="absent")
    assert engine.fingerprint() == before


def test_another_adapter_than_the_vports_is_refused(v1: Modules, engine: Engine) -> None:
    assert f"on adapter {PF}" in v1.refused("adapter_mapping", vport="v1", luns=LUNS, adapter="0000:02:00.0")
    assert "uses namespace 1" in v1.refused("adapter_mapping", vport="v1", luns=LUNS, nsid=2)
    assert "no vport v9" in v1.refused("adapter_mapping", vport="v9", luns=LUNS)


def test_info_tells_both_mappings_of_every_vport(v1: Modules, engine: Engine) -> None:
    v1.vport(name="v2", adapter=PF)
    before = engine.fingerprint()
    first, second = v1.adapter_mapping_info()["mappings"]
    assert (first["vport"], first["adapter"], first["generation"]) == ("v1", PF, 1)
    assert first["digest"] == v1.vport_info(name="v1")["vports"][0]["digest"]
    assert first["addresses"] == {lun["vdisk"]: f"v1:{lun['lun']}" for lun in LUNS}
    assert [(lun["lun"], lun["address"]) for lun in first["luns"]] == [(lun["lun"], f"v1:{lun['lun']}") for lun in LUNS]
    extents = first["luns"][0]["extents"]
    assert extents
    assert first["luns"][0]["capacity"] == sum(extent[2] for extent in extents)
    assert second == {"vport": "v2", "adapter": PF, "generation": 0, "digest": None, "addresses": {}, "luns": []}
    assert v1.adapter_mapping_info(vport="v2")["mappings"] == [second]
    assert v1.adapter_mapping_info(vport="v9")["mappings"] == []
    assert engine.fingerprint() == before


def test_info_without_vportd_is_refused_unless_it_is_planned(modules: Modules) -> None:
    assert "vportd does not answer" in modules.refused("adapter_mapping_info")
    assert modules.adapter_mapping_info(planned=True, check=True)["mappings"] == []


def test_a_mapping_is_deleted(v1: Modules, engine: Engine) -> None:
    v1.vport_binding(vport="v1")
    before = engine.fingerprint()
    assert "unbind it" in v1.refused("adapter_mapping", vport="v1", state="absent")
    assert engine.fingerprint() == before
    v1.vport_binding(vport="v1", state="absent")
    assert v1.settles("adapter_mapping", engine.fingerprint, vport="v1", state="absent")["generation"] == 0
    assert not v1.adapter_mapping(vport="gone", state="absent")["changed"]


def test_auto_binds_the_first_free_vf_and_stays_with_it(v1: Modules, engine: Engine) -> None:
    engine.adapters[0]["vfs"][0]["vport"] = "another"
    result = v1.settles("vport_binding", engine.fingerprint, vport="v1")
    assert (result["vport"]["vf"], result["vport"]["path"]) == (VF1, "vf")
    assert result["switch"]["to"] == "vf"
    assert not result["stayed_on_pf"]
    engine.adapters[0]["vfs"][0]["vport"] = None
    assert not v1.vport_binding(vport="v1")["changed"]


def test_a_vf_that_was_lost_is_given_up_for_a_free_one(v1: Modules, engine: Engine) -> None:
    v1.vport_binding(vport="v1", vf=VF0)
    engine.adapters[0]["vfs"][0]["device"] = None
    assert not v1.vport_binding(vport="v1")["changed"], "as long as it is the path"
    engine.vports["v1"]["path"] = "pf"
    assert not v1.vport_binding(vport="v1", path="pf")["changed"]
    result = v1.settles("vport_binding", engine.fingerprint, vport="v1")
    assert (result["vport"]["vf"], result["vport"]["path"]) == (VF1, "vf")
    assert result["steps"][0] == f"unbind vport v1 from VF {VF0}, which shows the storage no more"
    engine.vports["v1"]["path"] = "pf"
    engine.adapters[0]["vfs"][1]["device"] = None
    before = engine.fingerprint()
    assert "no free VF" in v1.refused("vport_binding", vport="v1")
    assert v1.settles("vport_binding", engine.fingerprint, vport="v1", on_no_vf="stay_on_pf")["stayed_on_pf"]
    assert engine.fingerprint() == before


def test_the_path_is_switched_and_the_vport_unbound(v1: Modules, engine: Engine) -> None:
    v1.vport_binding(vport="v1", vf=VF0)
    result = v1.settles("vport_binding", engine.fingerprint, vport="v1", path="pf")
    assert (result["vport"]["vf"], result["vport"]["path"], result["switch"]["from"]) == (VF0, "pf", "vf")
    v1.vport_binding(vport="v1", path="vf")
    result = v1.settles("vport_binding", engine.fingerprint, vport="v1", state="absent")
    assert (result["vport"]["vf"], result["switch"]["to"]) == (None, "pf")
    assert not v1.vport_binding(vport="gone", state="absent")["changed"]


def test_without_a_free_vf_it_fails_or_stays_on_the_pf(v1: Modules, engine: Engine) -> None:
    for vf in engine.adapters[0]["vfs"]:
        vf["vport"] = "another"
    before = engine.fingerprint()
    assert "no free VF" in v1.refused("vport_binding", vport="v1")
    result = v1.settles("vport_binding", engine.fingerprint, vport="v1", on_no_vf="stay_on_pf")
    assert result["stayed_on_pf"]
    assert "stays on path pf" in str(result["warnings"])
    assert engine.fingerprint() == before


def _taken(engine: Engine) -> dict[str, Any]:
    engine.adapters[0]["vfs"][0]["vport"] = "web9"
    return {"vport": "v1", "vf": VF0}


def _not_of_the_adapter(engine: Engine) -> dict[str, Any]:
    return {"vport": "v1", "vf": "0000:05:00.1"}


def _without_device(engine: Engine) -> dict[str, Any]:
    return {"vport": "v1", "vf": VF2}


def _bound_elsewhere(engine: Engine) -> dict[str, Any]:
    engine.call("vport_bind", {"vport": "v1", "vf": VF0})
    return {"vport": "v1", "vf": VF1}


def _unmapped(engine: Engine) -> dict[str, Any]:
    engine.mappings.clear()
    return {"vport": "v1"}


def _no_vport(engine: Engine) -> dict[str, Any]:
    return {"vport": "v9"}


def _no_time(engine: Engine) -> dict[str, Any]:
    return {"vport": "v1", "timeout": 0}


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (_taken, "bound to vport web9 already"),
        (_not_of_the_adapter, "is no VF of adapter"),
        (_without_device, "no block device"),
        (_bound_elsewhere, f"bound to VF {VF0}, not {VF1}"),
        (_unmapped, "no mapping yet"),
        (_no_vport, "no vport v9"),
        (_no_time, "timeout: 0"),
    ],
)
@pytest.mark.parametrize("check", [False, True])
def test_a_binding_that_cannot_be_is_refused(
    v1: Modules, engine: Engine, spoil: Callable[[Engine], dict[str, Any]], word: str, check: bool
) -> None:
    arguments = spoil(engine)
    before = engine.fingerprint()
    assert word in v1.refused("vport_binding", check=check, **arguments)
    assert engine.fingerprint() == before


def test_a_drain_that_does_not_end_leaves_the_path_as_it_was(v1: Modules, engine: Engine) -> None:
    v1.vport_binding(vport="v1")
    engine.drain_hangs = True
    before = engine.fingerprint()
    assert "3 requests outstanding" in v1.refused("vport_binding", vport="v1", path="pf", timeout=0.5)
    assert engine.fingerprint() == before


@pytest.mark.parametrize("when", ["now", "on_stop"])
def test_a_fence_is_set_and_lifted(v1: Modules, engine: Engine, when: str) -> None:
    result = v1.settles("vport_fence", engine.fingerprint, vport="v1", when=when)
    assert result["vport"]["fenced" if when == "now" else "fence_on_stop"]
    result = v1.settles("vport_fence", engine.fingerprint, vport="v1", state="absent")
    assert not result["vport"]["fenced"]
    assert not result["vport"]["fence_on_stop"]


def test_a_fence_that_fell_meets_on_stop(v1: Modules, engine: Engine) -> None:
    v1.vport_fence(vport="v1")
    assert not v1.vport_fence(vport="v1", when="on_stop")["changed"]
    assert "no vport v9" in v1.refused("vport_fence", vport="v9")


def test_the_host_that_gets_the_leases_is_named(v1: Modules, engine: Engine) -> None:
    there = v1.vport_info()["engine"]["host_id"]
    result = v1.settles("vport_fence", engine.fingerprint, vport="v1", when="on_stop", next=there)
    assert result["vport"]["fence_next"] == there
    other = v1.settles("vport_fence", engine.fingerprint, vport="v1", when="on_stop", next="3" * 32)
    assert other["vport"]["fence_next"] == "3" * 32
    assert "'hv2' is no host_id" in v1.refused("vport_fence", vport="v1", next="hv2")


def _lease(vdisk: str, state: str, owner: str | None, following: str | None = None) -> dict[str, Any]:
    name = {"1" * 32: "hv1", HOST_ID: "hv2", None: None}[owner]
    lease = {"lun": 0, "vdisk": vdisk, "offset": 4096, "state": state, "owner": owner, "owner_name": name}
    return lease | {"generation": 5, "next": following}


def test_leases_that_another_host_has_are_taken_only_by_force(v1: Modules, engine: Engine) -> None:
    engine.leases = [_lease("root", "held", HOST_ID), _lease("data", "elsewhere", "1" * 32)]
    before = engine.fingerprint()
    message = v1.refused("vport_lease", vport="v1")
    assert "vdisk data of vport v1 is leased to hv1 (generation 5)" in message
    assert engine.fingerprint() == before
    result = v1.settles("vport_lease", engine.fingerprint, vport="v1", **{"break": True})
    assert result["steps"] == ["break the leases that hv1 has for vport v1"]
    assert result["diff"]["before"]["leases"] == {"root": "hv2", "data": "hv1"}
    assert result["diff"]["after"]["leases"] == {"root": "hv2", "data": "hv2"}
    assert [one["owner_name"] for one in result["leases"]] == ["hv2", "hv2"]


@pytest.mark.parametrize("lease", [_lease("root", "free", "1" * 32), _lease("root", "handed", "1" * 32, HOST_ID)])
def test_leases_that_are_free_or_handed_to_this_host_are_taken(
    v1: Modules, engine: Engine, lease: dict[str, Any]
) -> None:
    engine.leases = [dict(lease)]
    assert v1.settles("vport_lease", engine.fingerprint, vport="v1")["steps"] == ["take the leases of vport v1"]
    assert not v1.vport_lease(vport="v1", **{"break": True})["changed"]
    assert "no vport v9" in v1.refused("vport_lease", vport="v9")


def test_info_reads_vports_with_their_mappings(v1: Modules, engine: Engine) -> None:
    before = engine.fingerprint()
    result = v1.vport_info()
    assert [record["vport"] for record in result["vports"]] == ["v1"]
    assert result["vports"][0]["mapping"]["luns"][0]["vdisk"] == "root"
    assert result["vports"][0]["luns"][0]["socket"] == "/run/vportd/v1/0.sock"
    assert result["adapters"][0]["adapter"] == PF
    assert v1.vport_info(name="v9")["vports"] == []
    assert engine.fingerprint() == before


ASKING_VPORTD: list[tuple[str, dict[str, Any]]] = [
    ("vport", {"name": "v1"}),
    ("vport_info", {}),
    ("vport_fence", {"vport": "v1"}),
    ("vport_lease", {"vport": "v1"}),
    ("vport_binding", {"vport": "v1"}),
    ("adapter_mapping", {"vport": "v1", "luns": LUNS}),
]


@pytest.mark.parametrize(("name", "arguments"), ASKING_VPORTD)
@pytest.mark.parametrize("check", [False, True])
def test_vportd_not_running_is_said_in_one_line(
    modules: Modules, name: str, arguments: dict[str, Any], check: bool
) -> None:
    message = modules.refused(name, check=check, **arguments)
    assert message.startswith("vportd does not answer on ")
    assert message.endswith("start it with systemctl start vportd")


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (b"", "closed the connection"),
        (b"hello\n", "is not vportd"),
        (json.dumps({"jsonrpc": "2.0", "id": 99, "result": {}}).encode() + b"\n", "is not vportd"),
    ],
)
def test_what_is_not_vportd_is_said_in_one_line(modules: Modules, tmp_path: Path, answer: bytes, word: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "rpc.sock"))
        listener.listen()

        def reply() -> None:
            connection, __ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=reply)
        thread.start()
        message = modules.refused("vport_info")
        thread.join()
    assert word in message


def test_a_vportd_that_hangs_is_given_up(modules: Modules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ansible_collections.iovlab.storage.plugins.module_utils import _rpc

    monkeypatch.setattr(_rpc.Vportd.__init__, "__defaults__", (_rpc.SOCKET, 0.2))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "rpc.sock"))
        listener.listen()
        assert "did not answer vport_get within" in modules.refused("vport", name="v1")
