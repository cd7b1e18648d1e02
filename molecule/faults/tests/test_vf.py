# SPDX-License-Identifier: GPL-3.0-or-later
"""A VF is lost while its VM writes, and nobody migrates: the PF path takes over, until somebody says to go back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from testinfra.host import Host

from tests.lab.driver import Lab, play, wait_until
from tests.lab.load import Load

VM = "tenant1"


def killed(host: Host, vf: str, __: str) -> None:
    """The VF's worker."""
    device = host.check_output("basename /sys/bus/pci/devices/%s/nvme/nvme*/nvme*n*", vf)
    script = (
        "for pid in $(pgrep -u vportd); do ls -l /proc/$pid/fd | grep -q /dev/$0'$' && kill -9 $pid && echo $pid; done"
    )
    assert len(host.check_output("sh -c %s %s", script, device).split()) == 1


def unbound(host: Host, vf: str, __: str) -> None:
    """The VF's driver lets go of it: its block device is gone."""
    host.check_output("echo %s >/sys/bus/pci/drivers/nvme/unbind", vf)


def removed(host: Host, __: str, pf: str) -> None:
    """From the PCI bus, and every other with it: the kernel removes no single VF."""
    host.check_output("echo 0 >/sys/bus/pci/devices/%s/sriov_numvfs", pf)


def pf_reset(host: Host, __: str, pf: str) -> None:
    """Takes every VF offline. What was with them comes back when the driver's patience is at an end."""
    host.check_output("echo 1 | tee /sys/bus/pci/devices/%s/nvme/nvme*/reset_controller", pf)


def long(how: Callable[[Host, str, str], None]) -> Any:
    return pytest.param(how, marks=pytest.mark.long)


@pytest.mark.parametrize("how", [killed, long(unbound), long(removed), long(pf_reset)])
def test_the_pf_takes_over(lab: Lab, written: Load, how: Callable[[Host, str, str], None]) -> None:
    place = lab.settled(VM)
    before = lab.vports(place)
    host, vf, adapter = lab.host(place), before[VM]["vf"], lab.rpc(place, "adapter_list")[0]

    def writes() -> int:
        return sum(lun["counters"]["writes"] for lun in lab.vports(place)[VM]["luns"])

    try:
        how(host, vf, adapter["adapter"])
        wait_until("PF path", lambda: lab.vports(place)[VM]["path"] == "pf", 120)
        assert lab.vports(place)[VM]["degraded"]
        done = writes()
        wait_until("write over the PF", lambda: writes() > done + 10, 60)
        if how is unbound:
            play("recover", vm=VM)
            assert lab.settled(VM) == place
            assert lab.vports(place)[VM]["vf"] != vf
    finally:
        if how is unbound:
            host.check_output("echo %s >/sys/bus/pci/drivers/nvme/bind", vf)
        host.check_output("systemctl restart iovlab-adapter.service")
    for vm in before:
        play("recover", vm=vm)
        assert lab.settled(vm) == place


@pytest.mark.long
def test_a_controller_reset_is_a_pause_at_most(lab: Lab, written: Load) -> None:
    """The kernel repeats what was with the controller, or fails it, and then the PF path does it."""
    place = lab.settled(VM)
    host, vf = lab.host(place), lab.vports(place)[VM]["vf"]
    for __ in range(3):
        host.check_output("echo 1 | tee /sys/bus/pci/devices/%s/nvme/nvme*/reset_controller", vf)
    play("recover", vm=VM)
    assert lab.settled(VM) == place
