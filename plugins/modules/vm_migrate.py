#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: live migration of a virtual machine."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_migrate
version_added: 0.1.0
short_description: Migrate a virtual machine live to another hypervisor
description:
  - Runs on the hypervisor that the virtual machine is on, and moves it with libvirt to another one while it goes on
    running.
  - Everything is checked before anything starts. Past the deadline the migration is aborted, and the virtual machine
    goes on running where it was.
  - The disks on vports must be on the path V(pf) on this host, and the destination must have the same vports with the
    same mappings.
author:
  - iovlab.storage contributors (@iovlab)
options:
  name:
    description:
      - Name of the virtual machine.
    type: str
    required: true
  destination:
    description:
      - libvirt URI of the other hypervisor, such as V(qemu+ssh://root@10.77.0.12/system), as this host reaches it.
      - Required with O(state=migrated).
    type: str
  migrate_uri:
    description:
      - Where QEMU sends the memory to, such as V(tcp://10.77.0.12). Left out, the destination says it.
    type: str
  uri:
    description:
      - libvirt URI of this hypervisor.
    type: str
    default: qemu:///system
  timeout:
    description:
      - Seconds after which a migration that is not done is aborted.
    type: int
    default: 300
  max_downtime:
    description:
      - Milliseconds that the virtual machine may stand still at the end, as far as QEMU can tell before.
    type: int
    default: 300
  bandwidth:
    description:
      - Limit in MiB a second. Left out, there is none.
    type: int
  auto_converge:
    description:
      - Slow the virtual machine down if it writes faster than its memory can be sent.
    type: bool
    default: false
  post_copy:
    description:
      - After the first pass over the memory let the virtual machine run on the destination, and fetch what it misses.
      - From then on the migration cannot be aborted. If it breaks off, neither host has the whole of the memory.
      - Refused for a virtual machine with disks on vports. A request may name memory that has not arrived yet, and
        C(vportd) has no way to wait for it (vhost-user's protocol feature C(PAGEFAULT)).
    type: bool
    default: false
  unsafe:
    description:
      - Migrate even if libvirt thinks that a disk's cache mode is not safe.
    type: bool
    default: false
  mode:
    description:
      - V(direct) lets this module lead the migration, V(peer2peer) lets the libvirt daemon of this host do it.
    type: str
    choices: [direct, peer2peer]
    default: direct
  destination_vports:
    description:
      - Records of the destination's vports, as M(iovlab.storage.vport_info) returned them there.
      - With them, a vport that is missing there or has another mapping is refused before anything starts. Without
        them this is not checked.
    type: list
    elements: dict
  state:
    description:
      - V(migrated) means running on the destination and not defined here any more.
      - V(aborted) means that no migration of the virtual machine away from this host is under way. One that is, begun
        by whatever process, is aborted, and the virtual machine goes on running here.
    type: str
    choices: [migrated, aborted]
    default: migrated
extends_documentation_fragment:
  - iovlab.storage._attributes
  - iovlab.storage._options.rpc
requirements:
  - python3-libvirt, the distribution's package
seealso:
  - module: iovlab.storage.vport_binding
  - module: iovlab.storage.vport_fence
"""

EXAMPLES = r"""
- name: Read the vports of the destination
  iovlab.storage.vport_info:
  delegate_to: hypervisor2
  register: there

- name: Migrate
  iovlab.storage.vm_migrate:
    name: web1
    destination: qemu+ssh://root@10.77.0.12/system
    migrate_uri: tcp://10.77.0.12
    destination_vports: "{{ there.vports }}"
    timeout: 120
  register: migration

- name: Stop a migration that another play has begun
  iovlab.storage.vm_migrate:
    name: web1
    state: aborted

- name: Show how long it stood still
  ansible.builtin.debug:
    var: migration.migration.downtime
"""

RETURN = r"""
runs_on:
  description:
    - Host name of the hypervisor that the virtual machine runs on. With O(state=aborted) null when it is not on this
      one.
    - Of a migration that failed V(source), V(destination), V(both), V(nowhere) or V(unknown).
  returned: success, and when a migration fails
  type: str
  sample: hypervisor2
migration:
  description: Numbers of the migration, in seconds and bytes. Empty when there was none.
  returned: success
  type: dict
  contains:
    phases:
      description: Seconds that each phase took, V(preflight), V(transfer) and V(confirm).
      type: dict
      sample: {"preflight": 0.4, "transfer": 16.1, "confirm": 0.1}
    total_time:
      description: Seconds that libvirt counts for the whole job.
      type: float
      sample: 15.9
    setup_time:
      description: Seconds before the first page was sent.
      type: float
      sample: 0.1
    downtime:
      description: Seconds that the virtual machine stood still.
      type: float
      sample: 0.14
    memory_total:
      description: Bytes of memory.
      type: int
      sample: 268435456
    memory_transferred:
      description: Bytes sent.
      type: int
      sample: 301989888
    iterations:
      description: Times that the memory was gone through.
      type: int
      sample: 3
    dirty_rate:
      description: Bytes a second that the virtual machine wrote, as last measured.
      type: int
      sample: 1048576
    progress:
      description:
        - What libvirt told while it ran, one entry each half second, of a long migration fewer, and 600 at most.
        - C(time) is in seconds since 1970, C(iteration) counts the passes over the memory, C(memory_remaining) and
          C(memory_transferred) are bytes, C(dirty_rate) bytes a second, C(throttle) percent of the processor time
          taken from the virtual machine by O(auto_converge).
      type: list
      elements: dict
      sample:
        - time: 1763856003.512
          iteration: 1
          memory_remaining: 67108864
          memory_transferred: 201326592
          dirty_rate: 1048576
          throttle: 0
progress:
  description: As RV(migration.progress), of a migration that failed.
  returned: when a migration fails
  type: list
  elements: dict
  sample: []
vports:
  description: The vports whose LUNs are disks of the virtual machine, as far as it was on this host.
  returned: success
  type: list
  elements: str
  sample: [web1]
steps:
  description: What was done, or in check mode would be done, a sentence each.
  returned: success
  type: list
  elements: str
  sample: ["migrate virtual machine web1 from hypervisor1 to hypervisor2"]
"""

import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.iovlab.storage.plugins.module_utils import _libvirt, _migration
from ansible_collections.iovlab.storage.plugins.module_utils._argspec import RPC, ArgumentSpec
from ansible_collections.iovlab.storage.plugins.module_utils._errors import Refused
from ansible_collections.iovlab.storage.plugins.module_utils._host import Host
from ansible_collections.iovlab.storage.plugins.module_utils._module import run
from ansible_collections.iovlab.storage.plugins.module_utils._rpc import Vportd

SPEC = RPC.merge(
    ArgumentSpec(
        {
            "name": {"type": "str", "required": True},
            "destination": {"type": "str"},
            "migrate_uri": {"type": "str"},
            "uri": {"type": "str", "default": "qemu:///system"},
            "timeout": {"type": "int", "default": 300},
            "max_downtime": {"type": "int", "default": 300},
            "bandwidth": {"type": "int"},
            "auto_converge": {"type": "bool", "default": False},
            "post_copy": {"type": "bool", "default": False},
            "unsafe": {"type": "bool", "default": False},
            "mode": {"type": "str", "choices": ["direct", "peer2peer"], "default": "direct"},
            "destination_vports": {"type": "list", "elements": "dict"},
            "state": {"type": "str", "choices": ["migrated", "aborted"], "default": "migrated"},
        },
        required_if=[("state", "migrated", ("destination",))],
    ),
)


def body(module: AnsibleModule, host: Host) -> dict[str, Any]:
    options = module.params
    name = options["name"]
    started = time.monotonic()
    for option in ("timeout", "max_downtime", "bandwidth"):
        if options[option] is not None and options[option] < 1:
            raise Refused(f"{option}: {options[option]} is too small; give 1 or more")
    libvirt = _libvirt.load_or_respawn(_libvirt.load, "libvirt")
    if options["state"] == "aborted":
        return _abort(module, _libvirt.Hypervisor(libvirt, options["uri"], "uri"))
    _migration.refuse_own_address(options["destination"], "destination")
    if options["migrate_uri"]:
        _migration.refuse_own_address(options["migrate_uri"], "migrate_uri")
    source = _libvirt.Hypervisor(libvirt, options["uri"], "uri")
    destination = _libvirt.Hypervisor(libvirt, options["destination"], "destination")
    here = source.side(name)
    there = destination.side(name)
    planned = _migration.plan(name, here, there)
    migrates = any(step.verb == "migrate" for step in planned.steps)
    vports = []
    if migrates and here.guest is not None and options["post_copy"]:
        _migration.refuse_post_copy(here.guest)
    if migrates and here.guest is not None and here.guest.sockets:
        with Vportd(options["rpc_socket"]) as vportd:
            vports = _migration.vports_of(here.guest, vportd.vports())
        _migration.refuse_unready_vports(vports, options["destination_vports"], there.hostname)
    result: dict[str, Any] = planned.report() | {"vports": [record["vport"] for record in vports], "migration": {}}
    result["runs_on"] = here.hostname if here.runs_it and module.check_mode else there.hostname
    if planned.changed and not module.check_mode:
        if migrates:
            result["migration"] = _migrate(libvirt, source, destination, options, started)
        source.undefine(name)
    return result


def _abort(module: AnsibleModule, source: _libvirt.Hypervisor) -> dict[str, Any]:
    name = module.params["name"]
    here = source.side(name)
    planned = _migration.plan_abort(name, here)
    if planned.changed and not module.check_mode:
        source.abort(name)
    rest: dict[str, Any] = {"vports": [], "migration": {}, "runs_on": here.hostname if here.runs_it else None}
    return planned.report() | rest | {"notes": planned.notes}


def _migrate(
    libvirt: Any, source: _libvirt.Hypervisor, destination: _libvirt.Hypervisor, options: dict[str, Any], started: float
) -> dict[str, Any]:
    wish = _libvirt.Wish(
        migrate_uri=options["migrate_uri"],
        timeout=options["timeout"],
        max_downtime=options["max_downtime"],
        bandwidth=options["bandwidth"],
        auto_converge=options["auto_converge"],
        peer2peer=options["mode"] == "peer2peer",
        unsafe=options["unsafe"],
        post_copy=options["post_copy"],
    )
    checked = time.monotonic()
    migration = _libvirt.Migration(libvirt, source, destination, options["name"], wish)
    stats = migration.run()
    phases = {
        "preflight": round(checked - started, 3),
        "transfer": round(migration.moved - checked, 3),
        "confirm": round(time.monotonic() - migration.moved, 3),
    }
    return _migration.report(stats, phases, migration.progress.entries)


def main() -> None:
    run(SPEC, body)


if __name__ == "__main__":
    main()
