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
    """PCI functions of hypervisor ``name`` have no driver, and so no block device, meanwhile."""
    host = lab.host(name)
    try:
        for function in functions:
            host.check_output("echo %s >/sys/bus/pci/drivers/nvme/unbind", function)
        yield
    finally:
        for function in functions:
            host.run("echo %s >/sys/bus/pci/drivers/nvme/bind", function)
        for function in functions:
            shown = f"ls -d /sys/bus/pci/devices/{function}/nvme/nvme*/nvme*n*"
            wait_until(f"namespace of {function}", lambda shown=shown: host.run(shown).rc == 0, 60)


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
    """The VM cannot write there, and so not go wrong there either; with the storage back the job is finished."""
    load = Load(lab, VM)
    source, run = begin(lab, VM)
    there = other(source)
    adapter = lab.rpc(there, "adapter_list")[0]
    functions = [adapter["adapter"], *(vf["vf"] for vf in adapter["vfs"])]
    with without_driver(lab, there, *functions):
        code = run.end()
        place = lab.place(VM)
        print(code, place, run.output[-3000:])
    play("recover", vm=VM)
    assert lab.settled(VM) == place
    load.check()
