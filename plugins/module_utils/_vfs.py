# SPDX-License-Identifier: GPL-3.0-or-later
"""The VFs of one adapter from the options of a module to the adapter as it is afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import _keep, _kept, _sriov, _sriov_apply, _sriov_plan
from ._argspec import ArgumentSpec
from ._errors import Refused
from ._host import Host
from ._plan import Plan, carry_out

OPTIONS = ArgumentSpec(
    {
        "queues": {"type": "int"},
        "interrupts": {"type": "int"},
        "driver": {"type": "str", "choices": ["nvme", "vfio-pci", "none"], "default": "nvme"},
        "namespaces": {"type": "list", "elements": "int"},
        "persistent": {"type": "bool", "default": False},
        "allow_recreate": {"type": "bool", "default": False},
    }
)


@dataclass(frozen=True, slots=True)
class Planned:
    """``vfs`` on the adapter, then ``boot``: the files that bring them back when the host boots."""

    adapter: _sriov.Adapter
    request: _sriov.Request
    bound: _sriov_plan.Bindings
    vfs: Plan
    boot: Plan

    @property
    def plan(self) -> Plan:
        return self.vfs.with_parts(boot=self.boot)


def request(options: Mapping[str, Any], count: int) -> _sriov.Request:
    driver = None if options["driver"] == "none" else options["driver"]
    namespaces = None if options["namespaces"] is None else tuple(sorted(set(options["namespaces"])))
    return _sriov.Request(count, options["queues"], options["interrupts"], driver, namespaces)


def refuse_count(count: int) -> None:
    if count < 1:
        raise Refused(f"count: {count} VFs cannot be; give 1 or more, or state=absent of sriov_vf for none")


def refuse_timeout(timeout: int) -> None:
    if timeout < 1:
        raise Refused(f"timeout: {timeout} is too short; give at least 1 second")


def plan(
    host: Host, address: str, wanted: _sriov.Request, bound: _sriov_plan.Bindings, options: Mapping[str, Any]
) -> Planned:
    """What is to be done on the adapter ``address``; Refused when it cannot be. The caller holds the adapter's lock."""
    adapter = _sriov.read(host, address)
    vfs = _sriov_plan.plan_for(host, adapter, wanted, bound, options["allow_recreate"])
    kept = None
    if wanted.count and options["persistent"]:
        kept = _kept.Kept(address, adapter.serial, _sriov_plan.settled(adapter, wanted))
    return Planned(adapter, wanted, bound, vfs, _keep.plan(host, address, kept))


def apply(host: Host, planned: Planned, timeout: float) -> _sriov.Adapter:
    """Carry it out; return the adapter as it is then."""
    adapter = planned.adapter
    if planned.vfs.changed:
        _sriov_apply.Changes(host, adapter, timeout).apply(planned.vfs)
        adapter = _sriov.read(host, adapter.address)
    carry_out(planned.boot, _keep.actions(host))
    return adapter
