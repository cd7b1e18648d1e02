# SPDX-License-Identifier: GPL-3.0-or-later
"""The C peer: the vhost-user-blk export of qemu-storage-daemon, on a file, as a process of its own."""

import shutil
import struct
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.unit.vportd.frontend import USUAL, USUAL_PROTOCOL, FrontEnd

PROGRAM = "qemu-storage-daemon"
WHOLE = ("--blockdev", "raw,node-name=top,file=image")


class PeerMissing(Exception):
    """The peer is not installed."""


class StorageDaemon:
    """Exports ``image`` at ``path``. ``options`` come before the export, which is of node ``top`` (made of node
    ``image``); ``aio`` and ``direct`` say how the file is used.
    """

    def __init__(
        self, image, path, options=("--blockdev", "raw,node-name=top,file=image"), aio="threads", direct=False
    ):
        program = shutil.which(PROGRAM)
        if program is None:
            raise PeerMissing(f"{PROGRAM} is not on PATH: install the Debian package qemu-system-common")
        self.path = path
        self.arguments = [
            program,
            "--blockdev",
            f"{'host_device' if Path(image).is_block_device() else 'file'},node-name=image,filename={image},"
            f"aio={aio},cache.direct={'on' if direct else 'off'},locking=off",
            *options,
            "--export",
            f"vhost-user-blk,id=disk,node-name=top,addr.type=unix,addr.path={path},writable=on,num-queues=4",
        ]
        self.process: Any = None

    def start(self):
        self.path.unlink(missing_ok=True)
        self.process = subprocess.Popen(self.arguments)
        deadline = time.monotonic() + 20
        while not self.path.exists():
            assert self.process.poll() is None, f"{PROGRAM} has ended"
            assert time.monotonic() < deadline, f"{PROGRAM} makes no socket"
            time.sleep(0.01)
        return self

    def kill(self):
        self.process.kill()
        self.process.wait(10)

    stop = kill


def offered(path):
    """The features and protocol features of a back end, of those that the front end of these tests uses."""
    front = FrontEnd(path, protocol=0)
    try:
        features = struct.unpack("<Q", front.ask(1))[0]
        protocol = struct.unpack("<Q", front.ask(15))[0]
    finally:
        front.close()
    return USUAL & features, USUAL_PROTOCOL & protocol
