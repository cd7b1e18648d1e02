# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter: where the virtual machines of a hypervisor can go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.iovlab.storage.plugins.plugin_utils._evacuation import evacuation_plan

DOCUMENTATION = r"""
name: evacuation_plan
version_added: 0.1.0
short_description: Places for the virtual machines of a hypervisor
description:
  - Spreads virtual machines over other hypervisors, by their memory and free VFs. Moves nothing.
  - The largest is placed first, where a VF is free and most memory is left. Where no VF is free anywhere it is placed
    all the same, on path V(pf).
author:
  - iovlab.storage contributors (@iovlab)
positional: _input, hosts, source
options:
  _input:
    description:
      - The virtual machines, dictionaries of C(name) and C(memory), the latter in bytes.
    type: list
    elements: dict
    required: true
  hosts:
    description:
      - By name of the hypervisors that may take them, dictionaries of C(free_memory) in bytes and C(free_vfs).
    type: dict
    required: true
  source:
    description:
      - Name of the hypervisor that they are on.
    type: str
    required: true
  wanted:
    description:
      - Where a virtual machine has to go, by its name.
    type: dict
seealso:
  - plugin: iovlab.storage.vm_migrate
    plugin_type: module
"""

EXAMPLES = r"""
- name: Plan
  ansible.builtin.set_fact:
    plan: "{{ vms | iovlab.storage.evacuation_plan(hosts, 'hypervisor1') }}"
  vars:
    vms:
      - {name: web1, memory: 402653184}
    hosts:
      hypervisor2: {free_memory: 1073741824, free_vfs: 3}
"""

RETURN = r"""
_value:
  description:
    - The plan.
  type: dict
  contains:
    ok:
      description: Whether every virtual machine has a place.
      type: bool
    moves:
      description: Each has C(vm), C(source), C(to), and the C(path) that it will have there, V(vf) or V(pf).
      type: list
      elements: dict
    problems:
      description: A sentence for each virtual machine that has no place.
      type: list
      elements: str
"""


class FilterModule:
    """The collection's filter for evacuations."""

    def filters(self) -> dict[str, Callable[..., dict[str, Any]]]:
        return {"evacuation_plan": evacuation_plan}
