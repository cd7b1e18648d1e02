# SPDX-License-Identifier: GPL-3.0-or-later
"""Gate: until when the workers of a vport may take requests, in memory that the engine writes and they read.

It is a file in the run directory, so that it is still there when the engine has died and comes back within the same
boot: what was granted is still good then, and it says whether a write of a lease was under way.
"""

import ctypes
import mmap
import os
import signal
import struct
import time

from vportd.errors import VportdError

FOR_GOOD = (1 << 63) - 1  # there is no lease: no clock needs to be asked
GRACE = 0.5  # seconds after its end in which a worker that was stopped while it took requests is killed
_SLACK = 2.0  # seconds before its end in which an idle worker takes that threat away
_VALID, _WRITTEN, _WRITING = range(3)  # words: nanoseconds, nanoseconds, number of writes under way; then the boot's id
_SIZE = 4096
_TIMER_ABSTIME = 1

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

BOOTTIME = time.CLOCK_BOOTTIME
_clock_ns = time.clock_gettime_ns


def now() -> float:
    """Return the seconds of CLOCK_BOOTTIME, which goes on while the host sleeps and is never set."""
    return time.clock_gettime(BOOTTIME)


def _boot_id() -> bytes:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        text = file.read()
    return bytes.fromhex(text.strip().replace("-", ""))


class Gate:
    """The engine's end."""

    def __init__(self, path: "Path") -> None:
        """Open the file ``path``, or make it."""
        self._path = path
        boot = _boot_id()
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, _SIZE)
            self._area = mmap.mmap(fd, _SIZE)
        finally:
            os.close(fd)
        self._words = memoryview(self._area).cast("Q")
        self.same_boot = self._area[24:40] == boot
        if not self.same_boot:
            self._area[:40] = bytes(24) + boot
        self.left_over = bool(self._words[_WRITING])
        self._words[_WRITING] = 0

    @property
    def valid_until(self) -> float:
        """Seconds; 0 where nothing was granted."""
        word = self._words[_VALID]
        return 0.0 if word == FOR_GOOD else word / 1e9

    @property
    def written(self) -> float:
        """When a write of a lease last ended."""
        return self._words[_WRITTEN] / 1e9

    def set(self, valid_until: float | None) -> None:
        """Grant until then; None = for good."""
        self._words[_VALID] = FOR_GOOD if valid_until is None else max(0, int(valid_until * 1e9))

    def writing(self, more: int) -> None:
        """Note that a write of a lease begins (1) or has ended (-1)."""
        if more < 0:
            self._words[_WRITTEN] = _clock_ns(BOOTTIME)
        self._words[_WRITING] += more

    def reader(self) -> int:
        """Return a descriptor that a worker can only read by."""
        return os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)

    def remove(self) -> None:
        """Delete the file."""
        self._path.unlink(missing_ok=True)


class Watch:
    """A worker's end: ``open`` is asked before each pass over the rings.

    A process may be stopped between that and its writes. So the kernel is told to end this process a moment after
    what was granted has ended (timer_create(2) with its default signal, SIGALRM, which a stopped process meets before
    anything else). The threat is renewed with each grant, and taken away when there is nothing to do.
    """

    def __init__(self, fd: int) -> None:
        self._words = memoryview(mmap.mmap(fd, _SIZE, mmap.MAP_SHARED, mmap.PROT_READ)).cast("Q")
        os.close(fd)
        self._armed = 0
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._timer = ctypes.c_void_p()
        if self._libc.timer_create(ctypes.c_int(BOOTTIME), None, ctypes.byref(self._timer)):
            raise VportdError(f"no timer for the lease: {os.strerror(ctypes.get_errno())}")

    def open(self) -> bool:
        """True while requests may be taken."""
        valid = self._words[_VALID]
        if valid == FOR_GOOD:
            return True
        if _clock_ns(BOOTTIME) >= valid:
            return False
        if valid != self._armed:
            self._arm(valid)
            if _clock_ns(BOOTTIME) >= valid:
                return False
        return True

    def closed(self) -> bool:
        """False while operations may be submitted; for the storage, between two passes."""
        valid = self._words[_VALID]
        return valid != FOR_GOOD and _clock_ns(BOOTTIME) >= valid

    def _arm(self, valid: int) -> None:
        self._armed = valid
        at = valid + int(GRACE * 1e9) if valid else 0
        setting = struct.pack("4q", 0, 0, at // 1_000_000_000, at % 1_000_000_000)
        if self._libc.timer_settime(self._timer, ctypes.c_int(_TIMER_ABSTIME), setting, None):
            raise VportdError(f"the timer of the lease cannot be set: {os.strerror(ctypes.get_errno())}")

    def idle(self, timeout: float) -> float:
        """Return the seconds to wait for events, where ``timeout`` (-1: for ever) is what the rest of the worker wants:
        not so long that the threat comes true.
        """
        if not self._armed:
            return timeout
        left = self._armed / 1e9 - _SLACK - _clock_ns(BOOTTIME) / 1e9
        if left <= 0:
            self._arm(0)
            return timeout
        return left if timeout < 0 else min(timeout, left)
