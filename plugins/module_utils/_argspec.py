# SPDX-License-Identifier: GPL-3.0-or-later
"""Argument specifications as values that can be added up, and the options that several modules share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Options = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class ArgumentSpec:
    options: Options
    required_if: Sequence[Sequence[Any]] = ()
    required_together: Sequence[Sequence[str]] = field(default_factory=tuple)
    required_one_of: Sequence[Sequence[str]] = ()
    mutually_exclusive: Sequence[Sequence[str]] = ()

    def merge(self, *others: ArgumentSpec) -> ArgumentSpec:
        """All options and rules of this and the others; the others come later and win."""
        specs = (self, *others)
        return ArgumentSpec(
            options={name: option for spec in specs for name, option in spec.options.items()},
            required_if=[rule for spec in specs for rule in spec.required_if],
            required_together=[rule for spec in specs for rule in spec.required_together],
            required_one_of=[rule for spec in specs for rule in spec.required_one_of],
            mutually_exclusive=[rule for spec in specs for rule in spec.mutually_exclusive],
        )

    def to_kwargs(self) -> dict[str, Any]:
        """Keyword arguments for AnsibleModule."""
        return {
            "argument_spec": {name: dict(option) for name, option in self.options.items()},
            "required_if": [tuple(rule) for rule in self.required_if],
            "required_together": [tuple(rule) for rule in self.required_together],
            "required_one_of": [tuple(rule) for rule in self.required_one_of],
            "mutually_exclusive": [tuple(rule) for rule in self.mutually_exclusive],
        }


STATE = ArgumentSpec({"state": {"type": "str", "choices": ["present", "absent"], "default": "present"}})
RPC = ArgumentSpec({"rpc_socket": {"type": "path", "default": "/run/vportd/rpc.sock"}})
PLANNED = ArgumentSpec({"planned": {"type": "bool", "default": False}})
ADAPTER = ArgumentSpec(
    {"pf": {"type": "str"}, "serial": {"type": "str"}, "nqn": {"type": "str"}},
    mutually_exclusive=[("pf", "serial", "nqn")],
)
ON_ADAPTER = ArgumentSpec(
    {"adapter": {"type": "str"}, "serial": {"type": "str"}, "nqn": {"type": "str"}},
    mutually_exclusive=[("adapter", "serial", "nqn")],
)
STORAGE = ON_ADAPTER.merge(
    ArgumentSpec({"nsid": {"type": "int", "default": 1}}, required_one_of=[("adapter", "serial", "nqn")])
)
