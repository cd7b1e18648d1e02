# SPDX-License-Identifier: GPL-3.0-or-later
"""A second load, not of our making: ``qemu-img bench`` through libblkio's driver ``virtio-blk-vhost-user``.

Its requests follow each other through the disk, from the start again after the end.
"""

import re
import shutil
import subprocess
from pathlib import Path

DRIVER = "virtio-blk-vhost-user"
PROGRAM = "qemu-img"
_SECONDS = re.compile(r"^Run completed in ([0-9.]+) seconds", re.MULTILINE)
_TRIAL = 4000  # requests by which is told how many a measurement takes


def lacks() -> str:
    """What is not there for it, empty when all is."""
    if shutil.which(PROGRAM) is None:
        return "qemu-img is not installed"
    shown = subprocess.run([PROGRAM, "--help"], capture_output=True, text=True, check=False).stdout
    if DRIVER not in shown.split():
        version = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=True).stdout
        return (
            f"{version.splitlines()[0]} has no driver {DRIVER}: Debian 12 builds QEMU without libblkio, Debian 13 "
            f"has it in the package qemu-block-extra"
        )
    return ""


def _seconds(path: Path, depth: int, count: int) -> float:
    command = [PROGRAM, "bench", "-c", str(count), "-d", str(depth), "-s", "4096", "-t", "none", "--image-opts"]
    command.append(f"driver={DRIVER},path={path},cache.direct=on")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = _SECONDS.search(done.stdout)
    assert found is not None, done.stdout
    return float(found[1])


def rate(path: Path, depth: int, seconds: float) -> float:
    """Reads of 4 KiB a second that the back end at ``path`` does, in about ``seconds``."""
    count = max(_TRIAL, int(_TRIAL / max(_seconds(path, depth, _TRIAL), 0.001) * seconds))
    return count / _seconds(path, depth, count)
