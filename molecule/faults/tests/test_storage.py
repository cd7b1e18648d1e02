# SPDX-License-Identifier: GPL-3.0-or-later
"""The storage fails on one side of a migration: its driver is taken from a function, as when the device is pulled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lab.driver import Lab, Run, begin, other, play, wait_until
from tests.lab.load import Load

VM = "tenant1"
pytestmark = pytest.mark.long


@contextmanager
def without_driver(lab: Lab, name: str, *functions: str) -> Iterator[None]:
    """PCI functions of hypervisor ``name``, a PF after its VFs, have no driver meanwhile, and so no block device."""
    host = lab.host(name)
    try:
        for function in functions:
            host.check_output("echo %s >/sys/bus/pci/drivers/nvme/unbind", function)
        yield
    finally:
        host.run("echo %s >/sys/bus/pci/drivers/nvme/bind", functions[-1])
        # A PF that was taken away has taken its VFs along. What sets them up at boot does it now too.
        host.check_output("systemctl restart iovlab-adapter.service")
        shown = " && ".join(f"ls -d /sys/bus/pci/devices/{function}/nvme/nvme*/nvme*n*" for function in functions)
        wait_until("namespace", lambda: host.run(shown).rc == 0, 60)


def test_the_vf_of_the_source_is_pulled(lab: Lab) -> None:
    source = lab.place(VM)
    load = Load(lab, VM)
    run = Run("migrate", vm=VM, to=other(source))
    run.wait_for("Phase: prepare the destination")
    with without_driver(lab, source, lab.vports(source)[VM]["vf"]):
        assert run.end() == 0, run.output[-3000:]
        assert lab.settled(VM) == other(source)
    load.check()


def test_the_storage_of_the_destination_is_pulled(lab: Lab) -> None:
    """The VM waits there, and goes on by itself when the storage is back; then it can have a VF."""
    load = Load(lab, VM)
    source, run = begin(lab, VM)
    there = other(source)
    adapter = lab.rpc(there, "adapter_list")[0]

    def writes() -> int:
        return sum(lun["counters"]["writes"] for lun in lab.vports(there)[VM]["luns"])

    with without_driver(lab, there, *(vf["vf"] for vf in adapter["vfs"]), adapter["adapter"]):
        run.end()
        assert lab.place(VM) == there, run.output[-3000:]
        assert lab.vports(there)[VM]["incoming"]
        assert writes() == 0
    wait_until("write after that", lambda: writes() > 10, 60)
    play("recover", vm=VM)
    assert lab.settled(VM) == there
    load.check()
