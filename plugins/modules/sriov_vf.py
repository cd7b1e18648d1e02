#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: VFs of an NVMe adapter."""

from __future__ import annotations

DOCUMENTATION = r"""
module: sriov_vf
version_added: 0.1.0
short_description: Virtual functions of an NVMe SR-IOV adapter
description:
  - Makes an NVMe adapter have a number of virtual functions (VFs), each with its queue and interrupt resources, its
    controller online, and bound to a driver.
  - Only what differs is touched. A VF that is in use is never taken away; the module refuses and names its user.
    A virtual machine that is shut off, and has the VF in libvirt's definition, counts as one where the VF would be
    gone for good, or be taken from C(vfio-pci).
  - The adapter is named by O(pf), O(serial) or O(nqn); one of them is required.
  - When a step fails, the module goes back to the count, resources and drivers of before, or says what is left.
author:
  - iovlab.storage contributors (@iovlab)
options:
  state:
    description:
      - V(present) makes the adapter have O(count) VFs.
      - V(absent) removes all its VFs.
    type: str
    choices: [present, absent]
    default: present
  count:
    description:
      - Number of VFs. Required with O(state=present).
    type: int
  queues:
    description:
      - Flexible queue resources (VQ) of each VF, the admin queue included; at least V(2).
      - Left out, the adapter's flexible resources are shared out evenly, up to what one VF can get.
    type: int
  interrupts:
    description:
      - Flexible interrupt resources (VI) of each VF; at least V(1).
      - Left out, the adapter's flexible resources are shared out evenly, up to what one VF can get.
    type: int
  driver:
    description:
      - The driver that each VF is bound to.
      - V(nvme) shows block devices on this host, V(vfio-pci) hands the VF to a user-space driver or a virtual machine,
        V(none) leaves the VF without a driver.
    type: str
    choices: [nvme, vfio-pci, none]
    default: nvme
  namespaces:
    description:
      - The namespaces that each VF shows. They are attached and detached through the PF, then checked by resetting the
        VF and enabling its controller once, as its user will; if it shows another namespace then, the module fails.
      - Left out with O(driver=vfio-pci), the VFs show none. Adapters attach shared namespaces to every VF, and that
        of the pool is one, so a virtual machine with such a VF would have everybody's data. Name the pool's
        namespace here only for a program that is trusted with the whole pool.
      - Left out with another driver, the VFs show what the adapter attaches, less what was detached from them before.
    type: list
    elements: int
  persistent:
    description:
      - Whether the VFs come back when the host boots. With V(true), files under C(/etc/iovlab/adapters) say what there
        is to be, and C(iovlab-adapter.service) makes it so before C(vportd) starts. With V(false) there is no file for
        this adapter; the unit goes with the last one.
      - The files are changed last, so they say only what has worked.
    type: bool
    default: false
  allow_recreate:
    description:
      - The kernel changes the number of VFs only from 0 to another number, so that another O(count) means to remove
        every VF of the adapter and to create them anew.
      - With V(false) the module refuses to do that. With V(true) it does, unless one of the VFs is in use.
    type: bool
    default: false
  timeout:
    description:
      - Seconds to wait for each single step, and for another run of this module on the same PF.
    type: int
    default: 60
extends_documentation_fragment:
  - iovlab.storage._attributes
  - iovlab.storage._options.adapter
  - iovlab.storage._options.names
  - iovlab.storage._options.rpc
requirements:
  - nvme-cli
seealso:
  - module: iovlab.storage.sriov_vf_info
"""

EXAMPLES = r"""
- name: Four VFs with two queues each, driven by the kernel
  iovlab.storage.sriov_vf:
    pf: "0000:01:00.0"
    count: 4
    queues: 2
    interrupts: 1
    persistent: true

- name: Two VFs for virtual machines, each with namespace 2 alone, even if there is another number of VFs now
  iovlab.storage.sriov_vf:
    serial: A1B2C3
    count: 2
    namespaces: [2]
    driver: vfio-pci
    allow_recreate: true

- name: No VFs
  iovlab.storage.sriov_vf:
    pf: "0000:01:00.0"
    state: absent
"""

RETURN = r"""
pf:
  description: The adapter's PF, in full form.
  returned: success
  type: str
  sample: "0000:01:00.0"
serial:
  description: The adapter's serial number.
  returned: success
  type: str
  sample: A1B2C3
nqn:
  description: NQN of the adapter's subsystem.
  returned: success
  type: str
  sample: nqn.2014-08.org.nvmexpress:uuid:7f6d
totalvfs:
  description: The most VFs that the adapter can have.
  returned: success
  type: int
  sample: 4
numvfs:
  description: The VFs that it has; in check mode those before the change.
  returned: success
  type: int
  sample: 1
vfs:
  description: The VFs as they are after the run; in check mode as they are before the change.
  returned: success
  type: list
  elements: dict
  contains:
    address:
      description: PCI address.
      type: str
      sample: "0000:01:00.1"
    index:
      description: Number of the VF on its PF, the first being 0.
      type: int
      sample: 0
    cntlid:
      description: Identifier of the VF's NVMe controller.
      type: int
      sample: 1
    online:
      description: Whether the controller is online.
      type: bool
      sample: true
    queues:
      description: Flexible queue resources assigned.
      type: int
      sample: 2
    interrupts:
      description: Flexible interrupt resources assigned.
      type: int
      sample: 1
    driver:
      description: The driver, if any.
      type: str
      sample: nvme
    attached:
      description: Namespaces attached to the controller, as the adapter tells; null where it has no such command.
      type: list
      elements: int
      sample: [1]
    controller:
      description: The kernel's name of the controller, if it drives it.
      type: str
      sample: nvme1
    namespaces:
      description: Namespaces that the VF shows as block devices.
      type: list
      elements: dict
      sample: [{"nsid": 1, "device": "/dev/nvme1n1", "size": 1073741824, "identity": "uuid.7f6d"}]
    users:
      description: Who uses the VF, or would when it is started, a phrase each.
      type: list
      elements: str
      sample: ["vport web1"]
steps:
  description: What was done, or in check mode would be done, a sentence each.
  returned: success
  type: list
  elements: str
  sample: ["create 4 VFs on 0000:01:00.0"]
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.iovlab.storage.plugins.module_utils import _keep, _sriov, _vf_report, _vfs
from ansible_collections.iovlab.storage.plugins.module_utils._argspec import ADAPTER, RPC, STATE, ArgumentSpec
from ansible_collections.iovlab.storage.plugins.module_utils._host import Host
from ansible_collections.iovlab.storage.plugins.module_utils._module import run
from ansible_collections.iovlab.storage.plugins.module_utils._plan import Plan, carry_out

SPEC = STATE.merge(
    ADAPTER,
    RPC,
    _vfs.OPTIONS,
    ArgumentSpec(
        {"count": {"type": "int"}, "timeout": {"type": "int", "default": 60}},
        required_if=[("state", "present", ["count"])],
        required_one_of=[("pf", "serial", "nqn")],
    ),
)


def body(module: AnsibleModule, host: Host) -> dict[str, Any]:
    options = module.params
    present = options["state"] == "present"
    _vfs.refuse_timeout(options["timeout"])
    if present:
        _vfs.refuse_count(options["count"])
    request = _vfs.request(options, options["count"] if present else 0)
    address = _sriov.choose(host, options["pf"], options["serial"], options["nqn"])
    with host.locked(f"sriov-{address}", options["timeout"]):
        if not present and not host.sysfs.exists("bus/pci/devices", address):
            return _forget(module, host, address)
        bound = _vf_report.bindings(options["rpc_socket"])
        planned = _vfs.plan(host, address, request, bound, options)
        adapter = planned.adapter if module.check_mode else _vfs.apply(host, planned, options["timeout"])
        return planned.plan.report() | _vf_report.described(host, adapter, bound)


def _forget(module: AnsibleModule, host: Host, address: str) -> dict[str, Any]:
    """The adapter was taken out of the host; at most its file is left."""
    keeping = _keep.plan(host, address, None)
    if not module.check_mode:
        carry_out(keeping, _keep.actions(host))
    gone = Plan(before={"pf": address}, after={"pf": address})
    notes = [f"there is no PCI device {address} on this host, so it has no VFs; lspci -D lists the addresses"]
    rest = {"pf": address, "serial": None, "nqn": None, "totalvfs": 0, "numvfs": 0, "vfs": [], "notes": notes}
    return gone.with_parts(boot=keeping).report() | rest


def main() -> None:
    run(SPEC, body)


if __name__ == "__main__":
    main()
