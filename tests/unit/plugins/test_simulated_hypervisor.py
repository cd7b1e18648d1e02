# SPDX-License-Identifier: GPL-3.0-or-later
"""Plays run by Ansible on a simulated hypervisor: those that only look touch nothing, that which takes all away leaves
nothing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.bench.hypervisor import Hypervisor
from tests.bench.provision import play
from tests.slow_file import NoFuse
from tests.unit.plugins.machine import MIB, PF

pytestmark = pytest.mark.xdist_group("lvm")  # one test at a time has volume groups on this machine

PROVISION = {
    "name": "Configure the adapter",
    "iovlab.storage.adapter_config": {
        "pf": PF,
        "vfs": {"count": 2},
        "pool": {"name": "san"},
        "vdisks": [{"name": "web1", "size": "4MiB"}],
        "vports": [{"name": "web1", "luns": [{"lun": 0, "vdisk": "web1"}]}],
    },
}
# Run inside. LVM and the modules take locks, vportd renews its leases: neither is of the state.
STATE = """\
import hashlib, json, os, stat
found = {}
for top in ("/sys/bus/pci", "/dev", "/run"):
    for directory, directories, names in os.walk(top):
        for name in directories + names:
            path = os.path.join(directory, name)
            if path.startswith("/run/lock/") or path.endswith(".lease"):
                continue
            facts = os.lstat(path)
            content = [facts.st_mode, facts.st_rdev, facts.st_mtime_ns if stat.S_ISREG(facts.st_mode) else 0]
            if stat.S_ISLNK(facts.st_mode):
                content.append(os.readlink(path))
            elif stat.S_ISREG(facts.st_mode):
                with open(path, "rb") as file:
                    content.append(hashlib.sha256(file.read().strip()).hexdigest())
            found[path] = content
print(json.dumps(found))
"""


@pytest.fixture
def bare() -> Iterator[Hypervisor]:
    if os.geteuid() != 0 or not all(shutil.which(program) for program in ("unshare", "nsenter", "vgcreate")):
        pytest.skip("needs root and lvm2")
    with tempfile.TemporaryDirectory() as base:
        Path(base).chmod(0o755)
        try:
            with Hypervisor(Path(base) / "hv1", 4, 64 * MIB) as host:
                yield host
        except NoFuse as problem:
            pytest.skip(str(problem))


@pytest.fixture
def hypervisor(bare: Hypervisor) -> Hypervisor:
    play([bare], [PROVISION])
    return bare


def _state(host: Hypervisor) -> dict[str, Any]:
    """All files that the hypervisor has to itself, and LVM's area on the storage, which keeps what LVM wrote before."""
    done = subprocess.run([host.interpreter, "-c", STATE], check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    with (host.directory / "storage").open("rb") as storage:
        found["LVM"] = storage.read(MIB).hex()
    return found


@pytest.mark.parametrize("arguments", [[], ["--check"]], ids=["run", "check"])
def test_preflight_reads_all_and_touches_nothing(
    hypervisor: Hypervisor, checkout: Path, tmp_path: Path, arguments: list[str]
) -> None:
    server = {"ansible_connection": "local", "ansible_python_interpreter": str(hypervisor.interpreter)}
    variables = {"adapters": [{"pf": PF, "vfs": 2}], "tenants": [], "preflight_reports": str(tmp_path)}
    inventory = tmp_path / "hosts.json"
    inventory.write_text(
        json.dumps({"all": {"vars": variables, "children": {"hypervisors": {"hosts": {"hv1": server}}}}})
    )
    before = _state(hypervisor)
    done = subprocess.run(
        ["ansible-playbook", "-i", str(inventory), *arguments, "playbooks/preflight.yml"],
        cwd=checkout,
        env=os.environ | {"ANSIBLE_CONFIG": str(checkout / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    after = _state(hypervisor)
    assert [name for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name)] == []

    assert "changed=0" in done.stdout, done.stdout + done.stderr
    report = json.loads((tmp_path / "preflight.json").read_text(encoding="utf-8"))
    checks = {one["name"]: one for one in report["servers"]["hv1"]["checks"]}
    assert {checks[name]["result"] for name in ("adapter", "inventory", "engine", "pool")} == {"ok"}, checks
    assert f"{PF}: 2 of 4 VFs, 1 free" in checks["vfs"]["detail"]
    (pool,) = report["facts"]["hv1"]["pools"]
    assert [vdisk["name"] for vdisk in pool["vdisks"]] == ["web1"]


def test_the_play_in_the_documentation_that_looks_for_drift_runs(hypervisor: Hypervisor, checkout: Path) -> None:
    before = _state(hypervisor)
    play([hypervisor], _shown(checkout / "docs/boot.md", "## Drift"))
    assert _state(hypervisor) == before


def test_the_plays_in_the_documentation_that_take_all_away_leave_nothing(bare: Hypervisor, checkout: Path) -> None:
    """With LVM and vportd themselves."""
    variables = {
        "adapters": [{"pf": PF}],
        "vdisks": [{"name": "web1", "pool": "san"}],
        "tenants": [{"name": "web1", "vport": "web1"}],
    }
    tasks = _shown(checkout / "docs/howto/replace-a-hypervisor.md", "## Take it all away")
    before = _state(bare)
    play([bare], [PROVISION])
    assert play([bare], tasks, "-e", json.dumps(variables))[1] == len(tasks)
    after = _state(bare)
    written = {name for name in before.keys() | after.keys() if _lasting(before, name) != _lasting(after, name)}
    assert written == {"LVM"}
    again = [task for task in tasks if "iovlab.storage.vdisk" not in task]  # it wants the pool
    assert play([bare], again, "-e", json.dumps(variables))[1] == 0


def _lasting(state: dict[str, Any], name: str) -> Any:
    """Without the time of the last write."""
    found = state.get(name)
    return [*found[:2], *found[3:]] if isinstance(found, list) else found


def _shown(page: Path, heading: str) -> list[dict[str, Any]]:
    """The tasks of all plays in the block below this heading."""
    shown = re.findall("^```yaml$(.*?)^```$", page.read_text(encoding="utf-8").partition(heading)[2], re.DOTALL | re.M)
    return [task for one in yaml.safe_load(shown[0]) for task in one["tasks"]]
