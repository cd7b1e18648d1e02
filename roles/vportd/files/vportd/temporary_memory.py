# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory with a descriptor that can be handed to another process, for as long as somebody needs it."""

import fcntl
import os


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
