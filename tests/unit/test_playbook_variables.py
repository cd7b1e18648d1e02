# SPDX-License-Identifier: GPL-3.0-or-later
"""What a playbook is asked for is checked first: a wrong variable is one line, and no host is asked anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.test_migration_role import ROOT, ansible_playbook

CHECKED = {"migrate", "migrate_abort", "preflight", "provision", "recover", "return"}
# The plays after the check ask hypervisors or the control node; the first of each.
NEXT = {
    "migrate_abort": "PLAY [Abort]",
    "preflight": "PLAY [Look at every server]",
    "provision": "PLAY [Find the tenant image]",
    "recover": "PLAY [Recover]",
    "return": "PLAY [Look]",
}
ADAPTERS = [{"pf": "0000:01:00.0", "vfs": 2}]
TENANT: dict[str, Any] = {"name": "web1", "vport": "web1", "hypervisor": "hv1", "luns": [{"lun": 0, "vdisk": "web1"}]}
STORAGE: dict[str, Any] = {
    "pools": [{"name": "san", "manager": "hv1"}],
    "vdisks": [{"name": "web1", "pool": "san", "size": "1GiB"}],
}


@pytest.fixture
def nowhere(tmp_path: Path) -> str:
    """An inventory of two hypervisors, which cannot be reached."""
    inventory = tmp_path / "hosts.json"
    reached = {"ansible_host": "127.0.0.1", "ansible_port": 1, "ansible_ssh_retries": 0}
    variables = STORAGE | {"tenants": [TENANT], "adapters": ADAPTERS, "preflight_reports": str(tmp_path)}
    variables |= {"migration_reports": str(tmp_path), "lab_cache": "/dev/null/cache"}
    hypervisors = {"hosts": {"hv1": reached, "hv2": reached}}
    inventory.write_text(json.dumps({"all": {"vars": variables, "children": {"hypervisors": hypervisors}}}))
    return str(inventory)


@pytest.mark.parametrize(
    ("playbook", "given", "line"),
    [
        ("recover", {"vm": ["web1"]}, "value of vm must be one of: web1, got: ['web1']"),
        ("recover", {"to": 7}, "value of to must be one of: hv1, hv2, got: 7"),
        ("recover", {"lost": {"hv1": True}}, "argument 'lost' is of type dict and we were unable to convert to list"),
        ("recover", {"lost": "hv1,hv3"}, "value of lost must be one or more of: hv1, hv2. Got no match for: hv3"),
        ("return", {}, "missing required arguments: host"),
        ("return", {"host": ["hv1"]}, "value of host must be one of: hv1, hv2, got: ['hv1']"),
        ("migrate_abort", {"vm": {"name": "web1"}}, "value of vm must be one of: web1, got: {'name': 'web1'}"),
        ("preflight", {"vm": "web1", "to": "hv3"}, "value of to must be one of: hv1, hv2, got: hv3"),
        ("provision", {"pools": "san"}, "Elements value for option 'provision_pools' is of type str"),
        ("provision", {"pools": [{"name": "san"}]}, "missing required arguments: manager found in provision_pools"),
        ("provision", {"vdisks": [{"name": "web1", "pool": "san"}]}, "missing required arguments: size found in"),
        ("provision", {"tenants": [TENANT | {"memroy": 1}]}, "provision_tenants.memroy. Supported parameters include:"),
        (
            "provision",
            {"tenants": [TENANT | {"luns": [{"lun": "first", "vdisk": "web1"}]}]},
            "argument 'lun' is of type str found in 'provision_tenants -> luns'",
        ),
        ("provision", {"adapters": [{"pf": "0000:01:00.0", "vfs": "many"}]}, "argument 'vfs' is of type str found in"),
        ("provision", {"provision_allow_recreate_vfs": "perhaps"}, "argument 'provision_allow_recreate_vfs' is of"),
    ],
)
def test_a_wrong_variable_is_one_line_before_any_host_is_asked(
    nowhere: str, playbook: str, given: dict[str, Any], line: str
) -> None:
    done = ansible_playbook("-i", nowhere, "-e", json.dumps(given), f"playbooks/{playbook}.yml")
    assert done.returncode == 2, done.stdout + done.stderr
    assert [one for one in done.stdout.splitlines() if one.strip().removeprefix("msg: ").startswith(line)], done.stdout
    assert NEXT[playbook] not in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("playbook", "given"),
    [
        ("recover", {"to": "hv2", "lost": ["hv1", "hv2"]}),
        ("recover", {"vm": "web1", "to": "", "lost": ""}),
        ("return", {"host": "hv1"}),
        ("migrate_abort", {"vm": "web1"}),
        ("preflight", {"vm": "web1", "to": "hv2"}),
        ("provision", {}),
        ("provision", {"provision_persistent_vfs": "no", "tenants": []}),
    ],
)
def test_what_can_be_asked_for_passes(nowhere: str, playbook: str, given: dict[str, Any]) -> None:
    done = ansible_playbook("-i", nowhere, "-e", json.dumps(given), f"playbooks/{playbook}.yml")
    assert NEXT[playbook] in done.stdout, done.stdout + done.stderr
    assert "Validation of arguments failed" not in done.stdout + done.stderr


def test_every_playbook_that_is_given_variables_checks_them() -> None:
    """Of the lab's, the roles do."""
    checked = set()
    for path in (ROOT / "playbooks").glob("*.yml"):
        first = yaml.safe_load(path.read_text(encoding="utf-8"))[0]
        if any("ansible.builtin.validate_argument_spec" in task for task in first.get("tasks", [])):
            checked.add(path.stem)
    assert checked >= CHECKED
