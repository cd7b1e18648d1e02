# SPDX-License-Identifier: GPL-3.0-or-later
"""Storage back ends: submit, kick, and reap completions when ``event_fd`` is readable or ``timeout()`` has passed.

A completion is ``(token, result)``: bytes done, or a negative errno. ``direct`` back ends may be handed any buffer:
what O_DIRECT cannot take goes through a bounce buffer here. ``FileStorage`` alone is synchronous: who sees
``synchronous`` may do the I/O on ``fd`` itself.
"""

import _thread
import ctypes
import errno
import fcntl
import mmap
import os
import select
import stat
import time

from vportd.errors import StorageError
from vportd.virtio_spec import SECTOR_SIZE

READ, WRITE, FLUSH, DISCARD, ZERO = range(5)
OPERATIONS = ("read", "write", "flush", "discard", "write_zeroes")
# fallocate(2): what DISCARD and ZERO are to a file or a block device; what was discarded reads as zeroes
FALLOCATE = {DISCARD: 0x01 | 0x02, ZERO: 0x01 | 0x10}  # KEEP_SIZE with PUNCH_HOLE or with ZERO_RANGE
BOUNCE = 256 << 10  # bytes of a bounce buffer at most: a longer operation goes through it in parts
BOUNCE_KEPT = 16 << 20  # bytes of bounce buffers that are kept for the next use
GATE_POLL = 0.02  # seconds between two looks of a thread that waits at the gate
Token = object
Completion = tuple[Token, int]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_libc = ctypes.CDLL(None, use_errno=True)


def transfer(fd: int, operation: int, offset: int, views: list[memoryview], length: int = 0) -> int:
    """Do one whole operation; return the bytes done or a negative errno. A short transfer is gone on with; at the
    storage's end it stays short. DISCARD and ZERO are of ``length`` bytes, and return 0.
    """
    try:
        if operation == FLUSH:
            os.fdatasync(fd)
            return 0
        if operation in FALLOCATE:
            mode, at, size = ctypes.c_int(FALLOCATE[operation]), ctypes.c_int64(offset), ctypes.c_int64(length)
            return 0 if _libc.fallocate64(ctypes.c_int(fd), mode, at, size) == 0 else -ctypes.get_errno()
        call = os.preadv if operation == READ else os.pwritev
        done = call(fd, views, offset)
        total = sum(map(len, views))
        while 0 < done < total:
            more = call(fd, rest_of(views, done), offset + done)
            if more <= 0:
                break
            done += more
        return done
    except OSError as problem:
        return -(problem.errno or errno.EIO)


def rest_of(views: list[memoryview], done: int) -> list[memoryview]:
    """Return what is left of the buffers after their first ``done`` bytes."""
    left = []
    for view in views:
        if done < len(view):
            left.append(view[done:])
            done = 0
        else:
            done -= len(view)
    return left


class Storage:
    """What every back end has; and the bookkeeping of an operation done at once."""

    synchronous = False
    name = "?"

    def __init__(self, fd: int) -> None:
        """``fd`` becomes the back end's own."""
        self.fd = fd
        self.event_fd = -1
        self._closed: Callable[[], bool] = bool  # never

    def gate(self, closed: "Callable[[], bool]") -> None:
        """Begin no operation while ``closed()``: it waits."""
        self._closed = closed

    def submit(self, token: Token, operation: int, offset: int, views: list[memoryview], length: int = 0) -> None:
        """Queue one operation at byte ``offset``, on buffers or, DISCARD and ZERO, on ``length`` bytes; its completion
        comes from ``reap``.
        """
        raise NotImplementedError

    def kick(self) -> None:
        """Start everything submitted."""

    def reap(self) -> list[Completion]:
        """Return what has completed since."""
        raise NotImplementedError

    def timeout(self) -> float:
        """Return the seconds until ``reap`` will have something even without an event, or -1."""
        return -1

    def close(self) -> None:
        """Close the storage."""
        os.close(self.fd)


class FileStorage(Storage):
    """A page-cached regular file: each operation is done when it is submitted, the fastest way from Python."""

    synchronous = True
    name = "file"

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self._done: list[Completion] = []

    def submit(self, token: Token, operation: int, offset: int, views: list[memoryview], length: int = 0) -> None:
        self._done.append((token, transfer(self.fd, operation, offset, views, length)))

    def reap(self) -> list[Completion]:
        done, self._done = self._done, []
        return done

    def timeout(self) -> float:
        return 0 if self._done else -1


class Pool:
    """Bounce buffers, aligned to a page, of sizes that are powers of 2 up to BOUNCE; BOUNCE_KEPT bytes of them are kept
    for the next use. What a guest asks for does not decide how much memory they take.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[memoryview]] = {}
        self._kept = 0

    def get(self, length: int) -> memoryview:
        """Return a buffer of at least ``length`` bytes, or one of BOUNCE bytes if that is less."""
        size = max(mmap.PAGESIZE, 1 << (min(length, BOUNCE) - 1).bit_length())
        free = self._free.get(size)
        if not free:
            return memoryview(mmap.mmap(-1, size))
        self._kept -= size
        return free.pop()

    def put(self, buffer: memoryview) -> None:
        """Take back a buffer."""
        if self._kept + len(buffer) <= BOUNCE_KEPT:
            self._kept += len(buffer)
            self._free.setdefault(len(buffer), []).append(buffer)


def gather(views: list[memoryview], buffer: memoryview) -> None:
    """Copy the buffers into one, until that is full."""
    at, end = 0, len(buffer)
    for view in views:
        size = min(len(view), end - at)
        if size <= 0:
            break
        buffer[at : at + size] = view[:size]
        at += size


def scatter(buffer: memoryview, views: list[memoryview], done: int) -> None:
    """Copy the first ``done`` bytes of one buffer out to the buffers."""
    at = 0
    for view in views:
        size = min(len(view), done - at)
        if size <= 0:
            break
        view[:size] = buffer[at : at + size]
        at += size


class ThreadStorage(Storage):
    """A pool of threads, each doing one blocking operation at a time. Every operation waits in the kernel, so that
    the process cannot be gone
    before its I/O is."""

    name = "threads"

    def __init__(self, fd: int, alignment: int, threads: int = 16) -> None:
        """``alignment`` = that of O_DIRECT in bytes, or 1. Threads start as they are needed, up to ``threads``."""
        super().__init__(fd)
        self._alignment = alignment
        self._limit = threads
        self._running = 0
        self._idle = 0
        self._work: list[tuple[Token, int, int, list[memoryview], int]] = []
        self._done: list[Completion] = []
        self._lock = _thread.allocate_lock()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_SEMAPHORE)
        self.event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._bounce = Pool()

    def submit(self, token: Token, operation: int, offset: int, views: list[memoryview], length: int = 0) -> None:
        with self._lock:
            self._work.append((token, operation, offset, views, length))
            start = self._running < self._limit and len(self._work) > self._idle
            if start:
                self._running += 1
        if start:
            _thread.start_new_thread(self._thread, ())
        os.eventfd_write(self._wake, 1)

    def _thread(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
            os.eventfd_read(self._wake)
            with self._lock:
                self._idle -= 1
                token, operation, offset, views, length = self._work.pop(0)
            while self._closed():
                time.sleep(GATE_POLL)
            result = self._operation(operation, offset, views, length)
            del views
            with self._lock:
                self._done.append((token, result))
            token = None
            os.eventfd_write(self.event_fd, 1)

    def _operation(self, operation: int, offset: int, views: list[memoryview], length: int) -> int:
        if operation >= FLUSH or self._alignment == 1 or is_aligned(views, self._alignment):
            return transfer(self.fd, operation, offset, views, length)
        try:
            with self._lock:
                bounce = self._bounce.get(sum(map(len, views)))
        except OSError as problem:  # no memory
            return -(problem.errno or errno.ENOMEM)
        result = done = 0
        while views:
            buffer = bounce[: sum(map(len, views))]
            if operation == WRITE:
                gather(views, buffer)
            result = transfer(self.fd, operation, offset + done, [buffer])
            if result <= 0:
                break
            if operation == READ:
                scatter(buffer, views, result)
            done += result
            views = rest_of(views, result)
        with self._lock:
            self._bounce.put(bounce)
        return min(result, 0) or done

    def reap(self) -> list[Completion]:
        try:
            os.eventfd_read(self.event_fd)
        except BlockingIOError:
            return []
        with self._lock:
            done, self._done = self._done, []
        return done


def is_aligned(views: list[memoryview], alignment: int) -> bool:
    """True when O_DIRECT takes these buffers: host address and length of each are multiples of ``alignment`` bytes."""

    for view in views:
        if len(view) % alignment or ctypes.addressof(ctypes.c_char.from_buffer(view)) % alignment:
            return False
    return True


def open_storage(path: str) -> int:
    """Open block device or (tests) regular file ``path``: a block device always past the page cache. Raises
    StorageError.
    """
    try:
        flags = os.O_RDWR | os.O_CLOEXEC
        mode = os.stat(path).st_mode
        if stat.S_ISBLK(mode):
            flags |= os.O_DIRECT
        elif not stat.S_ISREG(mode):
            raise StorageError(f"{path} is neither a block device nor a regular file")
        return os.open(path, flags)
    except OSError as problem:
        raise StorageError(f"cannot open the storage {path}: {problem.strerror}") from problem


def read_first_block(storage: Storage, block_size: int) -> int:
    """Return what reading the first block comes to: bytes, or a negative errno."""
    token = object()
    poller = select.poll()
    if storage.event_fd >= 0:
        poller.register(storage.event_fd, select.POLLIN)
    storage.submit(token, READ, 0, [memoryview(mmap.mmap(-1, mmap.PAGESIZE))[:block_size]])
    storage.kick()
    while not (done := storage.reap()):
        wait = storage.timeout()
        poller.poll(None if wait < 0 else wait * 1000)
    return done[0][1]


def make_storage(
    fd: int,
    block_size: int,
    latency: tuple[float, float] | None,
    kind: str = "auto",
    proofs: "list[int] | None" = None,
) -> Storage:
    """Return the back end for ``fd``: ``kind`` auto, file, threads or uring. ``block_size`` is the alignment that
    O_DIRECT asks for, in bytes. ``proofs`` are descriptors that stay open while I/O is under way, whatever becomes of
    this process.
    """

    direct = bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)
    alignment = max(block_size, SECTOR_SIZE) if direct else 1
    storage: Storage | None = None
    if kind == "file" or (kind == "auto" and not direct and stat.S_ISREG(os.fstat(fd).st_mode)):
        storage = FileStorage(fd)
    elif kind in ("auto", "uring"):
        from vportd.uring import UringStorage

        storage = UringStorage.probe(fd, alignment, proofs)
    if storage is None:
        storage = ThreadStorage(fd, alignment)
    if latency is not None:
        from vportd.latency import SlowStorage

        storage = SlowStorage(storage, latency)
    return storage
