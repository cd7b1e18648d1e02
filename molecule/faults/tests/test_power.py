# SPDX-License-Identifier: GPL-3.0-or-later
"""A hypervisor loses its power while a VM is on its way, or is emptied for maintenance and booted."""

from __future__ import annotations

import pytest

from tests.lab.driver import Lab, Run, begin, other, play, refused, wait_until
from tests.lab.load import Load

VM = "tenant1"
pytestmark = pytest.mark.long


def test_the_destination_loses_its_power(lab: Lab, written: Load) -> None:
    source, run = begin(lab, VM)
    lab.power_off(other(source))
    assert run.end() != 0
    assert lab.place(VM) == source
    assert f"runs on {source}" in run.output
    lab.power_on(moved=VM)
    play("recover", vm=VM)
    assert lab.settled(VM) == source


def test_the_source_loses_its_power(lab: Lab) -> None:
    source, run = begin(lab, VM)
    lab.power_off(source)
    assert run.end() != 0
    said = " ".join(run.output.split())
    assert f"{source} does not answer" in said
    assert "the report is" in said
    assert "which cannot be asked" in refused("recover", vm=VM)
    play("recover", vm=VM, lost=source)
    assert lab.place(VM) == other(source)
    lab.power_on(moved=VM)
    play("recover", vm=VM)
    assert lab.settled(VM) == other(source)


def test_the_source_loses_its_power_when_the_vm_has_left(lab: Lab, written: Load) -> None:
    source = lab.place(VM)
    run = Run("migrate", vm=VM, to=other(source))
    run.wait_for("Phase: switch to a VF")
    lab.power_off(source)
    assert run.end() == 0, run.output[-3000:]
    said = " ".join(run.output.split())
    assert f"{VM} runs on {other(source)} all the same" in said
    assert "the report is" in said
    lab.power_on(moved=VM)
    play("recover", vm=VM)
    assert lab.settled(VM) == other(source)


def test_a_hypervisor_is_emptied_booted_and_filled_again(lab: Lab) -> None:
    host = "hv2"
    here = [vm for vm in ("tenant1", "tenant2") if lab.place(vm) == host]
    assert here, "nothing to evacuate"
    plan = play("evacuate", "--check", host=host)
    assert all(f"{vm} -> hv1" in plan for vm in here)
    assert [vm for vm in here if lab.place(vm) == host] == here
    run = Run("evacuate", host=host)
    run.wait_for("Phase: live migration")
    wait_until("migration under way", lambda: any(lab.job(vm, host) for vm in here), 120)
    run.kill()
    wait_until("end of the migrations", lambda: not any(lab.job(vm, host) for vm in here), 300)
    for vm in here:
        play("recover", vm=vm)
    play("evacuate", host=host)
    assert lab.domains(host) == {}
    lab.reboot(host)
    assert len([vf for vf in lab.rpc(host, "adapter_list")[0]["vfs"] if vf["device"]]) == 4
    play("return", host=host)
    assert [vm for vm in here if lab.settled(vm) == host] == here
