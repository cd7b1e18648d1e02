#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: what VFs NVMe adapters have."""

from __future__ import annotations

DOCUMENTATION = r"""
module: sriov_vf_info
version_added: 1.0.0
short_description: Read the virtual functions of NVMe SR-IOV adapters
description:
  - Reads which VFs an NVMe adapter has, their resources, drivers, block devices and users.
author:
  - iovlab.storage contributors (@iovlab)
options:
  pf:
    description:
      - PCI address of the PF. Left out, all NVMe adapters of the host that can have VFs are read.
    type: str
extends_documentation_fragment:
  - iovlab.storage._attributes.info_module
  - iovlab.storage._options.rpc
requirements:
  - nvme-cli
seealso:
  - module: iovlab.storage.sriov_vf
"""

EXAMPLES = r"""
- name: Read all adapters of a hypervisor
  iovlab.storage.sriov_vf_info:
  register: sriov

- name: Show VFs that nobody uses
  ansible.builtin.debug:
    msg: "{{ item.vfs | rejectattr('users') | map(attribute='address') }}"
  loop: "{{ sriov.adapters }}"
  loop_control:
    label: "{{ item.pf }}"
"""

RETURN = r"""
adapters:
  description: The adapters, by address.
  returned: success
  type: list
  elements: dict
  contains:
    pf:
      description: PCI address of the PF.
      type: str
      sample: "0000:01:00.0"
    totalvfs:
      description: The most VFs that the adapter can have.
      type: int
      sample: 4
    numvfs:
      description: The VFs that it has.
      type: int
      sample: 1
    vfs:
      description: The VFs, as M(iovlab.storage.sriov_vf) returns them.
      type: list
      elements: dict
      sample:
        - address: "0000:01:00.1"
          index: 0
          cntlid: 1
          online: true
          queues: 2
          interrupts: 1
          driver: nvme
          controller: nvme1
          namespaces: [{"nsid": 1, "device": "/dev/nvme1n1", "size": 1073741824, "identity": "uuid.7f6d"}]
          users: []
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.iovlab.storage.plugins.module_utils import _sriov, _vf_report
from ansible_collections.iovlab.storage.plugins.module_utils._argspec import RPC, ArgumentSpec
from ansible_collections.iovlab.storage.plugins.module_utils._host import Host
from ansible_collections.iovlab.storage.plugins.module_utils._module import run
from ansible_collections.iovlab.storage.plugins.module_utils._units import pci_address

SPEC = RPC.merge(ArgumentSpec({"pf": {"type": "str"}}))


def body(module: AnsibleModule, host: Host) -> dict[str, Any]:
    pf = module.params["pf"]
    addresses = _sriov.physical_functions(host) if pf is None else [pci_address(pf, "pf")]
    vports = _vf_report.bound_vfs(module.params["rpc_socket"])
    return {
        "changed": False,
        "adapters": [_vf_report.described(host, _sriov.read(host, address), vports) for address in addresses],
    }


def main() -> None:
    run(SPEC, body)


if __name__ == "__main__":
    main()
