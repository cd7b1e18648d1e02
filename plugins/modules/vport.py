#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: a vport."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vport
version_added: 0.1.0
short_description: Virtual port of a storage adapter
description:
  - A vport carries the virtual disks of one virtual machine. Create it, give it a mapping with
    M(iovlab.storage.adapter_mapping), then bind it to a VF with M(iovlab.storage.vport_binding).
author:
  - iovlab.storage contributors (@iovlab)
options:
  name:
    description:
      - Name of the vport, 1 to 15 of a-z, 0-9 and -.
    type: str
    required: true
  adapter:
    description:
      - PCI address of the PF of the adapter. Where C(vportd) serves only one, O(adapter), O(serial) and O(nqn) may all
        be left out.
    type: str
  incoming:
    description:
      - The virtual machine will arrive by live migration. Only looked at when the vport is created.
    type: bool
    default: false
  force:
    description:
      - Delete the vport even if a virtual machine is connected or a VF bound. The virtual machine loses its disks.
    type: bool
    default: false
  state:
    description:
      - V(present) creates the vport, V(absent) deletes it with its mapping.
    type: str
    choices: [present, absent]
    default: present
extends_documentation_fragment:
  - iovlab.storage._attributes
  - iovlab.storage._options.names
  - iovlab.storage._options.rpc
  - iovlab.storage._options.planned
seealso:
  - module: iovlab.storage.vport_info
  - module: iovlab.storage.adapter_mapping
  - module: iovlab.storage.vport_binding
"""

EXAMPLES = r"""
- name: A vport for the virtual machine web1
  iovlab.storage.vport:
    name: web1

- name: A vport on one of several adapters
  iovlab.storage.vport:
    name: web2
    serial: A1B2C3

- name: The vport on the destination of a migration
  iovlab.storage.vport:
    name: web1
    incoming: true

- name: Delete it
  iovlab.storage.vport:
    name: web1
    state: absent
"""

RETURN = r"""
vport:
  description:
    - The record of the vport as C(vportd) gives it, sockets and addresses of its LUNs included. Empty when there is
      none.
    - In check mode the record before the change.
  returned: success
  type: dict
  sample:
    vport: web1
    adapter: "0000:01:00.0"
    state: RUNNING
    path: vf
    vf: "0000:01:00.1"
    generation: 1
    luns: [{"lun": 0, "vdisk": "web1", "address": "web1:0", "socket": "/run/vportd/web1/0.sock"}]
steps:
  description: What was done, or in check mode would be done, a sentence each.
  returned: success
  type: list
  elements: str
  sample: ["create vport web1 on adapter 0000:01:00.0"]
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.iovlab.storage.plugins.module_utils import _sriov, _vport
from ansible_collections.iovlab.storage.plugins.module_utils._argspec import (
    ON_ADAPTER,
    PLANNED,
    RPC,
    STATE,
    ArgumentSpec,
)
from ansible_collections.iovlab.storage.plugins.module_utils._host import Host
from ansible_collections.iovlab.storage.plugins.module_utils._module import run
from ansible_collections.iovlab.storage.plugins.module_utils._plan import Plan, Step, carry_out
from ansible_collections.iovlab.storage.plugins.module_utils._rpc import Vportd
from ansible_collections.iovlab.storage.plugins.module_utils._units import vport_name

SPEC = STATE.merge(
    ON_ADAPTER,
    RPC,
    PLANNED,
    ArgumentSpec(
        {
            "name": {"type": "str", "required": True},
            "incoming": {"type": "bool", "default": False},
            "force": {"type": "bool", "default": False},
        }
    ),
)


def body(module: AnsibleModule, host: Host) -> dict[str, Any]:
    options = module.params
    name = vport_name(options["name"], "name")
    present = options["state"] == "present"
    adapter = options["adapter"] = _sriov.adapter_if_named(host, options)
    with Vportd(options["rpc_socket"]) as vportd:
        record = vportd.vport(name)
        if present and (record is None or adapter):
            adapter = _vport.adapter_of(vportd.adapters(), adapter)["adapter"]
        planned = _vport.plan_vport(name, record, adapter, options["incoming"], options["force"], present)
        if planned.changed and not module.check_mode:
            carry_out(planned, vportd.verbs(name))
            record = vportd.vport(name)
    return planned.report() | {"vport": record or {}}


def foreseen(options: dict[str, Any]) -> tuple[Plan, dict[str, Any]]:
    name, adapter = options["name"], options["adapter"]
    after = {"vport": name, "adapter": adapter, "incoming": options["incoming"]}
    return Plan({}, after, (Step("create", f"create vport {name} on adapter {adapter}"),)), {"vport": {}}


def main() -> None:
    run(SPEC, body, foreseen)


if __name__ == "__main__":
    main()
