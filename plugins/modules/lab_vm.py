#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: a hypervisor VM of the lab."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lab_vm
version_added: 0.1.0
short_description: A hypervisor VM of the lab
description:
  - A VM on the control node that serves as a hypervisor, with an emulated NVMe SR-IOV adapter, storage that it shares
    with the other VMs of the lab, and a link to each of them. Plain QEMU, without root.
author:
  - iovlab.storage contributors (@iovlab)
options:
  lab:
    description:
      - Name of the lab.
    type: str
    required: true
  name:
    description:
      - Name of the VM, which is also its host name.
    type: str
    required: true
  directory:
    description:
      - Directory of the lab; the VM's files are in a directory of its name below it.
    type: path
    required: true
  state:
    description:
      - V(started) creates the VM if need be and starts it, V(stopped) powers it down, V(absent) ends it at once and
        removes its files.
    type: str
    choices: [started, stopped, absent]
    default: started
  image:
    description:
      - Files of the image, as RV(iovlab.storage.lab_image#module:image) gives them.
    type: dict
    required: true
    suboptions:
      root:
        description: Root disk.
        type: path
        required: true
      kernel:
        description: Kernel.
        type: path
        required: true
      initrd:
        description: Its initramfs.
        type: path
        required: true
  memory:
    description:
      - Memory, in MiB.
    type: int
    default: 3072
  cpus:
    description:
      - Virtual CPUs.
    type: int
    default: 2
  accelerator:
    description:
      - What QEMU runs on.
    type: str
    choices: [kvm, tcg]
    default: tcg
  ssh_port:
    description:
      - Port on 127.0.0.1 that leads to the VM's ssh server.
    type: int
    required: true
  peers:
    description:
      - Names of the other VMs, each of which gets a link to this one.
    type: list
    elements: str
    default: []
  adapter:
    description:
      - The emulated NVMe SR-IOV adapter.
    type: dict
    required: true
    suboptions:
      serial:
        description: Serial number.
        type: str
        required: true
      max_vfs:
        description: VFs that it can have.
        type: int
        default: 4
      queues:
        description: Queue resources for each VF, the admin queue included.
        type: int
        default: 2
      interrupts:
        description: Interrupt resources for each VF.
        type: int
        default: 2
      storage:
        description: File that all VMs share as their physical storage.
        type: path
        required: true
      storage_uuid:
        description: UUID of the namespace on that storage.
        type: str
        required: true
  seed:
    description:
      - Files that make the VM this one; laid over its root at each boot.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Path in the VM.
        type: str
        required: true
      content:
        description: Content of the file.
        type: str
        required: true
      mode:
        description: Permissions, as an octal text.
        type: str
        default: "0644"
  wait:
    description:
      - Waits until the VM has booted and answers on ssh.
    type: bool
    default: false
  ssh_key:
    description:
      - Private key to log in with while waiting.
    type: path
  host_key:
    description:
      - Public host key that the VM has to show while waiting.
    type: str
  timeout:
    description:
      - Seconds to wait.
    type: int
    default: 300
  logs:
    description:
      - Directory that the console log is kept in when the VM is removed.
    type: path
extends_documentation_fragment:
  - iovlab.storage._attributes
requirements:
  - QEMU 7.2 or later
  - paramiko, with O(wait=true)
seealso:
  - module: iovlab.storage.lab_image
"""

EXAMPLES = r"""
- name: A lab hypervisor
  iovlab.storage.lab_vm:
    lab: lab
    name: hv1
    directory: ./build/lab/lab
    image:
      root: /var/cache/lab/root.qcow2
      kernel: /var/cache/lab/vmlinuz
      initrd: /var/cache/lab/initrd
    ssh_port: 22201
    peers: [hv2]
    adapter:
      serial: lab-hv1
      storage: /var/lib/lab/storage.img
      storage_uuid: 6a1a3c4e-1111-4222-8333-444455556666
"""

RETURN = r"""
vm:
  description: The VM after the run; in check mode as it is.
  returned: success
  type: dict
  sample:
    name: hv1
    state: started
    pid: 4711
    ssh: 127.0.0.1:22201
    console: /home/me/lab/hv1/console.log
    accelerator: tcg
    boot_seconds: 31.2
steps:
  description: What was done, or in check mode would be done, a sentence each.
  returned: success
  type: list
  elements: str
  sample: ["start lab VM hv1, tcg, ssh on 127.0.0.1:22201"]
"""

from collections.abc import Callable
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.iovlab.storage.plugins.module_utils import _lab_vm
from ansible_collections.iovlab.storage.plugins.module_utils._argspec import ArgumentSpec
from ansible_collections.iovlab.storage.plugins.module_utils._errors import Refused
from ansible_collections.iovlab.storage.plugins.module_utils._host import Host
from ansible_collections.iovlab.storage.plugins.module_utils._module import run
from ansible_collections.iovlab.storage.plugins.module_utils._plan import carry_out
from ansible_collections.iovlab.storage.plugins.module_utils._units import checked_name

IMAGE = {name: {"type": "path", "required": True} for name in ("root", "kernel", "initrd")}
ADAPTER = {
    "serial": {"type": "str", "required": True},
    "max_vfs": {"type": "int", "default": 4},
    "queues": {"type": "int", "default": 2},
    "interrupts": {"type": "int", "default": 2},
    "storage": {"type": "path", "required": True},
    "storage_uuid": {"type": "str", "required": True},
}
SEED = {
    "path": {"type": "str", "required": True},
    "content": {"type": "str", "required": True},
    "mode": {"type": "str", "default": "0644"},
}
SPEC = ArgumentSpec(
    {
        "lab": {"type": "str", "required": True},
        "name": {"type": "str", "required": True},
        "directory": {"type": "path", "required": True},
        "state": {"type": "str", "choices": ["started", "stopped", "absent"], "default": "started"},
        "image": {"type": "dict", "required": True, "options": IMAGE},
        "memory": {"type": "int", "default": 3072},
        "cpus": {"type": "int", "default": 2},
        "accelerator": {"type": "str", "choices": ["kvm", "tcg"], "default": "tcg"},
        "ssh_port": {"type": "int", "required": True},
        "peers": {"type": "list", "elements": "str", "default": []},
        "adapter": {"type": "dict", "required": True, "options": ADAPTER},
        "seed": {"type": "list", "elements": "dict", "default": [], "options": SEED},
        "wait": {"type": "bool", "default": False},
        "ssh_key": {"type": "path", "no_log": False},
        "host_key": {"type": "str", "no_log": False},
        "timeout": {"type": "int", "default": 300},
        "logs": {"type": "path"},
    },
    required_if=[("wait", True, ("ssh_key", "host_key"))],
)


def wanted(options: dict[str, Any]) -> _lab_vm.LabVm:
    """The VM that the module's options describe; Refused when they can't be."""
    name = checked_name(
        options["name"], "name", r"[a-z][a-z0-9-]{0,30}", "a lower-case letter, then letters, digits and -"
    )
    if not 1 <= options["adapter"]["max_vfs"] <= 120:
        raise Refused(f"adapter.max_vfs: {options['adapter']['max_vfs']} VFs can't be emulated; ask for 1 to 120")
    if options["adapter"]["queues"] < 2 or options["adapter"]["interrupts"] < 1:
        raise Refused("adapter: a VF needs at least 2 queues (one is its admin queue) and 1 interrupt; ask for more")
    for what, path in (("directory", options["directory"]), ("adapter.storage", options["adapter"]["storage"])):
        if "," in path:
            raise Refused(f"{what}: {path!r} has a comma in it, which QEMU takes for the next option; use another path")
    image = _lab_vm.Image(*(options["image"][part] for part in ("root", "kernel", "initrd")))
    seed = tuple((file["path"], file["content"], int(file["mode"], 8)) for file in options["seed"])
    return _lab_vm.LabVm(
        lab=options["lab"],
        name=name,
        directory=options["directory"],
        image=image,
        memory=options["memory"],
        cpus=options["cpus"],
        accelerator=options["accelerator"],
        ssh_port=options["ssh_port"],
        peers=tuple(options["peers"]),
        adapter=_lab_vm.Adapter(**options["adapter"]),
        seed=seed,
    )


def body(module: AnsibleModule, host: Host) -> dict[str, Any]:
    options = module.params
    vm = wanted(options)
    planned = _lab_vm.plan(vm, _lab_vm.read(vm), options["state"])
    seconds = None
    if not module.check_mode:
        actions: dict[str, Callable[..., None]] = {
            "create": lambda: _lab_vm.create(host, vm),
            "start": lambda: _lab_vm.start(vm),
            "stop": lambda force: _lab_vm.stop(vm, force),
            "remove": lambda: _lab_vm.remove(vm, options["logs"]),
        }
        carry_out(planned, actions)
        if options["wait"] and options["state"] == "started":
            seconds = round(_lab_vm.wait_for_ssh(vm, options["ssh_key"], options["host_key"], options["timeout"]), 1)
    current = _lab_vm.read(vm)
    described = {
        "name": vm.name,
        "state": current["state"],
        "pid": current["pid"],
        "ssh": f"127.0.0.1:{vm.ssh_port}",
        "console": vm.path("console.log"),
        "accelerator": vm.accelerator,
        "boot_seconds": seconds,
    }
    return planned.report() | {"vm": described}


def main() -> None:
    run(SPEC, body)


if __name__ == "__main__":
    main()
