# SPDX-License-Identifier: GPL-3.0-or-later
"""What the documentation tells a reader to type can be typed.

Each command of a block ``sh`` is handed to the program's own parser, and to more where that changes nothing: `make -n`,
`ansible-playbook --syntax-check`, the module's options. A block that cannot be checked so says why in a comment right
above it: `<!-- not run by a test: why -->`.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from ansible.cli.adhoc import AdHocCLI
from ansible.cli.doc import DocCLI
from ansible.cli.galaxy import GalaxyCLI
from ansible.cli.inventory import InventoryCLI
from ansible.cli.playbook import PlaybookCLI

from tests.unit.plugins.examples import PREFIX, module_tasks, problems
from vportd import ctl

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "roles").glob("*/README.md")])
LANGUAGES = {"sh", "yaml", "json", "text", "ini", "xml", "{toctree}"}
EXCUSE = re.compile(r"<!-- not run by a test: \S.* -->$")
PROGRAMS = Path(sys.executable).parent


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str
    excused: bool

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    start = None
    for number, line in enumerate(lines):
        if not line.lstrip().startswith("```"):
            continue
        if start is None:
            start = number
        else:
            above = lines[start - 1].strip() if start else ""
            text = "\n".join(lines[start + 1 : number]) + "\n"
            yield Block(page, start + 1, lines[start].strip().removeprefix("```"), text, bool(EXCUSE.match(above)))
            start = None
    assert start is None, f"{page}: a block is not closed"


BLOCKS = [block for page in PAGES for block in blocks(page)]


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command, without variables set before it and without redirections of its output."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if not set(word) <= set("&|;"):
                if words or not re.match(r"[A-Z_]+=", word):
                    words.append(word)
            elif words:
                yield words
                words = []


def parsed(cli: Any, words: list[str]) -> Any:
    """The arguments as an Ansible program reads them."""
    program = cli(words)
    program.init_parser()
    try:
        return program.parser.parse_args(words[1:])
    except SystemExit:
        pytest.fail(f"{words[0]} does not understand: {shlex.join(words)}")


def check_inventories(arguments: Any) -> None:
    """All but what a lab writes have to be there."""
    named = [name for name in arguments.inventory or () if name != "build/lab/lab/inventory.yml"]
    assert [name for name in named if not (ROOT / name).exists()] == []


def run(words: list[str]) -> None:
    succeeds(*words)


@cache
def succeeds(*words: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    environment |= {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "PATH": f"{PROGRAMS}:{os.environ['PATH']}"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr or done.stdout}"


def check_make(words: list[str]) -> None:
    run(["make", "--no-print-directory", "--dry-run", *words[1:]])


def check_playbook(words: list[str]) -> None:
    check_inventories(parsed(PlaybookCLI, words))
    run(["ansible-playbook", "--syntax-check", *words[1:]])


def check_adhoc(words: list[str]) -> None:
    arguments = parsed(AdHocCLI, words)
    check_inventories(arguments)
    if arguments.module_name.startswith(PREFIX):
        given = arguments.module_args or ""
        options = (
            json.loads(given) if given.startswith("{") else dict(word.split("=", 1) for word in shlex.split(given))
        )
        assert problems(arguments.module_name.removeprefix(PREFIX), options) == []


def check_doc(words: list[str]) -> None:
    parsed(DocCLI, words)
    run(words)


def check_galaxy(words: list[str]) -> None:
    parsed(GalaxyCLI, words)


def check_inventory(words: list[str]) -> None:
    check_inventories(parsed(InventoryCLI, words))
    run(words)


def check_vportctl(words: list[str]) -> None:
    try:
        ctl.parser().parse_args(words[1:])
    except SystemExit:
        pytest.fail(f"vportctl does not understand: {shlex.join(words)}")


def check_pip(words: list[str]) -> None:
    files = [value for option, value in itertools.pairwise(words) if option == "-r"]
    assert files, "what pip is to install is in a file of requirements"
    assert [name for name in files if not (ROOT / name).is_file()] == []


def check_nothing(words: list[str]) -> None:
    """Of the shell itself; `bash -n` has read it."""


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "make": check_make,
    "ansible": check_adhoc,
    "ansible-doc": check_doc,
    "ansible-galaxy": check_galaxy,
    "ansible-inventory": check_inventory,
    "ansible-playbook": check_playbook,
    "pip": check_pip,
    "vportctl": check_vportctl,
    ".": check_nothing,
    "cd": check_nothing,
    "export": check_nothing,
}


def check(block: Block) -> None:
    subprocess.run(["bash", "-n"], input=block.text, check=True, text=True)
    for words in commands(block.text):
        assert words[0] in CHECKS, f"{block}: nothing checks {words[0]!r}; add a check, or say why there is none"
        CHECKS[words[0]](words)


@pytest.mark.parametrize("block", [one for one in BLOCKS if one.language == "sh" and not one.excused], ids=str)
def test_every_command_can_be_typed(block: Block) -> None:
    check(block)


@pytest.mark.parametrize("block", [one for one in BLOCKS if one.language == "yaml"], ids=str)
def test_every_task_is_accepted_by_its_module(block: Block) -> None:
    for content in yaml.safe_load_all(block.text):
        assert content is not None
        found = [problem for name, arguments in module_tasks(content) for problem in problems(name, arguments)]
        assert found == []


@pytest.mark.parametrize("block", [one for one in BLOCKS if one.language == "xml"], ids=str)
def test_every_piece_of_a_definition_is_as_the_tenant_role_writes_it(block: Block) -> None:
    ElementTree.fromstring(block.text)
    template = (ROOT / "roles/tenant/templates/domain.xml.j2").read_text(encoding="utf-8")
    written = {line.strip() for line in template.splitlines()}
    ours = {"path='/run/vportd/web1/0.sock'", "dev='vda'"}  # values of the example
    lines = [line.strip() for line in block.text.splitlines() if not any(value in line for value in ours)]
    assert [line for line in lines if line not in written] == []


def test_every_block_names_its_language() -> None:
    assert [str(block) for block in BLOCKS if block.language not in LANGUAGES] == []


def test_only_commands_are_excused() -> None:
    assert [str(block) for block in BLOCKS if block.excused and block.language != "sh"] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_sentences_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for code in re.findall(r"`((?:make|vportctl) [^`]+)`", page.read_text(encoding="utf-8")):
        words = code.replace("NAME", "x").split()
        if words[0] == "make":
            assert words[1] in targets, f"there is no `{code}`"
        elif "--help" not in words:
            check_vportctl([*words, "x"] if words[1:] in (["show"], ["mapping"], ["state"], ["policy"]) else words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?://)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize(
    "text",
    [
        "make nothing-of-the-kind\n",
        "ansible-playbook playbooks/gone.yml\n",
        "ansible-playbook --no-such-option playbooks/provision.yml\n",
        'ansible hv1 -m iovlab.storage.vport -a \'{"name": "a", "colour": "red"}\'\n',
        "ansible-galaxy collection instal x\n",
        "vportctl switch tenant1 sideways\n",
        "pip install -r gone.txt\n",
        "rm -rf build\n",
    ],
)
def test_a_command_that_does_not_work_is_found(text: str) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check(Block(ROOT / "README.md", 1, "sh", text, excused=False))
