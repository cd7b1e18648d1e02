#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: what VFs NVMe adapters have."""

from __future__ import annotations

DOCUMENTATION = r"""
module: sriov_vf_info
version_added: 0.1.0
short_description: Read the virtual functions of NVMe SR-IOV adapters
description:
  - Reads which VFs an NVMe adapter has, their resources, drivers, block devices and users, and where that is not what
    the host would have after a boot.
  - With none of O(pf), O(serial) and O(nqn), all NVMe adapters of the host that can have VFs are read.
author:
  - iovlab.storage contributors (@iovlab)
extends_documentation_fragment:
  - iovlab.storage._attributes.info_module
  - iovlab.storage._options.adapter
  - iovlab.storage._options.names
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
    serial:
      description: The adapter's serial number.
      type: str
      sample: A1B2C3
    nqn:
      description: NQN of the adapter's subsystem.
      type: str
      sample: nqn.2014-08.org.nvmexpress:uuid:7f6d
    resources:
      description:
        - The flexible resources for VFs, C(queues) and C(interrupts). Of each the C(total), what one VF can get at
          C(most), and what is C(free).
      type: dict
      sample: {"queues": {"total": 8, "most": 2, "free": 6}, "interrupts": {"total": 8, "most": 2, "free": 7}}
    persistent:
      description: What the VFs are to be after a boot; null when they are not kept.
      type: dict
      sample: {"count": 1, "queues": 2, "interrupts": 1, "driver": "nvme", "namespaces": null}
    drift:
      description: What would have to be done for the adapter to be as RV(adapters[].persistent) says, a sentence each.
      type: list
      elements: str
      sample: ["bring controller 1 of VF 0 online"]
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
          attached: [1]
          controller: nvme1
          namespaces: [{"nsid": 1, "device": "/dev/nvme1n1", "size": 1073741824, "identity": "uuid.7f6d"}]
          users: []
"""

from dataclasses import asdict
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.iovlab.storage.plugins.module_utils import _kept, _sriov, _sriov_plan, _vf_report
from ansible_collections.iovlab.storage.plugins.module_utils._argspec import ADAPTER, RPC
from ansible_collections.iovlab.storage.plugins.module_utils._host import Host
from ansible_collections.iovlab.storage.plugins.module_utils._module import run

SPEC = ADAPTER.merge(RPC)


def body(module: AnsibleModule, host: Host) -> dict[str, Any]:
    names = [module.params[key] for key in ("pf", "serial", "nqn")]
    addresses = [_sriov.choose(host, *names)] if any(names) else _sriov.physical_functions(host)
    bound = _vf_report.bindings(module.params["rpc_socket"])
    return {"changed": False, "adapters": [_described(host, address, bound) for address in addresses]}


def _described(host: Host, address: str, bound: _sriov_plan.Bindings) -> dict[str, Any]:
    adapter = _sriov.read(host, address)
    kept = _kept.load(host, _kept.path_of(address))
    return _vf_report.described(host, adapter, bound) | {
        "resources": _vf_report.resources(adapter),
        "persistent": None if kept is None else asdict(kept.vfs),
        "drift": _vf_report.drift(adapter, kept),
    }


def main() -> None:
    run(SPEC, body)


if __name__ == "__main__":
    main()
