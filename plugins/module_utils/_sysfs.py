# SPDX-License-Identifier: GPL-3.0-or-later
"""sysfs under a root: reads that say None for what is not there, and writes that cannot hang the module."""

from __future__ import annotations

import errno
import os
import select
import signal

from ._errors import SysfsError


class Sysfs:
    """``Sysfs("/sys")``; every path given to a method is relative to that root."""

    def __init__(self, root: str) -> None:
        self.root = root

    def path(self, *parts: str) -> str:
        return os.path.join(self.root, *parts)

    def exists(self, *parts: str) -> bool:
        return os.path.exists(self.path(*parts))

    def read(self, *parts: str) -> str | None:
        """The text of an attribute without the newline; None when it is not there or cannot be read."""
        try:
            with open(self.path(*parts), encoding="utf-8", errors="replace") as attribute:
                return attribute.read().strip("\0\n ")
        except OSError:
            return None

    def read_int(self, *parts: str) -> int | None:
        text = self.read(*parts)
        try:
            return None if text is None else int(text, 0)
        except ValueError:
            return None

    def link_name(self, *parts: str) -> str | None:
        """The last part of what a symbolic link points to; None when there is no such link."""
        try:
            return os.path.basename(os.readlink(self.path(*parts)))
        except OSError:
            return None

    def names(self, *parts: str) -> list[str]:
        """Sorted entries of a directory; none when there is no such directory."""
        try:
            return sorted(os.listdir(self.path(*parts)))
        except OSError:
            return []

    def write(self, path: str, value: str, timeout: float) -> None:
        """Write an attribute from a child process.

        Some writes (sriov_numvfs above all) can block in the kernel for ever; the child takes that, not the module.
        Raises SysfsError with the kernel's reason, or when the kernel has not answered after ``timeout`` seconds.
        """
        target = self.path(path)
        child = os.fork()
        if child == 0:  # nothing but system calls here: the module's own state is not this process's to touch
            code = 0
            try:
                descriptor = os.open(target, os.O_WRONLY | os.O_TRUNC)
                os.write(descriptor, value.encode())
            except OSError as exc:
                code = exc.errno or errno.EIO
            os._exit(min(code, 255))
        if not _ended_within(child, timeout):
            raise SysfsError(
                f"writing {value.strip()!r} to {target} did not come back within {timeout:g} s (the kernel waits, "
                f"process {child}); "
                "find the user of the device, then try again"
            )
        status = os.waitpid(child, 0)[1]
        code = os.waitstatus_to_exitcode(status)
        if code != 0:
            reason = os.strerror(code) if code > 0 else f"killed by signal {-code}"
            raise SysfsError(f"the kernel refused {value.strip()!r} for {target}: {reason}; see dmesg for why")


def _ended_within(child: int, timeout: float) -> bool:
    """Wait for ``child`` to end; one that does not is killed as far as the kernel lets it be."""
    descriptor = os.pidfd_open(child)
    try:
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        if poller.poll(timeout * 1000):
            return True
        os.kill(child, signal.SIGKILL)
        if poller.poll(200):
            os.waitpid(child, 0)
        return False
    finally:
        os.close(descriptor)
