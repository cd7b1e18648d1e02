# SPDX-License-Identifier: GPL-3.0-or-later
"""The role migration and its playbook, as far as they go without a hypervisor: evaluated by Ansible."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.iovlab.storage.plugins.plugin_utils._evacuation import evacuation_plan

ROOT = Path(__file__).resolve().parents[2]
START = 1_763_856_000.0
PROGRESS = [
    {
        "time": START + 2 + half / 2,
        "iteration": 1 + half,
        "memory_remaining": 1000 - half,
        "memory_transferred": half,
        "dirty_rate": 5,
        "throttle": 0,
    }
    for half in range(3)
]
NUMBERS = {"total_time": 2.0, "downtime": 0.1, "progress": PROGRESS}
EVACUATION = evacuation_plan([{"name": "web1", "memory": 1}], {"hv2": {"free_memory": 1 << 30, "free_vfs": 1}}, "hv1")
MOVED: dict[str, tuple[dict[str, Any], int]] = {
    "failed": ({"migration_moved": {"failed": True, "msg": "it was aborted", "progress": PROGRESS}}, 3),
    "refused": ({"migration_moved": {"failed": True, "msg": "no such VM"}}, 0),
    "migrated": ({"migration_moved": {"changed": True, "migration": NUMBERS}}, 3),
    "there already": ({"migration_moved": {"changed": False, "migration": {}}}, 0),
    "not begun": ({}, 0),
}


def ansible_playbook(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
    command = ["ansible-playbook", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The report that each of these ends leaves, from the role's own variables."""
    where = tmp_path_factory.mktemp("role")
    known = {
        "migration_tenant": {"name": "web1", "vport": "web1"},
        "migration_source": "hv1",
        "migration_destination": "hv2",
        "migration_mode": "direct",
        "migration_marks": [{"name": "live migration", "at": START}, {"name": "", "at": START + 9}],
        "migration_source_facts": {"vportd": {}},
        "migration_source_late": {},
    }
    task = {
        "name": "Write the report",
        "ansible.builtin.copy": {
            "dest": f"{where}/{{{{ end }}}}",
            "content": "{{ migration_run | iovlab.storage.run_report }}",
        },
    }
    play = {
        "hosts": "localhost",
        "gather_facts": False,
        "vars_files": [str(ROOT / "roles/migration/vars/main.yml")],
        "vars": known,
        "tasks": [task | {"vars": {"end": end} | given} for end, (given, __) in MOVED.items()],
    }
    (where / "play.yml").write_text(json.dumps([play]), encoding="utf-8")
    done = ansible_playbook("-i", "localhost,", "-c", "local", str(where / "play.yml"))
    assert done.returncode == 0, done.stdout + done.stderr
    return {end: json.loads((where / end).read_text(encoding="utf-8")) for end in MOVED}


@pytest.mark.parametrize("end", MOVED)
def test_the_report_has_the_progress_of_any_live_migration_that_began(reports: dict[str, Any], end: str) -> None:
    progress = reports[end]["progress"]
    assert len(progress) == MOVED[end][1]
    assert [one["iteration"] for one in progress] == [1, 2, 3][: len(progress)]
    assert not [error for error in reports[end]["errors"] if "progress" in error]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"migrate_moves": [{"mv": "web1", "to": "hv2"}]}, "missing required arguments: vm found in migrate_moves"),
        ({"migrate_moves": [{"vm": "web1", "too": "hv2"}]}, "migrate_moves.too. Supported parameters include:"),
        ({"migrate_at_once": "many"}, "argument 'migrate_at_once' is of type str and we were unable to convert to int"),
    ],
)
def test_a_wrong_variable_is_named_before_any_host_is_asked(nowhere: str, given: dict[str, Any], line: str) -> None:
    done = ansible_playbook("-i", nowhere, "-e", json.dumps(given), "playbooks/migrate.yml")
    assert done.returncode == 2, done.stdout + done.stderr
    assert [one for one in done.stdout.splitlines() if one.strip().startswith(line)]
    assert "PLAY [Find the VMs]" not in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"vm": "web1", "to": "hv2", "migrate_at_once": "1"},
        {"migrate_moves": [{"vm": "web1"}, {"vm": "web2", "to": "hv1"}]},
        {"migrate_moves": EVACUATION["moves"]},
    ],
)
def test_what_can_be_asked_for_passes(nowhere: str, given: dict[str, Any]) -> None:
    done = ansible_playbook("-i", nowhere, "-e", json.dumps(given), "playbooks/migrate.yml")
    assert "PLAY [Find the VMs]" in done.stdout, done.stdout + done.stderr


def test_a_batch_says_how_far_it_is_and_goes_on_when_a_vm_fails(tmp_path: Path) -> None:
    plays = yaml.safe_load((ROOT / "playbooks/migrate.yml").read_text(encoding="utf-8"))[-2:]
    (migrate,) = (task for task in plays[0]["tasks"] if "block" in task)
    failing = {"ansible.builtin.fail": {"msg": "no VF"}, "when": "inventory_hostname == 'web2'"}
    migrate["block"] = [{"ansible.builtin.set_fact": {"migration_destination": "hv2"}}, failing]
    (tmp_path / "play.yml").write_text(json.dumps(plays), encoding="utf-8")
    vms = {f"web{number}": {"ansible_connection": "local"} for number in (1, 2, 3)}
    inventory = tmp_path / "hosts.json"
    inventory.write_text(json.dumps({"all": {"children": {"migrations": {"hosts": vms}}}}), encoding="utf-8")
    done = ansible_playbook("-i", str(inventory), str(tmp_path / "play.yml"))
    assert done.returncode == 2, done.stdout + done.stderr
    assert sorted(re.findall(r"; (\d of 3 have ended)", done.stdout))[-1] == "3 of 3 have ended"
    assert sorted(re.findall(r"(web\d (?:is on hv2|has failed));", done.stdout)) == [
        "web1 is on hv2", "web2 has failed", "web3 is on hv2"
    ]  # fmt: skip
    assert done.stdout.count("no VF") >= 1


@pytest.mark.parametrize("tasks", ["prepare", "to_pf", "move_offline", "move_live", "to_vf", "release"])
def test_a_hypervisor_that_does_not_answer_is_asked_once_and_then_recovered_from(
    nowhere: str, tmp_path: Path, tasks: str
) -> None:
    known = {
        "migration_source": "hv1",
        "migration_destination": "hv1",
        "migration_destination_facts": {"vportd": {"host_id": "0" * 32}},
        "migration_marks": [{"name": "preflight", "at": START}],
        "migration_prepared": {"vports": []},
        "migration_tenant": {"name": "web1", "vport": "web1", "luns": [{"lun": 0, "vdisk": "web1"}]},
        "vdisks": [{"name": "web1", "pool": "san"}],
    }
    steps = {
        "block": [{"ansible.builtin.include_role": {"name": "iovlab.storage.migration", "tasks_from": f"{tasks}.yml"}}],
        "rescue": [{"ansible.builtin.debug": {"msg": "rescued"}}],
    }
    play = {"hosts": "localhost", "gather_facts": False, "vars": known, "tasks": [steps]}
    (tmp_path / "play.yml").write_text(json.dumps([play]), encoding="utf-8")
    address = "hypervisor_migration_address=127.0.0.1"
    done = ansible_playbook("-i", nowhere, "-e", address, str(tmp_path / "play.yml"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "hv1 does not answer: " in done.stdout
    assert done.stdout.count("unreachable: true") == 1, done.stdout
    assert "msg: rescued" in done.stdout


@pytest.fixture
def nowhere(tmp_path: Path) -> str:
    """An inventory of one hypervisor, which cannot be reached."""
    inventory = tmp_path / "hosts.json"
    hosts = {"hv1": {"ansible_host": "127.0.0.1", "ansible_port": 1}}
    tenants = [{"name": "web1", "vport": "web1", "hypervisor": "hv1", "luns": []}]
    inventory.write_text(
        json.dumps({"all": {"vars": {"tenants": tenants}, "children": {"hypervisors": {"hosts": hosts}}}})
    )
    return str(inventory)


def test_a_run_that_was_killed_has_a_report_when_it_is_recovered(nowhere: str, tmp_path: Path) -> None:
    known = {
        "migration_recovery": {"end": "hv1"},
        "migration_reports": str(tmp_path),
        "migration_tenant": {"name": "web1", "vport": "web1"},
    }
    begun = {
        "migration_source": "hv1",
        "migration_destination": "hv2",
        "migration_mode": "direct",
        "migration_marks": [{"name": "preflight", "at": START}],
        "migration_source_facts": {"vportd": {"vports": [{"vport": "web1", "path": "vf", "vf": "0000:01:00.1"}]}},
        "migration_unreported": True,
    }
    role = "iovlab.storage.migration"

    def included(tasks: str, **variables: str) -> dict[str, Any]:
        return {"ansible.builtin.include_role": {"name": role, "tasks_from": f"{tasks}.yml"}, "vars": variables}

    def run(*tasks: dict[str, Any]) -> str:
        play = {"hosts": "localhost", "gather_facts": False, "vars": known, "tasks": tasks}
        (tmp_path / "play.yml").write_text(json.dumps([play]), encoding="utf-8")
        done = ansible_playbook("-i", nowhere, str(tmp_path / "play.yml"))
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run({"ansible.builtin.set_fact": begun}, included("phase", phase="live migration"))
    left = tmp_path / "web1.begun.json"
    assert [mark["name"] for mark in json.loads(left.read_text())["marks"]] == ["preflight", "live migration"]
    assert "web1 runs on hv1, and was not migrated" in run(included("ended"), included("report"))
    (report,) = (json.loads(path.read_text()) for path in tmp_path.glob("web1-*.json"))
    assert [phase["name"] for phase in report["phases"]] == ["preflight", "live migration", "recover"]
    assert 'the run was killed in the phase "live migration"' in report["errors"]
    assert report["verdict"] == "failed"
    assert not [error for error in report["errors"] if error.startswith(("no switch", "there was no migration"))]
    assert report["paths"][0] == {"host": "hv1", "path": "vf", "vf": "0000:01:00.1"}
    assert not left.exists()
    assert list(tmp_path.glob("web1-*.html"))
    run(included("ended"))  # nothing is left to take up
