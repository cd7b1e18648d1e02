# SPDX-License-Identifier: GPL-3.0-or-later
"""The frame of every module: arguments in, one result or one clear line out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ._argspec import ArgumentSpec
from ._errors import IovlabError, Missing, VportdDown, VportdError
from ._host import Host
from ._plan import Plan

Body = Callable[[AnsibleModule, Host], dict[str, Any]]
Foreseen = Callable[[dict[str, Any]], tuple[Plan, dict[str, Any]]]


def run(spec: ArgumentSpec, body: Body, foreseen: Foreseen | None = None) -> None:
    """Build the module, run ``body`` and leave by exit_json or fail_json.

    ``foreseen(params)`` is the plan, and the rest of the result, for check mode with the option ``planned`` when what
    the module builds on is not there yet.
    """
    module = AnsibleModule(supports_check_mode=True, **spec.to_kwargs())
    try:
        try:
            result = body(module, Host.of(module))
        except (Missing, VportdDown) as exc:
            if foreseen is None or not (module.check_mode and module.params["planned"]):
                raise
            planned, rest = foreseen(module.params)
            result = planned.report() | rest | {"notes": [f"planned as if an earlier task had made it: {exc}"]}
    except VportdError as exc:
        module.fail_json(msg=str(exc), reason=exc.reason, **exc.details)
    except IovlabError as exc:
        module.fail_json(msg=str(exc), **exc.details)
    except OSError as exc:
        what = f"{exc.filename}: " if exc.filename else ""
        module.fail_json(msg=f"{what}{exc.strerror or exc}; run as root and check that the path is there")
    for note in result.pop("notes", ()):
        module.warn(note)
    module.exit_json(**result)
