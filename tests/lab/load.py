# SPDX-License-Identifier: GPL-3.0-or-later
"""The load of tests/load in a tenant VM of the lab: started, and checked in the VM and from outside."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

from tests.lab.driver import HOME, LOGS, PROJECT, Lab, wait_until

PROGRAM = PROJECT / "tests" / "load" / "guest.py"
LEDGER = "/tmp/load.ledger"  # in the VM
PYTHON = ("/usr/bin/python3", "-IS", "-")
MIB = 1 << 20
BLOCKS = 1024


class Load:
    """A load on every LUN of ``vm``: writes, reads, notes what it wrote until ``check``. ``pause``: see ``start``."""

    def __init__(self, lab: Lab, vm: str, pause: float = 0.0) -> None:
        self._lab = lab
        self.vm = vm
        (record,) = [record for name in ("hv1", "hv2") for record in lab.vports(name).values() if record["vport"] == vm]
        self._vdisks = {f"{vm}:{lun['lun']}": str(lun["vdisk"]) for lun in record["luns"]}
        self._pid = start(lab, vm, self._vdisks, pause=pause)

    def check(self) -> dict[str, Any]:
        """End the load; its numbers. Fails if a block, in the VM or outside, is not what was written to it last."""
        numbers = stop(self._lab, self.vm, self._pid)
        place = self._lab.place(self.vm)
        code, found = self._lab.guest(place, self.vm, *PYTHON, "check", "--ledger", LEDGER, stdin=PROGRAM.read_text())
        assert code == 0, f"read back in {self.vm}: {found[-2000:]}"
        __, ledger = self._lab.guest(place, self.vm, "/usr/bin/busybox", "cat", LEDGER)
        kept = LOGS / f"{self.vm}.ledger"
        kept.write_text(ledger)
        command = [sys.executable, "-m", "tests.load.outside", str(HOME / "storage.img"), str(kept)]
        volumes = [f"{address}={vdisk}" for address, vdisk in self._vdisks.items()]
        done = subprocess.run([*command, *volumes], cwd=PROJECT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{self.vm} from outside: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return numbers


def start(lab: Lab, vm: str, addresses: Iterable[str], *where: str, pause: float = 0.0) -> int:
    """Start a load on ``addresses`` in ``vm``, and wait until it has written each block; its process number there.
    ``where``: options of the program for disks that are not vports'. ``pause``: seconds between the requests of each of
    its threads; without, they keep the VM's processor busy.
    """
    place = lab.place(vm)
    areas = [f"--vdisk={address},{4 * MIB},{BLOCKS}" for address in addresses]
    lab.guest(place, vm, "/usr/bin/busybox", "rm", "-f", f"{LEDGER}.filled")
    options = [*where, "run", "--ledger", LEDGER, f"--pause={pause}", *areas]
    pid = lab.guest_start(place, vm, *PYTHON, *options, stdin=PROGRAM.read_text())
    filled = f"test -e {LEDGER}.filled"
    done = ("/usr/bin/busybox", "sh", "-c", f"{filled} || ! kill -0 {pid}")
    wait_until("load that has written each block", lambda: lab.guest(place, vm, *done)[0] == 0, 300, 2)
    if lab.guest(place, vm, "/usr/bin/busybox", "sh", "-c", filled)[0]:
        raise AssertionError(f"the load in {vm} has ended: {lab.guest_end(place, vm, pid)[1][-2000:]}")
    return pid


def stop(lab: Lab, vm: str, pid: int) -> dict[str, Any]:
    """End a load, wherever ``vm`` is now; its numbers."""
    place = lab.place(vm)
    lab.guest(place, vm, "/usr/bin/busybox", "kill", "-TERM", str(pid))
    code, said = lab.guest_end(place, vm, pid)
    assert code == 0, f"the load in {vm}: {said[-2000:]}"
    numbers: dict[str, Any] = json.loads(said)
    return numbers
