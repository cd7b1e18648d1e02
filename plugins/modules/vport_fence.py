#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: the fence of a vport."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vport_fence
version_added: 0.1.0
short_description: Keep a vport from doing any I/O
description:
  - A fenced vport takes no request, whoever connects to it, until the fence is lifted. The fence survives a restart
    of C(vportd).
  - Set it with O(when=on_stop) on the source before a live migration. The vport then fences itself as soon as the
    virtual machine stops there, before the destination can write.
  - A fenced vport holds no leases. They go to O(next), or are free. Lifting the fence takes them back, and is refused
    while another hypervisor holds them. If they were handed to O(next) and not given back, by deleting the vport
    there, that takes as long as a lease is valid, and half as long again.
author:
  - iovlab.storage contributors (@iovlab)
options:
  vport:
    description:
      - Name of the vport.
    type: str
    required: true
  when:
    description:
      - V(now) fences at once, V(on_stop) when the virtual machine next stops its queues.
      - A vport that is fenced already meets both.
    type: str
    choices: [now, on_stop]
    default: now
  next:
    description:
      - The hypervisor that gets the leases of the vport when the fence falls, the destination of a migration. It is
        the RV(iovlab.storage.vport_info#module:engine.host_id) that M(iovlab.storage.vport_info) returns there.
      - Left out, the leases are free when the fence falls, and the destination must claim them, which takes seconds.
    type: str
  state:
    description:
      - V(present) sets the fence, V(absent) lifts it, and takes back O(when=on_stop).
    type: str
    choices: [present, absent]
    default: present
extends_documentation_fragment:
  - iovlab.storage._attributes
  - iovlab.storage._options.rpc
seealso:
  - module: iovlab.storage.vm_migrate
  - module: iovlab.storage.vport_lease
"""

EXAMPLES = r"""
- name: The source fences itself when the virtual machine leaves
  iovlab.storage.vport_fence:
    vport: web1
    when: on_stop
    next: "{{ destination.engine.host_id }}"

- name: The migration failed, the virtual machine goes on here
  iovlab.storage.vport_fence:
    vport: web1
    state: absent
"""

RETURN = r"""
vport:
  description: The record of the vport; in check mode before the change.
  returned: success
  type: dict
  sample: {"vport": "web1", "fenced": false, "fence_on_stop": true}
steps:
  description: What was done, or in check mode would be done, a sentence each.
  returned: success
  type: list
  elements: str
  sample: ["fence vport web1 now"]
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.iovlab.storage.plugins.module_utils import _vport
from ansible_collections.iovlab.storage.plugins.module_utils._argspec import RPC, STATE, ArgumentSpec
from ansible_collections.iovlab.storage.plugins.module_utils._host import Host
from ansible_collections.iovlab.storage.plugins.module_utils._module import run
from ansible_collections.iovlab.storage.plugins.module_utils._plan import carry_out
from ansible_collections.iovlab.storage.plugins.module_utils._rpc import Vportd
from ansible_collections.iovlab.storage.plugins.module_utils._units import vport_name

SPEC = STATE.merge(
    RPC,
    ArgumentSpec(
        {
            "vport": {"type": "str", "required": True},
            "when": {"type": "str", "choices": ["now", "on_stop"], "default": "now"},
            "next": {"type": "str"},
        }
    ),
)


def body(module: AnsibleModule, host: Host) -> dict[str, Any]:
    options = module.params
    name = vport_name(options["vport"])
    with Vportd(options["rpc_socket"]) as vportd:
        record = vportd.vport(name)
        planned = _vport.plan_fence(name, record, options["when"], options["state"] == "present", options["next"])
        if planned.changed and not module.check_mode:
            carry_out(planned, vportd.verbs(name))
            record = vportd.vport(name)
    return planned.report() | {"vport": record}


def main() -> None:
    run(SPEC, body)


if __name__ == "__main__":
    main()
