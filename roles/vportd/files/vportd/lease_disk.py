# SPDX-License-Identifier: GPL-3.0-or-later
"""The blocks of leases on the storage, past every cache; each call blocks, and is for a thread."""

import errno
import mmap
import os
import time
from collections.abc import Callable

from vportd import lease_gate
from vportd.errors import LeaseDamaged, LeaseTooLate
from vportd.lease_record import SIZE, Record, unpack

_LOOKS = 4  # at a block whose checksum is wrong: another host may just be writing it
_LOOK_AGAIN = 0.02  # seconds


class _Open:
    """A descriptor that is closed when the last thread that uses it is done."""

    def __init__(self, path: str) -> None:
        flags = os.O_RDWR | os.O_DSYNC | os.O_CLOEXEC
        try:
            self.fd = os.open(path, flags | os.O_DIRECT)
        except OSError as problem:
            if problem.errno != errno.EINVAL:  # a file system without O_DIRECT, under a file in a test
                raise
            self.fd = os.open(path, flags)

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


class LeaseDisk:
    """The leases on the storage that ``path()`` names. It is kept open: closing a block device that was written makes
    the host look at it anew.
    """

    def __init__(self, path: Callable[[], str]) -> None:
        self._path = path
        self._file: _Open | None = None

    def _open(self) -> _Open:
        file = self._file
        if file is None:
            file = self._file = _Open(self._path())
        return file

    def anew(self) -> None:
        """Have it opened anew the next time: the device may be another by then."""
        self._file = None

    def read(self, offset: int) -> Record:
        """Return the record at ``offset``. Raises OSError, StorageError, LeaseDamaged."""
        for look in range(_LOOKS):
            buffer = mmap.mmap(-1, SIZE)
            self._whole(os.preadv, buffer, offset)
            try:
                return unpack(buffer[:])
            except LeaseDamaged:
                if look == _LOOKS - 1:
                    raise
                time.sleep(_LOOK_AGAIN)
        raise AssertionError

    def write(self, offset: int, record: Record, not_after: float) -> None:
        """Write the record; it is on the storage when this returns. Raises OSError, StorageError, and LeaseTooLate
        when the clock is past ``not_after`` and nothing was written.
        """
        buffer = mmap.mmap(-1, SIZE)
        buffer[:] = record.pack()
        self._open()
        if lease_gate.now() > not_after:
            raise LeaseTooLate("this host was too slow to write the lease")
        self._whole(os.pwritev, buffer, offset)

    def _whole(self, call: Callable[..., int], buffer: mmap.mmap, offset: int) -> None:
        try:
            file = self._open()
            done = call(file.fd, [buffer], offset)
            if done != SIZE:  # a block device that is gone has no bytes
                raise OSError(errno.EIO, f"{done} of {SIZE} bytes")
        except OSError:
            self.anew()
            raise
