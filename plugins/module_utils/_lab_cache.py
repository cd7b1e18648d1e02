# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's images that are kept: which of them a VM is built on, and taking away those that none is.

A VM's disk is an overlay, which names the image under it. ``<image>/overlays/`` has a symbolic link to each overlay.
The link is made first, with the image's directory locked, so that no image is taken away while an overlay is made.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager

ROOT = "root.qcow2"
_LEFTOVER = ".partial-"
_QCOW2 = struct.Struct(">4sIQI")  # magic, version, where the name of the backing file is, how long it is
_FLOCK = struct.Struct("hhqqi")  # struct flock of fcntl(2): type, whence, start, length, process


def images(cache: str) -> str:
    return os.path.join(cache, "images")


def keys(cache: str) -> list[str]:
    """The images, the one that was asked for last first."""
    try:
        entries = [entry for entry in os.scandir(images(cache)) if entry.is_dir() and _LEFTOVER not in entry.name]
    except FileNotFoundError:
        return []
    return [entry.name for entry in sorted(entries, key=lambda entry: -entry.stat().st_mtime_ns)]


def surplus(cache: str, key: str, keep: int) -> list[str]:
    """The images that go when ``key`` is one of ``keep``: the oldest, and none that is in use."""
    others = [other for other in keys(cache) if other != key]
    return [other for other in others[keep - 1 :] if not users(os.path.join(images(cache), other))]


def users(image: str) -> list[str]:
    """The overlays that are built on an image, whether their VM runs or not, or that some QEMU has it open."""
    root = os.path.join(image, ROOT)
    found = []
    for name in _names(os.path.join(image, "overlays")):
        overlay = os.path.realpath(os.path.join(image, "overlays", name))
        if _backing_file(overlay) == os.path.realpath(root):
            found.append(overlay)
    return found or (["a QEMU that has it open"] if _is_locked(root) else [])


def _names(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []


def _backing_file(overlay: str) -> str | None:
    try:
        with open(overlay, "rb") as file:
            magic, __, offset, length = _QCOW2.unpack(file.read(_QCOW2.size))
            file.seek(offset)
            name = file.read(length).decode() if magic == b"QFI\xfb" and offset else ""
    except (OSError, struct.error):
        return None  # the VM was removed
    return os.path.realpath(os.path.join(os.path.dirname(overlay), name)) if name else None


def _is_locked(path: str) -> bool:
    """Whether another program has locked part of a file, as QEMU does with the image under a disk."""
    wish = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        with open(path, "rb") as file:
            kind = _FLOCK.unpack(fcntl.fcntl(file, fcntl.F_OFD_GETLK, wish))[0]
    except FileNotFoundError:
        return False
    return bool(kind != fcntl.F_UNLCK)


@contextmanager
def claimed(root: str, overlay: str) -> Iterator[None]:
    """Within it ``overlay`` is made on the image with this root; from then on the image is kept."""
    image = os.path.dirname(root)
    if not os.access(image, os.W_OK):  # not a cache of ours
        yield
        return
    with _locked(image, fcntl.LOCK_SH):
        overlays = os.path.join(image, "overlays")
        os.makedirs(overlays, exist_ok=True)
        link = os.path.join(overlays, hashlib.sha256(os.path.abspath(overlay).encode()).hexdigest()[:16])
        if not os.path.islink(link):
            os.symlink(os.path.abspath(overlay), link)
        yield


def take_away(cache: str, key: str) -> None:
    """Remove an image and its log, unless it is in use by now. At any moment it is whole, or gone by its name."""
    image = os.path.join(images(cache), key)
    try:
        with _locked(image, fcntl.LOCK_EX | fcntl.LOCK_NB):
            if users(image):
                return
            put_aside(image)
    except BlockingIOError:
        return  # a VM is being made on it
    remove_leftovers(cache)
    log = f"{image}.log"
    if os.path.exists(log):
        os.unlink(log)


def put_aside(image: str) -> None:
    os.rename(image, f"{image}{_LEFTOVER}old")


def remove_leftovers(cache: str) -> None:
    """Remove what builds that were killed have left, and what was put aside. Only with the cache locked."""
    for name in os.listdir(images(cache)):
        if _LEFTOVER in name:
            shutil.rmtree(os.path.join(images(cache), name))


@contextmanager
def _locked(directory: str, how: int) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)
