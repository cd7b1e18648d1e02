#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: the pool that vdisks are made from."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pool
version_added: 0.1.0
short_description: Pool of vdisks on an adapter's namespace
description:
  - A pool is an LVM volume group on one namespace of an adapter. Vdisks are logical volumes in it that are never
    activated.
  - The pool has a volume C(iovlab_leases) of 4 MiB, with a block for each vdisk that says which hypervisor may write
    it. A pool that was made without one gets it by the next run.
  - Only one hypervisor of those that share the storage may change the pool and its vdisks; the others read them.
author:
  - iovlab.storage contributors (@iovlab)
options:
  name:
    description:
      - Name of the pool.
    type: str
    required: true
  state:
    description:
      - V(present) creates the pool. A namespace that holds anything else is refused.
      - V(absent) removes it. A pool that holds vdisks is refused.
    type: str
    choices: [present, absent]
    default: present
  extent_size:
    description:
      - Size of an extent, of which each vdisk is a multiple. A power of two, such as V(4MiB).
      - Only looked at when the pool is created.
    type: str
    default: 4MiB
extends_documentation_fragment:
  - iovlab.storage._attributes
  - iovlab.storage._options.storage
  - iovlab.storage._options.names
requirements:
  - lvm2 2.03.12 or later
seealso:
  - module: iovlab.storage.vdisk
"""

EXAMPLES = r"""
- name: A pool on the shared namespace
  iovlab.storage.pool:
    name: san
    adapter: "0000:01:00.0"
    nsid: 1

- name: Remove the empty pool, whatever slot the adapter is in
  iovlab.storage.pool:
    name: san
    serial: A1B2C3
    state: absent
"""

RETURN = r"""
pool:
  description: The pool as it is after the run; in check mode as it is before the change. Empty when there is none.
  returned: success
  type: dict
  sample:
    name: san
    device: /dev/nvme0n1
    size: 1069547520
    free: 1002438656
    extent_size: 4194304
    vdisks: [web1]
steps:
  description: What was done, or in check mode would be done, a sentence each.
  returned: success
  type: list
  elements: str
  sample:
    - create pool san on /dev/nvme0n1
    - make room for the leases of pool san, 4 MiB
    - zero the leases of pool san
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.iovlab.storage.plugins.module_utils import _nvme, _pool, _sriov
from ansible_collections.iovlab.storage.plugins.module_utils._argspec import STATE, STORAGE, ArgumentSpec
from ansible_collections.iovlab.storage.plugins.module_utils._host import Host
from ansible_collections.iovlab.storage.plugins.module_utils._module import run
from ansible_collections.iovlab.storage.plugins.module_utils._units import lvm_name, parse_size

SPEC = STATE.merge(
    STORAGE,
    ArgumentSpec({"name": {"type": "str", "required": True}, "extent_size": {"type": "str", "default": "4MiB"}}),
)


def body(module: AnsibleModule, host: Host) -> dict[str, Any]:
    options = module.params
    name = lvm_name(options["name"], "name")
    extent_size = parse_size(options["extent_size"], "extent_size")
    address = _sriov.adapter(host, options)
    with host.locked(f"pool-{address}-{options['nsid']}", _pool.LVM_TIMEOUT):
        namespace = _nvme.namespace(host, address, options["nsid"])
        storage = _pool.read_storage(host, namespace.device, namespace.size)
        planned = _pool.plan_pool(storage, name, options["state"] == "present", extent_size)
        if planned.changed and not module.check_mode:
            _pool.apply_pool(host, storage, planned)
            storage = _pool.read_storage(host, namespace.device, namespace.size)
    return planned.report() | {"pool": _pool.described_pool(storage.pool), "notes": planned.notes}


def main() -> None:
    run(SPEC, body)


if __name__ == "__main__":
    main()
