#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: what a hypervisor is, has and can do."""

from __future__ import annotations

DOCUMENTATION = r"""
module: hypervisor_info
version_added: 0.1.0
short_description: Read what a hypervisor is, has and can do
description:
  - Reads everything about a hypervisor that decides whether it can serve this collection, and whether a virtual machine
    can be migrated to or from it.
  - Works on any Linux host with Python. What is missing or cannot be read is a value, null with the reason next to it,
    and never makes the module fail.
  - The filters P(iovlab.storage.migration_preflight#filter) and P(iovlab.storage.server_preflight#filter) judge what it
    returns.
author:
  - iovlab.storage contributors (@iovlab)
options:
  domain:
    description:
      - Name of a virtual machine to tell everything about that matters for its migration.
    type: str
  cpu:
    description:
      - CPU of a virtual machine, as C(cpu.xml) of RV(domain) was on its hypervisor; whether this one can run it is
        C(runs_cpu) of RV(libvirt).
    type: str
  machine:
    description:
      - Machine type that goes with O(cpu).
    type: str
  paths:
    description:
      - Files or directories to look for.
    type: list
    elements: path
    default: []
  peers:
    description:
      - Addresses of other hypervisors, or URIs of their libvirt, to try to reach from this one.
      - Of each one the port of ssh, the first port for migrations and libvirt are tried. libvirt of an address is taken
        to be at C(qemu+ssh://root@ADDRESS/system), where M(iovlab.storage.vm_migrate) looks for it too.
      - Nobody listens on the port for migrations before one begins. A peer that refuses the connection is reachable,
        one that does not answer is not.
    type: list
    elements: str
    default: []
  uri:
    description:
      - libvirt URI of this hypervisor.
    type: str
    default: qemu:///system
  timeout:
    description:
      - Seconds that libvirt here, and each look at a peer, may take. They run at the same time. A TCP connection has 10
        at most; libvirt may need longer when it looks at QEMU for the first time.
    type: int
    default: 30
extends_documentation_fragment:
  - iovlab.storage._attributes.info_module
  - iovlab.storage._options.rpc
seealso:
  - plugin: iovlab.storage.migration_preflight
    plugin_type: filter
  - plugin: iovlab.storage.server_preflight
    plugin_type: filter
  - module: iovlab.storage.vm_migrate
"""

EXAMPLES = r"""
- name: Read what this server can do
  iovlab.storage.hypervisor_info:
  register: server

- name: Read what matters for a migration of web1
  iovlab.storage.hypervisor_info:
    domain: web1
    peers: [10.77.0.12]
  register: source
"""

RETURN = r"""
host:
  description: Name, and marks that no two hosts share - C(machine) of the installation, C(boot) of the running kernel.
  returned: success
  type: dict
  sample: {"name": "hv1", "machine": "9f86d081884c7d65", "boot": "7c0b", "system": "Debian GNU/Linux 13", "root": true}
kernel:
  description:
    - Release and command line; vendor, model and flags of the CPU; whether there is an IOMMU, whether KVM can be used
      (else why not) and nests, and whether the kernel merges the paths of a shared namespace (C(nvme_multipath), null
      where nvme_core is not loaded).
  returned: success
  type: dict
  sample: {"release": "6.12.48", "iommu": true, "kvm": true, "kvm_reason": null, "nvme_multipath": false}
packages:
  description: Whether what each Debian package brings is there.
  returned: success
  type: dict
  sample: {"nvme-cli": true, "lvm2": false}
memory:
  description: Bytes of memory, in all and available.
  returned: success
  type: dict
  sample: {"total": 2621440000, "available": 1073741824}
space:
  description: Free bytes below some directories, where they are or would be.
  returned: success
  type: dict
  sample: {"/var/lib/libvirt": 1073741824, "/var/lib/vportd": 1073741824}
paths:
  description: Whether each of O(paths) is there.
  returned: success
  type: dict
  sample: {"/var/lib/iovlab/tenant/vmlinuz": true}
migration_ports:
  description: First and last TCP port that libvirt takes migrations on, and how many of them are free.
  returned: success
  type: dict
  sample: {"first": 49152, "last": 49215, "free": 64}
clock:
  description: Time in seconds since 1970, seconds since the module began, and whether the clock is kept synchronised.
  returned: success
  type: dict
  sample: {"now": 1767225600.25, "elapsed": 1.2, "synchronised": true}
adapters:
  description: NVMe controllers that are not VFs, with their VFs and namespaces.
  returned: success
  type: list
  elements: dict
  contains:
    pf:
      description: PCI address.
      type: str
      sample: "0000:01:00.0"
    serial:
      description: Serial number. C(model), C(firmware), C(nqn), C(driver), C(controller) and C(state) are there too.
      type: str
      sample: lab-hv1
    totalvfs:
      description: The most VFs that it can have; 0 without SR-IOV. C(numvfs) is how many it has.
      type: int
      sample: 4
    vfs:
      description: The VFs. C(free) ones have a block device and no user.
      type: list
      elements: dict
      sample: [{"address": "0000:01:00.1", "online": true, "queues": 2, "interrupts": 2, "vport": null, "free": true}]
    vfs_reason:
      description: Why resources of the VFs are not known, if so.
      type: str
    namespaces:
      description:
        - The namespaces that the PF shows. C(ids) has the EUI64, NGUID and UUID that the controller itself tells, which
          are the same on every host that has this storage; C(identity) is what Linux shows.
      type: list
      elements: dict
      sample: [{"nsid": 1, "device": "/dev/nvme0n1", "size": 2147483648, "ids": {"uuid": "0b9d1f8a-5c1e-4a55"}}]
    multipath:
      description: Namespaces that the kernel hides behind one multipath device.
      type: list
      elements: str
pools:
  description:
    - The pool on each namespace of an adapter that can have VFs, or why there is none. C(uuid) is that of LVM's volume
      group, C(seqno) counts its changes.
  returned: success
  type: list
  elements: dict
  sample: [{"pf": "0000:01:00.0", "nsid": 1, "name": "san", "uuid": "wFGp8n", "seqno": 7, "vdisks": [], "reason": null}]
vportd:
  description:
    - The engine - whether it answers (else why not), version, protocol, features, adapters, free VFs, and the records
      of the vports without their history.
  returned: success
  type: dict
  sample: {"reachable": true, "reason": null, "version": "1.0.0", "protocol": 1, "vports": [], "free_vfs": []}
libvirt:
  description:
    - libvirt - whether it answers (else why not), version, version of QEMU, UUID of the host, machine types, virtual
      machines (C(running) has the names of those that run), and the CPU that virtual machines can have with its
      features (all of them if C(expanded)).
    - C(runs_cpu) has C(ok) and C(reason) for O(cpu).
  returned: success
  type: dict
  sample: {"reachable": true, "reason": null, "version": "11.3.0", "qemu": "10.0.2", "machines": ["pc-q35-10.0"]}
domain:
  description:
    - The virtual machine O(domain); null when there is none of this name or libvirt does not answer.
    - Its state, machine type, CPU as it runs, memory in bytes, disks, host devices, files that QEMU starts from, job,
      I/O errors, and its guest agent.
  returned: success
  type: dict
  sample: {"name": "web1", "state": "running", "machine": "pc-q35-10.0", "job": false, "host_devices": []}
domain_reason:
  description: Why the virtual machine could not be read, if so.
  returned: success
  type: str
  sample: there is no virtual machine web1 on this host
peers:
  description: Of each of O(peers) C(ssh), C(migration_port) and C(libvirt), with C(reachable), C(seconds), C(reason).
  returned: success
  type: list
  elements: dict
  sample: [{"address": "10.77.0.12", "libvirt": {"reachable": true, "seconds": 0.8, "reason": null, "hostname": "hv2"}}]
"""

import time
from contextlib import suppress
from types import ModuleType
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.iovlab.storage.plugins.module_utils import (
    _adapter_facts,
    _guest_agent,
    _host_facts,
    _libvirt,
    _vportd_facts,
)
from ansible_collections.iovlab.storage.plugins.module_utils._argspec import RPC, ArgumentSpec
from ansible_collections.iovlab.storage.plugins.module_utils._background import Background
from ansible_collections.iovlab.storage.plugins.module_utils._errors import IovlabError, Refused
from ansible_collections.iovlab.storage.plugins.module_utils._host import Host
from ansible_collections.iovlab.storage.plugins.module_utils._libvirt_facts import Facts
from ansible_collections.iovlab.storage.plugins.module_utils._module import run
from ansible_collections.iovlab.storage.plugins.module_utils._peers import Peer
from ansible_collections.iovlab.storage.plugins.module_utils._rpc import bound_vfs

SPEC = RPC.merge(
    ArgumentSpec(
        {
            "domain": {"type": "str"},
            "cpu": {"type": "str"},
            "machine": {"type": "str"},
            "paths": {"type": "list", "elements": "path", "default": []},
            "peers": {"type": "list", "elements": "str", "default": []},
            "uri": {"type": "str", "default": "qemu:///system"},
            "timeout": {"type": "int", "default": 30},
        }
    )
)


def body(module: AnsibleModule, host: Host) -> dict[str, Any]:
    options = module.params
    started = time.monotonic()
    if options["timeout"] < 1:
        raise Refused(f"timeout: {options['timeout']} is too small; give 1 or more")
    with suppress(Refused):  # without the binding all else is told, in this Python
        _load()
    ports = _host_facts.migration_ports(host)
    about_libvirt = Background(lambda: _about_libvirt(options))
    peers = [Peer(address, ports["first"], _load, options["timeout"]) for address in options["peers"]]
    engine = _vportd_facts.vportd(options["rpc_socket"])
    adapters = _adapter_facts.adapters(host, bound_vfs(engine["adapters"]))
    return {
        "changed": False,
        "host": _host_facts.identity(host),
        "kernel": _host_facts.kernel(host),
        "packages": _host_facts.packages(host),
        "memory": _host_facts.memory(host),
        "space": _host_facts.space(host),
        "paths": _host_facts.present(host, options["paths"]),
        "migration_ports": ports,
        "adapters": adapters,
        "pools": _adapter_facts.pools(host, adapters),
        "vportd": engine,
        **_in_time(about_libvirt, options),
        "peers": [peer.told() for peer in peers],
        "clock": _host_facts.clock(started),
    }


def _in_time(about_libvirt: Background[dict[str, Any]], options: dict[str, Any]) -> dict[str, Any]:
    late = f"libvirt of {options['uri']} did not answer within {options['timeout']} s; look at its daemon"
    try:
        return about_libvirt.result(options["timeout"], late)
    except IovlabError as exc:
        silent = {"reachable": False, "reason": str(exc), "uri": options["uri"], "domains": [], "running": []}
        return {"libvirt": silent, "domain": None, "domain_reason": str(exc) if options["domain"] else None}


def _about_libvirt(options: dict[str, Any]) -> dict[str, Any]:
    libvirt = _load()
    try:
        qemu = _guest_agent.load()[1]
    except ImportError:
        qemu = None
    hypervisor = _libvirt.Hypervisor(libvirt, options["uri"], "uri", options["timeout"])
    try:
        facts = Facts(libvirt, hypervisor)
        told = facts.told()
        if options["cpu"]:
            told["runs_cpu"] = facts.runs(
                options["cpu"], "kvm" if "kvm" in told["types"] else "qemu", options["machine"]
            )
        domain = facts.domain(options["domain"], qemu) if options["domain"] else None
    except libvirt.libvirtError as exc:
        raise Refused(f"libvirt of {options['uri']} failed: {_libvirt.said(exc)}; look at its log") from exc
    reason = None
    if options["domain"] and domain is None:
        reason = f"libvirt of {options['uri']} has no virtual machine {options['domain']}"
    return {"libvirt": told, "domain": domain, "domain_reason": reason}


def _load() -> ModuleType:
    binding: ModuleType = _libvirt.load_or_respawn(_libvirt.load, "libvirt")
    return binding


def main() -> None:
    run(SPEC, body)


if __name__ == "__main__":
    main()
