# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter: how to end a half-finished migration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.iovlab.storage.plugins.plugin_utils._recovery import migration_recovery

DOCUMENTATION = r"""
name: migration_recovery
version_added: 0.1.0
short_description: Steps that bring a half-finished migration to one end
description:
  - Decides from what every hypervisor says of a virtual machine where it goes on, and what has to be done for that.
    Nothing needs to be known of the migration that was begun.
  - What only a person can decide is not decided. RV(_value.ok) is V(false) then, and RV(_value.message) says why.
author:
  - iovlab.storage contributors (@iovlab)
positional: _input
options:
  _input:
    description:
      - By name of the hypervisor a dictionary of C(reachable), C(lost) (powered off for good, by the operator's word),
        C(domain) (null, or C(state), C(active) and C(job)) and C(vport) (null, or vportd's record).
    type: dict
    required: true
  vm:
    description:
      - Name of the virtual machine.
    type: str
    required: true
  to:
    description:
      - Where to start it, if it runs nowhere.
    type: str
seealso:
  - plugin: iovlab.storage.vm_migrate
    plugin_type: module
"""

EXAMPLES = r"""
- name: Decide
  ansible.builtin.set_fact:
    plan: "{{ hosts | iovlab.storage.migration_recovery(vm='web1') }}"
  vars:
    hosts:
      hypervisor1:
        reachable: true
        lost: false
        domain: {state: running, active: true, job: false}
        vport: "{{ hostvars.hypervisor1.vports | first }}"
      hypervisor2:
        reachable: false
        lost: true
        domain: null
        vport: null
"""

RETURN = r"""
_value:
  description:
    - The plan.
  type: dict
  contains:
    ok:
      description: Whether there is a way that needs nobody's decision.
      type: bool
    message:
      description: One sentence, where it runs in the end or what a person has to decide.
      type: str
    end:
      description: The hypervisor where it runs in the end.
      type: str
    steps:
      description: What to do, in this order. Each has C(host), C(verb) and C(text).
      type: list
      elements: dict
"""


class FilterModule:
    """The collection's filter for half-finished migrations."""

    def filters(self) -> dict[str, Callable[..., dict[str, Any]]]:
        return {"migration_recovery": migration_recovery}
