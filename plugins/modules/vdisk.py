#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: a vdisk in a pool."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vdisk
version_added: 0.1.0
short_description: Virtual disk in a pool
description:
  - A vdisk is a linear logical volume of the pool that is never activated. What counts is its extents, which
    M(iovlab.storage.adapter_mapping) pushes to the adapter.
  - New extents are zeroed through the PF before the vdisk is ready, so that no tenant reads the data of another. How
    far that came is kept with the vdisk; a run that was killed is finished by the next one.
  - To be run on the one hypervisor that manages the pool.
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
      - Name of the vdisk.
    type: str
    required: true
  state:
    description:
      - V(present) creates the vdisk, or grows it to O(size).
      - V(absent) removes it with all its data. It is refused while a vport of this host maps it, or another
        hypervisor renews its lease.
    type: str
    choices: [present, absent]
    default: present
  size:
    description:
      - Size in bytes, or with KiB, MiB, GiB or TiB such as V(64MiB). Required with O(state=present).
      - Rounded up to a multiple of the pool's extent size, with a warning. A smaller size than the vdisk has is
        refused.
    type: str
  wipe:
    description:
      - Zero new extents now. With V(false) that is left to a later run, until which M(iovlab.storage.adapter_mapping)
        refuses the vdisk.
    type: bool
    default: true
  check_vports:
    description:
      - Ask C(vportd) of this host before a vdisk is removed. V(false) is for hosts that manage the pool but run no
        vports.
    type: bool
    default: true
extends_documentation_fragment:
  - iovlab.storage._attributes
  - iovlab.storage._options.storage
  - iovlab.storage._options.names
  - iovlab.storage._options.rpc
  - iovlab.storage._options.planned
notes:
  - A vport on another hypervisor is seen from here only by the lease that its C(vportd) renews. A mapping without a
    lease, or of a hypervisor that is off, is not seen. Remove it before the vdisk.
requirements:
  - lvm2 2.03.12 or later
seealso:
  - module: iovlab.storage.pool
  - module: iovlab.storage.vdisk_info
"""

EXAMPLES = r"""
- name: A vdisk of 64 MiB
  iovlab.storage.vdisk:
    pool: san
    name: web1
    size: 64MiB
    adapter: "0000:01:00.0"

- name: Remove it
  iovlab.storage.vdisk:
    pool: san
    name: web1
    state: absent
    adapter: "0000:01:00.0"
"""

RETURN = r"""
vdisk:
  description:
    - The vdisk as it is after the run; in check mode as it is before the change. Empty when there is none.
  returned: success
  type: dict
  contains:
    name:
      description: Name of the vdisk.
      type: str
      sample: web1
    pool:
      description: Name of its pool.
      type: str
      sample: san
    size:
      description: Size in bytes.
      type: int
      sample: 67108864
    wiped:
      description:
        - Bytes from the start that hold no former data; none for a volume that is not a vdisk of this collection.
      type: int
      sample: 67108864
    ready:
      description: Whether the vdisk can be mapped.
      type: bool
      sample: true
    device:
      description: The PF's block device of the pool.
      type: str
      sample: /dev/nvme0n1
    extents:
      description: Lists of start in the vdisk, physical offset on the namespace, and length, in bytes.
      type: list
      elements: list
      sample: [[0, 5242880, 67108864]]
    lease:
      description:
        - Byte on the namespace where the lease of the vdisk lies, which says which hypervisor may write it; none
          in a pool that has no leases.
      type: int
      sample: 1048576
steps:
  description: What was done, or in check mode would be done, a sentence each.
  returned: success
  type: list
  elements: str
  sample: ["create vdisk web1 of 64 MiB in pool san", "zero 64 MiB of vdisk web1", "give vdisk web1 lease 0"]
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.iovlab.storage.plugins.module_utils import _lease, _mapped, _nvme, _pool, _sriov
from ansible_collections.iovlab.storage.plugins.module_utils._argspec import PLANNED, RPC, STATE, STORAGE, ArgumentSpec
from ansible_collections.iovlab.storage.plugins.module_utils._host import Host
from ansible_collections.iovlab.storage.plugins.module_utils._module import run
from ansible_collections.iovlab.storage.plugins.module_utils._plan import Plan, Step
from ansible_collections.iovlab.storage.plugins.module_utils._rpc import Vportd
from ansible_collections.iovlab.storage.plugins.module_utils._units import lvm_name, parse_size

SPEC = STATE.merge(
    STORAGE,
    RPC,
    PLANNED,
    ArgumentSpec(
        {
            "pool": {"type": "str", "required": True},
            "name": {"type": "str", "required": True},
            "size": {"type": "str"},
            "wipe": {"type": "bool", "default": True},
            "check_vports": {"type": "bool", "default": True},
        },
        required_if=[("state", "present", ["size"])],
    ),
)


def body(module: AnsibleModule, host: Host) -> dict[str, Any]:
    options = module.params
    name = lvm_name(options["name"], "name")
    present = options["state"] == "present"
    size = parse_size(options["size"], "size") if present else None
    address = _sriov.adapter(host, options)
    with host.locked(f"pool-{address}-{options['nsid']}", _pool.LVM_TIMEOUT), Vportd(options["rpc_socket"]) as vportd:
        namespace = _nvme.namespace(host, address, options["nsid"])
        pool = _pool.pool_of(_pool.read_storage(host, namespace.device, namespace.size), options["pool"])
        planned = _pool.plan_vdisk(pool, name, size, options["wipe"])
        guard = _mapped.Guard(vportd, address, options["nsid"], must_answer=options["check_vports"])
        guard.refuse(pool, planned)
        _refuse_leased(pool, planned, name)
        if planned.changed and not module.check_mode:
            _pool.apply_vdisk(host, pool, planned, guard.refuse_zeroing)
            pool = _pool.pool_of(_pool.read_storage(host, namespace.device, namespace.size), options["pool"])
    vdisk = pool.vdisk(name)
    return planned.report() | {"vdisk": _pool.described(pool, vdisk) if vdisk else {}, "notes": planned.notes}


def _refuse_leased(pool: _pool.Pool, planned: Plan, name: str) -> None:
    """A vdisk that another hypervisor uses is not removed."""
    vdisk = pool.vdisk(name)
    lease = pool.lease_of(vdisk) if vdisk else None
    if lease is not None and any(step.verb == "remove" for step in planned.steps):
        _lease.refuse_living(pool.device, lease, name)


def foreseen(options: dict[str, Any]) -> tuple[Plan, dict[str, Any]]:
    text = f"create vdisk {options['name']} of {options['size']} in pool {options['pool']}"
    after = {"name": options["name"], "pool": options["pool"], "size": options["size"]}
    return Plan({}, after, (Step("create", text),)), {"vdisk": {}}


def main() -> None:
    run(SPEC, body, foreseen)


if __name__ == "__main__":
    main()
