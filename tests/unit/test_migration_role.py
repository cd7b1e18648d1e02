# SPDX-License-Identifier: GPL-3.0-or-later
"""The role migration's own expressions, evaluated by Ansible."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

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
MOVED: dict[str, tuple[dict[str, Any], int]] = {
    "failed": ({"migration_moved": {"failed": True, "msg": "it was aborted", "progress": PROGRESS}}, 3),
    "refused": ({"migration_moved": {"failed": True, "msg": "no such VM"}}, 0),
    "migrated": ({"migration_moved": {"changed": True, "migration": NUMBERS}}, 3),
    "there already": ({"migration_moved": {"changed": False, "migration": {}}}, 0),
    "not begun": ({}, 0),
}


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
    command = ["ansible-playbook", "-i", "localhost,", "-c", "local", str(where / "play.yml")]
    environment = os.environ | {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return {end: json.loads((where / end).read_text(encoding="utf-8")) for end in MOVED}


@pytest.mark.parametrize("end", MOVED)
def test_the_report_has_the_progress_of_any_live_migration_that_began(reports: dict[str, Any], end: str) -> None:
    progress = reports[end]["progress"]
    assert len(progress) == MOVED[end][1]
    assert [one["iteration"] for one in progress] == [1, 2, 3][: len(progress)]
    assert not [error for error in reports[end]["errors"] if "progress" in error]
