#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: a program in a tenant VM."""

from __future__ import annotations

DOCUMENTATION = r"""
module: guest_exec
version_added: 0.1.0
short_description: Run a program in a virtual machine through its guest agent
description:
  - Runs on the hypervisor that the virtual machine is on. The virtual machine needs QEMU's guest agent and the channel
    to it, and no network.
  - A virtual machine that has just booted is waited for until its agent answers.
  - C(changed) is V(true) when a program was started, whatever the program did, and V(false) when a program started
    before was asked about with O(pid).
author:
  - iovlab.storage contributors (@iovlab)
options:
  name:
    description:
      - Name of the virtual machine.
    type: str
    required: true
  argv:
    description:
      - The program and its arguments. There is no shell unless it is the program.
      - Either this or O(pid) is required.
    type: list
    elements: str
  stdin:
    description:
      - Standard input of the program, at most 3 MiB. Left out, it has none.
    type: str
  wait:
    description:
      - Wait until the program ends. With V(false) it is only started, or with O(pid) looked at once.
    type: bool
    default: true
  pid:
    description:
      - RV(pid) of a program that was started before with O(wait=false). Either this or O(argv) is required.
      - The agent tells the end of a program once, and forgets it then. In check mode it is not asked for that reason.
    type: int
  timeout:
    description:
      - Seconds that the agent has to answer at first, and then as many for the program to end.
      - A program that is late goes on running, and the module fails with its RV(pid).
    type: float
    default: 60
  uri:
    description:
      - libvirt URI of this hypervisor.
    type: str
    default: qemu:///system
  fail_on_error:
    description:
      - Fail when the program ends with anything but 0.
    type: bool
    default: true
extends_documentation_fragment:
  - iovlab.storage._attributes
attributes:
  check_mode:
    details:
      - Looks whether the virtual machine runs, and starts nothing.
  diff_mode:
    support: none
    details:
      - What a program changes is not known.
  idempotent:
    support: none
    details:
      - The program is started each time.
notes:
  - The agent keeps 16 MiB of each output, and libvirt passes on 4 MiB of one answer in base64, which are 3 MiB of both
    outputs together. Have a program that says more write to a file.
requirements:
  - python3-libvirt, the distribution's package
  - qemu-guest-agent in the virtual machine
seealso:
  - module: iovlab.storage.vm_migrate
"""

EXAMPLES = r"""
- name: See the addresses of the virtual disks
  iovlab.storage.guest_exec:
    name: web1
    argv: [ls, /dev/disk/by-address]
  register: disks
  changed_when: false

- name: Start a load that goes on during the migration
  iovlab.storage.guest_exec:
    name: web1
    argv: [fio, --output-format=json, "-"]
    stdin: "{{ lookup('ansible.builtin.template', 'load.fio.j2') }}"
    wait: false
  register: load

- name: Wait for its end on the hypervisor that the virtual machine is on by then
  iovlab.storage.guest_exec:
    name: web1
    pid: "{{ load.pid }}"
    timeout: 300
  delegate_to: hypervisor2
  register: load
"""

RETURN = r"""
pid:
  description: Process ID of the program in the virtual machine. None in check mode, unless it was given.
  returned: success
  type: int
  sample: 131
exited:
  description: Whether the program has ended. Only then there are RV(rc), RV(stdout) and RV(stderr).
  returned: success
  type: bool
  sample: true
rc:
  description: Exit code of the program, 128 + N when signal N ended it. None while it runs.
  returned: success
  type: int
  sample: 0
stdout:
  description: Standard output, read as UTF-8.
  returned: success
  type: str
  sample: "tenant1:0\ntenant1:1\n"
stderr:
  description: Standard error, read as UTF-8.
  returned: success
  type: str
  sample: ""
truncated:
  description: V(stdout) and V(stderr), where the agent has thrown away what was above 16 MiB. There is a warning, too.
  returned: success
  type: list
  elements: str
  sample: []
steps:
  description: What was done, or in check mode would be done, a sentence each.
  returned: success
  type: list
  elements: str
  sample: ["run ls /dev/disk/by-address in virtual machine tenant1"]
"""

import shlex
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.iovlab.storage.plugins.module_utils import _guest_agent
from ansible_collections.iovlab.storage.plugins.module_utils._argspec import ArgumentSpec
from ansible_collections.iovlab.storage.plugins.module_utils._errors import IovlabError, Refused, StepFailed
from ansible_collections.iovlab.storage.plugins.module_utils._host import Host
from ansible_collections.iovlab.storage.plugins.module_utils._libvirt import Hypervisor, load_or_respawn
from ansible_collections.iovlab.storage.plugins.module_utils._module import run

SPEC = ArgumentSpec(
    {
        "name": {"type": "str", "required": True},
        "argv": {"type": "list", "elements": "str"},
        "stdin": {"type": "str"},
        "wait": {"type": "bool", "default": True},
        "pid": {"type": "int"},
        "timeout": {"type": "float", "default": 60},
        "uri": {"type": "str", "default": "qemu:///system"},
        "fail_on_error": {"type": "bool", "default": True},
    }
)


def body(module: AnsibleModule, host: Host) -> dict[str, Any]:
    options = module.params
    _refuse(options)
    name, argv, pid = options["name"], options["argv"], options["pid"]
    libvirt, qemu = load_or_respawn(_guest_agent.load, "libvirt_qemu")
    agent = _guest_agent.Agent(libvirt, qemu, Hypervisor(libvirt, options["uri"], "uri"), name)
    started = argv is not None
    steps = [f"run {shlex.join(argv)} in virtual machine {name}"] if started else []
    outcome = _guest_agent.Outcome()
    if not module.check_mode:
        agent.wait(options["timeout"])
        if started:
            pid = agent.start(argv, options["stdin"])
        try:
            if options["wait"]:
                outcome = agent.outcome(pid, options["timeout"])
            elif not started:
                outcome = agent.look(pid)
        except IovlabError as exc:
            exc.details.update(changed=started, steps=steps)
            raise
    result = {
        "changed": started,
        "pid": pid,
        "exited": outcome.exited,
        "rc": outcome.rc,
        "stdout": outcome.stdout,
        "stderr": outcome.stderr,
        "truncated": list(outcome.truncated),
        "steps": steps,
    }
    if outcome.rc and options["fail_on_error"]:
        program = argv[0] if started else f"pid {pid}"
        raise StepFailed(
            f"{program} in virtual machine {name} ended with {outcome.rc}: {outcome.last_line}; see stderr and stdout, "
            "or set fail_on_error=false to go on",
            **result,
        )
    limit = _guest_agent.CAPTURED >> 20
    notes = [f"{output} of pid {pid} is cut off after {limit} MiB" for output in outcome.truncated]
    # Ansible takes any other rc than 0 for a failure unless it is told.
    return result | {"failed": False, "notes": notes}


def _refuse(options: dict[str, Any]) -> None:
    """What no agent need be asked for."""
    argv, stdin = options["argv"], options["stdin"]
    if (argv is None) == (options["pid"] is None):
        raise Refused("argv, pid: exactly one of the two is needed; give argv to start a program, pid to ask for one")
    if argv is not None and not (argv and argv[0]):
        raise Refused("argv: it names no program; give the program and its arguments as a list")
    if stdin is not None and argv is None:
        raise Refused("stdin: a program that runs already gets no more input; leave it out with pid")
    if stdin is not None and len(stdin.encode()) > _guest_agent.STDIN_LIMIT:
        limit = _guest_agent.STDIN_LIMIT >> 20
        raise Refused(f"stdin: {len(stdin.encode())} bytes are above the {limit} MiB that libvirt passes on; give less")
    if not options["timeout"] > 0:
        raise Refused(f"timeout: {options['timeout']:g} is too small; give seconds above 0")


def main() -> None:
    run(SPEC, body)


if __name__ == "__main__":
    main()
