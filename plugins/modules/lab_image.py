#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: the image that the lab's hypervisor VMs boot."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lab_image
version_added: 0.1.0
short_description: Image of the lab's hypervisor and tenant VMs
description:
  - Builds the Debian image that all lab hypervisors share, with mmdebstrap, and the small image of tenant VMs from the
    same packages. Runs on the control node, without root where user namespaces are to be had.
  - The image is kept in a cache under a hash of all that goes into it, so it is built only once.
  - Says whether KVM can be used, by booting a kernel under it.
author:
  - iovlab.storage contributors (@iovlab)
options:
  files:
    description:
      - Directory with C(packages.txt), the files laid over the root, and the tenant image's parts.
    type: path
    required: true
  cache:
    description:
      - Directory that images are kept in.
    type: path
    required: true
  suite:
    description:
      - Debian release of the image.
    type: str
    default: trixie
  mirror:
    description:
      - Where packages come from; by default where mmdebstrap gets the suite from.
    type: str
    default: ""
  refresh:
    description:
      - Builds the image again, with today's packages, though the cache has it. Refused while a VM is built on it.
    type: bool
    default: false
  keep:
    description:
      - When an image is built, this many stay in the cache, those that were asked for last; and besides them all that a
        VM is built on, whether it runs or not.
    type: int
    default: 2
  timeout:
    description:
      - Seconds that a build may take.
    type: int
    default: 1800
extends_documentation_fragment:
  - iovlab.storage._attributes
attributes:
  idempotent:
    support: partial
    details:
      - With O(refresh=true) each run builds an image.
requirements:
  - mmdebstrap, e2fsprogs and qemu-utils
seealso:
  - module: iovlab.storage.lab_vm
"""

EXAMPLES = r"""
- name: The lab's image
  iovlab.storage.lab_image:
    files: "{{ role_path }}/files"
    cache: ~/.cache/iovlab.storage
"""

RETURN = r"""
image:
  description: The image's files.
  returned: success
  type: dict
  sample:
    key: 0123456789abcdef
    root: /home/me/.cache/iovlab.storage/images/0123456789abcdef/root.qcow2
    kernel: /home/me/.cache/iovlab.storage/images/0123456789abcdef/vmlinuz
    initrd: /home/me/.cache/iovlab.storage/images/0123456789abcdef/initrd
    tenant_initrd: /home/me/.cache/iovlab.storage/images/0123456789abcdef/tenant.initrd
accelerator:
  description: How VMs can run here, V(kvm) or V(tcg). V(tcg) in check mode when the image is not built yet.
  returned: success
  type: str
  sample: tcg
accelerator_reason:
  description: Why.
  returned: success
  type: str
  sample: /dev/kvm is not there or not open to this user
steps:
  description: What was done, or in check mode would be done, a sentence each.
  returned: success
  type: list
  elements: str
  sample: ["build the lab image 0123456789abcdef (one to three minutes)"]
"""

import os
from collections.abc import Callable
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.iovlab.storage.plugins.module_utils import _lab_cache, _lab_image
from ansible_collections.iovlab.storage.plugins.module_utils._argspec import ArgumentSpec
from ansible_collections.iovlab.storage.plugins.module_utils._errors import Refused
from ansible_collections.iovlab.storage.plugins.module_utils._host import Host
from ansible_collections.iovlab.storage.plugins.module_utils._module import run
from ansible_collections.iovlab.storage.plugins.module_utils._plan import carry_out

SPEC = ArgumentSpec(
    {
        "files": {"type": "path", "required": True},
        "cache": {"type": "path", "required": True},
        "suite": {"type": "str", "default": "trixie"},
        "mirror": {"type": "str", "default": ""},
        "refresh": {"type": "bool", "default": False},
        "keep": {"type": "int", "default": 2},
        "timeout": {"type": "int", "default": 1800},
    }
)


def body(module: AnsibleModule, host: Host) -> dict[str, Any]:
    options = module.params
    if options["keep"] < 1:
        raise Refused(
            f"keep: {options['keep']} images are too few, since the one that is asked for stays; give 1 or more"
        )
    recipe = _lab_image.Recipe(options["files"], options["suite"], options["mirror"])
    key, cache = recipe.key(), options["cache"]
    planned = _lab_image.plan(cache, key, options["refresh"], options["keep"])
    kind, why = "tcg", "not known before the image is built"
    if not module.check_mode:
        with _lab_image.locked(cache, options["timeout"]):
            _lab_cache.remove_leftovers(cache)
            planned = _lab_image.plan(cache, key, options["refresh"], options["keep"])
            actions: dict[str, Callable[..., None]] = {
                "build": lambda: _lab_image.build(recipe, cache, options["timeout"]),
                "take_away": lambda key: _lab_cache.take_away(cache, key),
            }
            carry_out(planned, actions)
            _lab_image.note_use(cache, key)
            kind, why = _lab_image.accelerator(host, cache, key)
    path = _lab_image.directory(cache, key)
    files = {name: os.path.join(path, file) for name, file in zip(_FILES, _lab_image.FILES, strict=True)}
    return planned.report() | {
        "image": {"key": key, **files},
        "accelerator": kind,
        "accelerator_reason": why,
    }


_FILES = ("root", "kernel", "initrd", "tenant_initrd")


def main() -> None:
    run(SPEC, body)


if __name__ == "__main__":
    main()
