# SPDX-License-Identifier: GPL-3.0-or-later
"""The machine a module runs on, as one value: where its files are, how commands are run, how locks are taken.

Everything that a module does to the machine goes through a ``Host``; a unit test hands in another one.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ._errors import CommandFailed, TimedOut
from ._sysfs import Sysfs

Runner = Callable[[list[str], "str | None"], "tuple[int, Any, Any]"]
"""(arguments, encoding or None for bytes) -> (return code, standard output, standard error)"""

_NOT_FOUND = (126, 127)
_TIMED_OUT = (124, 137)
_PACKAGES = {
    "nvme": "nvme-cli",
    "lvs": "lvm2",
    "wipefs": "util-linux",
    "modprobe": "kmod",
    "qemu-img": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
}


@dataclass(frozen=True)
class Host:
    """Paths are roots: ``sysfs`` is /sys, ``dev_root`` /dev, ``proc_root`` /proc, ``lock_dir`` /run/lock, ``root`` what
    all else is below, such as /etc and /var.
    """

    sysfs: Sysfs
    dev_root: str
    proc_root: str
    lock_dir: str
    runner: Runner
    root: str = "/"

    @classmethod
    def of(cls, module: Any) -> Host:
        """The real machine, commands run by ``module.run_command``."""

        def run(arguments: list[str], encoding: str | None) -> tuple[int, Any, Any]:
            result: tuple[int, Any, Any] = module.run_command(
                arguments, encoding=encoding, environ_update=_environment()
            )
            return result

        return cls._real(run)

    @classmethod
    def without_ansible(cls) -> Host:
        """The real machine, for a program of its own."""

        def run(arguments: list[str], encoding: str | None) -> tuple[int, Any, Any]:
            done = subprocess.run(  # pylint: disable=ansible-bad-function # there is no module
                arguments, capture_output=True, env=os.environ | _environment(), stdin=subprocess.DEVNULL, check=False
            )
            if encoding is None:
                return done.returncode, done.stdout, done.stderr
            return done.returncode, done.stdout.decode(encoding, "replace"), done.stderr.decode(encoding, "replace")

        return cls._real(run)

    @classmethod
    def _real(cls, runner: Runner) -> Host:
        return cls(sysfs=Sysfs("/sys"), dev_root="/dev", proc_root="/proc", lock_dir="/run/lock", runner=runner)

    def device(self, name: str) -> str:
        return os.path.join(self.dev_root, name)

    def file(self, path: str) -> str:
        """Where the file that is ``path`` (absolute) on the machine is for this process."""
        return os.path.join(self.root, path.lstrip("/"))

    def run(self, arguments: Sequence[str], timeout: float) -> tuple[int, str, str]:
        """Run a command, killed after ``timeout`` seconds. A program that is not installed raises CommandFailed."""
        code, out, err = self._bounded(arguments, timeout, "utf-8")
        return code, out, err

    def output(self, arguments: Sequence[str], timeout: float) -> str:
        """Standard output of a command that must succeed."""
        code, out, err = self.run(arguments, timeout)
        self._must_be_zero(arguments, code, out, err)
        return out

    def output_bytes(self, arguments: Sequence[str], timeout: float) -> bytes:
        code, out, err = self._bounded(arguments, timeout, None)
        self._must_be_zero(arguments, code, "", err.decode(errors="replace"))
        return bytes(out)

    def _bounded(self, arguments: Sequence[str], timeout: float, encoding: str | None) -> tuple[int, Any, Any]:
        program = arguments[0]
        code, out, err = self.runner(["timeout", "--kill-after=5", f"{max(timeout, 1):.0f}", *arguments], encoding)
        if code in _NOT_FOUND:
            package = _PACKAGES.get(program, "lvm2" if program[:2] in ("lv", "vg", "pv") else program)
            raise CommandFailed(f"{program} is not installed on this host; install the package {package}")
        if code in _TIMED_OUT:
            raise CommandFailed(
                f"{' '.join(arguments)} gave no answer within {timeout:g} s and was killed; see dmesg for the device"
            )
        return code, out, err

    @staticmethod
    def _must_be_zero(arguments: Sequence[str], code: int, out: str, err: str) -> None:
        if code != 0:
            said = next((line.strip() for line in reversed((err or out).splitlines()) if line.strip()), "nothing")
            raise CommandFailed(f"{' '.join(arguments)} failed with {code}: {said}")

    @contextmanager
    def locked(self, name: str, timeout: float) -> Iterator[None]:
        """Hold the lock ``name`` against other runs of these modules on this host; TimedOut names the holder."""
        path = os.path.join(self.lock_dir, f"iovlab-{name}.lock")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            try:
                wait_until(lambda: _try_lock(descriptor), timeout, "", interval=0.1)
            except TimedOut:
                holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
                raise TimedOut(
                    f"{path} is held by another run (process {holder}) for more than {timeout:g} s; let it end, "
                    "then try again"
                ) from None
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(descriptor)


def _environment() -> dict[str, str]:
    path = os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"
    return {"LC_ALL": "C", "LVM_SUPPRESS_FD_WARNINGS": "1", "PATH": path}


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_until(met: Callable[[], bool], timeout: float, missing: str, interval: float = 0.02) -> None:
    """Return as soon as ``met()``; after ``timeout`` seconds raise TimedOut with ``missing``."""
    deadline = time.monotonic() + timeout
    while not met():
        if time.monotonic() >= deadline:
            raise TimedOut(missing)
        time.sleep(interval)
