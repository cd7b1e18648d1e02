# SPDX-License-Identifier: GPL-3.0-or-later
"""The frame of every module: arguments in, one result or one clear line out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ._argspec import ArgumentSpec
from ._errors import IovlabError, VportdError
from ._host import Host

Body = Callable[[AnsibleModule, Host], dict[str, Any]]


def run(spec: ArgumentSpec, body: Body) -> None:
    """Build the module, run ``body`` and leave by exit_json or fail_json."""
    module = AnsibleModule(supports_check_mode=True, **spec.to_kwargs())
    try:
        result = body(module, Host.of(module))
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
