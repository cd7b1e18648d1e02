# SPDX-License-Identifier: GPL-3.0-or-later
"""EXAMPLES of every module run as they stand: in check mode, which foretells it, and then for real.

An example that uses what an earlier one registers gets it from there. Only what a test must not touch is another one:
directories of the lab, its ssh port, and the address of a peer.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from jinja2 import StrictUndefined
from jinja2.nativetypes import NativeEnvironment

from ansible_collections.iovlab.storage.plugins.module_utils import _guest_agent, _libvirt
from tests.unit.plugins import libvirt_facts
from tests.unit.plugins.examples import PREFIX
from tests.unit.plugins.machine import MIB, PF, Machine
from tests.unit.plugins.test_documentation import MODULES, documentation
from tests.unit.plugins.test_every_module import leased, nothing_by_itself, under_way
from tests.unit.plugins.world import World, build_lab, port

SERIAL, NQN = "A1B2C3", "nqn.2014-08.org.nvmexpress:uuid:7f6d"  # of the examples' adapter

Step = tuple[str, dict[str, Any]] | Callable[[World], object]

VFS: Step = ("sriov_vf", {"pf": PF, "count": 2})
POOL: Step = ("pool", {"name": "san", "adapter": PF})
VPORT: Step = ("vport", {"name": "web1"})
BY_HAND = [{"lun": 0, "vdisk": "root", "extents": [[0, "1MiB", "1MiB"]]}]
MAPPED: tuple[Step, ...] = (VPORT, ("adapter_mapping", {"vport": "web1", "luns": BY_HAND}))
BOUND: tuple[Step, ...] = (*MAPPED, ("vport_binding", {"vport": "web1"}))


def vdisk(name: str) -> Step:
    return "vdisk", {"pool": "san", "name": name, "size": "8MiB", "adapter": PF}


def _guest_programs(world: World) -> None:
    """What the guest has and this machine may lack."""
    programs = world.lab.parent / "bin"
    programs.mkdir()
    for name, text in (("ls", "echo 0:0"), ("fio", "cat")):
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)


def _fenced(world: World) -> None:
    assert world.modules.vport_fence(vport="web1")["changed"]


# What is there before: by module, and by the name of an example that needs something else.
BEFORE: dict[str, tuple[Step, ...]] = {
    "adapter_mapping": (POOL, vdisk("web1-root"), vdisk("web1-data"), VPORT),
    "adapter_mapping_info": MAPPED,
    "guest_exec": (_guest_programs,),
    "lab_image": (build_lab,),
    "lab_preflight": (build_lab,),
    "lab_vm": (build_lab,),
    "lab_vm_info": (build_lab,),
    "sriov_vf_info": (VFS,),
    "vdisk_info": (POOL, vdisk("web1")),
    "vport_binding": MAPPED,
    "vport_fence": MAPPED,
    "vport_info": BOUND,
    "vport_lease": (*MAPPED, leased("elsewhere", "1" * 32)),
    "Vports on a hypervisor that does not manage the pool": (POOL, vdisk("web3-root")),
    "Remove the empty pool, whatever slot the adapter is in": (POOL,),
    "Two VFs for virtual machines, each with namespace 2 alone, even if there is another number of VFs now": (
        nothing_by_itself,
        ("sriov_vf", {"pf": PF, "count": 4}),
    ),
    "No VFs": (VFS,),
    "A vdisk of 64 MiB": (POOL,),
    "Remove it": (POOL, vdisk("web1")),
    "Stop a migration that another play has begun": (under_way,),
    "Delete it": (VPORT,),
    "Take the mediated path, before a live migration": BOUND,
    "Unbind": BOUND,
    "The migration failed, the virtual machine goes on here": (*MAPPED, _fenced),
}
READ = (  # changes nothing
    *(name for name in MODULES if name.endswith("_info")),
    "lab_preflight",
    "Read the vports of the destination",
    "Wait for its end on the hypervisor that the virtual machine is on by then",
)
REAL = ("adapter_mapping_info", "vport", "vport_binding", "vport_fence", "vport_info")  # on the real vportd


def _tasks(module: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(documentation()[module]["examples"])
    return found


def _used(task: dict[str, Any], earlier: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tasks whose results this one uses, in their order."""
    found: list[dict[str, Any]] = []
    for one in earlier:
        if one.get("register", "\0") in json.dumps({key: task[key] for key in task if key not in ("name", "register")}):
            found = [*_used(one, earlier[: earlier.index(one)]), one]
    return found


class Play:
    """Tasks that run one after the other on a world, as Ansible would, templates and registered results included."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._variables: dict[str, Any] = {
            "role_path": str(world.lab),
            "destination": {"engine": {"host_id": "3" * 32}},
            "now": lambda: datetime.datetime.now(tz=datetime.UTC),
            "lookup": lambda plugin, name: f"{plugin} {name}",
        }
        self._variables["hostvars"] = {"hv1": self._variables, "hv2": self._variables}
        self._environment = NativeEnvironment(undefined=StrictUndefined)

    def run(self, task: dict[str, Any]) -> dict[str, Any] | None:
        """The result of a module of this collection; other modules only have their templates evaluated."""
        for key, value in task.items():
            if key.startswith(PREFIX):
                module = key.removeprefix(PREFIX)
                arguments = self._template(value or {})
                foretold = self._world.modules.run(module, True, arguments)
                result = self._world.modules.run(module, False, arguments)
                assert not result.get("failed"), result
                assert foretold["changed"] == result["changed"]
                self._variables[task.get("register", "_")] = result
                return result
            if key == "ansible.builtin.assert":
                assert self._environment.compile_expression(value["that"], undefined_to_none=False)(self._variables)
            if key == "ansible.builtin.debug":
                for item in self._template(task["loop"]) if "loop" in task else [None]:
                    self._variables["item"] = item
                    shown = self._template(value.get("msg") or "{{ " + value["var"] + " }}")
                    assert shown not in (None, "", [])
        return None

    def _template(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._template(one) for key, one in value.items()}
        if isinstance(value, list):
            return [self._template(one) for one in value]
        if value == 22201:
            return port(self._world)
        if not isinstance(value, str):
            return value
        lab = self._world.lab
        for theirs, ours in {
            "./build/lab/lab": str(lab / "vms"),
            "~/.cache/iovlab.storage": str(lab / "cache"),
            "/var/cache/lab/root.qcow2": str(lab / "root"),
            "/var/cache/lab/vmlinuz": str(lab / "kernel"),
            "/var/cache/lab": str(lab),
            "/var/lib/lab/storage.img": str(lab / "san.img"),
        }.items():
            value = value.replace(theirs, ours)
        if value == "10.77.0.12":  # a peer, which is not asked by way of the emulated libvirt
            return "127.0.0.1"
        return self._environment.from_string(value).render(self._variables) if "{{" in value else value


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """With room for the examples' vdisks, and their adapter."""
    machine = Machine(tmp_path / "machine", size=512 * MIB)
    controller = f"bus/pci/devices/{PF}/nvme/nvme0"
    machine.write(f"{controller}/serial", SERIAL)
    machine.write(f"{controller}/subsysnqn", NQN)
    return machine


@pytest.mark.parametrize(
    ("world", "module", "number"),
    [
        pytest.param("engine" if module in REAL else "emulated", module, number, id=f"{module}: {task['name']}")
        for module in MODULES
        for number, task in enumerate(_tasks(module))
    ],
    indirect=["world"],
)
def test_every_example_runs(module: str, number: int, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = _tasks(module)
    task = tasks[number]
    if module == "hypervisor_info":
        library = libvirt_facts.Library()
        library.local.domains.append(libvirt_facts.Domain())
        monkeypatch.setattr(_libvirt, "load", lambda: library.module)
        monkeypatch.setattr(_guest_agent, "load", lambda: libvirt_facts.load_both(library))
    for step in BEFORE.get(task["name"], BEFORE.get(module, ())):
        if callable(step):
            step(world)
        else:
            done = world.modules.run(step[0], False, step[1])
            assert not done.get("failed"), done
    play = Play(world)
    for earlier in _used(task, tasks[:number]):
        play.run(earlier)
    try:
        result = play.run(task)
    finally:
        if module == "lab_vm":
            play.run({"iovlab.storage.lab_vm": task["iovlab.storage.lab_vm"] | {"state": "absent"}})
    if result is not None:
        assert result["changed"] is (module not in READ and task["name"] not in READ)


def test_what_is_there_before_belongs_to_an_example() -> None:
    names = {task["name"] for module in MODULES for task in _tasks(module)}
    assert [key for key in BEFORE if key not in names and key not in MODULES] == []
