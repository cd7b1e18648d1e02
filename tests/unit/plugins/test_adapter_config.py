# SPDX-License-Identifier: GPL-3.0-or-later
"""adapter_config: does what the single modules do, refuses before it changes anything, and goes on after a kill."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.iovlab.storage.plugins.module_utils import _zero
from ansible_collections.iovlab.storage.plugins.module_utils._rpc import Vportd
from tests.unit.plugins.machine import MIB, PF, Machine, VolumeGroups
from tests.unit.plugins.real import engine as running
from tests.unit.plugins.runner import Modules
from tests.unit.plugins.vportd_server import Engine

VF0, VF1 = "0000:01:00.1", "0000:01:00.2"
WHOLE: dict[str, Any] = {
    "pf": PF,
    "vfs": {"count": 2, "persistent": True},
    "pool": {"name": "san", "extent_size": "1MiB"},
    "vdisks": [
        {"name": "a", "size": "2MiB"},
        {"name": "b", "size": "1MiB"},
        {"name": "c", "size": "2MiB"},
    ],
    "vports": [
        {"name": "v1", "luns": [{"lun": 0, "vdisk": "a"}, {"lun": 1, "vdisk": "b", "readonly": True}]},
        {"name": "v2", "luns": [{"lun": 0, "vdisk": "c"}], "vf": VF0},
    ],
}
STORAGE: dict[str, Any] = {key: WHOLE[key] for key in ("pf", "pool", "vdisks")}


@pytest.fixture
def vportd(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Modules]:
    """Modules on a bare host where the real vportd runs."""
    with running(machine, tmp_path) as rpc_socket:
        yield Modules(machine.host, monkeypatch, rpc_socket=rpc_socket)


def _vports(modules: Modules) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = modules.vport_info()["vports"]
    for record in found:
        del record["history"]
        for lun in record["luns"]:
            lun["lease"] = bool(lun["lease"])  # it is renewed all the time
    return found


def _state(machine: Machine, modules: Modules) -> str:
    return hashlib.sha256(
        (machine.fingerprint(data=False) + json.dumps(_vports(modules), sort_keys=True)).encode()
    ).hexdigest()


def _essence(machine: Machine, modules: Modules) -> Any:
    """What a run is for, without that which depends on the way to it, such as generations."""
    kept = ("vport", "vf", "path", "state")
    vports = [
        {key: record[key] for key in kept}
        | {"luns": [(lun["lun"], lun["vdisk"], lun["readonly"], lun["capacity"]) for lun in record["luns"]]}
        for record in _vports(modules)
    ]
    volumes = {name: (one.count, sorted(one.tags)) for name, one in machine.lvm.groups["san"].volumes.items()}
    return vports, volumes, machine.adapter.numvfs


def test_one_call_makes_everything_as_check_mode_foretold_and_again_changes_nothing(
    machine: Machine, vportd: Modules
) -> None:
    done = vportd.settles("adapter_config", lambda: _state(machine, vportd), **WHOLE)
    assert [(one["vport"], one["vf"], one["path"]) for one in done["vports"]] == [("v1", VF1, "vf"), ("v2", VF0, "vf")]
    assert [(one["name"], one["size"], one["ready"]) for one in done["vdisks"]] == [
        ("a", 2 * MIB, True),
        ("b", MIB, True),
        ("c", 2 * MIB, True),
    ]
    assert [vf["driver"] for vf in done["vfs"]] == ["nvme", "nvme"]
    assert done["pool"]["vdisks"] == ["a", "b", "c"]
    objects = [one["object"] for one in done["changes"]]
    assert objects == [f"VFs of {PF}", "pool san", "vdisk a", "vdisk b", "vdisk c", "vport v1", "vport v2"]
    assert [step for one in done["changes"] for step in one["steps"]] == done["steps"]
    assert done["diff"]["after"]["vport v1"]["luns"][0]["size"] == 2 * MIB


def test_it_makes_what_the_single_modules_make(
    machine: Machine, vportd: Modules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vportd.adapter_config(**WHOLE)
    batch = _essence(machine, vportd)
    other = Machine(tmp_path / "other")
    (tmp_path / "single").mkdir()
    with running(other, tmp_path / "single") as rpc_socket:
        single = Modules(other.host, monkeypatch, rpc_socket=rpc_socket)
        single.sriov_vf(pf=PF, **WHOLE["vfs"])
        single.pool(adapter=PF, **WHOLE["pool"])
        for vdisk in WHOLE["vdisks"]:
            single.vdisk(adapter=PF, pool="san", **vdisk)
        for vport, vf in zip(WHOLE["vports"], (VF1, VF0), strict=True):
            single.vport(name=vport["name"])
            single.adapter_mapping(vport=vport["name"], pool="san", luns=vport["luns"])
            single.vport_binding(vport=vport["name"], vf=vf)
        assert _essence(other, single) == batch
        again = single.adapter_config(**WHOLE)
        assert not again["changed"], again["steps"]


def test_growing_and_adding_touches_only_what_differs(machine: Machine, vportd: Modules) -> None:
    vportd.adapter_config(**WHOLE)
    more = deepcopy(WHOLE)
    more["vdisks"][0]["size"] = "3MiB"
    more["vdisks"].append({"name": "d", "size": "1MiB"})
    more["vports"][1]["luns"].append({"lun": 1, "vdisk": "d"})
    done = vportd.settles("adapter_config", lambda: _state(machine, vportd), **more)
    assert [one["object"] for one in done["changes"]] == ["vdisk a", "vdisk d", "vport v1", "vport v2"]
    assert done["diff"]["before"]["pool"] == done["diff"]["after"]["pool"]


def test_one_more_vdisk_costs_one_command_and_nothing_is_read_twice(machine: Machine, modules: Modules) -> None:
    def commands(count: int, first: int) -> int:
        before = len(machine.commands)
        vdisks = [{"name": f"x{number}", "size": "1MiB"} for number in range(first, first + count)]
        result = modules.adapter_config(**STORAGE | {"vdisks": vdisks})
        assert result["changed"], result
        return len(machine.commands) - before

    commands(1, 0)
    assert commands(8, 1) - commands(1, 9) == 7


@pytest.mark.parametrize("kill", range(1, 16))
def test_killed_while_the_storage_is_made_the_next_run_finishes(
    machine: Machine, modules: Modules, monkeypatch: pytest.MonkeyPatch, kill: int
) -> None:
    """After each command that changes LVM, and before each range is zeroed."""
    left = kill
    machine.device.write_bytes(b"secret--" * (machine.size // 8))

    def count() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt

    run, zero = VolumeGroups.command, _zero.zero

    def command(groups: VolumeGroups, words: list[str]) -> tuple[int, str, str]:
        result = run(groups, words)
        if words[0] in ("vgcreate", "lvcreate", "lvchange"):
            count()
        return result

    def zeroing(path: str, offset: int, length: int) -> None:
        count()
        zero(path, offset, length)

    with monkeypatch.context() as patch:
        patch.setattr(VolumeGroups, "command", command)
        patch.setattr(_zero, "zero", zeroing)
        with pytest.raises(KeyboardInterrupt):
            modules.adapter_config(**STORAGE)
    modules.settles("adapter_config", machine.fingerprint, **STORAGE)
    found = modules.vdisk_info(pool="san", adapter=PF)["vdisks"]
    assert [(one["name"], one["ready"], one["lease"]) for one in found] == [
        ("a", True, MIB),
        ("b", True, MIB + 4096),
        ("c", True, MIB + 8192),
    ]
    data = machine.device.read_bytes()
    for one in found:
        for __, physical, length in one["extents"]:
            assert data[physical : physical + length] == bytes(length)


def test_killed_at_each_call_to_vportd_the_next_run_finishes(
    machine: Machine, vportd: Modules, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = Vportd.call
    for kill in range(1, 7):
        left = kill

        def killed(self: Vportd, method: str, wait: float = 0.0, **params: Any) -> Any:
            nonlocal left
            result = call(self, method, wait, **params)
            left -= method in ("vport_create", "mapping_set", "vport_bind")
            if left == 0:
                raise KeyboardInterrupt
            return result

        with monkeypatch.context() as patch:
            patch.setattr(Vportd, "call", killed)
            with pytest.raises(KeyboardInterrupt):
                vportd.adapter_config(**WHOLE)
        vportd.settles("adapter_config", lambda: _state(machine, vportd), **WHOLE)
        assert [(one["vport"], one["vf"]) for one in _vports(vportd)] == [("v1", VF1), ("v2", VF0)]
        for name in ("v1", "v2"):
            assert vportd.vport(name=name, state="absent", force=True)["changed"]


def test_the_first_failure_names_the_object_and_what_is_done(machine: Machine, vportd: Modules) -> None:
    machine.interceptor = lambda command: (
        (5, "", "  no more metadata space") if command[0] == "lvcreate" and command[-2] == "b" else None
    )
    message = vportd.refused("adapter_config", **WHOLE)
    assert message.startswith("vdisk b: lvcreate"), message
    assert "no more metadata space" in message
    assert f"2 before it are done (VFs of {PF}, pool san)" in message
    assert not _vports(vportd)
    machine.interceptor = lambda _command: None
    done = vportd.adapter_config(**WHOLE)
    assert [one["object"] for one in done["changes"]][:3] == ["vdisk a", "vdisk b", "vdisk c"]
    assert done["changes"][0]["steps"] == ["zero 2 MiB of vdisk a"]
    assert not vportd.adapter_config(**WHOLE)["changed"]


def test_what_vportd_refuses_names_the_vport_and_keeps_the_reason(
    machine: Machine, vportd: Modules, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = Vportd.call

    def stale(self: Vportd, method: str, wait: float = 0.0, **params: Any) -> Any:
        if method == "mapping_set" and params["vport"] == "v2":
            params["expected_generation"] = 9
        return call(self, method, wait, **params)

    with monkeypatch.context() as patch:
        patch.setattr(Vportd, "call", stale)
        result = vportd.run("adapter_config", False, WHOLE)
    assert result["reason"] == "STALE_GENERATION"
    assert result["msg"].startswith("vport v2: ")
    assert "vport v1); run it again" in result["msg"]
    assert vportd.adapter_config(**WHOLE)["changed"]


def _with(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Set one of the options, named by a path such as ``vports.0.vf``."""
    *parents, last = path.split(".")

    def change(options: dict[str, Any]) -> None:
        target: Any = options
        for name in parents:
            target = target[int(name) if name.isdigit() else name]
        target[int(last) if last.isdigit() else last] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_with("vfs.count", 9), f"VFs of {PF}: count: 9 VFs are more than the 4"),
        (_with("vfs.count", 0), "count: 0 VFs cannot be"),
        (_with("vfs.queues", 1), "queues: 1 is too few"),
        (_with("pool.name", "a/b"), "pool.name: 'a/b' is not a usable name"),
        (_with("pool.extent_size", "3MiB"), "pool san: extent_size"),
        (_with("vdisks.1.size", "much"), "vdisk b: size: 'much' is not a size"),
        (_with("vdisks.2.size", "1GiB"), "vdisk c: size: vdisk c of 1 GiB does not fit"),
        (_with("vdisks.2.size", "17MiB"), "vdisk c: size: vdisk c of 17 MiB does not fit"),
        (_with("vdisks.2.size", "0"), "vdisk c: size: a vdisk of 0 bytes cannot be"),
        (_with("vdisks.1.name", "a"), "vdisks: a is named twice"),
        (_with("vports.1.name", "v1"), "vports: v1 is named twice"),
        (_with("vports.1.name", "V2"), "vport V2: name: 'V2' is not a usable name"),
        (_with("vports.1.vf", "01:00"), "vport v2: vf: '01:00' is not a PCI address"),
        (_with("vports.1.vf", "0000:01:00.3"), "vport v2: vf: 0000:01:00.3 is no VF of adapter"),
        (_with("vports.0.vf", VF0), f"vf: {VF0} is named twice"),
        (_with("vports.1.luns", []), "vport v2: luns: a vport without a LUN"),
        (_with("vports.1.luns.0.vdisk", "z"), "vport v2: vdisk: there is no vdisk z in pool san"),
        (_with("vports.1.luns.0.vdisk", "a"), "vport v2: vdisk: a is a LUN of vport v1 too"),
        (_with("vports.1.luns.0.lun", 256), "vport v2: lun: 256 of vdisk c is out of range"),
        (_with("vports.1.luns.0.pool", "other"), "vport v2: pool: there is no pool other"),
        (_with("vports.1.luns.0.extents", [[0, "1GiB", "1MiB"]]), "is out of range"),
        (_with("vports.1.luns.0.extents", ["x"]), "vport v2: extent 0 of vdisk c: ['x'] is not [start"),
        (_with("vdisks.2.wipe", False), "vport v2: vdisk: c of pool san is wiped up to 0"),
        (_with("nsid", 7), "shows no namespace 7"),
        (_with("timeout", 0), "timeout: 0 is too short"),
        (_with("drain_timeout", 0), "drain_timeout: 0.0 seconds"),
        (_with("pf", "nonsense"), "pf: 'nonsense' is not a PCI address"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_changed(
    machine: Machine, modules: Modules, engine: Engine, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    options = deepcopy(WHOLE)
    change(options)
    before = machine.fingerprint(), engine.fingerprint()
    assert said in modules.refused("adapter_config", **options)
    assert said in modules.refused("adapter_config", check=True, **options)
    assert (machine.fingerprint(), engine.fingerprint()) == before


def test_a_third_vport_without_a_vf_is_refused_or_stays_on_the_pf(machine: Machine, vportd: Modules) -> None:
    options = deepcopy(WHOLE)
    options["vdisks"].append({"name": "d", "size": "1MiB"})
    options["vports"].append({"name": "v3", "luns": [{"lun": 0, "vdisk": "d"}]})
    before = _state(machine, vportd)
    assert "vport v3: vf: adapter 0000:01:00.0 has no free VF" in vportd.refused("adapter_config", **options)
    assert _state(machine, vportd) == before
    options["vports"][2]["on_no_vf"] = "stay_on_pf"
    done = vportd.settles("adapter_config", lambda: _state(machine, vportd), **options)
    assert [one["vf"] for one in done["vports"]] == [VF1, VF0, None]
    assert "no VF is free for vport v3" in str(done["warnings"])


def test_a_vf_in_use_is_not_taken_away(machine: Machine, vportd: Modules) -> None:
    vportd.adapter_config(**WHOLE)
    before = _state(machine, vportd)
    options = deepcopy(WHOLE)
    options["vfs"] |= {"count": 3, "allow_recreate": True}
    assert "is in use by vport v2" in vportd.refused("adapter_config", **options)
    assert _state(machine, vportd) == before


def test_vportd_that_does_not_run_is_told_before_anything_is_changed(machine: Machine, modules: Modules) -> None:
    before = machine.fingerprint()
    assert "vportd does not answer" in modules.refused("adapter_config", **WHOLE)
    assert machine.fingerprint() == before
    assert modules.adapter_config(**STORAGE)["changed"]


def test_check_mode_can_take_earlier_tasks_for_granted(machine: Machine, modules: Modules) -> None:
    vports = {"pf": PF, "vports": WHOLE["vports"], "planned": True}
    foreseen = modules.adapter_config(check=True, **vports)
    assert foreseen["changed"], foreseen
    assert [one["object"] for one in foreseen["changes"]] == ["vport v1", "vport v2"]
    assert "planned as if an earlier task had made it" in str(foreseen["warnings"])
    assert "bind vport v1 to the first free VF on path vf" in foreseen["steps"]
    whole = modules.adapter_config(check=True, **WHOLE, planned=True)
    assert f"bind vport v2 to VF {VF0} on path vf" in whole["steps"]
    assert "no pool" in modules.refused("adapter_config", pf=PF, vdisks=WHOLE["vdisks"], planned=True, check=True)


def test_an_adapter_is_found_by_its_serial_number(machine: Machine, modules: Modules) -> None:
    assert modules.adapter_config(serial="SERIAL-01", vfs={"count": 1})["pf"] == PF
    assert "no NVMe adapter" in modules.refused("adapter_config", serial="none", vfs={"count": 1})
