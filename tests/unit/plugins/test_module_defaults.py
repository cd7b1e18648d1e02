# SPDX-License-Identifier: GPL-3.0-or-later
"""The action group of all modules, as the documentation uses it: run by Ansible, with vportd's answers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.unit.plugins.vportd_server import Engine

GROUP = "group/iovlab.storage.all"


def _play(checkout: Path) -> dict[str, Any]:
    """The one that the documentation shows."""
    page = (checkout / "docs/reference.md").read_text(encoding="utf-8")
    shown = re.findall(r"^```yaml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    ((play,),) = [yaml.safe_load(block) for block in shown if GROUP in block]
    return dict(play)


def _run(checkout: Path, tmp_path: Path, play: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    play |= {"hosts": "localhost"}
    play["module_defaults"][GROUP]["rpc_socket"] = str(tmp_path / "rpc.sock")
    (tmp_path / "play.yml").write_text(json.dumps([play]), encoding="utf-8")
    command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", "localhost,", "-c", "local", "play.yml"]
    command += ["-e", f"ansible_python_interpreter={sys.executable}"]
    environment = os.environ | {
        "ANSIBLE_CONFIG": str(checkout / "ansible.cfg"),
        "ANSIBLE_COLLECTIONS_PATH": str(checkout / "build/collections"),
    }
    return subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def test_a_default_for_the_group_reaches_every_task(checkout: Path, tmp_path: Path, engine: Engine) -> None:
    play = _play(checkout)
    play["tasks"].append(
        {"ansible.builtin.assert": {"that": "vports.vports | map(attribute='vport') | list == ['web1']"}}
    )
    done = _run(checkout, tmp_path, play)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(engine.vports) == ["web1"]


def test_a_module_refuses_a_default_that_it_does_not_have(checkout: Path, tmp_path: Path, engine: Engine) -> None:
    play = _play(checkout)
    play["tasks"] = [{"iovlab.storage.guest_exec": {"name": "web1", "argv": ["true"]}}]
    done = _run(checkout, tmp_path, play)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Unsupported parameters for (iovlab.storage.guest_exec) module: rpc_socket." in done.stdout
