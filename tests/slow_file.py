# SPDX-License-Identifier: GPL-3.0-or-later
"""A file whose every read, write and flush takes a given time: one file as a FUSE file system, mounted on a file.

``python -m tests.slow_file POINT BACKING SECONDS`` serves POINT from BACKING until it is unmounted or killed. What is
done to it waits in the kernel, as with a slow device: it is out of the hands of the process that began it. Root only.
"""

import collections
import contextlib
import ctypes
import errno
import os
import select
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_IN = struct.Struct("<IIQQIIII")  # length, opcode, unique, node, uid, gid, pid, padding
_OUT = struct.Struct("<IiQ")  # length, error, unique
_GETATTR, _SETATTR, _OPEN, _READ, _WRITE, _STATFS, _RELEASE, _FSYNC, _FLUSH, _INIT = (
    3,
    4,
    14,
    15,
    16,
    17,
    18,
    20,
    25,
    26,
)
_FORGET, _INTERRUPT, _BATCH_FORGET = 2, 36, 42
_MAX = 1 << 20  # bytes of one read or write
_ASYNC_READ, _BIG_WRITES, _PARALLEL, _MAX_PAGES, _ASYNC_DIO = 1 << 0, 1 << 5, 1 << 18, 1 << 22, 1 << 15
_MNT_DETACH = 2
_PR_SET_TIMERSLACK = 29
_libc = ctypes.CDLL(None, use_errno=True)


class NoFuse(Exception):
    """FUSE cannot be used here; ``str()`` says why."""


def mount(point: Path) -> int:
    """Mount on the file ``point``; return the descriptor that requests come from. Raises NoFuse."""
    try:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as problem:
        raise NoFuse(f"/dev/fuse: {problem.strerror}") from problem
    options = f"fd={fd},rootmode={stat.S_IFREG:o},user_id=0,group_id=0,allow_other,max_read={_MAX}".encode()
    if _libc.mount(b"slow_file", os.fsencode(point), b"fuse", 0, options) != 0:
        os.close(fd)
        raise NoFuse(f"mount: {os.strerror(ctypes.get_errno())}")
    return fd


def unmount(point: Path) -> None:
    """Undo ``mount``, also while it is in use."""
    _libc.umount2(os.fsencode(point), _MNT_DETACH)


def serve(fuse: int, backing: int, latency: float) -> None:
    """Answer until the file is unmounted: data is moved at once, the answer goes out ``latency`` seconds later."""
    size = os.fstat(backing).st_size
    facts = (1, size, size // 512, 0, 0, 0, 0, 0, 0, stat.S_IFREG | 0o666, 1, 0, 0, 0, 4096, 0)
    attributes = struct.pack("<QII6Q10I", 3600, 0, 0, *facts)
    buffer = bytearray(_MAX + 8192)
    view = memoryview(buffer)
    held: collections.deque[tuple[float, list[Any]]] = collections.deque()
    os.set_blocking(fuse, False)
    clock = time.perf_counter
    _libc.prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(1), 0, 0, 0)
    while True:
        if held:
            now = clock()
            while held and held[0][0] <= now:
                with contextlib.suppress(FileNotFoundError):  # who asked has been interrupted
                    os.writev(fuse, held.popleft()[1])
        try:
            os.readv(fuse, [buffer])
        except BlockingIOError:
            select.select([fuse], [], [], max(0.0, held[0][0] - clock()) if held else None)
            continue
        except FileNotFoundError:  # a request was taken back while it was read
            continue
        except OSError as problem:
            if problem.errno == errno.ENODEV:  # unmounted
                return
            raise
        __, code, unique, *__ = _IN.unpack_from(buffer)
        body: Any = b""
        error = 0
        if code in (_FORGET, _BATCH_FORGET, _INTERRUPT):
            continue
        if code == _INIT:
            flags = _ASYNC_READ | _BIG_WRITES | _PARALLEL | _MAX_PAGES | _ASYNC_DIO
            body = struct.pack("<IIIIHHIIHH7I", 7, 31, 0, flags, 256, 192, _MAX, 1, _MAX // 4096, 0, *[0] * 7)
        elif code in (_GETATTR, _SETATTR):
            body = attributes
        elif code == _OPEN:
            body = struct.pack("<QII", 1, 0, 0)
        elif code in (_READ, _WRITE):
            __, offset, count = struct.unpack_from("<QQI", buffer, 40)
            if code == _READ:
                body = os.pread(backing, count, offset)
            else:
                body = struct.pack("<II", os.pwrite(backing, view[80 : 80 + count], offset), 0)
        elif code == _STATFS:
            body = struct.pack("<5Q10I", *[0] * 5, 4096, 255, 4096, *[0] * 7)
        elif code not in (_RELEASE, _FSYNC, _FLUSH):
            error = -errno.ENOSYS
        answer = [_OUT.pack(16 + len(body), error, unique), body]
        if code in (_READ, _WRITE, _FSYNC):
            held.append((clock() + latency, answer))
        else:
            os.writev(fuse, answer)


class SlowFile:
    """``point`` served from ``backing`` by a process of its own; use it in a ``with``. Raises NoFuse."""

    def __init__(self, point: Path, backing: Path, latency: float) -> None:
        self.point = point
        point.touch()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.slow_file", str(point), str(backing), str(latency)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "SlowFile":
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if line != "ready":
            self.process.wait(10)
            raise NoFuse(line)
        return self

    def __exit__(self, *__: object) -> None:
        unmount(self.point)
        self.process.kill()
        self.process.wait(10)


@contextlib.contextmanager
def loop_device(path: Path) -> Iterator[Path]:
    """A block device on ``path``, past the page cache. Raises NoFuse when there is none to be had."""
    command = ["losetup", "--find", "--show", "--direct-io=on", str(path)]
    try:
        made = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as problem:
        raise NoFuse(f"losetup: {problem}") from problem
    try:
        yield Path(made.stdout.strip())
    finally:
        subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)


def main() -> int:
    """Return the exit status."""
    point, backing, latency = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
    try:
        fuse = mount(point)
    except NoFuse as problem:
        print(problem, flush=True)
        return 1
    print("ready", flush=True)
    serve(fuse, os.open(backing, os.O_RDWR | os.O_CLOEXEC), latency)
    return 0


if __name__ == "__main__":
    sys.exit(main())
