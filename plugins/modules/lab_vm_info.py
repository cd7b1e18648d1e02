#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: the hypervisor VMs of a lab."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lab_vm_info
version_added: 0.1.0
short_description: Read the hypervisor VMs of a lab
description:
  - Reads on the control node which VMs a lab has, which of them run, and how they are reached.
author:
  - iovlab.storage contributors (@iovlab)
options:
  directory:
    description:
      - Directory of the lab. One that is not there has no VMs.
    type: path
    required: true
  name:
    description:
      - Read this VM only. None of that name gives an empty list.
    type: str
extends_documentation_fragment:
  - iovlab.storage._attributes.info_module
seealso:
  - module: iovlab.storage.lab_vm
"""

EXAMPLES = r"""
- name: Read the VMs of the lab
  iovlab.storage.lab_vm_info:
    directory: ./build/lab/lab
  register: lab

- name: Show those that run
  ansible.builtin.debug:
    msg: "{{ lab.vms | selectattr('pid') | map(attribute='name') }}"
"""

RETURN = r"""
vms:
  description: The VMs, by name.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: Name of the VM.
      type: str
      sample: hv1
    state:
      description: V(started) or V(stopped).
      type: str
      sample: started
    pid:
      description: Its process; null when it does not run.
      type: int
      sample: 4711
    ssh:
      description: Address and port of its ssh; null before it was first started.
      type: str
      sample: 127.0.0.1:22201
    console:
      description: File with the output of its console.
      type: str
      sample: /home/me/lab/hv1/console.log
    accelerator:
      description: V(kvm) or V(tcg); null before it was first started.
      type: str
      sample: tcg
    memory:
      description: Memory in MiB; null before it was first started.
      type: int
      sample: 2560
    cpus:
      description: Virtual CPUs; null before it was first started.
      type: int
      sample: 2
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.iovlab.storage.plugins.module_utils import _lab_vm
from ansible_collections.iovlab.storage.plugins.module_utils._argspec import ArgumentSpec
from ansible_collections.iovlab.storage.plugins.module_utils._host import Host
from ansible_collections.iovlab.storage.plugins.module_utils._module import run

SPEC = ArgumentSpec({"directory": {"type": "path", "required": True}, "name": {"type": "str"}})


def body(module: AnsibleModule, host: Host) -> dict[str, Any]:
    name = module.params["name"]
    vms = _lab_vm.vms_in(module.params["directory"])
    return {"changed": False, "vms": [vm for vm in vms if name in (None, vm["name"])]}


def main() -> None:
    run(SPEC, body)


if __name__ == "__main__":
    main()
