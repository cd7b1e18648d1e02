# SPDX-License-Identifier: GPL-3.0-or-later
"""The artifact that users install is whole: nothing in it needs the checkout that it was built from."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(sys.executable).parent
PLAYBOOKS = sorted(path.stem for path in (ROOT / "playbooks").glob("*.yml"))
NEEDED = (
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "requirements.txt",
    "bindep.txt",
    "docs/",
    "meta/",
    "plugins/",
    "roles/",
)
NOT_WANTED = (
    "tests/",
    "molecule/",
    "tools/",
    "build/",
    ".",
    "Makefile",
    "pyproject.toml",
    "requirements-dev.txt",
    "docs/site/",
)


def environment(home: Path, collections: Path) -> dict[str, str]:
    """Nothing of the checkout: no configuration, no collection path, no home of the user's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "PYTHON"))}
    return kept | {
        "HOME": str(home),
        "ANSIBLE_HOME": str(home / ".ansible"),
        "ANSIBLE_COLLECTIONS_PATH": str(collections),
        "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
    }


class Installed:
    """The artifact, installed into an empty directory, and Ansible's programs that see only that."""

    def __init__(self, where: Path) -> None:
        self.home, self.collections, self.empty = where / "home", where / "collections", where / "empty"
        for directory in (self.home, self.collections, self.empty):
            directory.mkdir()
        # What git has or would take; a copy of the tree, so that nothing else can get into the artifact.
        source = where / "source"
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        for name in subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0"):
            if name and (ROOT / name).is_file():
                (source / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, source / name, follow_symlinks=False)
        self.run("ansible-galaxy", "collection", "build", str(source), "--output-path", str(where))
        (self.archive,) = where.glob("iovlab-storage-*.tar.gz")
        install = ("ansible-galaxy", "collection", "install", str(self.archive), "--offline", "--no-deps")
        self.run(*install, "--collections-path", str(self.collections))
        shutil.rmtree(source)
        self.root = self.collections / "ansible_collections/iovlab/storage"

    def run(self, *command: str, status: int = 0) -> str:
        done = subprocess.run(
            command,
            cwd=self.empty,
            env=environment(self.home, self.collections),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == status, f"{' '.join(command)}: {done.stderr or done.stdout}"
        said = (done.stdout + done.stderr).replace(str(ROOT / ".venv"), "")  # where Ansible itself is
        assert str(ROOT) not in said, "it looks into the checkout"
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("artifact"))


def test_it_holds_what_users_need_and_nothing_else(installed: Installed) -> None:
    with tarfile.open(installed.archive) as archive:
        members = archive.getnames()
    assert [name for name in NEEDED if not any(f"{one}/".startswith(name) or one == name for one in members)] == []
    assert [one for one in members if one.startswith(NOT_WANTED) or "__pycache__" in one] == []
    assert installed.archive.stat().st_size < 20 << 20, "Galaxy takes no more than 20 MiB"


def test_its_manifest_tells_version_and_dependencies(installed: Installed) -> None:
    told = json.loads((installed.root / "MANIFEST.json").read_text(encoding="utf-8"))["collection_info"]
    galaxy = yaml.safe_load((ROOT / "galaxy.yml").read_text(encoding="utf-8"))
    for key in ("version", "dependencies", "tags", "license", "repository", "documentation", "issues"):
        assert told[key] == galaxy[key], key


@pytest.mark.parametrize("playbook", PLAYBOOKS)
def test_a_playbook_is_found_by_name_from_anywhere(installed: Installed, playbook: str) -> None:
    given = ("-e", "vm=web1", "-e", "to=server2", "-e", "host=server1")
    found = installed.run("ansible-playbook", "--syntax-check", *given, f"iovlab.storage.{playbook}")
    assert "playbook:" in found


@pytest.mark.parametrize("kind", ["module", "filter", "role"])
def test_every_plugin_and_role_is_documented_by_ansible_doc(installed: Installed, kind: str) -> None:
    if kind == "role":
        names = sorted(path.name for path in (ROOT / "roles").iterdir() if path.is_dir())
    else:
        names = sorted(
            path.stem for path in (ROOT / "plugins" / {"module": "modules"}.get(kind, kind)).glob("[!_]*.py")
        )
    full = [f"iovlab.storage.{name}" for name in names]
    told = json.loads(installed.run("ansible-doc", "--json", "--type", kind, *full))
    assert sorted(told) == full
    assert [name for name, content in told.items() if "error" in content] == []


def test_a_module_and_the_filter_run(installed: Installed) -> None:
    """As far as a machine without an adapter goes: the module refuses in its own words, the filter reports."""
    play = installed.empty / "play.yml"
    play.write_text(
        json.dumps(
            [
                {
                    "hosts": "localhost",
                    "gather_facts": False,
                    "tasks": [
                        {
                            "name": "Look for an adapter that is not there",
                            "iovlab.storage.sriov_vf_info": {"pf": "ffff:1f:1f.7"},
                            "register": "looked",
                            "failed_when": "'there is no PCI device ffff:1f:1f.7' not in looked.msg",
                        },
                        {
                            "name": "Report a run that never was",
                            "ansible.builtin.assert": {"that": "({} | iovlab.storage.run_report).verdict == 'failed'"},
                        },
                    ],
                }
            ]
        ),
        encoding="utf-8",
    )
    interpreter = f"ansible_python_interpreter={sys.executable}"
    installed.run("ansible-playbook", "-i", "localhost,", "-c", "local", "-e", interpreter, str(play))


def test_the_report_of_the_preflight_is_the_users_and_not_in_the_collection(installed: Installed) -> None:
    """Of a server that nobody can reach, which is a finding."""
    inventory = installed.empty / "unreachable.yml"
    server = {"ansible_host": "127.0.0.1", "ansible_port": 1, "ansible_ssh_retries": 0}
    inventory.write_text(json.dumps({"all": {"children": {"hypervisors": {"hosts": {"server1": server}}}}}))
    before = set(installed.root.rglob("*"))
    report = installed.home / ".local/state/iovlab.storage/preflight.json"
    said = installed.run("ansible-playbook", "-i", str(inventory), "iovlab.storage.preflight", status=2)
    assert f"all of it is in {report}" in said
    assert json.loads(report.read_text(encoding="utf-8"))["servers"]["server1"]["problems"]
    chosen = installed.empty / "reports"
    given = ("-e", f"preflight_reports={chosen}")
    installed.run("ansible-playbook", "-i", str(inventory), *given, "iovlab.storage.preflight", status=2)
    assert (chosen / "preflight.json").is_file()
    new = {path for path in installed.root.rglob("*") if "__pycache__" not in path.parts} - before
    assert new == set()
