# SPDX-License-Identifier: GPL-3.0-or-later
"""pool, vdisk and vdisk_info: space is given out once, and never with a former tenant's data in it."""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import Callable
from typing import Any

import pytest

from ansible_collections.iovlab.storage.plugins.module_utils import _zero
from tests.unit.plugins.machine import MIB, NQN, PF, SERIAL, Machine, Volume
from tests.unit.plugins.runner import Modules
from tests.unit.plugins.vportd_server import Engine

SAN: dict[str, Any] = {"pool": "san", "adapter": PF}


@pytest.fixture
def pool(machine: Machine, modules: Modules) -> Modules:
    """A pool ``san`` of 23 extents of 1 MiB, 4 of them for leases, on a namespace full of a former tenant's data."""
    machine.device.write_bytes(b"secret--" * (machine.size // 8))
    modules.pool(name="san", adapter=PF, extent_size="1MiB")
    return modules


def _lun(lun: int, vdisk: str, *extents: list[int]) -> dict[str, Any]:
    return {"lun": lun, "vdisk": vdisk, "readonly": False, "extents": list(extents)}


def test_a_pool_is_created_for_no_host_to_activate(machine: Machine, modules: Modules) -> None:
    result = modules.settles("pool", machine.fingerprint, name="san", adapter=PF, extent_size="1MiB")
    assert result["pool"]["extent_size"] == MIB
    assert result["pool"]["vdisks"] == []
    assert not machine.lvm.groups["san"].autoactivation


def test_a_pool_that_hosts_would_activate_is_corrected(machine: Machine, pool: Modules) -> None:
    machine.lvm.groups["san"].autoactivation = True
    assert pool.settles("pool", machine.fingerprint, name="san", adapter=PF)["changed"]


def test_an_empty_pool_is_removed(machine: Machine, pool: Modules) -> None:
    assert pool.settles("pool", machine.fingerprint, name="san", adapter=PF, state="absent")["pool"] == {}


def test_a_pool_that_holds_vdisks_stays(machine: Machine, pool: Modules) -> None:
    pool.vdisk(**SAN, name="web1", size="2MiB")
    before = machine.fingerprint()
    assert "1 vdisks (web1)" in pool.refused("pool", name="san", adapter=PF, state="absent")
    assert machine.fingerprint() == before


def test_a_pool_has_a_volume_of_leases_that_is_no_vdisk(machine: Machine, pool: Modules) -> None:
    assert machine.lvm.groups["san"].volumes["iovlab_leases"].tags == {f"iovlab.wiped={4 * MIB}"}
    assert machine.device.read_bytes()[MIB : 5 * MIB] == bytes(4 * MIB)
    assert pool.vdisk_info(**SAN)["vdisks"] == []


def test_a_pool_without_leases_and_its_vdisks_get_them_by_the_next_run(machine: Machine, pool: Modules) -> None:
    pool.vdisk(**SAN, name="web1", size="2MiB")
    volumes = machine.lvm.groups["san"].volumes
    del volumes["iovlab_leases"]
    volumes["web1"].tags.discard("iovlab.lease=0")
    assert pool.vdisk_info(**SAN)["vdisks"][0]["lease"] is None
    assert not pool.vdisk(**SAN, name="web1", size="2MiB")["changed"]
    result = pool.settles("pool", machine.fingerprint, name="san", adapter=PF)
    assert result["diff"]["before"]["leases"] is False
    assert result["diff"]["after"]["leases"] is True
    result = pool.settles("vdisk", machine.fingerprint, **SAN, name="web1", size="2MiB")
    assert result["steps"] == ["give vdisk web1 lease 0"]
    assert result["vdisk"]["lease"] == MIB


def test_a_run_killed_before_the_leases_were_zeroed_is_finished_by_the_next(
    machine: Machine, modules: Modules, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.device.write_bytes(b"secret--" * (machine.size // 8))

    def killed(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_zero, "zero", killed)
        with pytest.raises(KeyboardInterrupt):
            modules.pool(name="san", adapter=PF, extent_size="1MiB")
    assert modules.vdisk(**SAN, name="web1", size="1MiB")["vdisk"]["lease"] is None
    result = modules.settles("pool", machine.fingerprint, name="san", adapter=PF)
    assert result["steps"] == ["zero the leases of pool san"]
    assert machine.device.read_bytes()[MIB : 5 * MIB] == bytes(4 * MIB)
    assert modules.vdisk(**SAN, name="web1", size="1MiB")["vdisk"]["lease"] == MIB


def test_a_pool_without_room_for_leases_says_so(machine: Machine, pool: Modules) -> None:
    del machine.lvm.groups["san"].volumes["iovlab_leases"]
    pool.vdisk(**SAN, name="web1", size="20MiB")
    result = pool.settles("pool", machine.fingerprint, name="san", adapter=PF)
    assert not result["changed"]
    assert "no 4 MiB left for leases" in str(result["warnings"])


def test_somebody_elses_volume_of_that_name_is_left_alone(machine: Machine, pool: Modules) -> None:
    machine.lvm.groups["san"].volumes["iovlab_leases"].tags.clear()
    before = machine.fingerprint()
    assert "lvrename" in pool.refused("pool", name="san", adapter=PF)
    assert machine.fingerprint() == before


def test_the_lowest_free_lease_is_given_and_what_it_held_is_zeroed(machine: Machine, pool: Modules) -> None:
    leases = [pool.vdisk(**SAN, name=name, size="1MiB")["vdisk"]["lease"] for name in ("a", "b", "c")]
    assert leases == [MIB, MIB + 4096, MIB + 8192]
    pool.vdisk(**SAN, name="b", state="absent", check_vports=False)
    with machine.device.open("r+b") as file:
        file.seek(MIB + 4096)
        file.write(b"left over" * 400)
    assert pool.vdisk(**SAN, name="d", size="1MiB")["vdisk"]["lease"] == MIB + 4096
    assert machine.device.read_bytes()[MIB + 4096 : MIB + 8192] == bytes(4096)


def _renew(machine: Machine, state: int, stamp: int) -> None:
    fields = struct.pack(
        "<8sIIQQ16s16s16s64s128sQ", b"IOVLEASE", 1, state, 1, stamp, b"2" * 16, b"n" * 16, b"", b"hv2", b"web1", 2000
    )
    with machine.device.open("r+b") as file:
        file.seek(MIB)
        file.write((fields + hashlib.sha256(fields).digest()).ljust(4096, b"\0"))


def test_a_vdisk_whose_lease_another_host_renews_stays(
    machine: Machine, pool: Modules, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.vdisk(**SAN, name="web1", size="2MiB")
    _renew(machine, 2, 1)
    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", lambda _seconds: _renew(machine, 2, 2))
        message = pool.refused("vdisk", **SAN, name="web1", state="absent")
    assert "vdisk web1 is in use on hv2" in message
    assert pool.vdisk_info(**SAN)["vdisks"][0]["name"] == "web1"
    assert pool.vdisk(**SAN, name="web1", state="absent")["changed"], "its owner gives no sign of life"


def test_a_free_lease_is_not_watched(
    machine: Machine, pool: Modules, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.vdisk(**SAN, name="web1", size="2MiB")
    _renew(machine, 0, 1)
    monkeypatch.setattr(time, "sleep", lambda _seconds: pytest.fail("it waited"))
    assert pool.vdisk(**SAN, name="web1", state="absent")["changed"]


def test_a_namespace_with_a_file_system_is_refused(machine: Machine, modules: Modules) -> None:
    machine.lvm.signature = "ext4"
    before = machine.fingerprint()
    assert "holds ext4" in modules.refused("pool", name="san", adapter=PF)
    assert machine.fingerprint() == before


def test_a_namespace_with_another_pool_is_refused(machine: Machine, pool: Modules) -> None:
    before = machine.fingerprint()
    assert "it holds pool san" in pool.refused("pool", name="other", adapter=PF)
    assert machine.fingerprint() == before


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"name": "san", "adapter": "0000:09:00.0"}, "no PCI device"),
        ({"name": "san", "adapter": PF, "nsid": 7}, "no namespace 7"),
        ({"name": "san", "adapter": PF, "extent_size": "3MiB"}, "power of two"),
        ({"name": "san", "adapter": PF, "extent_size": "1GiB"}, "no extent"),
        ({"name": "-x", "adapter": PF}, "'-x' is not a usable name"),
    ],
)
def test_a_pool_that_cannot_be_is_refused(
    machine: Machine, modules: Modules, arguments: dict[str, Any], word: str
) -> None:
    before = machine.fingerprint()
    assert word in modules.refused("pool", **arguments)
    assert machine.fingerprint() == before


BY_NAME: list[tuple[str, dict[str, Any]]] = [
    ("pool", {"name": "san"}),
    ("pool", {"name": "san", "state": "absent"}),
    ("vdisk", {"pool": "san", "name": "web1", "size": "2MiB"}),
    ("vdisk", {"pool": "san", "name": "web1", "state": "absent"}),
    ("vdisk_info", {"pool": "san"}),
]


@pytest.mark.parametrize("check", [False, True], ids=["run", "check"])
@pytest.mark.parametrize(("module", "arguments"), BY_NAME)
def test_an_adapter_that_no_name_or_more_than_one_fits_is_refused(
    machine: Machine, pool: Modules, module: str, arguments: dict[str, Any], check: bool
) -> None:
    before = machine.fingerprint()
    assert f"{PF} has {SERIAL}); correct it, or give adapter" in pool.refused(
        module, check, **arguments, serial="OTHER"
    )
    assert f"nqn: no NVMe adapter with SR-IOV on this host has {SERIAL}" in pool.refused(
        module, check, **arguments, nqn=SERIAL
    )
    assert "adapter: 'one' is not a PCI address" in pool.refused(module, check, **arguments, adapter="one")
    assert "mutually exclusive" in pool.run(module, check, {**arguments, "adapter": PF, "serial": SERIAL})["msg"]
    assert "required: adapter, serial, nqn" in pool.run(module, check, arguments)["msg"]
    assert machine.fingerprint() == before
    machine.double()
    before = machine.fingerprint()
    for name in ({"serial": SERIAL}, {"nqn": NQN}):
        message = pool.refused(module, check, **arguments, **name)
        assert f"2 adapters ({PF}, 0000:05:00.0); give adapter, the address of one" in message
    assert machine.fingerprint() == before


@pytest.mark.parametrize("name", [{"serial": SERIAL}, {"nqn": NQN}])
def test_vdisks_are_read_by_any_name_of_the_adapter(pool: Modules, name: dict[str, Any]) -> None:
    pool.vdisk(**SAN, name="web1", size="2MiB")
    assert pool.vdisk_info(pool="san", **name) == pool.vdisk_info(**SAN)


@pytest.mark.parametrize("name", [{"serial": SERIAL}, {"nqn": NQN}])
def test_a_vdisk_that_is_mapped_stays_by_any_name_of_the_adapter(
    pool: Modules, engine: Engine, name: dict[str, Any]
) -> None:
    pool.vdisk(**SAN, name="web1", size="2MiB")
    pool.vport(name="v1")
    pool.adapter_mapping(vport="v1", pool="san", luns=[{"lun": 0, "vdisk": "web1"}])
    assert "vport v1" in pool.refused("vdisk", pool="san", name="web1", state="absent", **name)


def test_a_vdisk_is_ready_when_nothing_of_the_former_tenant_is_left(machine: Machine, pool: Modules) -> None:
    result = pool.settles("vdisk", machine.fingerprint, **SAN, name="web1", size="3MiB")
    vdisk = result["vdisk"]
    assert (vdisk["size"], vdisk["wiped"], vdisk["ready"]) == (3 * MIB, 3 * MIB, True)
    assert vdisk["extents"] == [[0, 5 * MIB, 3 * MIB]]
    data = machine.device.read_bytes()
    assert data[5 * MIB : 8 * MIB] == bytes(3 * MIB)
    assert data[:MIB] == b"secret--" * (MIB // 8)
    assert data[8 * MIB :].startswith(b"secret--")


def test_growing_wipes_what_is_new_and_keeps_what_is_there(machine: Machine, pool: Modules) -> None:
    pool.vdisk(**SAN, name="web1", size="2MiB")
    pool.vdisk(**SAN, name="web2", size="1MiB")
    with machine.device.open("r+b") as file:
        file.seek(5 * MIB)
        file.write(b"tenant's own" * 1000)
    result = pool.settles("vdisk", machine.fingerprint, **SAN, name="web1", size="4MiB")
    assert result["vdisk"]["extents"] == [[0, 5 * MIB, 2 * MIB], [2 * MIB, 8 * MIB, 2 * MIB]]
    data = machine.device.read_bytes()
    assert data[5 * MIB :].startswith(b"tenant's own" * 1000)
    assert data[8 * MIB : 10 * MIB] == bytes(2 * MIB)


def test_a_size_is_rounded_up_and_that_is_said(machine: Machine, pool: Modules) -> None:
    result = pool.settles("vdisk", machine.fingerprint, **SAN, name="web1", size="1500000")
    assert result["vdisk"]["size"] == 2 * MIB
    assert "rounded up to 2097152" in str(result["warnings"])


def test_a_run_killed_before_the_wipe_is_finished_by_the_next(
    machine: Machine, pool: Modules, monkeypatch: pytest.MonkeyPatch
) -> None:
    zero = _zero.zero

    def killed(path: str, offset: int, length: int) -> None:
        if length > 4096:  # not the block of a lease, but the vdisk
            raise KeyboardInterrupt
        zero(path, offset, length)

    with monkeypatch.context() as patch:
        patch.setattr(_zero, "zero", killed)
        with pytest.raises(KeyboardInterrupt):
            pool.vdisk(**SAN, name="web1", size="2MiB")
    assert not pool.vdisk_info(**SAN)["vdisks"][0]["ready"]
    result = pool.settles("vdisk", machine.fingerprint, **SAN, name="web1", size="2MiB")
    assert result["steps"] == ["zero 2 MiB of vdisk web1"]
    assert result["vdisk"]["ready"]
    assert machine.device.read_bytes()[5 * MIB : 7 * MIB] == bytes(2 * MIB)


def test_wipe_can_be_left_to_a_later_run(machine: Machine, pool: Modules) -> None:
    result = pool.settles("vdisk", machine.fingerprint, **SAN, name="web1", size="2MiB", wipe=False)
    assert not result["vdisk"]["ready"]
    assert pool.settles("vdisk", machine.fingerprint, **SAN, name="web1", size="2MiB")["vdisk"]["ready"]


def test_a_vdisk_is_removed(machine: Machine, pool: Modules, engine: Engine) -> None:
    pool.vdisk(**SAN, name="web1", size="2MiB")
    assert pool.settles("vdisk", machine.fingerprint, **SAN, name="web1", state="absent")["vdisk"] == {}


def _shrink(machine: Machine) -> dict[str, Any]:
    return {"name": "web1", "size": "1MiB"}


def _does_not_fit(machine: Machine) -> dict[str, Any]:
    return {"name": "web2", "size": "18MiB"}


def _does_not_fit_grown(machine: Machine) -> dict[str, Any]:
    return {"name": "web1", "size": "20MiB"}


def _foreign(machine: Machine) -> dict[str, Any]:
    machine.lvm.groups["san"].volumes["web1"].tags.clear()
    return {"name": "web1", "size": "3MiB"}


def _striped(machine: Machine) -> dict[str, Any]:
    machine.lvm.groups["san"].volumes["web1"].kind = "striped"
    return {"name": "web1", "size": "3MiB"}


def _active(machine: Machine) -> dict[str, Any]:
    machine.write("class/block/dm-3/dm/uuid", "LVM-AAAAAABBBBweb1")
    return {"name": "web1", "size": "3MiB"}


def _no_size(machine: Machine) -> dict[str, Any]:
    return {"name": "web2", "size": "0"}


def _bad_size(machine: Machine) -> dict[str, Any]:
    return {"name": "web2", "size": "-5MiB"}


def _bad_name(machine: Machine) -> dict[str, Any]:
    return {"name": "web/2", "size": "1MiB"}


def _no_pool(machine: Machine) -> dict[str, Any]:
    return {"pool": "other", "name": "web2", "size": "1MiB"}


def _two_devices(machine: Machine) -> dict[str, Any]:
    machine.lvm.devices = 2
    return {"name": "web2", "size": "1MiB"}


def _no_lvm(machine: Machine) -> dict[str, Any]:
    machine.missing |= {"pvs", "lvs"}
    return {"name": "web2", "size": "1MiB"}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_shrink, ["cannot shrink"]),
        (_does_not_fit, ["does not fit", "17 MiB free"]),
        (_does_not_fit_grown, ["does not fit", "18 MiB more needed", "17 MiB free"]),
        (_foreign, ["left alone", "iovlab.wiped"]),
        (_striped, ["no linear volume"]),
        (_active, ["active on this host as dm-3", "lvchange"]),
        (_no_size, ["0 bytes"]),
        (_bad_size, ["'-5MiB' is not a size"]),
        (_bad_name, ["'web/2' is not a usable name"]),
        (_no_pool, ["no pool other", "holds pool san"]),
        (_two_devices, ["spans 2 devices"]),
        (_no_lvm, ["install the package lvm2"]),
    ],
)
@pytest.mark.parametrize("check", [False, True])
def test_a_vdisk_that_cannot_be_is_refused_before_anything_is_touched(
    machine: Machine, pool: Modules, spoil: Callable[[Machine], dict[str, Any]], words: list[str], check: bool
) -> None:
    pool.vdisk(**SAN, name="web1", size="2MiB")
    arguments = SAN | spoil(machine)
    before = machine.fingerprint()
    message = pool.refused("vdisk", check=check, **arguments)
    assert [word for word in words if word not in message] == []
    assert machine.fingerprint() == before


def test_a_pool_that_is_not_there_is_named(machine: Machine, modules: Modules) -> None:
    assert "no pool san" in modules.refused("vdisk", **SAN, name="web1", size="1MiB")
    assert "no pool san" in modules.refused("vdisk_info", **SAN)


def test_a_vdisk_that_a_vport_maps_stays(machine: Machine, pool: Modules, engine: Engine) -> None:
    pool.vdisk(**SAN, name="web1", size="2MiB")
    engine.call("vport_create", {"vport": "v1"})
    engine.call(
        "mapping_set", {"vport": "v1", "expected_generation": None, "luns": [_lun(3, "web1", [0, 5 * MIB, 2 * MIB])]}
    )
    before = machine.fingerprint()
    assert "mapped by vport v1 as LUN 3" in pool.refused("vdisk", **SAN, name="web1", state="absent")
    assert machine.fingerprint() == before


def test_a_vdisk_is_not_removed_while_nobody_can_say_who_maps_it(machine: Machine, pool: Modules) -> None:
    pool.vdisk(**SAN, name="web1", size="2MiB")
    before = machine.fingerprint()
    assert "systemctl start vportd" in pool.refused("vdisk", **SAN, name="web1", state="absent")
    assert machine.fingerprint() == before
    assert pool.vdisk(**SAN, name="web1", state="absent", check_vports=False)["changed"]


def test_extents_that_a_vport_maps_by_hand_are_not_zeroed(machine: Machine, pool: Modules, engine: Engine) -> None:
    engine.call("vport_create", {"vport": "v1"})
    engine.call(
        "mapping_set", {"vport": "v1", "expected_generation": None, "luns": [_lun(0, "byhand", [0, 6 * MIB, MIB])]}
    )
    before = machine.device.read_bytes()
    message = pool.refused("vdisk", **SAN, name="web1", size="3MiB")
    assert "mapped by vport v1 as LUN 0" in message
    assert machine.device.read_bytes() == before
    assert not pool.vdisk_info(**SAN)["vdisks"][0]["ready"]


def test_info_reads_extents_without_a_lock(machine: Machine, pool: Modules) -> None:
    pool.vdisk(**SAN, name="web1", size="2MiB")
    machine.lvm.groups["san"].volumes["foreign"] = Volume([(12, 1)], set())
    machine.commands.clear()
    before = machine.fingerprint()
    result = pool.vdisk_info(**SAN)
    assert [(vdisk["name"], vdisk["ready"], vdisk["wiped"]) for vdisk in result["vdisks"]] == [
        ("foreign", False, None),
        ("web1", True, 2 * MIB),
    ]
    assert all("--readonly" in command for command in machine.commands)
    assert [vdisk["name"] for vdisk in pool.vdisk_info(**SAN, name="web1")["vdisks"]] == ["web1"]
    assert machine.fingerprint() == before
