#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: the vports and adapters of a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vport_info
version_added: 0.1.0
short_description: Read the vports and adapters that vportd serves
description:
  - Reads the records of one vport or of all, their mappings, and the adapters with their VFs.
author:
  - iovlab.storage contributors (@iovlab)
options:
  name:
    description:
      - Read this vport only. None of that name gives an empty list.
    type: str
  samples_since:
    description:
      - Read what each vport did in the seconds after this time too, Unix time in seconds. V(0) reads all that there is.
      - vportd keeps one sample for each second in which something changed, at most 900 of each vport, until it ends.
    type: float
extends_documentation_fragment:
  - iovlab.storage._attributes.info_module
  - iovlab.storage._options.rpc
  - iovlab.storage._options.planned
seealso:
  - module: iovlab.storage.vport
"""

EXAMPLES = r"""
- name: Read the vports of the destination before a migration
  iovlab.storage.vport_info:
  register: there
  delegate_to: hypervisor2

- name: Read what a vport did in the last minute
  iovlab.storage.vport_info:
    name: web1
    samples_since: "{{ now().timestamp() - 60 }}"
"""

RETURN = r"""
vports:
  description:
    - The records as C(vportd) gives them, with the key C(mapping) for the mapping of each.
    - With O(samples_since), C(samples) of each is a list, the oldest first. C(time) is the end of the second that a
      sample is of; C(path), C(state) and C(outstanding) are as they were then; C(iops) and C(bytes_per_second) are
      rates, C(errors) and C(dirty_pages) how many came to it; C(latency_p50), C(latency_p99) and C(latency_max) are
      seconds, 0 when no request was done.
  returned: success
  type: list
  elements: dict
  sample:
    - vport: web1
      adapter: "0000:01:00.0"
      state: RUNNING
      path: pf
      vf: null
      generation: 1
      digest: "sha256:4f8b"
      luns: [{"lun": 0, "vdisk": "web1", "address": "web1:0", "socket": "/run/vportd/web1/0.sock"}]
      mapping: {"vport": "web1", "generation": 1, "luns": []}
adapters:
  description: The adapters with their VFs, and the vport that each VF is bound to.
  returned: success
  type: list
  elements: dict
  sample:
    - adapter: "0000:01:00.0"
      nsid: 1
      device: /dev/nvme0n1
      size: 1073741824
      identity: uuid.7f6d
      vfs: [{"vf": "0000:01:00.1", "device": "/dev/nvme1n1", "vport": null}]
engine:
  description: What C(vportd) says of itself, and by which id and name this hypervisor holds leases.
  returned: success
  type: dict
  contains:
    version:
      description: Version of C(vportd).
      type: str
      sample: "1.0.0"
    protocol:
      description: Version of its protocol.
      type: int
      sample: 1
    features:
      description: What it can do.
      type: list
      elements: str
      sample: [mapping, binding, fence, lease]
    host_id:
      description: The id by which this hypervisor holds leases; none without C(/etc/machine-id).
      type: str
      sample: 5a0c1f0d7c8e4b0f9a3b2c1d0e9f8a7b
    host_name:
      description: The name that leases show.
      type: str
      sample: hv1
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.iovlab.storage.plugins.module_utils._argspec import PLANNED, RPC, ArgumentSpec
from ansible_collections.iovlab.storage.plugins.module_utils._host import Host
from ansible_collections.iovlab.storage.plugins.module_utils._module import run
from ansible_collections.iovlab.storage.plugins.module_utils._plan import Plan
from ansible_collections.iovlab.storage.plugins.module_utils._rpc import Vportd
from ansible_collections.iovlab.storage.plugins.module_utils._units import vport_name

SPEC = RPC.merge(PLANNED, ArgumentSpec({"name": {"type": "str"}, "samples_since": {"type": "float"}}))


def body(module: AnsibleModule, host: Host) -> dict[str, Any]:
    name = module.params["name"]
    with Vportd(module.params["rpc_socket"]) as vportd:
        if name is None:
            records = vportd.vports()
        else:
            record = vportd.vport(vport_name(name, "name"))
            records = [record] if record else []
        vports = [record | {"mapping": vportd.mapping(record["vport"])} for record in records]
        since = module.params["samples_since"]
        if since is not None:
            vports = [record | {"samples": vportd.samples(record["vport"], since)} for record in vports]
        return {"changed": False, "vports": vports, "adapters": vportd.adapters(), "engine": vportd.engine()}


def foreseen(options: dict[str, Any]) -> tuple[Plan, dict[str, Any]]:
    return Plan({}, {}), {"vports": [], "adapters": [], "engine": {}}


def main() -> None:
    run(SPEC, body, foreseen)


if __name__ == "__main__":
    main()
