#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: the binding of a vport to a VF, and its path."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vport_binding
version_added: 0.1.0
short_description: Bind a vport to a VF and choose its path
description:
  - Binds a vport to a VF, moves it between the paths V(vf) (direct) and V(pf) (mediated), or unbinds it. The virtual
    machine runs on meanwhile.
  - A switch suspends the queues, drains them, hands over their state and resumes on the other path. One that does not
    finish in time goes back to the path it came from and fails.
author:
  - iovlab.storage contributors (@iovlab)
options:
  vport:
    description:
      - Name of the vport.
    type: str
    required: true
  vf:
    description:
      - PCI address of the VF.
      - V(auto) is the VF that the vport is bound to already, else the first free VF of its adapter that shows the
        storage. A VF that was lost, so that the vport runs on the path V(pf) and the VF shows the storage no more, is
        given up for a free one.
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
      - What to do when O(vf=auto) finds no free VF. V(fail) fails; V(stay_on_pf) leaves the vport unbound on the path
        V(pf), warns, and returns RV(stayed_on_pf=true).
    type: str
    choices: [fail, stay_on_pf]
    default: fail
  timeout:
    description:
      - Seconds that draining may take.
    type: float
    default: 10
  state:
    description:
      - V(present) binds, V(absent) unbinds; the vport then goes on over the path V(pf).
    type: str
    choices: [present, absent]
    default: present
extends_documentation_fragment:
  - iovlab.storage._attributes
  - iovlab.storage._options.rpc
  - iovlab.storage._options.planned
seealso:
  - module: iovlab.storage.vport
  - module: iovlab.storage.sriov_vf
"""

EXAMPLES = r"""
- name: Bind to the first free VF
  iovlab.storage.vport_binding:
    vport: web1

- name: Take the mediated path, before a live migration
  iovlab.storage.vport_binding:
    vport: web1
    path: pf

- name: Unbind
  iovlab.storage.vport_binding:
    vport: web1
    state: absent
"""

RETURN = r"""
vport:
  description: The record of the vport; in check mode before the change.
  returned: success
  type: dict
  sample: {"vport": "web1", "vf": "0000:01:00.1", "path": "vf", "state": "RUNNING"}
switch:
  description: The report of the switch between paths that was made, none when there was none.
  returned: success
  type: dict
  sample:
    changed: true
    from: pf
    to: vf
    outstanding: 3
    drain_seconds: 0.0011
    transfer_seconds: 0.0002
    resume_seconds: 0.0003
    blackout_seconds: 0.0016
stayed_on_pf:
  description: Whether no VF was free and the vport stayed on the path V(pf).
  returned: success
  type: bool
  sample: false
steps:
  description: What was done, or in check mode would be done, a sentence each.
  returned: success
  type: list
  elements: str
  sample: ["bind vport web1 to VF 0000:01:00.1 on path vf"]
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.iovlab.storage.plugins.module_utils import _vport
from ansible_collections.iovlab.storage.plugins.module_utils._argspec import PLANNED, RPC, STATE, ArgumentSpec
from ansible_collections.iovlab.storage.plugins.module_utils._errors import Refused
from ansible_collections.iovlab.storage.plugins.module_utils._host import Host
from ansible_collections.iovlab.storage.plugins.module_utils._module import run
from ansible_collections.iovlab.storage.plugins.module_utils._plan import Plan, Step, carry_out
from ansible_collections.iovlab.storage.plugins.module_utils._rpc import Vportd
from ansible_collections.iovlab.storage.plugins.module_utils._units import pci_address, vport_name

SPEC = STATE.merge(
    RPC,
    PLANNED,
    ArgumentSpec(
        {
            "vport": {"type": "str", "required": True},
            "vf": {"type": "str", "default": _vport.AUTO},
            "path": {"type": "str", "choices": ["vf", "pf"], "default": "vf"},
            "on_no_vf": {"type": "str", "choices": ["fail", "stay_on_pf"], "default": "fail"},
            "timeout": {"type": "float", "default": 10},
        }
    ),
)


def body(module: AnsibleModule, host: Host) -> dict[str, Any]:
    options = module.params
    name = vport_name(options["vport"])
    wanted = options["vf"] if options["vf"] == _vport.AUTO else pci_address(options["vf"], "vf")
    if options["timeout"] <= 0:
        raise Refused(f"timeout: {options['timeout']} seconds is no time to drain in; give more than 0")
    with Vportd(options["rpc_socket"]) as vportd:
        record = vportd.vport(name)
        if record is None and options["state"] == "absent":
            return Plan({}, {}).report() | {"vport": {}, "switch": None, "stayed_on_pf": False}
        if record is None:
            raise _vport.missing(name)
        stayed = False
        if options["state"] == "absent":
            planned = _vport.plan_unbinding(record)
        else:
            adapter = _vport.adapter_of(vportd.adapters(), record["adapter"])
            another = wanted == _vport.AUTO and options["path"] == "vf" and _vport.lost_vf(record, adapter)
            vf = _vport.choose_vf({**record, "vf": None} if another else record, adapter, wanted)
            stayed = vf is None
            if stayed and options["on_no_vf"] == "fail":
                raise _vport.no_free_vf(record)
            planned = _vport.plan_binding(record, vf, options["path"])
        switch = None
        if planned.changed and not module.check_mode:
            *__, reply = carry_out(planned, vportd.verbs(name, options["timeout"]))
            switch = reply.get("switch") if "switch" in reply else reply
            record = vportd.vport(name)
    notes = [f"no VF is free for vport {name}: it stays on path pf"] if stayed else []
    return planned.report() | {"vport": record, "switch": switch, "stayed_on_pf": stayed, "notes": notes}


def foreseen(options: dict[str, Any]) -> tuple[Plan, dict[str, Any]]:
    name, vf, path = options["vport"], options["vf"], options["path"]
    what = "the first free VF" if vf == _vport.AUTO else f"VF {vf}"
    planned = Plan({}, {"vport": name, "vf": vf, "path": path}, (Step("bind", f"bind vport {name} to {what}"),))
    return planned, {"vport": {}, "switch": None, "stayed_on_pf": False}


def main() -> None:
    run(SPEC, body, foreseen)


if __name__ == "__main__":
    main()
