#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: the mappings that an adapter has."""

from __future__ import annotations

DOCUMENTATION = r"""
module: adapter_mapping_info
version_added: 0.1.0
short_description: Read the mappings of vports
description:
  - Reads from C(vportd) which vdisk is which LUN of which vport, and on which regions of the physical storage it lies.
author:
  - iovlab.storage contributors (@iovlab)
options:
  vport:
    description:
      - Read the mapping of this vport only. None of that name gives an empty list.
    type: str
extends_documentation_fragment:
  - iovlab.storage._attributes.info_module
  - iovlab.storage._options.rpc
  - iovlab.storage._options.planned
seealso:
  - module: iovlab.storage.adapter_mapping
  - module: iovlab.storage.vdisk_info
"""

EXAMPLES = r"""
- name: Read the mapping on both hypervisors of a migration
  iovlab.storage.adapter_mapping_info:
    vport: web1
  register: mapping

- name: Check that it is the same
  ansible.builtin.assert:
    that: hostvars.hv1.mapping.mappings[0].digest == hostvars.hv2.mapping.mappings[0].digest
"""

RETURN = r"""
mappings:
  description: The mapping of each vport, by the vport's name.
  returned: success
  type: list
  elements: dict
  contains:
    vport:
      description: Name of the vport.
      type: str
      sample: web1
    adapter:
      description: PCI address of the adapter's PF.
      type: str
      sample: "0000:01:00.0"
    generation:
      description: Counts the changes of the mapping; 0 before there is one.
      type: int
      sample: 3
    digest:
      description: A hash of the content, the same on every host that has the same mapping; null before there is one.
      type: str
      sample: "sha256:4f8b"
    addresses:
      description: Which vdisk has which virtual disk address, C(vport:LUN).
      type: dict
      sample: {"web1-data": "web1:0"}
    luns:
      description:
        - Which vdisk is which LUN, and where it lies. C(capacity) is in bytes. An element of C(extents) is
          C([start, physical, length]), in bytes, with V(ro) as a fourth where it may only be read.
      type: list
      elements: dict
      sample:
        - lun: 0
          vdisk: web1-data
          readonly: false
          address: "web1:0"
          capacity: 67108864
          extents: [[0, 1048576, 67108864]]
"""

from collections.abc import Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.iovlab.storage.plugins.module_utils._argspec import PLANNED, RPC, ArgumentSpec
from ansible_collections.iovlab.storage.plugins.module_utils._host import Host
from ansible_collections.iovlab.storage.plugins.module_utils._module import run
from ansible_collections.iovlab.storage.plugins.module_utils._plan import Plan
from ansible_collections.iovlab.storage.plugins.module_utils._rpc import Vportd
from ansible_collections.iovlab.storage.plugins.module_utils._units import vport_name

SPEC = RPC.merge(PLANNED, ArgumentSpec({"vport": {"type": "str"}}))


def body(module: AnsibleModule, host: Host) -> dict[str, Any]:
    name = module.params["vport"]
    wanted = None if name is None else vport_name(name)
    with Vportd(module.params["rpc_socket"]) as vportd:
        if wanted is None:
            records = vportd.vports()
        else:
            record = vportd.vport(wanted)
            records = [record] if record else []
        return {
            "changed": False,
            "mappings": [_described(record, vportd.mapping(record["vport"])) for record in records],
        }


def _described(record: Mapping[str, Any], mapping: Mapping[str, Any]) -> dict[str, Any]:
    name = record["vport"]
    luns = [
        {
            **lun,
            "address": f"{name}:{lun['lun']}",
            "capacity": max((start + length for start, _physical, length, *__ in lun["extents"]), default=0),
        }
        for lun in mapping["luns"]
    ]
    return {
        "vport": name,
        "adapter": record["adapter"],
        "generation": mapping["generation"],
        "digest": mapping["digest"],
        "addresses": {lun["vdisk"]: lun["address"] for lun in luns},
        "luns": luns,
    }


def foreseen(options: dict[str, Any]) -> tuple[Plan, dict[str, Any]]:
    return Plan({}, {}), {"mappings": []}


def main() -> None:
    run(SPEC, body, foreseen)


if __name__ == "__main__":
    main()
