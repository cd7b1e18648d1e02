# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter: what servers can and cannot do for this collection."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.iovlab.storage.plugins.plugin_utils._preflight_server import preflight

DOCUMENTATION = r"""
name: server_preflight
version_added: 0.1.0
short_description: What servers can and cannot do for this collection
description:
  - Judges what M(iovlab.storage.hypervisor_info) told about each server, also of one that nothing is installed on yet.
  - What needs a person is a problem. What C(provision.yml) does by itself is a warning.
positional: _input
options:
  _input:
    description:
      - What M(iovlab.storage.hypervisor_info) returned, by the name of the server. The result of a task that failed, or
        whose host was unreachable, is a problem of that server.
    type: dict
    required: true
  adapters:
    description:
      - The list C(adapters) of the inventory, by the name of the server. Left out, it is not compared.
    type: dict
seealso:
  - plugin: iovlab.storage.hypervisor_info
    plugin_type: module
"""

EXAMPLES = r"""
- name: Show what the servers can do
  ansible.builtin.debug:
    msg: "{{ ({'hv1': server} | iovlab.storage.server_preflight).table }}"
"""

RETURN = r"""
_value:
  description: What was found.
  type: dict
  contains:
    ok:
      description: Whether no server has a problem.
      type: bool
    servers:
      description:
        - By name of the server C(ok), C(problems), C(warnings) and C(checks), as
          P(iovlab.storage.migration_preflight#filter) returns them.
      type: dict
    table:
      description: A table of the servers, a line each.
      type: list
      elements: str
"""


def server_preflight(facts: Any, adapters: Any = None) -> dict[str, Any]:
    for what, value in (("the input", facts), ("adapters", adapters)):
        if not isinstance(value, Mapping) and not (what == "adapters" and value is None):
            raise AnsibleFilterError(f"server_preflight: {what} is no dictionary; give one by the name of the server")
    return preflight(facts, adapters)


class FilterModule:
    """The collection's filter that judges servers."""

    def filters(self) -> dict[str, Callable[..., dict[str, Any]]]:
        return {"server_preflight": server_preflight}
