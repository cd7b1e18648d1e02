# SPDX-License-Identifier: GPL-3.0-or-later
"""The program that makes the VFs again when a host boots, before vportd starts.

It is run by iovlab-adapter.service from an archive that holds this file and those that it imports, so it must get
along with Python alone. VFs that are there and used are left as they are.
"""

from __future__ import annotations

import os
import sys
import time

from . import _kept, _nvme, _sriov, _sriov_apply, _sriov_plan
from ._errors import IovlabError, Refused
from ._host import Host, wait_until
from ._rpc import SOCKET
from ._vf_report import bindings

TIMEOUT = 30.0  # seconds, for each thing that is waited for
_PRIORITIES = {"error": "<3>", "info": "<6>"}  # what the journal reads at the start of a line


def main(host: Host | None = None, rpc_socket: str = SOCKET, timeout: float = TIMEOUT) -> int:
    """Restore every adapter that a file names; 1 when one of them could not be, after having tried them all."""
    host = host or Host.without_ansible()
    code = 0
    for path in _kept.files(host):
        try:
            kept = _kept.load(host, path)
            if kept is not None:
                _say("info", restore(host, kept, rpc_socket, timeout))
        except (IovlabError, OSError) as exc:
            _say("error", f"{path}: {exc}")
            code = 1
    return code


def restore(host: Host, kept: _kept.Kept, rpc_socket: str, timeout: float) -> str:
    """Make one adapter have its VFs; returns a line that says so."""
    wait_until(
        lambda: _can_be_asked(host, kept.pf),
        timeout,
        f"the controller of PF {kept.pf} did not come up within {timeout:g} s; check lspci -D and dmesg, and "
        "provision this host again if the adapter has another address now",
    )
    with host.locked(f"sriov-{kept.pf}", timeout):
        adapter = _sriov.read(host, kept.pf)
        if kept.serial != adapter.serial:
            raise Refused(
                f"PF {kept.pf} has serial number {adapter.serial}, not {kept.serial}: it is another adapter; "
                "provision this host again"
            )
        planned = _sriov_plan.plan_for(host, adapter, kept.vfs, bindings(rpc_socket), allow_recreate=False)
        if not planned.changed:
            return f"{kept.pf}: its {kept.vfs.count} VFs are as they should be"
        began = time.monotonic()
        _sriov_apply.Changes(host, adapter, timeout).apply(planned)
    seconds = time.monotonic() - began
    return f"{kept.pf}: its {kept.vfs.count} VFs are back after {seconds:.1f} s in {len(planned.steps)} steps"


def _can_be_asked(host: Host, address: str) -> bool:
    """The kernel drives the PF, and udev has made the device through which its controller is asked."""
    name = _nvme.controller(host, address)
    return name is not None and _nvme.controller_state(host, address) == "live" and os.path.exists(host.device(name))


def _say(kind: str, line: str) -> None:
    sys.stdout.write((_PRIORITIES[kind] if "JOURNAL_STREAM" in os.environ else "") + line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
