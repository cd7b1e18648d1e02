# SPDX-License-Identifier: GPL-3.0-or-later
"""Carrying out a plan for an adapter's VFs, and taking it back when a step fails.

Taking back is nothing but a plan from what is there now to what was there before.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

from . import _nvme
from ._errors import CommandFailed, IovlabError, StepFailed, TimedOut
from ._host import Host, wait_until
from ._plan import Plan, carry_out
from ._sriov import Adapter, hold_path, read, vf_links
from ._sriov_plan import NVME, as_it_is, plan


class Changes:
    """Carries out a plan on one adapter within ``timeout`` seconds for each wait."""

    def __init__(self, host: Host, adapter: Adapter, timeout: float) -> None:
        self._host = host
        self._before = adapter
        self._timeout = timeout
        self._actions: dict[str, Callable[..., None]] = {
            "load": self._load,
            "hold": self._hold,
            "let_go": self._let_go,
            "numvfs": self._numvfs,
            "unbind": self._unbind,
            "virt_mgmt": self._virt_mgmt,
            "isolate": self._isolate,
            "bind": self._bind,
            "ready": self._ready,
        }

    def apply(self, planned: Plan) -> None:
        """Raises StepFailed after taking everything back, or saying what is left where that failed too."""
        try:
            carry_out(planned, self._actions)
        except (IovlabError, OSError) as exc:
            raise StepFailed(f"{exc}; {self._take_back()}") from exc

    def _take_back(self) -> str:
        before = self._before
        try:
            try:
                now = replace(read(self._host, before.address), autoprobe=False, held=False)
                carry_out(plan(now, as_it_is(before)), self._actions)
            finally:
                if os.path.exists(hold_path(self._host, before.address)):
                    self._let_go()
        except (IovlabError, OSError) as exc:
            return f"going back to the state before failed too ({exc}); left: {self._left()}"
        return f"adapter {before.address} was put back to the state before"

    def _left(self) -> str:
        address = self._before.address
        vfs = [
            f"{vf} with {self._host.sysfs.link_name('bus/pci/devices', vf, 'driver') or 'no driver'}"
            for _index, vf in vf_links(self._host, address)
        ]
        return f"{len(vfs)} VFs on {address}" + (f" ({', '.join(vfs)})" if vfs else "")

    def _load(self, driver: str) -> None:
        self._host.output(["modprobe", driver], self._timeout)

    def _hold(self) -> None:
        with open(hold_path(self._host, self._before.address), "w", encoding="ascii"):
            pass
        self._write(f"{self._before.address}/sriov_drivers_autoprobe", "0")

    def _let_go(self) -> None:
        self._write(f"{self._before.address}/sriov_drivers_autoprobe", "1")
        os.unlink(hold_path(self._host, self._before.address))

    def _numvfs(self, count: int) -> None:
        address = self._before.address
        self._write(f"{address}/sriov_numvfs", str(count))
        wait_until(
            lambda: (
                len(vf_links(self._host, address)) == count
                and all(self._host.sysfs.exists("bus/pci/devices", vf) for _index, vf in vf_links(self._host, address))
            ),
            self._timeout,
            f"adapter {address} did not show {count} VFs within {self._timeout:g} s; see dmesg",
        )

    def _unbind(self, address: str, driver: str) -> None:
        self._write(f"{address}/driver/unbind", address)
        self._write(f"{address}/driver_override", "\n")
        wait_until(
            lambda: self._driver(address) is None,
            self._timeout,
            f"VF {address} did not leave driver {driver} within {self._timeout:g} s; see dmesg",
        )

    def _bind(self, address: str, driver: str) -> None:
        self._write(f"{address}/driver_override", driver)
        self._host.sysfs.write("bus/pci/drivers_probe", address, self._timeout)
        missing = f"VF {address} did not come to driver {driver} within {self._timeout:g} s; see dmesg"
        wait_until(lambda: self._driver(address) == driver, self._timeout, missing)

    def _driver(self, address: str) -> str | None:
        return self._host.sysfs.link_name("bus/pci/devices", address, "driver")

    def _virt_mgmt(self, cntlid: int, action: int, resource: int | None = None, count: int | None = None) -> None:
        device = self._host.device(self._before.controller)
        arguments = ["nvme", "virt-mgmt", device, "-c", str(cntlid), "-a", str(action)]
        if resource is not None and count is not None:
            arguments += ["-r", str(resource), "-n", str(count)]
        self._host.output(arguments, self._timeout)

    def _isolate(self, address: str, cntlid: int, namespaces: tuple[int, ...]) -> None:
        """Make the VF's controller show ``namespaces`` alone, also after its next reset.

        An adapter may attach shared namespaces whenever a function is reset or its controller enabled, which is what
        VFIO and the guest's driver do first. So what counts is what the kernel's driver sees after both.
        """
        wanted = set(namespaces)
        seen = self._seen(address)
        if seen == wanted:
            return
        for verb, nsids in (("detach-ns", seen - wanted), ("attach-ns", wanted - seen)):
            for nsid in sorted(nsids):
                device = self._host.device(self._before.controller)
                self._host.output(["nvme", verb, device, "-n", str(nsid), "-c", str(cntlid)], self._timeout)
        seen = self._seen(address)
        if seen != wanted:
            raise CommandFailed(
                f"VF {address} shows namespaces {sorted(seen)} instead of {sorted(wanted)} once its controller is "
                "enabled, so that a virtual machine would see them; keep them from being attached to every "
                "controller (QEMU: detached=on), or name them in namespaces if the VF's user may have them"
            )

    def _seen(self, address: str) -> set[int]:
        """Namespaces that the kernel's driver finds when it enables the VF's controller after a reset."""
        if self._host.sysfs.exists("bus/pci/devices", address, "reset"):
            self._write(f"{address}/reset", "1")
        self._bind(address, NVME)
        seen = set(_nvme.active_nsids(self._host, self._live(address)))
        self._unbind(address, NVME)
        return seen

    def _live(self, address: str) -> str:
        """The device of the VF's controller, once that is live."""
        host = self._host
        wait_until(
            lambda: _nvme.controller_state(host, address) == "live" and self._has_node(address),
            self._timeout,
            f"the controller of VF {address} did not become live within {self._timeout:g} s; see dmesg",
        )
        controller = _nvme.controller(host, address)
        if controller is None:
            raise TimedOut(f"the controller of VF {address} went away while coming up; see dmesg")
        return host.device(controller)

    def _ready(self, address: str) -> None:
        """The controller is live and every namespace attached to it has its block device."""
        host = self._host
        attached = set(_nvme.active_nsids(host, self._live(address)))

        def shown() -> bool:
            _nvme.refuse_multipath(host, address)
            found = {space.nsid for space in _nvme.namespaces(host, address) if space.size and _is_there(space.device)}
            return attached <= found

        wait_until(
            shown,
            self._timeout,
            f"VF {address} did not show the block devices of namespaces {sorted(attached)} within "
            f"{self._timeout:g} s; see dmesg",
        )

    def _has_node(self, address: str) -> bool:
        """udev makes the character device a moment after the kernel has the controller."""
        name = _nvme.controller(self._host, address)
        return name is not None and os.path.exists(self._host.device(name))

    def _write(self, path: str, value: str) -> None:
        self._host.sysfs.write(f"bus/pci/devices/{path}", value, self._timeout)


def _is_there(device: str) -> bool:
    try:
        with open(device, "rb"):
            return True
    except OSError:
        return False
