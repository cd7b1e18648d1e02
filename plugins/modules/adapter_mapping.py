#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: the mapping of a vport, pushed to the adapter."""

from __future__ import annotations

DOCUMENTATION = r"""
module: adapter_mapping
version_added: 0.1.0
short_description: Push the mapping of a vport to its adapter
description:
  - The mapping of a vport says which vdisk is which LUN, and which regions of the adapter's storage each vdisk has.
    It is sent to the PF and to nobody else, whole or not at all.
  - Extents are looked up in the pool, or declared by hand. From the pool comes also where the lease of the vdisk lies.
    C(vportd) holds it from then on, so that no other hypervisor writes the vdisk, unless the vport is one that a
    virtual machine is to arrive at. While another hypervisor holds it the mapping is refused.
  - A mapping has a generation. The one that was read is sent back with the change, so that of two writers at a time
    the later is refused.
author:
  - iovlab.storage contributors (@iovlab)
options:
  vport:
    description:
      - Name of the vport.
    type: str
    required: true
  luns:
    description:
      - All LUNs of the vport; those that are not listed are removed. Required with O(state=present).
    type: list
    elements: dict
    suboptions:
      lun:
        description:
          - LUN number, 0 to 255.
        type: int
        required: true
      vdisk:
        description:
          - Name of the vdisk.
        type: str
        required: true
      pool:
        description:
          - The pool to look the vdisk's extents up in. Defaults to O(pool).
        type: str
      readonly:
        description:
          - Whether the virtual machine may only read.
        type: bool
        default: false
      extents:
        description:
          - The extents, if they are not to be looked up in a pool.
          - Each is a list of start in the vdisk, physical offset on the storage, and length, in bytes or as V(64MiB);
            a fourth element V(ro) makes one extent read-only.
        type: list
        elements: list
  pool:
    description:
      - The pool to look extents up in.
    type: str
  adapter:
    description:
      - PCI address of the PF. With O(serial) and O(nqn) left out too, it is the adapter of the vport; another one is
        refused.
    type: str
  nsid:
    description:
      - Namespace ID of the storage. Defaults to the one that C(vportd) uses; another one is refused.
    type: int
  generation:
    description:
      - The generation that the mapping must have now, V(0) for none yet. A change to a mapping of another generation
        is refused.
      - Left out, the generation just read is used.
    type: int
  state:
    description:
      - V(present) pushes the mapping, V(absent) deletes it.
    type: str
    choices: [present, absent]
    default: present
extends_documentation_fragment:
  - iovlab.storage._attributes
  - iovlab.storage._options.names
  - iovlab.storage._options.rpc
  - iovlab.storage._options.planned
seealso:
  - module: iovlab.storage.vdisk
  - module: iovlab.storage.vport
"""

EXAMPLES = r"""
- name: Two vdisks of the pool for one virtual machine
  iovlab.storage.adapter_mapping:
    vport: web1
    pool: san
    luns:
      - lun: 0
        vdisk: web1-root
      - lun: 1
        vdisk: web1-data

- name: Extents declared by hand
  iovlab.storage.adapter_mapping:
    vport: web1
    luns:
      - lun: 0
        vdisk: web1-root
        extents:
          - [0, 16MiB, 8MiB]
          - [8MiB, 64MiB, 8MiB]
"""

RETURN = r"""
generation:
  description: Generation of the mapping; in check mode the one before the change.
  returned: success
  type: int
  sample: 1
digest:
  description:
    - Digest of the mapping, equal on every host that holds the same one; in check mode the one before the change.
  returned: success
  type: str
  sample: "sha256:4f8b"
addresses:
  description: The address under which the virtual machine finds each vdisk. It is the serial number of the disk.
  returned: success
  type: dict
  sample: {"web1-root": "web1:0", "web1-data": "web1:1"}
luns:
  description: The mapping that was asked for, extents included.
  returned: success
  type: list
  elements: dict
  sample:
    - {"lun": 0, "vdisk": "web1-root", "readonly": false, "extents": [[0, 5242880, 67108864]], "lease": 1048576}
steps:
  description: What was done, or in check mode would be done, a sentence each.
  returned: success
  type: list
  elements: str
  sample: ["push a mapping of 2 LUNs to vport web1"]
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.iovlab.storage.plugins.module_utils import _mapped, _mapping, _nvme, _pool, _sriov, _vport
from ansible_collections.iovlab.storage.plugins.module_utils._argspec import (
    ON_ADAPTER,
    PLANNED,
    RPC,
    STATE,
    ArgumentSpec,
)
from ansible_collections.iovlab.storage.plugins.module_utils._errors import Refused
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
            "vport": {"type": "str", "required": True},
            "luns": _mapping.LUNS,
            "pool": {"type": "str"},
            "nsid": {"type": "int"},
            "generation": {"type": "int"},
        },
        required_if=[("state", "present", ["luns"])],
    ),
)


def body(module: AnsibleModule, host: Host) -> dict[str, Any]:
    options = module.params
    name = vport_name(options["vport"])
    present = options["state"] == "present"
    if present:
        _mapping.refuse_doubles(options["luns"])
    options["adapter"] = _sriov.adapter_if_named(host, options)
    with Vportd(options["rpc_socket"]) as vportd:
        record = vportd.vport(name)
        if record is None and not present:
            return Plan({}, {}).report() | {"generation": 0, "digest": None, "addresses": {}, "luns": []}
        if record is None:
            raise _vport.missing(name)
        luns = _wanted(host, vportd, options, record) if present else None
        current = _mapping.from_vportd(vportd.mapping(name))
        if not present and current.luns and record["vf"]:
            raise Refused(
                f"vport {name} is bound to VF {record['vf']}; unbind it with vport_binding before its mapping is "
                "deleted"
            )
        planned = _mapping.plan(name, current, luns, _vport.front_ends(record), options["generation"])
        if planned.changed and not module.check_mode:
            carry_out(planned, vportd.verbs(name))
            current = _mapping.from_vportd(vportd.mapping(name))
    return planned.report() | {
        "generation": current.generation,
        "digest": current.digest,
        "addresses": {lun.vdisk: f"{name}:{lun.lun}" for lun in luns or ()},
        "luns": [lun.sent() for lun in luns or ()],
    }


def _wanted(
    host: Host, vportd: Vportd, options: Mapping[str, Any], record: Mapping[str, Any]
) -> tuple[_mapping.Lun, ...]:
    """The LUNs asked for, with extents, known to be good."""
    adapter = _vport.adapter_of(vportd.adapters(), record["adapter"])
    if options["adapter"] not in (None, adapter["adapter"]):
        raise Refused(
            f"adapter: vport {record['vport']} is on adapter {adapter['adapter']}, not {options['adapter']}; correct "
            "it or leave it out"
        )
    if options["nsid"] is not None and options["nsid"] != adapter["nsid"]:
        raise Refused(
            f"nsid: vportd uses namespace {adapter['nsid']} of adapter {adapter['adapter']}, not {options['nsid']}; "
            "correct it or leave it out"
        )
    if adapter["device"] is None:
        raise Refused(f"vport {record['vport']}: {adapter['error']}")

    @cache
    def storage() -> _pool.Storage:
        namespace = _nvme.namespace(host, adapter["adapter"], adapter["nsid"])
        return _pool.read_storage(host, namespace.device, namespace.size, readonly=True)

    luns = _mapping.wanted(
        options["luns"], options["pool"], lambda pool, vdisk: _mapped.extents_of(_pool.pool_of(storage(), pool), vdisk)
    )
    others = [
        (vport, lun) for vport, lun in _mapped.luns_by_vport(vportd, adapter["adapter"]) if vport != record["vport"]
    ]
    _mapping.refuse_bad_extents(luns, adapter["size"], others)
    return _mapping.normalised(luns)


def foreseen(options: dict[str, Any]) -> tuple[Plan, dict[str, Any]]:
    name, luns = options["vport"], options["luns"] or []
    after = {"vport": name, "luns": [{"lun": entry["lun"], "vdisk": entry["vdisk"]} for entry in luns]}
    step = Step("mapping_set", f"push a mapping of {len(luns)} LUNs to vport {name}")
    addresses = {entry["vdisk"]: f"{name}:{entry['lun']}" for entry in luns}
    return Plan({}, after, (step,)), {"generation": 0, "digest": None, "addresses": addresses, "luns": []}


def main() -> None:
    run(SPEC, body, foreseen)


if __name__ == "__main__":
    main()
