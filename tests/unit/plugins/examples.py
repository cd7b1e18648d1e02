# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks tasks that are written for a reader: EXAMPLES of modules, blocks of YAML in the documentation."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

PREFIX = "iovlab.storage."
_PLACEHOLDERS: dict[str, Any] = {"int": 1, "float": 1.0, "bool": True, "list": [], "dict": {}}


def module_tasks(content: Any) -> Iterator[tuple[str, Any]]:
    """Each (module of this collection, arguments) in plays, tasks and blocks of tasks."""
    if isinstance(content, list):
        for entry in content:
            yield from module_tasks(entry)
    elif isinstance(content, dict):
        for key, value in content.items():
            if key.startswith(PREFIX):
                yield key.removeprefix(PREFIX), value
            elif key in ("tasks", "pre_tasks", "post_tasks", "handlers", "block", "rescue", "always"):
                yield from module_tasks(value)


def problems(module: str, arguments: Any) -> list[str]:
    """What the module would refuse in these arguments. A template counts as a value that its option accepts."""
    try:
        spec = importlib.import_module(f"ansible_collections.iovlab.storage.plugins.modules.{module}").SPEC
    except ModuleNotFoundError:
        return [f"there is no module {PREFIX}{module}"]
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, dict):
        return [f"{module} takes options by name, not {arguments!r}"]
    kwargs = spec.to_kwargs()
    validator = ArgumentSpecValidator(**kwargs)
    return list(validator.validate(_without_templates(arguments, kwargs["argument_spec"])).error_messages)


def _without_templates(value: Any, options: Any) -> Any:
    return {name: _plain(given, options.get(name) or {}) for name, given in value.items()}


def _plain(given: Any, option: Any) -> Any:
    if isinstance(given, str) and "{{" in given:
        choices = option.get("choices")
        return choices[0] if choices else _PLACEHOLDERS.get(option.get("type", "str"), "a string")
    if isinstance(given, dict) and option.get("options"):
        return _without_templates(given, option["options"])
    if isinstance(given, list):
        element = {"type": option.get("elements", "str"), "options": option.get("options")}
        return [_plain(one, element) for one in given]
    return given
