# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter: the report of a migration run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.iovlab.storage.plugins.plugin_utils._report import run_report

DOCUMENTATION = r"""
name: run_report
version_added: 0.1.0
short_description: Report of a live migration, with a verdict
description:
  - Brings together what a playbook has collected before, during and after the migration of a virtual machine.
  - Input that is missing does not make it fail. It is one of the errors of the report, whose verdict is V(failed) then.
author:
  - iovlab.storage contributors (@iovlab)
positional: _input
options:
  _input:
    description:
      - What was collected, a dictionary with the keys below. Times are seconds since 1970, with a fraction.
      - C(vm), C(source) and C(destination), the names of the virtual machine and of the two hypervisors.
      - C(phases), a list of dictionaries C(name), C(start), C(end).
      - C(switches), a list of dictionaries C(host), C(at) (the name of the phase) and C(report) (what vportd's
        C(vport_switch) returned).
      - C(migration), as M(iovlab.storage.vm_migrate) returns it.
      - C(vports), a dictionary of C(before) and C(after), each with the record of the vport by hypervisor.
      - C(placement), the state of the virtual machine, as libvirt calls it, by hypervisor; null where it is not known.
      - C(fio), a dictionary of C(load) and C(verify), the JSON output of the run that made the load, and of the run
        that read everything back and compared it. Left out when there was no load of one's own.
      - C(samples), the samples of the vport by hypervisor, as M(iovlab.storage.vport_info) returns them with
        its option C(samples_since). May be missing.
      - C(progress), as M(iovlab.storage.vm_migrate) returns it. Left out, that of C(migration) is taken.
      - C(checks), a list of checks of each block, with C(name), C(ok), C(checked) (how many blocks), C(counts) of
        defects by kind, C(defects) with a C(text) each, and C(errors). May be missing.
      - C(failure), what failed, if anything did; an error of the report.
      - C(no_vf), why the virtual machine had to stay on the path V(pf). Without it that is an error.
    type: dict
    required: true
seealso:
  - plugin: iovlab.storage.vm_migrate
    plugin_type: module
  - plugin: iovlab.storage.report_picture
    plugin_type: filter
"""

EXAMPLES = r"""
- name: Write the report
  ansible.builtin.copy:
    content: "{{ run | iovlab.storage.run_report | ansible.builtin.to_nice_json }}"
    dest: build/demo/report.json
    mode: "0644"
"""

RETURN = r"""
_value:
  description:
    - The report.
    - RV(_value.verdict) is V(ok) when RV(_value.errors) is empty, else V(failed).
  type: dict
  contains:
    verdict:
      description: V(ok) or V(failed).
      type: str
    errors:
      description: A sentence for each thing that is wrong or was not collected.
      type: list
      elements: str
    notes:
      description: A sentence for each thing that is not wrong, but not as usual.
      type: list
      elements: str
    began:
      description: When the first phase began, seconds since 1970.
      type: float
    duration:
      description: Seconds from there to the end of the last phase.
      type: float
    phases:
      description: Name, start and end (ISO 8601, UTC), duration in seconds, and the place on the time line, 0 to 1.
      type: list
      elements: dict
    paths:
      description: The paths that requests took, in order. Each has host, path, and VF.
      type: list
      elements: dict
    path_history:
      description: Events of the vports on both hypervisors during the run, by time.
      type: list
      elements: dict
    switches:
      description:
        - Of each switch the requests outstanding at first, the seconds of each part, and every queue's position before
          and after the hand-over with V(match).
      type: list
      elements: dict
    mapping:
      description: Digest of the mapping on both sides, and whether they are equal.
      type: dict
    migration:
      description: Total time and downtime of libvirt, in seconds.
      type: dict
    checks:
      description: Name, number of blocks, verdict and number of defects by kind, of each check of the blocks.
      type: list
      elements: dict
    intervals:
      description:
        - What a guest waits for, apart. C(drain), C(transfer) and C(resume) of each switch, and C(pause), in which the
          virtual machine stood still. Each has C(each), a list with C(switch), C(host) and C(seconds), and C(worst).
      type: dict
    samples:
      description: Samples by hypervisor, by time. Null for what was not measured.
      type: dict
    progress:
      description: The course of the live migration, by time.
      type: list
      elements: dict
    placement:
      description: State of the virtual machine by hypervisor.
      type: dict
    end:
      description: State, path and VF of the vport on the destination at the end.
      type: dict
    io:
      description: Worst latency in milliseconds, IOPS, bytes written and verified, and errors that the guest saw.
      type: dict
"""


class FilterModule:
    """The collection's filter for reports."""

    def filters(self) -> dict[str, Callable[[Any], dict[str, Any]]]:
        return {"run_report": run_report}
