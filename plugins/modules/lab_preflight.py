#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: whether this control node can run the lab."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lab_preflight
version_added: 0.1.0
short_description: Whether this control node can run the lab
description:
  - Looks for everything that would keep the lab from starting, before anything is started, and lists it all at once.
author:
  - iovlab.storage contributors (@iovlab)
options:
  lab:
    description:
      - Name of the lab.
    type: str
    required: true
  directory:
    description:
      - Directory of the lab.
    type: path
    required: true
  cache:
    description:
      - Directory that images are kept in.
    type: path
    required: true
  vms:
    description:
      - The lab's VMs.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name.
        type: str
        required: true
      memory:
        description: Memory, in MiB.
        type: int
        required: true
      ssh_port:
        description: Port on 127.0.0.1.
        type: int
        required: true
extends_documentation_fragment:
  - iovlab.storage._attributes.info_module
"""

EXAMPLES = r"""
- name: Can the lab run here
  iovlab.storage.lab_preflight:
    lab: lab
    directory: ./build/lab/lab
    cache: ~/.cache/iovlab.storage
    vms:
      - name: hv1
        memory: 3072
        ssh_port: 22201
"""

RETURN = r"""
qemu:
  description: Version of the installed QEMU.
  returned: success
  type: str
  sample: "7.2"
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.iovlab.storage.plugins.module_utils import _lab_preflight
from ansible_collections.iovlab.storage.plugins.module_utils._argspec import ArgumentSpec
from ansible_collections.iovlab.storage.plugins.module_utils._errors import Refused
from ansible_collections.iovlab.storage.plugins.module_utils._host import Host
from ansible_collections.iovlab.storage.plugins.module_utils._lab_vm import qemu_version
from ansible_collections.iovlab.storage.plugins.module_utils._module import run

VM = {
    "name": {"type": "str", "required": True},
    "memory": {"type": "int", "required": True},
    "ssh_port": {"type": "int", "required": True},
}
SPEC = ArgumentSpec(
    {
        "lab": {"type": "str", "required": True},
        "directory": {"type": "path", "required": True},
        "cache": {"type": "path", "required": True},
        "vms": {"type": "list", "elements": "dict", "required": True, "options": VM},
    }
)


def body(module: AnsibleModule, host: Host) -> dict[str, Any]:
    options = module.params
    problems = _lab_preflight.problems(host, options["lab"], options["directory"], options["cache"], options["vms"])
    if problems:
        raise Refused("the lab can't start: " + "; ".join(problems), problems=problems)
    return {"changed": False, "qemu": ".".join(map(str, qemu_version(host)))}


def main() -> None:
    run(SPEC, body)


if __name__ == "__main__":
    main()
