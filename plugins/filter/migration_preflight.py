# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter: every reason to refuse a live migration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.iovlab.storage.plugins.plugin_utils._preflight_migration import preflight

DOCUMENTATION = r"""
name: migration_preflight
version_added: 0.1.0
short_description: Every reason to refuse a live migration, all at once
description:
  - Judges what M(iovlab.storage.hypervisor_info) told about both hypervisors, before anything is touched.
  - Facts that are missing are a problem, never a reason to say that all is well.
positional: _input
options:
  _input:
    description:
      - What is to be migrated, a dictionary with the keys below.
      - C(vm) and C(vport), the names of the virtual machine and of its vport; required.
      - C(source) and C(destination), what M(iovlab.storage.hypervisor_info) returned there; required. The source must
        have been asked with its O(iovlab.storage.hypervisor_info#module:domain), both with
        O(iovlab.storage.hypervisor_info#module:peers), and the destination with the source's RV(ignore:domain.cpu.xml)
        as O(iovlab.storage.hypervisor_info#module:cpu) and RV(ignore:domain.files) as
        O(iovlab.storage.hypervisor_info#module:paths).
      - C(source_name) and C(destination_name), as messages should call them.
      - C(source_address) and C(destination_address), those of the peers to look at, if there was more than one.
      - C(luns), a list of dictionaries C(lun), C(vdisk), C(readonly) that the vport should have, and C(pool), the name
        of their pool. Left out, they are not compared.
      - C(mode), V(direct) by default; V(stay_mediated) does not ask for a VF, and V(offline), for a virtual machine
        that is shut down and started again, not for what only a live migration needs.
      - C(require_vf), whether no free VF on the destination is a problem; by default it is a warning, since the virtual
        machine can stay on the PF.
      - C(vf), a dictionary of C(queues) and C(interrupts) that a VF must have, by default 2 and 1.
      - C(require_identity), true by default; false makes a warning of storage that tells no NGUID, EUI64 or UUID.
      - C(clocks), a dictionary of C(source) and C(destination), each with C(before) and C(after), the control node's
        time in seconds before and after it asked that host. Left out, clocks are not compared.
      - C(beside), a list of dictionaries C(name) and C(memory), in bytes, of the virtual machines that come to the same
        destination at the same time; they need memory and VFs too.
    type: dict
    required: true
seealso:
  - plugin: iovlab.storage.hypervisor_info
    plugin_type: module
  - plugin: iovlab.storage.server_preflight
    plugin_type: filter
"""

EXAMPLES = r"""
- name: Refuse what cannot be migrated
  ansible.builtin.assert:
    that: preflight.ok
    fail_msg: "{{ preflight.problems | map(attribute='message') | join('; ') }}"
  vars:
    preflight: "{{ wanted | iovlab.storage.migration_preflight }}"
    wanted:
      vm: web1
      vport: web1
      source: "{{ source }}"
      destination: "{{ destination }}"
"""

RETURN = r"""
_value:
  description: What was found.
  type: dict
  contains:
    ok:
      description: Whether there is no problem.
      type: bool
    problems:
      description: What stands in the way, each with C(check), C(message) and C(fix).
      type: list
      elements: dict
      sample: [{"check": "memory", "message": "web1 needs 512 MiB, hv2 has 300 MiB available", "fix": "stop something"}]
    warnings:
      description: What to know before, of the same shape.
      type: list
      elements: dict
    checks:
      description: Every check with C(name), C(result) - V(ok), V(warning), V(problem) or V(skipped) - and C(detail).
      type: list
      elements: dict
      sample: [{"name": "storage", "result": "ok", "detail": "uuid 0b9d1f8a-5c1e-4a55-9d3e-2f6f1c1f7a10"}]
"""


def migration_preflight(wanted: Any) -> dict[str, Any]:
    if not isinstance(wanted, Mapping):
        raise AnsibleFilterError("migration_preflight: the input is no dictionary; give vm, vport, source, destination")
    try:
        return preflight(wanted)
    except ValueError as exc:
        raise AnsibleFilterError(f"migration_preflight: {exc}") from exc


class FilterModule:
    """The collection's filter that judges a migration before it begins."""

    def filters(self) -> dict[str, Callable[[Any], dict[str, Any]]]:
        return {"migration_preflight": migration_preflight}
