#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: the leases of a vport."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vport_lease
version_added: 0.1.0
short_description: Have this hypervisor hold the leases of a vport
description:
  - A lease on the shared storage says which hypervisor may write a vdisk. C(vportd) takes it with the mapping, or when
    a virtual machine arrives, so that this module is needed only when a hypervisor is lost.
  - Create the vport with O(iovlab.storage.vport#module:incoming) and push its mapping, then break the leases with this
    module, then start the virtual machine.
author:
  - iovlab.storage contributors (@iovlab)
options:
  vport:
    description:
      - Name of the vport.
    type: str
    required: true
  break:
    description:
      - Take leases also from another hypervisor. It is refused when that one has renewed a lease in the meantime, and
        takes about twice as long as a lease is valid.
      - A hypervisor that only stands still, as a paused virtual one does, renews nothing either, and writes when it
        goes on. Switch it off before you set this.
    type: bool
    default: false
extends_documentation_fragment:
  - iovlab.storage._attributes
  - iovlab.storage._options.rpc
seealso:
  - module: iovlab.storage.vport_fence
  - module: iovlab.storage.adapter_mapping
"""

EXAMPLES = r"""
- name: Hypervisor 1 is switched off, its virtual machine shall run here
  iovlab.storage.vport_lease:
    vport: web1
    break: true
"""

RETURN = r"""
vport:
  description: The record of the vport; in check mode before the change.
  returned: success
  type: dict
  sample: {"vport": "web1", "fenced": false, "incoming": false}
leases:
  description: The leases as they are on the storage after the run; in check mode before the change.
  returned: success
  type: list
  elements: dict
  sample:
    - lun: 0
      vdisk: web1-root
      offset: 1048576
      state: held
      owner: 5a0c1f0d7c8e4b0f9a3b2c1d0e9f8a7b
      owner_name: hv2
      generation: 2
      next: null
steps:
  description: What was done, or in check mode would be done, a sentence each.
  returned: success
  type: list
  elements: str
  sample: ["break the leases that hv1 has for vport web1"]
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.iovlab.storage.plugins.module_utils import _vport
from ansible_collections.iovlab.storage.plugins.module_utils._argspec import RPC, ArgumentSpec
from ansible_collections.iovlab.storage.plugins.module_utils._host import Host
from ansible_collections.iovlab.storage.plugins.module_utils._module import run
from ansible_collections.iovlab.storage.plugins.module_utils._plan import carry_out
from ansible_collections.iovlab.storage.plugins.module_utils._rpc import Vportd
from ansible_collections.iovlab.storage.plugins.module_utils._units import vport_name

SPEC = RPC.merge(
    ArgumentSpec({"vport": {"type": "str", "required": True}, "break": {"type": "bool", "default": False}})
)


def body(module: AnsibleModule, host: Host) -> dict[str, Any]:
    options = module.params
    name = vport_name(options["vport"])
    with Vportd(options["rpc_socket"]) as vportd:
        record = vportd.vport(name)
        leases = vportd.leases(name) if record else []
        planned = _vport.plan_lease(name, record, leases, vportd.engine(), options["break"])
        if planned.changed and not module.check_mode:
            carry_out(planned, vportd.verbs(name))
            record, leases = vportd.vport(name), vportd.leases(name)
    return planned.report() | {"vport": record, "leases": leases}


def main() -> None:
    run(SPEC, body)


if __name__ == "__main__":
    main()
