# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks that are all made, whatever the others found, and what came of them as one value.

A check is a generator over its subject: it yields a text for what it has seen, and a Finding for what is wrong. Facts
that are missing never make a check pass: they are a problem, or the check is skipped because another one has reported
that very thing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Subject = TypeVar("Subject")
Record = Mapping[str, Any]

OK, WARNING, PROBLEM, SKIPPED = "ok", "warning", "problem", "skipped"
_READ_AGAIN = "read the facts with hypervisor_info of this collection, on both hosts"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line that says what is wrong, and one that says what to do."""

    message: str
    fix: str
    warning: bool = False


def warning(message: str, fix: str) -> Finding:
    return Finding(message, fix, warning=True)


class Unknown(Exception):
    """A check cannot be made. ``told_by`` names the check that reports why, if one does; ``fix`` is for when not."""

    def __init__(self, reason: str, told_by: str = "", fix: str = _READ_AGAIN) -> None:
        super().__init__(reason)
        self.told_by = told_by
        self.fix = fix


class NotAsked(Exception):
    """A check does not concern this subject, or what it needs was left out on purpose."""


@dataclass(frozen=True)
class Check(Generic[Subject]):
    """``asks``: what it is about, in a few words, for the documentation."""

    name: str
    asks: str
    judge: Callable[[Subject], Iterator[Finding | str]]


def carry_out(checks: Sequence[Check[Subject]], subject: Subject) -> dict[str, Any]:
    """``ok``, ``problems``, ``warnings``, and ``checks`` with the result of each, in the order of ``checks``."""
    findings: list[tuple[str, Finding]] = []
    results: list[dict[str, str]] = []
    failed: set[str] = set()
    for check in checks:
        found, details, skipped = _judged(check, subject, failed)
        findings += [(check.name, one) for one in found]
        wrong = [one for one in found if not one.warning]
        if wrong or skipped:
            failed.add(check.name)
        result = PROBLEM if wrong else WARNING if found else SKIPPED if skipped is not None else OK
        said = [one.message for one in found] + details + ([skipped] if skipped else [])
        results.append({"name": check.name, "result": result, "detail": "; ".join(said)})
    shown = [({"check": name, "message": one.message, "fix": one.fix}, one.warning) for name, one in findings]
    problems = [one for one, harmless in shown if not harmless]
    return {
        "ok": not problems,
        "problems": problems,
        "warnings": [one for one, harmless in shown if harmless],
        "checks": results,
    }


def _judged(check: Check[Subject], subject: Subject, failed: set[str]) -> tuple[list[Finding], list[str], str | None]:
    """What is wrong, what was seen, and why not all was looked at: empty when that is no concern, else None."""
    found: list[Finding] = []
    details: list[str] = []
    try:
        for one in check.judge(subject):
            if isinstance(one, Finding):
                found.append(one)
            else:
                details.append(one)
    except NotAsked as exc:
        details.append(str(exc))
        return found, details, ""
    except Unknown as exc:
        if exc.told_by in failed:
            return found, details, f"not looked at, see {exc.told_by}"
        found.append(Finding(f"cannot be told, since {exc}", exc.fix))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as exc:
        found.append(Finding(f"the facts cannot be read ({type(exc).__name__}: {exc})", _READ_AGAIN))
    return found, details, None


# Facts of any shape


def record(value: Any) -> Record:
    return value if isinstance(value, Mapping) else {}


def records(value: Any) -> list[Record]:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return []
    return [one for one in value if isinstance(one, Mapping)]


def cause(reason: Any) -> str:
    """A reason of hypervisor_info without the option that it begins with and the remedy that it ends with."""
    text = str(reason or "no reason given")
    return re.sub(r"^(uri|peers|Task failed): ", "", text.rpartition("; ")[0] or text)


class Host:
    """What hypervisor_info told about one host."""

    def __init__(self, name: str, facts: Any) -> None:
        self.name = name
        self.facts = record(facts)

    @property
    def failure(self) -> str | None:
        """Why there are no facts, None when there are."""
        if self.facts.get("unreachable"):
            return f"{self.name} cannot be reached: {cause(self.facts.get('msg'))}"
        if self.facts.get("failed"):
            return f"{self.name} gave no facts: {cause(self.facts.get('msg'))}"
        if not self.facts.get("host"):
            said = f": {cause(self.facts['msg'])}" if self.facts.get("msg") else ""
            return f"there are no facts of {self.name}{said}"
        return None

    def part(self, key: str) -> Record:
        if self.failure:
            raise Unknown(self.failure, "facts")
        value = self.facts.get(key)
        if not isinstance(value, Mapping):
            raise Unknown(f"{self.name} does not tell about {key}")
        return value

    def listed(self, key: str) -> list[Record]:
        if self.failure:
            raise Unknown(self.failure, "facts")
        if key not in self.facts:
            raise Unknown(f"{self.name} does not tell about {key}")
        return records(self.facts[key])

    @property
    def libvirt(self) -> Record:
        found = self.part("libvirt")
        if not found.get("reachable"):
            raise Unknown(f"libvirt of {self.name} does not answer", "libvirt")
        return found

    @property
    def vportd(self) -> Record:
        found = self.part("vportd")
        if not found.get("reachable"):
            raise Unknown(f"vportd of {self.name} does not answer", "engine")
        return found

    def namespace(self, pf: Any, nsid: Any) -> Record | None:
        for adapter in self.listed("adapters"):
            if adapter.get("pf") == pf:
                return next((one for one in records(adapter.get("namespaces")) if one.get("nsid") == nsid), None)
        return None


def mebibytes(amount: float) -> str:
    return f"{amount / (1 << 20):.0f} MiB"


def some(names: Sequence[str], most: int = 6) -> str:
    """The first few of a list, and how many more there are."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
