#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: a whole adapter in one run."""

from __future__ import annotations

DOCUMENTATION = r"""
module: adapter_config
version_added: 0.1.0
short_description: VFs, pool, vdisks and vports of an adapter in one run
description:
  - Does for one adapter, in one run, what M(iovlab.storage.sriov_vf), M(iovlab.storage.pool),
    M(iovlab.storage.vdisk), M(iovlab.storage.vport), M(iovlab.storage.adapter_mapping) and
    M(iovlab.storage.vport_binding) do for one object each. What is there is read once, so that one more vdisk or vport
    costs little.
  - Each part may be left out. Nothing is removed because it is not named; use the single modules for that.
  - Everything is planned before anything is changed, each part as if those before it were there already. A part that
    cannot be is refused then.
  - If a step fails, the module stops, and says at which object and what has been done before. Run again, it goes on.
author:
  - iovlab.storage contributors (@iovlab)
options:
  nsid:
    description:
      - Namespace ID of the pool's storage on the adapter.
    type: int
    default: 1
  vfs:
    description:
      - The VFs that the adapter shall have, see M(iovlab.storage.sriov_vf).
    type: dict
    suboptions:
      count:
        description:
          - Number of VFs.
        type: int
        required: true
      queues:
        description:
          - Flexible queue resources (VQ) of each VF, the admin queue included. Left out, an even share.
        type: int
      interrupts:
        description:
          - Flexible interrupt resources (VI) of each VF. Left out, an even share.
        type: int
      driver:
        description:
          - The driver that each VF is bound to. Only a VF with V(nvme) can have a vport.
        type: str
        choices: [nvme, vfio-pci, none]
        default: nvme
      namespaces:
        description:
          - The namespaces that each VF shows. Left out with O(vfs.driver=vfio-pci), none; else what the adapter
            attaches.
        type: list
        elements: int
      persistent:
        description:
          - Whether the VFs come back when the host boots.
        type: bool
        default: false
      allow_recreate:
        description:
          - Another number of VFs means to remove them all first; only V(true) allows that, and only if none is in use.
        type: bool
        default: false
  pool:
    description:
      - The pool on the namespace, see M(iovlab.storage.pool). To be given on the one hypervisor that manages it.
    type: dict
    suboptions:
      name:
        description:
          - Name of the pool.
        type: str
        required: true
      extent_size:
        description:
          - Size of an extent. Only looked at when the pool is created.
        type: str
        default: 4MiB
  vdisks:
    description:
      - Vdisks in the pool, created or grown, see M(iovlab.storage.vdisk). To be given on the one hypervisor that
        manages the pool.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description:
          - Name of the vdisk.
        type: str
        required: true
      size:
        description:
          - Size in bytes, or with KiB, MiB, GiB or TiB. A smaller size than the vdisk has is refused.
        type: str
        required: true
      wipe:
        description:
          - Zero new extents now. A vdisk that is not zeroed cannot be mapped.
        type: bool
        default: true
  vports:
    description:
      - Vports with their mapping and binding, see M(iovlab.storage.vport), M(iovlab.storage.adapter_mapping) and
        M(iovlab.storage.vport_binding).
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description:
          - Name of the vport, 1 to 15 of a-z, 0-9 and -.
        type: str
        required: true
      incoming:
        description:
          - The virtual machine will arrive by live migration. Only looked at when the vport is created.
        type: bool
        default: false
      luns:
        description:
          - The mapping. It is replaced as a whole.
        type: list
        elements: dict
        required: true
        suboptions:
          lun:
            description:
              - The LUN number, V(0) to V(255).
            type: int
            required: true
          vdisk:
            description:
              - Name of the vdisk.
            type: str
            required: true
          pool:
            description:
              - The pool to look the vdisk up in. Left out, the one on the namespace.
            type: str
          readonly:
            description:
              - The virtual machine may only read it.
            type: bool
            default: false
          extents:
            description:
              - Extents declared by hand instead of looked up, as for M(iovlab.storage.adapter_mapping).
            type: list
            elements: list
      vf:
        description:
          - PCI address of the VF to bind to. V(auto) is the one that the vport is bound to already, else the first free
            one that no other vport in O(vports) names.
        type: str
        default: auto
      path:
        description:
          - The path that the vport's requests take.
        type: str
        choices: [vf, pf]
        default: vf
      on_no_vf:
        description:
          - What to do when O(vports[].vf=auto) finds no free VF. V(fail) refuses everything; V(stay_on_pf) leaves that
            vport unbound on the path V(pf), and warns.
        type: str
        choices: [fail, stay_on_pf]
        default: fail
  timeout:
    description:
      - Seconds to wait for each single step on the VFs, and for another run on the same PF.
    type: int
    default: 60
  drain_timeout:
    description:
      - Seconds that draining may take where a vport changes its path.
    type: float
    default: 10
extends_documentation_fragment:
  - iovlab.storage._attributes
  - iovlab.storage._options.adapter
  - iovlab.storage._options.names
  - iovlab.storage._options.rpc
  - iovlab.storage._options.planned
requirements:
  - nvme-cli, for O(vfs)
  - lvm2 2.03.12 or later, for O(pool), O(vdisks) and vdisks that are looked up
seealso:
  - module: iovlab.storage.sriov_vf
  - module: iovlab.storage.vdisk
  - module: iovlab.storage.vport
"""

EXAMPLES = r"""
- name: A whole adapter
  iovlab.storage.adapter_config:
    pf: "0000:01:00.0"
    vfs:
      count: 2
      persistent: true
    pool:
      name: san
    vdisks:
      - name: web1-root
        size: 64MiB
      - name: web1-data
        size: 256MiB
      - name: web2-root
        size: 64MiB
    vports:
      - name: web1
        luns:
          - lun: 0
            vdisk: web1-root
          - lun: 1
            vdisk: web1-data
      - name: web2
        vf: "0000:01:00.2"
        luns:
          - lun: 0
            vdisk: web2-root

- name: Vports on a hypervisor that does not manage the pool
  iovlab.storage.adapter_config:
    serial: A1B2C3
    vports:
      - name: web3
        on_no_vf: stay_on_pf
        luns:
          - lun: 0
            vdisk: web3-root
            pool: san
"""

RETURN = r"""
pf:
  description: The adapter's PF, in full form.
  returned: success
  type: str
  sample: "0000:01:00.0"
changes:
  description: The objects that were changed, or in check mode would be, each with its steps.
  returned: success
  type: list
  elements: dict
  contains:
    object:
      description: Which one.
      type: str
      sample: vport web1
    steps:
      description: A sentence each.
      type: list
      elements: str
      sample: ["push a mapping of 2 LUNs to vport web1", "bind vport web1 to VF 0000:01:00.1 on path vf"]
vfs:
  description: The VFs as they are after the run; in check mode before the change.
  returned: with O(vfs)
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
pool:
  description: The pool as it is after the run; in check mode before the change.
  returned: with O(pool)
  type: dict
  sample: {"name": "san", "device": "/dev/nvme0n1", "size": 1069547520, "free": 1002438656, "vdisks": ["web1-root"]}
vdisks:
  description: The vdisks of O(vdisks) as they are after the run; in check mode before the change.
  returned: with O(vdisks)
  type: list
  elements: dict
  sample:
    - name: web1-root
      pool: san
      size: 67108864
      wiped: 67108864
      ready: true
      device: /dev/nvme0n1
      extents: [[0, 5242880, 67108864]]
      lease: 1048576
vports:
  description: The records of O(vports) as C(vportd) gives them after the run; in check mode before the change.
  returned: with O(vports)
  type: list
  elements: dict
  sample: [{"vport": "web1", "vf": "0000:01:00.1", "path": "vf", "state": "RUNNING", "generation": 1}]
steps:
  description: What was done, or in check mode would be done, a sentence each, in the order of the parts.
  returned: success
  type: list
  elements: str
  sample: ["create 2 VFs on 0000:01:00.0", "create pool san on /dev/nvme0n1"]
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.iovlab.storage.plugins.module_utils import _adapter_config, _mapping, _vfs, _vport
from ansible_collections.iovlab.storage.plugins.module_utils._argspec import ADAPTER, PLANNED, RPC, ArgumentSpec
from ansible_collections.iovlab.storage.plugins.module_utils._host import Host
from ansible_collections.iovlab.storage.plugins.module_utils._module import run
from ansible_collections.iovlab.storage.plugins.module_utils._rpc import Vportd

SPEC = ADAPTER.merge(
    RPC,
    PLANNED,
    ArgumentSpec(
        {
            "nsid": {"type": "int", "default": 1},
            "vfs": {"type": "dict", "options": {"count": {"type": "int", "required": True}, **_vfs.OPTIONS.options}},
            "pool": {
                "type": "dict",
                "options": {
                    "name": {"type": "str", "required": True},
                    "extent_size": {"type": "str", "default": "4MiB"},
                },
            },
            "vdisks": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "size": {"type": "str", "required": True},
                    "wipe": {"type": "bool", "default": True},
                },
            },
            "vports": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "incoming": {"type": "bool", "default": False},
                    "luns": {**_mapping.LUNS, "required": True},
                    "vf": {"type": "str", "default": _vport.AUTO},
                    "path": {"type": "str", "choices": ["vf", "pf"], "default": "vf"},
                    "on_no_vf": {"type": "str", "choices": ["fail", "stay_on_pf"], "default": "fail"},
                },
            },
            "timeout": {"type": "int", "default": 60},
            "drain_timeout": {"type": "float", "default": 10},
        },
        required_one_of=[("pf", "serial", "nqn")],
    ),
)


def body(module: AnsibleModule, host: Host) -> dict[str, Any]:
    options = module.params
    assume = module.check_mode and options["planned"]
    with (
        Vportd(options["rpc_socket"]) as vportd,
        _adapter_config.AdapterConfig(host, vportd, options, assume) as config,
    ):
        planned = config.plan()
        changes = config.changes()
        if module.check_mode:
            config.before()
        else:
            config.apply()
        return planned.report() | config.described() | {"changes": changes, "notes": planned.notes}


def main() -> None:
    run(SPEC, body)


if __name__ == "__main__":
    main()
