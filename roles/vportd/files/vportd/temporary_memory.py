# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory that is needed for a while, and then given back."""

import ctypes
import fcntl
import gc
import os

_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of the GNU C library


def give_back() -> None:
    """Give the kernel what this process needs no more: some 100 MiB after a million extents have been looked at."""
    gc.collect()
    if _trim is not None:
        _trim(ctypes.c_size_t(0))


class TemporaryMemory:
    """``content`` in a memfd that nobody can change any more; ``fd`` closes when this object goes."""

    def __init__(self, name: str, content: list[bytes]) -> None:
        self.fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with open(os.dup(self.fd), "wb") as file:
            file.writelines(content)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals)

    def __del__(self) -> None:
        os.close(self.fd)
