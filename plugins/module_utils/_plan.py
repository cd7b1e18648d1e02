# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans: steps as data, made once and used by check mode, by diff and by apply.

Each domain (SR-IOV, pool, vport, ...) has one function ``plan(current, desired) -> Plan``. Nothing else decides what
is done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Step:
    """One change. ``verb`` selects the action that carries it out, ``text`` is the sentence that the user reads."""

    verb: str
    text: str
    args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is there, what is wanted, and the steps from one to the other."""

    before: Mapping[str, Any]
    after: Mapping[str, Any]
    steps: tuple[Step, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        return bool(self.steps)

    def with_parts(self, **parts: Plan) -> Plan:
        """This plan and then the others, each of which is shown under its name."""
        return Plan(
            before=dict(self.before) | {name: part.before for name, part in parts.items()},
            after=dict(self.after) | {name: part.after for name, part in parts.items()},
            steps=self.steps + tuple(step for part in parts.values() for step in part.steps),
            notes=self.notes + tuple(note for part in parts.values() for note in part.notes),
        )

    def report(self) -> dict[str, Any]:
        """The part of a module's result that every module has: changed, diff and the steps as sentences."""
        return {
            "changed": self.changed,
            "diff": {"before": dict(self.before), "after": dict(self.after) if self.changed else dict(self.before)},
            "steps": [step.text for step in self.steps],
        }


def carry_out(plan: Plan, actions: Mapping[str, Callable[..., Any]]) -> list[Any]:
    """Run the steps of ``plan`` in order, each by the action named by its verb; return what the actions returned."""
    return [actions[step.verb](**step.args) for step in plan.steps]
