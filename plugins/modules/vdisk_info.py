#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: the vdisks of a pool."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vdisk_info
version_added: 0.1.0
short_description: Read the vdisks of a pool
description:
  - Reads the pool on a namespace and its vdisks with their extents. Takes no lock and changes nothing, so that every
    hypervisor that shares the storage can run it.
author:
  - iovlab.storage contributors (@iovlab)
options:
  pool:
    description:
      - Name of the pool.
    type: str
    required: true
  name:
    description:
      - Read this vdisk only. None of that name gives an empty list.
    type: str
extends_documentation_fragment:
  - iovlab.storage._attributes.info_module
  - iovlab.storage._options.storage
  - iovlab.storage._options.names
requirements:
  - lvm2 2.03.12 or later
seealso:
  - module: iovlab.storage.vdisk
"""

EXAMPLES = r"""
- name: Read all vdisks
  iovlab.storage.vdisk_info:
    pool: san
    adapter: "0000:01:00.0"
  register: san

- name: Read one, on an adapter that is named by its subsystem
  iovlab.storage.vdisk_info:
    pool: san
    name: web1
    nqn: nqn.2014-08.org.nvmexpress:uuid:7f6d
"""

RETURN = r"""
pool:
  description: The pool.
  returned: success
  type: dict
  sample:
    name: san
    device: /dev/nvme0n1
    size: 1069547520
    free: 1002438656
    extent_size: 4194304
    vdisks: [web1]
vdisks:
  description: The vdisks by name, as M(iovlab.storage.vdisk) returns them.
  returned: success
  type: list
  elements: dict
  sample:
    - name: web1
      pool: san
      size: 67108864
      wiped: 67108864
      ready: true
      device: /dev/nvme0n1
      extents: [[0, 5242880, 67108864]]
      lease: 1048576
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.iovlab.storage.plugins.module_utils import _nvme, _pool, _sriov
from ansible_collections.iovlab.storage.plugins.module_utils._argspec import STORAGE, ArgumentSpec
from ansible_collections.iovlab.storage.plugins.module_utils._host import Host
from ansible_collections.iovlab.storage.plugins.module_utils._module import run

SPEC = STORAGE.merge(ArgumentSpec({"pool": {"type": "str", "required": True}, "name": {"type": "str"}}))


def body(module: AnsibleModule, host: Host) -> dict[str, Any]:
    options = module.params
    address = _sriov.adapter(host, options)
    namespace = _nvme.namespace(host, address, options["nsid"])
    pool = _pool.pool_of(_pool.read_storage(host, namespace.device, namespace.size, readonly=True), options["pool"])
    vdisks = [_pool.described(pool, vdisk) for vdisk in pool.vdisks if options["name"] in (None, vdisk.name)]
    return {"changed": False, "pool": _pool.described_pool(pool), "vdisks": vdisks}


def main() -> None:
    run(SPEC, body)


if __name__ == "__main__":
    main()
