# SPDX-License-Identifier: GPL-3.0-or-later
"""Every module in every state: check mode touches nothing and foretells the run, and a second run changes nothing.

A module that is in no row fails here. What a row runs on is real where a unit test can have it.
"""

from __future__ import annotations

import copy
import importlib
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.iovlab.storage.plugins.module_utils import _guest_agent, _libvirt
from tests.unit.plugins import libvirt_facts
from tests.unit.plugins.libvirt_hosts import Domain, Network, libvirtError
from tests.unit.plugins.machine import MIB, NQN, PF, SERIAL
from tests.unit.plugins.test_documentation import documentation
from tests.unit.plugins.vportd_server import HOST_ID
from tests.unit.plugins.world import Vm, World, build_lab, port

pytestmark = pytest.mark.xdist_group("lvm")  # one test at a time has volume groups on this machine

ROOT = Path(__file__).resolve().parents[3]
MODULES = sorted(path.stem for path in (ROOT / "plugins/modules").glob("[!_]*.py"))
VF0, VF1 = "0000:01:00.1", "0000:01:00.2"


Arguments = dict[str, Any] | Callable[[World], dict[str, Any]]
Before = tuple[str, dict[str, Any]] | Callable[[World], object]


@dataclass(frozen=True)
class Row:
    """``module`` with ``arguments`` when ``before`` has been done; ``repeats`` says why it does it each time."""

    module: str
    arguments: Arguments
    before: tuple[Before, ...] = ()
    changed: bool = True
    on: tuple[str, ...] = ("emulated",)
    repeats: str = ""
    name: str = ""


# sriov_vf


def _offline(world: World) -> None:
    world.machine.adapter.virt_mgmt({"-c": 2, "-a": 7})


def nothing_by_itself(world: World) -> None:
    world.machine.adapter.automatic.clear()
    world.machine.adapter.namespaces = {1, 2}


def _taken_out(world: World) -> None:
    """The adapter."""
    world.machine.adapter.set_numvfs(0)
    shutil.rmtree(world.machine.sys / f"bus/pci/devices/{PF}")


TWO = ("sriov_vf", {"pf": PF, "count": 2})
KEPT = ("sriov_vf", {"pf": PF, "count": 2, "persistent": True})
VFIO = {"pf": PF, "count": 2, "driver": "vfio-pci"}
SRIOV = [
    Row("sriov_vf", TWO[1], name="fresh"),
    Row("sriov_vf", TWO[1], (TWO,), changed=False, name="there"),
    Row("sriov_vf", {"serial": "SERIAL-01", "count": 4}, name="by serial"),
    Row("sriov_vf", {"pf": PF, "count": 3, "allow_recreate": True}, (TWO,), name="another count"),
    Row("sriov_vf", {"pf": PF, "count": 2, "queues": 2, "interrupts": 1}, (TWO,), name="other resources"),
    Row("sriov_vf", {"pf": PF, "count": 2, "driver": "none"}, (TWO,), name="no driver"),
    Row("sriov_vf", VFIO, (nothing_by_itself, TWO), name="vfio-pci"),
    Row("sriov_vf", VFIO | {"namespaces": [2]}, (nothing_by_itself, ("sriov_vf", VFIO)), name="namespaces"),
    Row("sriov_vf", TWO[1], (TWO, _offline), name="went offline"),
    Row("sriov_vf", TWO[1], (TWO, lambda world: world.machine.adapter.reset_pf()), name="after a reset"),
    Row("sriov_vf", KEPT[1], (TWO,), name="persistent"),
    Row("sriov_vf", TWO[1], (KEPT,), name="no longer persistent"),
    Row("sriov_vf", {"pf": PF, "state": "absent"}, (KEPT,), name="absent"),
    Row("sriov_vf", {"pf": PF, "state": "absent"}, changed=False, name="never there"),
    Row("sriov_vf", {"pf": PF, "state": "absent"}, (KEPT, _taken_out), name="adapter gone"),
]

# pool, vdisk


def _activated(world: World) -> None:
    world.machine.lvm.groups["san"].autoactivation = True


def _without_leases(world: World) -> None:
    del world.machine.lvm.groups["san"].volumes["iovlab_leases"]
    world.machine.lvm.groups["san"].volumes["web1"].tags.discard("iovlab.lease=0")


def _left_over(world: World) -> None:
    """Of a former tenant."""
    world.machine.device.write_bytes(b"secret--" * (world.machine.size // 8))


LVM = ("emulated", "lvm")
GONE = {"state": "absent"}
SAN = {"name": "iovlabtest", "adapter": PF, "extent_size": "1MiB"}
WEB1 = {"pool": "iovlabtest", "adapter": PF, "name": "web1", "size": "2MiB"}
SAN_BY_SERIAL = {"name": "iovlabtest", "serial": SERIAL, "extent_size": "1MiB"}
WEB1_BY_NQN = {"pool": "iovlabtest", "nqn": NQN, "name": "web1", "size": "2MiB"}
POOL: tuple[Before, ...] = (("pool", SAN),)
VDISK: tuple[Before, ...] = (*POOL, ("vdisk", WEB1))
OLD_POOL: tuple[Before, ...] = (("pool", SAN | {"name": "san"}), ("vdisk", WEB1 | {"pool": "san"}))
POOLS = [
    Row("pool", SAN, (_left_over,), on=LVM, name="fresh"),
    Row("pool", SAN, POOL, changed=False, on=LVM, name="there"),
    Row("pool", SAN_BY_SERIAL, on=LVM, name="by serial"),
    Row("pool", {"name": "iovlabtest", "nqn": NQN}, POOL, changed=False, on=LVM, name="there, by NQN"),
    Row("pool", SAN | {"name": "san"}, (*OLD_POOL, _activated), name="would be activated"),
    Row("pool", SAN | {"name": "san"}, (*OLD_POOL, _without_leases), name="without leases"),
    Row("pool", SAN | {"state": "absent"}, POOL, on=LVM, name="absent"),
    Row("pool", SAN | {"state": "absent"}, changed=False, on=LVM, name="never there"),
    Row("vdisk", WEB1, (_left_over, *POOL), on=LVM, name="fresh"),
    Row("vdisk", WEB1, VDISK, changed=False, on=LVM, name="there"),
    Row("vdisk", WEB1_BY_NQN, POOL, on=LVM, name="by NQN"),
    Row("vdisk", {**WEB1_BY_NQN, **GONE}, VDISK, on=LVM, name="absent, by NQN"),
    Row("vdisk", WEB1 | {"size": "1500000"}, POOL, on=LVM, name="rounded up"),
    Row("vdisk", WEB1 | {"size": "4MiB"}, (*VDISK, ("vdisk", WEB1 | {"name": "web2"})), on=LVM, name="grown"),
    Row("vdisk", WEB1 | {"wipe": False}, POOL, on=LVM, name="not wiped"),
    Row("vdisk", WEB1, (*POOL, ("vdisk", WEB1 | {"wipe": False})), on=LVM, name="wiped later"),
    Row("vdisk", {**WEB1, "state": "absent"}, VDISK, on=LVM, name="absent"),
    Row("vdisk", {**WEB1, "state": "absent"}, POOL, changed=False, on=LVM, name="never there"),
]

# vport and what is done to it


def _no_free_vf(world: World) -> None:
    for vf in world.vportd.adapters[0]["vfs"]:
        vf["vport"] = "another"


def leased(state: str, owner: str, following: str | None = None) -> Callable[[World], None]:
    def prepare(world: World) -> None:
        name = {"1" * 32: "hv1", HOST_ID: "hv2"}[owner]
        lease = {"lun": 0, "vdisk": "root", "offset": 4096, "state": state, "owner": owner, "owner_name": name}
        world.vportd.leases = [lease | {"generation": 5, "next": following}]

    return prepare


BOTH = ("emulated", "engine")
LUNS: list[dict[str, Any]] = [
    {"lun": 0, "vdisk": "root", "extents": [[0, "1MiB", "1MiB"], ["1MiB", "4MiB", "1MiB"]]},
    {"lun": 1, "vdisk": "data", "extents": [[0, 8 * MIB, MIB]], "readonly": True},
]
V1 = {"vport": "v1"}
VPORT: tuple[Before, ...] = (("vport", {"name": "v1"}),)
MAPPED: tuple[Before, ...] = (*VPORT, ("adapter_mapping", {**V1, "luns": LUNS}))
BOUND: tuple[Before, ...] = (*MAPPED, ("vport_binding", V1))
ON_PF: tuple[Before, ...] = (*BOUND, ("vport_binding", {**V1, "path": "pf"}))
FROM_POOL = {**V1, "pool": "iovlabtest", "luns": [{"lun": 5, "vdisk": "web1"}]}
VPORTS = [
    Row("vport", {"name": "v1"}, on=BOTH, name="fresh"),
    Row("vport", {"name": "v1"}, VPORT, changed=False, on=BOTH, name="there"),
    Row("vport", {"name": "v1", "serial": SERIAL}, on=BOTH, name="by serial"),
    Row("vport", {"name": "v1", "nqn": NQN}, VPORT, changed=False, on=BOTH, name="there, by NQN"),
    Row("vport", {"name": "v1", "serial": SERIAL, **GONE}, VPORT, on=BOTH, name="absent, by serial"),
    Row("vport", {"name": "v1", "incoming": True}, on=BOTH, name="incoming"),
    Row("vport", {"name": "v1", **GONE}, MAPPED, on=BOTH, name="absent"),
    Row("vport", {"name": "v1", "force": True, **GONE}, BOUND, on=BOTH, name="absent by force"),
    Row("vport", {"name": "v1", **GONE}, changed=False, on=BOTH, name="never there"),
    Row("adapter_mapping", {**V1, "luns": LUNS}, VPORT, on=BOTH, name="fresh"),
    Row("adapter_mapping", {**V1, "luns": LUNS, "nqn": NQN}, VPORT, on=BOTH, name="by NQN"),
    Row("adapter_mapping", {**V1, "luns": LUNS, "serial": SERIAL}, MAPPED, changed=False, on=BOTH, name="by serial"),
    Row("adapter_mapping", {**V1, "luns": LUNS[::-1]}, MAPPED, changed=False, on=BOTH, name="there"),
    Row("adapter_mapping", {**V1, "luns": LUNS[:1], "generation": 1}, MAPPED, on=BOTH, name="other LUNs"),
    Row("adapter_mapping", FROM_POOL, (*VDISK, *VPORT), name="from the pool"),
    Row("adapter_mapping", {**V1, **GONE}, MAPPED, on=BOTH, name="absent"),
    Row("adapter_mapping", {**V1, **GONE}, VPORT, changed=False, on=BOTH, name="never there"),
    Row("adapter_mapping", {**V1, **GONE}, changed=False, on=BOTH, name="no vport"),
    Row("vport_binding", V1, MAPPED, on=BOTH, name="fresh"),
    Row("vport_binding", V1, BOUND, changed=False, on=BOTH, name="there"),
    Row("vport_binding", {**V1, "vf": VF1, "path": "pf"}, MAPPED, on=BOTH, name="one VF, on the PF"),
    Row("vport_binding", {**V1, "path": "pf"}, BOUND, on=BOTH, name="to the PF"),
    Row("vport_binding", V1, ON_PF, on=BOTH, name="to the VF"),
    Row(
        "vport_binding",
        {**V1, "on_no_vf": "stay_on_pf"},
        (*MAPPED, _no_free_vf),
        changed=False,
        name="stays on the PF",
    ),
    Row("vport_binding", {**V1, **GONE}, BOUND, on=BOTH, name="absent"),
    Row("vport_binding", {**V1, **GONE}, MAPPED, changed=False, on=BOTH, name="never bound"),
    Row("vport_fence", V1, MAPPED, on=BOTH, name="now"),
    Row("vport_fence", {**V1, "when": "on_stop"}, MAPPED, on=BOTH, name="on_stop"),
    Row("vport_fence", {**V1, "when": "on_stop", "next": "3" * 32}, MAPPED, on=BOTH, name="next"),
    Row("vport_fence", V1, (*MAPPED, ("vport_fence", V1)), changed=False, on=BOTH, name="there"),
    Row("vport_fence", {**V1, **GONE}, (*MAPPED, ("vport_fence", V1)), on=BOTH, name="absent"),
    Row("vport_fence", {**V1, **GONE}, MAPPED, changed=False, on=BOTH, name="never fenced"),
    Row("vport_lease", V1, (*MAPPED, leased("free", "1" * 32)), name="free"),
    Row("vport_lease", V1, (*MAPPED, leased("handed", "1" * 32, HOST_ID)), name="handed over"),
    Row("vport_lease", {**V1, "break": True}, (*MAPPED, leased("elsewhere", "1" * 32)), name="broken"),
    Row("vport_lease", V1, (*MAPPED, leased("held", HOST_ID)), changed=False, name="held"),
    Row("vport_lease", V1, MAPPED, changed=False, on=BOTH, name="none needed"),
]

# virtual machines

DISK = "<disk type='vhostuser' device='disk'><source type='unix' path='/run/vportd/v1/0.sock'/></disk>"
MIGRATED = {"name": "web1", "destination": Network.DESTINATION}
ABORTED = {"name": "web1", "state": "aborted"}


def _on_a_vport(world: World) -> dict[str, Any]:
    """Its disk; the destination has the same vport."""
    there = copy.deepcopy(world.modules.vport_info()["vports"])
    world.vportd.connected["v1", 0] = {"pid": 77, "comm": "qemu-system-x86"}
    world.guests.domain.devices = DISK
    return MIGRATED | {"destination_vports": there}


def _runs_there(world: World) -> None:
    world.network.there.domains["web1"] = Domain(world.network.there, "web1")
    world.guests.domain.state_now = 5


def _only_there(world: World) -> None:
    _runs_there(world)
    del world.guests.host.domains["web1"]


def under_way(world: World) -> None:
    """Somebody migrates it."""
    world.network.proceed.clear()

    def migrate() -> None:
        with pytest.raises(libvirtError, match="canceled by client"):
            world.guests.domain.migrate3(world.network.there, {}, 1)

    world.threads.append(threading.Thread(target=migrate))
    world.threads[-1].start()
    assert world.network.started.wait(10)


def _sleeper(world: World) -> dict[str, Any]:
    """A program that runs on while it is asked about."""
    return {"name": "web1", "pid": world.modules.guest_exec(**SLEEP)["pid"], "wait": False}


SLEEP = {"name": "web1", "argv": ["sleep", "1000"], "wait": False}
TRUE = {"name": "web1", "argv": ["true"]}
GUESTS = [
    Row("vm_migrate", MIGRATED, name="migrated"),
    Row("vm_migrate", _on_a_vport, MAPPED, name="with a vport"),
    Row("vm_migrate", MIGRATED, (_runs_there,), name="definition left behind"),
    Row("vm_migrate", MIGRATED, (_only_there,), changed=False, name="there"),
    Row("vm_migrate", ABORTED, (under_way,), name="aborted"),
    Row("vm_migrate", ABORTED, changed=False, name="nothing to abort"),
    Row("guest_exec", TRUE, repeats="a program is started each time", name="run"),
    Row("guest_exec", SLEEP, repeats="a program is started each time", name="started"),
    Row("guest_exec", _sleeper, changed=False, name="asked about"),
]

# the lab


def _image(world: World) -> dict[str, Any]:
    return {"files": str(world.lab / "files"), "cache": str(world.lab / "cache")}


def _image_there(world: World) -> None:
    assert world.modules.lab_image(**_image(world))["changed"]


def _others_there(world: World) -> None:
    for used, key in enumerate(("old", "older"), 1000):
        (world.lab / "cache" / "images" / key).mkdir(parents=True)
        os.utime(world.lab / "cache" / "images" / key, (-used, -used))


def _image_fresh(world: World) -> dict[str, Any]:
    return _image(world) | {"refresh": True}


def _is(state: str) -> Callable[[World], None]:
    def prepare(world: World) -> None:
        assert world.modules.lab_vm(**Vm(state)(world))["vm"]["state"] == state

    return prepare


LAB = [
    Row("lab_image", _image, name="fresh"),
    Row("lab_image", _image, (_others_there,), name="one too many"),
    Row("lab_image", _image, (_image_there,), changed=False, name="there"),
    Row("lab_image", _image_fresh, (_image_there,), repeats="it is asked for a fresh image", name="refreshed"),
    Row("lab_vm", Vm("started"), name="started"),
    Row("lab_vm", Vm("started"), (_is("started"),), changed=False, name="runs"),
    Row("lab_vm", Vm("started"), (_is("started"), _is("stopped")), name="started again"),
    Row("lab_vm", Vm("stopped"), (_is("started"),), name="stopped"),
    Row("lab_vm", Vm("stopped"), changed=False, name="stopped, never there"),
    Row("lab_vm", Vm("absent"), (_is("started"),), name="absent"),
    Row("lab_vm", Vm("absent"), changed=False, name="never there"),
]

WHOLE = {
    "pf": PF,
    "vfs": {"count": 2},
    "pool": {"name": "iovlabtest", "extent_size": "1MiB"},
    "vdisks": [{"name": "web1", "size": "2MiB"}, {"name": "web2", "size": "1MiB"}],
}
ALL_VPORTS = {"pf": PF, "vports": [{"name": "v1", "luns": LUNS}]}
CONFIGS = [
    Row("adapter_config", WHOLE, (_left_over,), on=LVM, name="storage, fresh"),
    Row("adapter_config", WHOLE, (("adapter_config", WHOLE),), changed=False, on=LVM, name="storage, there"),
    Row("adapter_config", WHOLE, (*POOL, ("vdisk", WEB1 | {"size": "1MiB"})), on=LVM, name="storage, half of it"),
    Row("adapter_config", ALL_VPORTS, on=BOTH, name="vports, fresh"),
    Row("adapter_config", ALL_VPORTS, BOUND, changed=False, on=BOTH, name="vports, there"),
    Row("adapter_config", ALL_VPORTS, VPORT, on=BOTH, name="vports, half of it"),
]

ROWS = [*SRIOV, *POOLS, *VPORTS, *CONFIGS, *GUESTS, *LAB]
INFO: dict[str, Arguments] = {
    "adapter_mapping_info": {},
    "hypervisor_info": {},
    "lab_preflight": lambda world: {
        "lab": "t",
        "directory": str(world.lab / "vms"),
        "cache": str(world.lab / "cache"),
        "vms": [{"name": "hv1", "memory": 1, "ssh_port": port(world)}],
    },
    "lab_vm_info": lambda world: {"directory": str(world.lab / "vms")},
    "sriov_vf_info": {},
    "vdisk_info": {"pool": "iovlabtest", "adapter": PF},
    "vport_info": {},
}

# What of a module is an emulation above, and the test on the lab in which it is not.
ON_THE_LAB = {
    "sriov_vf": ("the adapter and the kernel", "molecule/default/prepare.yml", "Check that nothing has changed"),
    "lab_image": ("mmdebstrap", "molecule/default/create.yml", "iovlab.storage.lab_up"),
    "lab_vm": ("the system in the VM", "molecule/default/create.yml", "iovlab.storage.lab_up"),
    "vport_lease": ("another hypervisor", "molecule/faults/tests/test_lease.py", "def test_back_from_the_dead"),
    "vm_migrate": (
        "libvirt and QEMU",
        "molecule/faults/tests/test_power.py",
        "def test_a_hypervisor_is_emptied_booted_and_filled_again",
    ),
    "guest_exec": (
        "libvirt and QEMU's guest agent",
        "molecule/default/tests/test_engine.py",
        "def test_the_vm_sees_its_addresses_and_nothing_physical",
    ),
}


def _given(world: World, arguments: Arguments) -> dict[str, Any]:
    return arguments(world) if callable(arguments) else arguments


CASES = [
    pytest.param(ground, row, id=f"{row.module}-{row.name}-{ground}".replace(" ", "_"))
    for row in ROWS
    for ground in row.on
]


@pytest.mark.parametrize(("world", "row"), CASES, indirect=["world"])
def test_check_mode_touches_nothing_and_a_second_run_changes_nothing(world: World, row: Row) -> None:
    if row.module.startswith("lab_"):
        build_lab(world)
    for step in row.before:
        if callable(step):
            step(world)
        else:
            done = world.modules.run(step[0], False, step[1])
            assert not done.get("failed"), done
    arguments = _given(world, row.arguments)
    proof = world.modules.foretold if row.repeats else world.modules.settles
    result = proof(row.module, world.fingerprint, **arguments)
    assert result["changed"] is row.changed
    if row.changed and "diff" in result:
        assert result["diff"]["before"] != result["diff"]["after"] or row.repeats, (
            "a change that the diff does not show"
        )


@pytest.mark.parametrize("check", [True, False], ids=["check", "run"])
@pytest.mark.parametrize("module", INFO)
def test_a_module_that_reads_touches_nothing(
    world: World, module: str, check: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, arguments in [TWO, *[step for step in (*VDISK, *BOUND) if not callable(step)]]:
        assert world.modules.run(name, False, arguments)["changed"]
    if module.startswith("lab_"):
        build_lab(world)
        _is("started")(world)
        (world.lab / "port").unlink()  # the VM has that one
    library = libvirt_facts.Library()
    library.local.domains.append(libvirt_facts.Domain())
    monkeypatch.setattr(_libvirt, "load", lambda: library.module)
    monkeypatch.setattr(_guest_agent, "load", lambda: libvirt_facts.load_both(library))
    arguments = _given(world, INFO[module])
    before = world.fingerprint()
    result = world.modules.run(module, check, arguments)
    if module == "lab_preflight" and result.get("failed"):
        assert "the lab can't start" in result["msg"]  # whatever this machine lacks
    else:
        assert not result.get("failed"), result
    assert not result.get("changed")
    assert world.fingerprint() == before


def test_every_module_is_in_a_table() -> None:
    """It changes something and has rows, or changes nothing and is among those that read."""
    assert sorted({row.module for row in ROWS} | set(INFO)) == MODULES
    assert not {row.module for row in ROWS} & set(INFO)


def test_every_state_of_a_module_is_in_a_row() -> None:
    lacking = []
    for module in sorted({row.module for row in ROWS}):
        spec = importlib.import_module(f"ansible_collections.iovlab.storage.plugins.modules.{module}").SPEC
        state = spec.options.get("state")
        if state is None:
            continue
        shown = {_state(row, state["default"]) for row in ROWS if row.module == module}
        lacking += [f"{module} state={choice}" for choice in state["choices"] if choice not in shown]
    assert lacking == []


def _state(row: Row, default: str) -> str:
    given = row.arguments
    found: str = getattr(given, "state", default) if callable(given) else given.get("state", default)
    return found


def test_what_repeats_itself_says_so() -> None:
    """A row may leave out the second run only where the module's documentation leaves out the promise."""
    for module in {row.module for row in ROWS if row.repeats}:
        doc = documentation()[module]["doc"]
        assert doc["attributes"]["idempotent"]["support"] in ("partial", "none"), module


@pytest.mark.parametrize("module", ON_THE_LAB)
def test_what_is_emulated_here_is_shown_on_the_lab(module: str) -> None:
    __, path, text = ON_THE_LAB[module]
    assert text in (ROOT / path).read_text(encoding="utf-8")
    scenario = yaml.safe_load((ROOT / Path(*Path(path).parts[:2]) / "molecule.yml").read_text(encoding="utf-8"))
    assert {"create", "verify"} <= set(scenario["scenario"]["test_sequence"])
