# SPDX-License-Identifier: GPL-3.0-or-later
"""What the plugins say of themselves is so: examples are accepted, samples have the types they are declared with."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.plugins.examples import module_tasks, problems

ROOT = Path(__file__).resolve().parents[3]
MODULES = sorted(path.stem for path in (ROOT / "plugins/modules").glob("[!_]*.py"))
ATTRIBUTES = {"check_mode", "diff_mode", "idempotent", "platform"}
TYPES: dict[str, Any] = {
    "str": str,
    "path": str,
    "raw": object,
    "int": int,
    "float": (int, float),
    "bool": bool,
    "list": list,
    "dict": dict,
}


@cache
def documentation() -> dict[str, Any]:
    """All modules as ansible-doc gives them, fragments included."""
    names = [f"iovlab.storage.{name}" for name in MODULES]
    command = [str(Path(sys.executable).parent / "ansible-doc"), "--json", "--type", "module", *names]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return {name.removeprefix("iovlab.storage."): content for name, content in found.items()}


def mismatches(name: str, declared: dict[str, Any], sample: Any) -> list[str]:
    """How ``sample`` is not what ``declared`` says, with everything that it contains."""
    kind = declared.get("type")
    if kind not in TYPES:
        return [f"{name}: type {kind!r} is not known"]
    if sample is None:
        return []
    if not isinstance(sample, TYPES[kind]) or (isinstance(sample, bool) and kind in ("int", "float")):
        return [f"{name}: {sample!r} is no {kind}"]
    found = []
    if kind == "list":
        if "elements" not in declared:
            found.append(f"{name}: does not say what its elements are")
        element = {"type": declared.get("elements", "raw"), "contains": declared.get("contains", {})}
        for number, one in enumerate(sample):
            found += mismatches(f"{name}[{number}]", element, one)
    contains = declared.get("contains") or {}
    if kind == "dict" and contains:
        for key, value in sample.items():
            if key in contains:
                found += mismatches(f"{name}.{key}", contains[key], value)
            else:
                found.append(f"{name}: the sample has {key}, which is not described")
    return found


def undescribed(name: str, declared: dict[str, Any]) -> list[str]:
    """Return values, at any depth, without a description, or without a sample that an outer one has not given."""
    found = [] if declared.get("description") else [f"{name} has no description"]
    for key, inner in (declared.get("contains") or {}).items():
        found += undescribed(f"{name}.{key}", inner)
    return found


@pytest.mark.parametrize("module", MODULES)
def test_every_example_is_accepted_by_its_module(module: str) -> None:
    examples = yaml.safe_load(documentation()[module]["examples"])
    tasks = list(module_tasks(examples))
    assert module in {name for name, _arguments in tasks}, "no example of the module itself"
    assert [problem for name, arguments in tasks for problem in problems(name, arguments)] == []
    assert [task for task in examples if not task.get("name", "").strip()] == []


@pytest.mark.parametrize("module", MODULES)
def test_every_sample_is_of_the_type_that_is_declared(module: str) -> None:
    found = []
    for name, declared in documentation()[module]["return"].items():
        found += undescribed(name, declared)
        if not declared.get("returned"):
            found.append(f"{name} does not say when it is returned")
        if "sample" in declared:
            found += mismatches(name, declared, declared["sample"])
        elif not declared.get("contains"):
            found.append(f"{name} has neither a sample nor a description of what it contains")
    assert found == []


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_can_do(module: str) -> None:
    attributes = documentation()[module]["doc"].get("attributes", {})
    assert set(attributes) >= ATTRIBUTES
    assert all(attributes[name]["support"] in ("full", "partial", "none", "N/A") for name in ATTRIBUTES)
    partly = [name for name in ATTRIBUTES if attributes[name]["support"] in ("partial", "none")]
    assert [name for name in partly if not attributes[name].get("details")] == [], "says no, and not why"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"name": "web1", "state": "gone"}, "state"),
        ({"name": "web1", "forze": True}, "forze"),
        ({"state": "present"}, "name"),
        ({"name": "web1", "force": "perhaps"}, "force"),
    ],
)
def test_a_wrong_example_is_found(arguments: dict[str, Any], word: str) -> None:
    assert any(word in problem for problem in problems("vport", arguments))


def test_a_wrong_sample_is_found() -> None:
    declared = {"type": "dict", "contains": {"size": {"type": "int"}, "names": {"type": "list", "elements": "str"}}}
    assert mismatches("x", declared, {"size": 1, "names": ["a"]}) == []
    assert len(mismatches("x", declared, {"size": "1", "names": [1], "more": 2})) == 3
