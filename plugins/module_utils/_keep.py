# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeping an adapter's VFs over a reboot: its file, and the program and unit that read it when the host boots.

All of it is files, so nothing has to be told to systemd before the next boot. The program is an archive of those files
of this collection that it needs: what makes the VFs when the host boots is what made them now.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import os
import zipfile
from collections.abc import Callable
from typing import Any

from . import (
    _boot,
    _errors,
    _host,
    _kept,
    _nvme,
    _plan,
    _rpc,
    _sriov,
    _sriov_apply,
    _sriov_plan,
    _sysfs,
    _units,
    _users,
    _vf_report,
)
from ._host import Host
from ._plan import Plan, Step

PROGRAM = "/usr/local/lib/iovlab-adapter.pyz"
UNIT = "/etc/systemd/system/iovlab-adapter.service"
ENABLED = "/etc/systemd/system/multi-user.target.wants/iovlab-adapter.service"
PACKAGE = "iovlab_adapter"
PARTS = (
    _boot, _errors, _host, _kept, _nvme, _plan, _rpc, _sriov, _sriov_apply, _sriov_plan, _sysfs, _units, _users,
    _vf_report,
)  # fmt: skip
UNIT_TEXT = f"""\
# SPDX-License-Identifier: GPL-3.0-or-later
# Written by iovlab.storage.sriov_vf with persistent: true.
[Unit]
Description=VFs of NVMe adapters, as they were provisioned
Documentation=https://iovlab.example/storage/docs
ConditionDirectoryNotEmpty={_kept.DIRECTORY}
# vportd binds vports to VFs that are there when it starts. It starts too where this fails: those vports use the PF.
Before=vportd.service libvirtd.service virtqemud.service

[Service]
Type=oneshot
ExecStart=/usr/bin/python3 -I {PROGRAM}
TimeoutStartSec=300
NoNewPrivileges=yes
ProtectSystem=strict
ReadWritePaths=/run/lock
ProtectHome=yes
PrivateTmp=yes
RestrictAddressFamilies=AF_UNIX

[Install]
WantedBy=multi-user.target
"""


def program() -> bytes:
    """The archive; the same files always give the same bytes."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        for part in PARTS:
            name = part.__name__.rpartition(".")[2]
            packed.writestr(zipfile.ZipInfo(f"{PACKAGE}/{name}.py"), inspect.getsource(part).encode())
        packed.writestr(zipfile.ZipInfo(f"{PACKAGE}/__init__.py"), b"")
        start = f"import sys\n\nfrom {PACKAGE}._boot import main\n\nsys.exit(main())\n"
        packed.writestr(zipfile.ZipInfo("__main__.py"), start.encode())
    return archive.getvalue()


def plan(host: Host, pf: str, kept: _kept.Kept | None) -> Plan:
    """Steps to the files that keep ``kept``, or nothing of this PF. The program goes with the last adapter."""
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    steps: list[Step] = []
    own = _kept.path_of(pf)
    others = [path for path in _kept.files(host) if path != own]

    def differ(path: str, now: Any, then: Any, step: Step) -> None:
        before[path], after[path] = now, then
        if now != then:
            steps.append(step)

    if kept is not None or others:
        wanted_program, wanted_unit, wanted_link = program(), UNIT_TEXT.encode(), UNIT
    else:
        wanted_program, wanted_unit, wanted_link = None, None, None
    now_program, now_unit, now_file = _read(host, PROGRAM), _read(host, UNIT), _read(host, own)
    parts = [
        (PROGRAM, _digest(now_program), _digest(wanted_program), _file_step(PROGRAM, wanted_program)),
        (UNIT, _text(now_unit), _text(wanted_unit), _file_step(UNIT, wanted_unit)),
        (ENABLED, _link(host), wanted_link, _link_step(wanted_link)),
    ]
    text = kept.text().encode() if kept is not None else None
    mine = (own, _text(now_file), _text(text), _file_step(own, text))
    for part in [*parts, mine] if kept is not None else [mine, *reversed(parts)]:
        differ(*part)
    return Plan(before=before, after=after, steps=tuple(steps))


def actions(host: Host) -> dict[str, Callable[..., None]]:
    return {
        "write": lambda path, content: write(host, path, content),
        "remove": lambda path: _remove(host, path),
        "link": lambda path, target: _set_link(host, path, target),
    }


def write(host: Host, path: str, content: bytes) -> None:
    """The old file or the new one, whenever the machine stops."""
    target = host.file(path)
    directory = os.path.dirname(target)
    os.makedirs(directory, mode=0o755, exist_ok=True)
    partial = _partial(target)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fchmod(descriptor, 0o644)
        os.fsync(descriptor)
    os.replace(partial, target)
    _sync(directory)


def _remove(host: Host, path: str) -> None:
    """The file, and the directories of this collection above it that hold nothing more."""
    target = host.file(path)
    directory = os.path.dirname(target)
    for name in (_partial(target), target):
        if os.path.lexists(name):
            os.unlink(name)
    _sync(directory)
    while directory in (host.file(_kept.DIRECTORY), host.file(os.path.dirname(_kept.DIRECTORY))):
        if os.listdir(directory):
            return
        os.rmdir(directory)
        directory = os.path.dirname(directory)


def _set_link(host: Host, path: str, target: str) -> None:
    link = host.file(path)
    os.makedirs(os.path.dirname(link), mode=0o755, exist_ok=True)
    partial = _partial(link)
    if os.path.lexists(partial):
        os.unlink(partial)
    os.symlink(target, partial)
    os.replace(partial, link)


def _partial(target: str) -> str:
    directory, name = os.path.split(target)
    return os.path.join(directory, f".{name}.partial")


def _sync(directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _file_step(path: str, content: bytes | None) -> Step:
    if content is None:
        return Step("remove", f"remove {path}", {"path": path})
    return Step("write", f"write {path}", {"path": path, "content": content})


def _link_step(target: str | None) -> Step:
    if target is None:
        return Step("remove", f"remove {ENABLED}", {"path": ENABLED})
    return Step(
        "link", f"have the host start {os.path.basename(UNIT)} when it boots", {"path": ENABLED, "target": target}
    )


def _read(host: Host, path: str) -> bytes | None:
    try:
        with open(host.file(path), "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _link(host: Host) -> str | None:
    path = host.file(ENABLED)
    return os.readlink(path) if os.path.islink(path) else None


def _text(content: bytes | None) -> str | None:
    return None if content is None else content.decode(errors="replace")


def _digest(content: bytes | None) -> str | None:
    return None if content is None else f"sha256:{hashlib.sha256(content).hexdigest()}"
