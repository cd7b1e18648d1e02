# SPDX-License-Identifier: GPL-3.0-or-later
"""How the roles provision and vportd take an adapter's name, as far as that goes without a hypervisor."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

ROOT = Path(__file__).resolve().parents[2]
PF, SECOND, THIRD = "0000:01:00.0", "0000:41:00.0", "0000:c1:00.0"
NAMES: dict[str, str] = {"serial": "A1B2C3", "pf": PF, "nqn": "nqn.2014-08.org.nvmexpress:uuid:7f6d"}
ADAPTERS: list[dict[str, Any]] = [{key: name, "vfs": 4, "auto_return": True} for key, name in NAMES.items()]


def ansible_playbook(where: Path, play: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    file = where / "play.yml"
    file.write_text(json.dumps([{"hosts": "localhost", "gather_facts": False} | play]), encoding="utf-8")
    environment = os.environ | {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
    command = ["ansible-playbook", "-i", "localhost,", "-c", "local", "--check", str(file)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the roles hand to modules and to the engine, from their own variables."""
    where = tmp_path_factory.mktemp("roles")
    roles = [ROOT / "roles" / role for role in ("provision", "vportd")]
    found = [{"adapters": [{"pf": address}]} for address in (SECOND, THIRD)]
    given = {"adapters": ADAPTERS, "pools": [], "vdisks": [], "tenants": [], "vportd_named": {"results": found}}
    told = "{{ {'here': provision_adapters_here, 'engine': vportd_configuration} | ansible.builtin.to_json }}"
    content = {"content": told, "dest": str(where / "told")}
    play = {
        "vars_files": [str(role / part / "main.yml") for role in roles for part in ("defaults", "vars")],
        "vars": given,
        "tasks": [{"name": "Tell", "ansible.builtin.copy": content, "check_mode": False}],
    }
    done = ansible_playbook(where, play)
    assert done.returncode == 0, done.stdout + done.stderr
    read: dict[str, Any] = json.loads((where / "told").read_text(encoding="utf-8"))
    return read


def test_an_adapter_is_provisioned_by_the_name_that_the_inventory_gives(told: dict[str, Any]) -> None:
    names = [{key: one[key] for key in ("pf", "serial", "nqn") if key in one} for one in told["here"]]
    assert names == [{key: name} for key, name in NAMES.items()]
    assert [one["label"] for one in told["here"]] == [f"4 VFs on {name}" for name in NAMES.values()]


def test_the_engine_gets_the_address_of_each_adapter(told: dict[str, Any]) -> None:
    assert told["engine"]["adapters"] == [{"pf": address, "auto_return": True} for address in (SECOND, PF, THIRD)]


@pytest.mark.parametrize("name", [{"serial": "no such"}, {"nqn": "no such"}])
def test_a_name_that_no_adapter_has_is_refused_before_the_engine_is_touched(
    tmp_path: Path, name: dict[str, str]
) -> None:
    role = {"role": "iovlab.storage.vportd", "vportd_adapters": [{"vfs": 4} | name]}
    done = ansible_playbook(tmp_path, {"roles": [role]})
    assert done.returncode == 2, done.stdout + done.stderr
    assert "no NVMe adapter with SR-IOV on this host has no such" in done.stdout + done.stderr
    assert "Make the user" not in done.stdout


def test_an_adapter_without_a_name_is_refused_before_the_engine_is_touched(tmp_path: Path) -> None:
    done = ansible_playbook(tmp_path, {"roles": [{"role": "iovlab.storage.vportd", "vportd_adapters": [{"vfs": 4}]}]})
    assert done.returncode == 2, done.stdout + done.stderr
    assert "has no attribute 'pf'" in done.stdout + done.stderr
    assert "Make the user" not in done.stdout


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        *[({key: name}, None) for key, name in NAMES.items()],
        ({}, "one of the following is required: pf, serial, nqn"),
        ({"pf": PF, "serial": "A1B2C3"}, "mutually exclusive: pf|serial|nqn"),
    ],
)
def test_an_adapter_of_the_inventory_has_one_name(names: dict[str, str], problem: str | None) -> None:
    spec = yaml.safe_load((ROOT / "roles/provision/meta/argument_specs.yml").read_text(encoding="utf-8"))
    options = spec["argument_specs"]["main"]["options"]
    validator = ArgumentSpecValidator({"provision_adapters": options["provision_adapters"]})
    messages = validator.validate({"provision_adapters": [{"vfs": 4} | names]}).error_messages
    assert [message for message in messages if problem is None or problem not in message] == []
    assert bool(messages) == (problem is not None)
