# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds the tree together: lists that must agree, and what no file may leave out or name."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]

LICENCE = "GPL-3.0-or-later"
SPDX = "SPDX-License-" + f"Identifier: {LICENCE}"  # in two pieces, for reuse reads this file too

# Written in pieces, so that this file does not name them either.
FORBIDDEN = {
    "a path of one machine": r"(?<![\w.}-])/" + r"work/",
    "a Debian mirror": r"\b(deb|ftp|security|snapshot|cdn-aws)[\w.-]*\.debian\." + r"(org|net)\b",
    "a Python index": r"\b(pypi\." + r"(org|io)|files\.pythonhosted" + r"|pypi\.python)",
    "a registry of images": r"\b(docker\." + r"io|ghcr\." + r"io|quay\." + r"io)\b",
}


def tree() -> list[Path]:
    """Every file that is or could be committed."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [ROOT / name for name in sorted(set(listed.split("\0")) - {""}) if (ROOT / name).is_file()]


def text(path: Path) -> str | None:
    """What a text file holds; None for a binary one."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


def load(name: str) -> dict:
    content = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def test_the_action_group_lists_every_module() -> None:
    modules = sorted(path.stem for path in (ROOT / "plugins" / "modules").glob("*.py") if path.stem != "__init__")
    assert load("meta/runtime.yml")["action_groups"]["all"] == modules


def test_the_newest_changelog_entry_is_the_version_of_the_collection() -> None:
    version = load("galaxy.yml")["version"]
    releases = load("changelogs/changelog.yaml")["releases"]
    assert max(releases, key=lambda one: [int(part) for part in one.split(".")]) == version
    assert f'<a id="v{version.replace(".", "-")}"></a>' in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_unit_names_the_documentation_of_the_collection() -> None:
    named = [
        (path, found)
        for path in tree()
        for found in re.findall(r"^Documentation" + r"=(.*)$", text(path) or "", re.MULTILINE)
    ]
    assert len(named) > 1
    documentation = load("galaxy.yml")["documentation"]
    assert [f"{path.relative_to(ROOT)}: {found}" for path, found in named if found != documentation] == []


def test_every_plugin_is_in_the_changelog_of_the_version_it_came_with() -> None:
    """`make changelog` puts it there."""
    told = {
        version: sorted(
            one["name"] for kind in ("modules", *release.get("plugins", ())) for one in plugins(release, kind)
        )
        for version, release in load("changelogs/changelog.yaml")["releases"].items()
    }
    documented: dict[str, list[str]] = {version: [] for version in told}
    for kind in ("modules", "filter"):
        for path in (ROOT / "plugins" / kind).glob("*.py"):
            found = re.search(r"^version_added: (\S+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert found, f"{path.name} does not say version_added"
            documented.setdefault(found[1], []).append(path.stem)
    assert {version: sorted(names) for version, names in documented.items()} == told


def plugins(release: dict, kind: str) -> list[dict]:
    found = release.get("modules", []) if kind == "modules" else release["plugins"][kind]
    assert isinstance(found, list)
    return found


def test_every_file_names_its_licence_in_its_first_lines() -> None:
    """`make lint` asks reuse the same; this one is quick. The licence itself, and its link, name nobody's licence."""
    annotations = tomllib.loads((ROOT / "REUSE.toml").read_text(encoding="utf-8"))["annotations"]
    covered = [pattern for entry in annotations if "SPDX-License-Identifier" in entry for pattern in entry["path"]]
    lacking = []
    for path in tree():
        if path.name in {"LICENSE", f"{LICENCE}.txt"} or any(path.match(pattern) for pattern in covered):
            continue
        content = text(path)
        if content and SPDX not in "\n".join(content.splitlines()[:5]):
            lacking.append(path)
    assert names(lacking) == []


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_names(what: str) -> None:
    found = []
    for path in tree():
        for number, line in enumerate((text(path) or "").splitlines(), 1):
            if re.search(FORBIDDEN[what], line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert found == []


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("a path of one machine", "cd /wo" + "rk/main"),
        ("a Debian mirror", "deb http://deb.debian.o" + "rg/debian stable main"),
        ("a Python index", "--index-url https://pypi.o" + "rg/simple"),
        ("a registry of images", "image: docker.i" + "o/library/debian"),
    ],
)
def test_the_patterns_for_forbidden_names_do_match(what: str, line: str) -> None:
    assert re.search(FORBIDDEN[what], line)


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = set(re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE))
    targets = set(re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE))
    shown = subprocess.run(["make", "help"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert phony == targets
    assert set(re.findall(r"^  ([a-z][\w-]*) +\S", shown, re.MULTILINE)) == targets


def test_every_role_declares_its_arguments() -> None:
    roles = [path for path in (ROOT / "roles").glob("*") if path.is_dir()]
    lacking = [path for path in roles if not (path / "meta" / "argument_specs.yml").is_file()]
    assert names(lacking) == []
