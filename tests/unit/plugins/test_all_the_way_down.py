# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything made, then `state: absent` all the way down: the host is as it was found."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.unit.plugins import real
from tests.unit.plugins.machine import PF, Machine
from tests.unit.plugins.runner import Modules
from tests.unit.plugins.vportd_server import Engine

SAN: dict[str, Any] = {"pool": "san", "adapter": PF}
LUNS = [{"lun": 0, "vdisk": "system"}, {"lun": 1, "vdisk": "data", "readonly": True}]
Run = tuple[str, dict[str, Any]]
ONE_BY_ONE: list[Run] = [
    ("sriov_vf", {"pf": PF, "count": 3, "queues": 2, "persistent": True}),
    ("pool", {"name": "san", "adapter": PF, "extent_size": "1MiB"}),
    ("vdisk", {**SAN, "name": "system", "size": "2MiB"}),
    ("vdisk", {**SAN, "name": "data", "size": "3MiB"}),
    ("vport", {"name": "v1"}),
    ("adapter_mapping", {"vport": "v1", "pool": "san", "luns": LUNS}),
    ("vport_binding", {"vport": "v1"}),
]
AT_ONCE: list[Run] = [
    (
        "adapter_config",
        {
            "pf": PF,
            "vfs": {"count": 3, "persistent": True},
            "pool": {"name": "san", "extent_size": "1MiB"},
            "vdisks": [{"name": "system", "size": "2MiB"}, {"name": "data", "size": "3MiB"}],
            "vports": [{"name": "v1", "luns": LUNS}],
        },
    )
]
USED: list[Run] = [
    ("vport_binding", {"vport": "v1", "path": "pf"}),
    ("vport_binding", {"vport": "v1"}),
    ("vport_fence", {"vport": "v1"}),
    ("vport_fence", {"vport": "v1", "state": "absent"}),
    ("vdisk", {**SAN, "name": "system", "size": "4MiB"}),
    ("adapter_mapping", {"vport": "v1", "pool": "san", "luns": LUNS}),
]
DOWN: list[Run] = [
    ("vport_binding", {"vport": "v1"}),
    ("adapter_mapping", {"vport": "v1"}),
    ("vport", {"name": "v1"}),
    ("vdisk", {**SAN, "name": "data"}),
    ("vdisk", {**SAN, "name": "system"}),
    ("pool", {"name": "san", "adapter": PF}),
    ("sriov_vf", {"pf": PF}),
]
# What the operating system has on any host.
SYSTEM = ("etc/systemd/system/multi-user.target.wants", "usr/local/lib")


@dataclass
class Ground:
    """A host, its modules, and its vportd: emulated, or the real one with its files in ``directory``."""

    machine: Machine
    modules: Modules
    vportd: Engine | Path

    def state(self) -> dict[str, str]:
        """All that there is, by name. On the storage the real vportd renews leases in between."""
        if isinstance(self.vportd, Engine):
            engine = {"vports": self.vportd.vports, "mappings": self.vportd.mappings, "adapters": self.vportd.adapters}
            return self.machine.state() | {f"vportd: {key}": json.dumps(value) for key, value in engine.items()}
        found = self.machine.state(data=False) | {"vportd": json.dumps(self.modules.vport_info(), sort_keys=True)}
        for top in (self.vportd / "state", self.vportd / "run"):
            for path in top.rglob("*"):
                found[str(path.relative_to(self.vportd))] = (
                    hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
                )
        return found

    def run(self, runs: list[Run], **more: Any) -> None:
        for name, arguments in runs:
            done = self.modules.run(name, False, arguments | more)
            assert not done.get("failed"), (name, done)
            assert done["changed"], (name, done)


@pytest.fixture(params=["emulated", "engine"])
def ground(
    request: pytest.FixtureRequest, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Ground]:
    for directory in SYSTEM:
        (machine.root / directory).mkdir(parents=True)
    if request.param == "emulated":
        yield Ground(machine, request.getfixturevalue("modules"), request.getfixturevalue("engine"))
        return
    with real.engine(machine, tmp_path) as rpc_socket:
        yield Ground(machine, Modules(machine.host, monkeypatch, rpc_socket=rpc_socket), tmp_path)


def _differences(before: dict[str, str], after: dict[str, str]) -> list[str]:
    left = [f"{name} is left" for name in sorted(after.keys() - before.keys())]
    lost = [f"{name} is lost" for name in sorted(before.keys() - after.keys())]
    other = [
        f"{name} was {before[name]} and is {after[name]}"
        for name in sorted(before.keys() & after.keys())
        if before[name] != after[name]
    ]
    return left + lost + other


@pytest.mark.parametrize("up", [ONE_BY_ONE, AT_ONCE], ids=["one_by_one", "at_once"])
def test_absent_all_the_way_down_leaves_the_host_as_it_was_found(ground: Ground, up: list[Run]) -> None:
    before = ground.state()
    ground.run(up)
    ground.run(USED)
    assert len(_differences(before, ground.state())) > 20
    ground.run(DOWN, state="absent")
    assert _differences(before, ground.state()) == []


def test_what_is_left_is_named(ground: Ground) -> None:
    before = ground.state()
    ground.run(ONE_BY_ONE)
    ground.run(DOWN[:-1], state="absent")
    found = _differences(before, ground.state())
    assert f"etc/iovlab/adapters/{PF}.json is left" in found
    assert any(line.startswith("controllers was ") for line in found)


@pytest.mark.parametrize("number", range(len(ONE_BY_ONE)))
def test_what_was_made_half_is_taken_away_too(ground: Ground, number: int) -> None:
    """By the same way down: what is not there changes nothing."""
    before = ground.state()
    ground.run(ONE_BY_ONE[: number + 1])
    for name, arguments in DOWN:
        done = ground.modules.run(name, False, arguments | {"state": "absent"})
        if "failed" in done:
            assert done["failed"] is False or "no pool san" in done["msg"], (name, done)
    assert _differences(before, ground.state()) == []


def test_what_was_there_before_stays(ground: Ground) -> None:
    """Another VM's vport and vdisks, while one VM's are taken away."""
    ground.run(ONE_BY_ONE)
    before = ground.state()
    ground.run(
        [
            ("vdisk", {**SAN, "name": "other", "size": "2MiB"}),
            ("vport", {"name": "v2"}),
            ("adapter_mapping", {"vport": "v2", "pool": "san", "luns": [{"lun": 0, "vdisk": "other"}]}),
            ("vport_binding", {"vport": "v2"}),
        ]
    )
    ground.run(
        [
            ("vport_binding", {"vport": "v2"}),
            ("vport", {"name": "v2"}),
            ("vdisk", {**SAN, "name": "other"}),
        ],
        state="absent",
    )
    assert _differences(before, ground.state()) == []


def test_what_roles_write_is_among_what_is_removed_by_hand(checkout: Path) -> None:
    page = (checkout / "docs/howto/replace-a-hypervisor.md").read_text(encoding="utf-8").partition("## Take it all")[2]
    removed = {word for line in re.findall("^rm .*$", page, re.MULTILINE) for word in line.split() if word[0] == "/"}
    written = set()
    for role in ("hypervisor", "vportd", "provision", "tenant"):
        for path in [*(checkout / "roles" / role / "tasks").glob("*.yml"), checkout / "roles" / role / "vars/main.yml"]:
            if path.exists():
                text = path.read_text(encoding="utf-8").replace("{{ item }}", "vportd-metrics.socket")
                written |= set(re.findall(r"(?:dest: |path: |ln \S+ \S+ |> |_installed: )\"?(/[\w./-]+)", text))
    assert "/usr/local/lib/vportd.d/" in written
    assert "/usr/local/bin/vportctl" in written
    lacking = [one for one in written - {"/dev/kvm"} if not any(f"{one}/".startswith(f"{gone}/") for gone in removed)]
    assert lacking == []
    assert "userdel vportd\n" in page
