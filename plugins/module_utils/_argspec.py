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

    def merge(self, *others: ArgumentSpec) -> ArgumentSpec:
        """All options and rules of this and the others; the others come later and win."""
        merged: dict[str, Mapping[str, Any]] = dict(self.options)
        required_if, together = list(self.required_if), list(self.required_together)
        for other in others:
            merged.update(other.options)
            required_if += other.required_if
            together += other.required_together
        return ArgumentSpec(merged, required_if, together)

    def to_kwargs(self) -> dict[str, Any]:
        """Keyword arguments for AnsibleModule."""
        return {
            "argument_spec": {name: dict(option) for name, option in self.options.items()},
            "required_if": [tuple(rule) for rule in self.required_if],
            "required_together": [tuple(rule) for rule in self.required_together],
        }


STATE = ArgumentSpec({"state": {"type": "str", "choices": ["present", "absent"], "default": "present"}})
RPC = ArgumentSpec({"rpc_socket": {"type": "path", "default": "/run/vportd/rpc.sock"}})
PLANNED = ArgumentSpec({"planned": {"type": "bool", "default": False}})
STORAGE = ArgumentSpec({"adapter": {"type": "str", "required": True}, "nsid": {"type": "int", "default": 1}})
