# SPDX-License-Identifier: GPL-3.0-or-later
"""The load that runs in a tenant VM, and the check of what it wrote. One file, since it is sent there as text.

Every block of 4 KiB says whose it is: the run, the vdisk's address, its offset there, a sequence number, and a
checksum. The load keeps a ledger of the last sequence that was completed for each block, and of the last that was read
back. What a block holds later, compared with the ledger, tells what was lost, repeated, misplaced or torn.

    python3 -IS - run --ledger /tmp/load.ledger --vdisk tenant1:0,0,1024 --vdisk tenant1:1,4194304,3072
    python3 -IS - check --ledger /tmp/load.ledger

``run`` ends on SIGTERM; when each block was written once, it makes the file ``<ledger>.filled``. Both print JSON and
end with 1 when anything was wrong.
"""

from __future__ import annotations

import argparse
import base64
import json
import mmap
import os
import signal
import stat
import struct
import sys
import threading
import time
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

BLOCK, SECTOR, CELL = 4096, 512, 64
MAGIC = b"iovlab\x00\x01"
KINDS = ("lost", "repeated", "misplaced", "foreign", "torn", "damaged", "unknown", "stray")
_HEAD = struct.Struct("<8sQ24sQQ")  # magic, run, address, offset, sequence; a CRC-32 of them and the sector follow
_SECTORS = [struct.pack("<I", number) for number in range(BLOCK // SECTOR)]
_LONGEST = 16  # blocks of a request
_SHOWN = 50  # defects and errors that are kept; all are counted
_STUCK = 120.0  # seconds that outstanding requests have at the end


class Mark(NamedTuple):
    """Whose write a block or sector is of."""

    run: int
    address: str
    offset: int
    sequence: int

    def __str__(self) -> str:
        return f"write {self.sequence} to {self.address} at {self.offset}"


class Expected(NamedTuple):
    """What a block has to hold: the write ``last``, or one of those that failed after it. ``seen``: read back once."""

    run: int
    address: str
    offset: int
    last: int
    seen: int = 0
    failed: tuple[int, ...] = ()


class Defect(NamedTuple):
    kind: str
    address: str
    offset: int
    text: str


def block(mark: Mark) -> bytes:
    """The 4096 bytes of a write: the same 64 bytes all over, but for the number of the sector."""
    head = _HEAD.pack(MAGIC, mark.run, mark.address.encode(), mark.offset, mark.sequence)
    head += struct.pack("<I", zlib.crc32(head))
    return b"".join([(head + number) * (SECTOR // CELL) for number in _SECTORS])


def sector(data: bytes) -> tuple[Mark, int] | None:
    """Whose the 512 bytes are, and which sector of the block; None if they are nobody's or not whole."""
    magic, run, address, offset, sequence = _HEAD.unpack_from(data)
    checksum, number = struct.unpack_from("<II", data, _HEAD.size)
    if magic != MAGIC or checksum != zlib.crc32(data[: _HEAD.size]) or data != data[:CELL] * (SECTOR // CELL):
        return None
    return Mark(run, address.rstrip(b"\0").decode("ascii", "replace"), offset, sequence), number


def judge(data: bytes, expected: Expected) -> Defect | None:
    """What is wrong with the 4096 bytes of a block; None if nothing is."""
    run, address, offset, last, seen, failed = expected
    if any(data == block(Mark(run, address, offset, sequence)) for sequence in (last, *failed)):
        return None
    found = [sector(data[at : at + SECTOR]) for at in range(0, BLOCK, SECTOR)]
    marks = [one[0] if one else None for one in found]
    place = f"{address} at {offset}"

    def defect(kind: str, text: str) -> Defect:
        return Defect(kind, address, offset, text)

    if not data.strip(b"\0"):
        return defect("lost", f"{place} holds zeros, and write {last} is lost")
    if not any(marks):
        return defect("damaged", f"{place} holds what nobody wrote there, and write {last} is lost")
    whole = marks[0]
    if whole is None or any(mark != whole for mark in marks):
        return defect("torn", f"{place} is in pieces: {_pieces(marks)}")
    if [one[1] for one in found if one] != list(range(BLOCK // SECTOR)):
        return defect("torn", f"{place} holds {whole} with its sectors out of order")
    if whole.run != run:
        return defect("lost", f"{place} holds a write of another run, and write {last} is lost")
    if whole.address != address:
        return defect("foreign", f"{place} holds {whole}")
    if whole.offset != offset:
        return defect("misplaced", f"{place} holds {whole}")
    if whole.sequence < seen:
        return defect("repeated", f"{place} holds write {whole.sequence} again, where {seen} was read before")
    if whole.sequence < last:
        return defect("lost", f"{place} holds write {whole.sequence}, and write {last} is lost")
    return defect("unknown", f"{place} holds write {whole.sequence}, but {last} was the last")


def _pieces(marks: Sequence[Mark | None]) -> str:
    """Runs of sectors of the same write, in words."""
    told: list[str] = []
    first = 0
    for number in range(1, len(marks) + 1):
        if number == len(marks) or marks[number] != marks[first]:
            sectors = f"sector {first}" if number - first == 1 else f"sectors {first} to {number - 1}"
            told.append(f"{sectors} of {marks[first] or 'nobody'}")
            first = number
    return ", ".join(told)


class Area:
    """What the ledger says of the blocks of one vdisk that the load writes to."""

    def __init__(self, run: int, address: str, start: int, blocks: int) -> None:
        self.run, self.address, self.start, self.blocks = run, address, start, blocks
        self.last = array("I", bytes(4 * blocks))
        self.seen = array("I", bytes(4 * blocks))
        self.failed: dict[int, list[int]] = {}
        self.sequence = 0

    def offset(self, number: int) -> int:
        """Of a block, in bytes of the vdisk."""
        return self.start + number * BLOCK

    def written(self, number: int) -> bool:
        return bool(self.last[number])

    def expected(self, number: int) -> Expected:
        failed = tuple(self.failed.get(number, ()))
        return Expected(self.run, self.address, self.offset(number), self.last[number], self.seen[number], failed)

    def judge(self, number: int, data: bytes) -> Defect | None:
        """What is wrong with a block that was written; one that is right has been seen."""
        if not self.written(number):
            return None
        defect = judge(data, self.expected(number))
        if defect is None and number not in self.failed:
            self.seen[number] = self.last[number]
        return defect

    def dump(self) -> dict[str, Any]:
        return {
            "start": self.start,
            "blocks": self.blocks,
            "sequence": self.sequence,
            "last": _packed(self.last),
            "seen": _packed(self.seen),
            "failed": {str(number): sequences for number, sequences in self.failed.items()},
        }

    @classmethod
    def load(cls, run: int, address: str, kept: dict[str, Any]) -> Area:
        area = cls(run, address, kept["start"], kept["blocks"])
        area.last, area.seen, area.sequence = _unpacked(kept["last"]), _unpacked(kept["seen"]), kept["sequence"]
        area.failed = {int(number): list(sequences) for number, sequences in kept["failed"].items()}
        return area


def _packed(numbers: array[int]) -> str:
    return base64.b64encode(zlib.compress(numbers.tobytes(), 1)).decode()


def _unpacked(text: str) -> array[int]:
    numbers = array("I")
    numbers.frombytes(zlib.decompress(base64.b64decode(text)))
    return numbers


def areas_of(ledger: dict[str, Any]) -> list[Area]:
    """The areas in a ledger as ``run`` wrote it."""
    run = int(ledger["run"], 16)
    return [Area.load(run, address, kept) for address, kept in ledger["vdisks"].items()]


class Tally:
    """Defects by kind; the first of them in words."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(KINDS, 0)
        self.defects: list[dict[str, Any]] = []

    def add(self, defect: Defect | None) -> None:
        if defect is not None:
            self.counts[defect.kind] += 1
            if len(self.defects) < _SHOWN:
                self.defects.append(defect._asdict())

    def dump(self) -> dict[str, Any]:
        return {"counts": {kind: count for kind, count in self.counts.items() if count}, "defects": self.defects}


class Disk:
    """One vdisk, opened past the page cache, with what it has to hold."""

    def __init__(self, directory: str, area: Area, buffered: bool, named: str | None = None) -> None:
        self.area = area
        path = os.path.join(directory, area.address)
        self.fd = os.open(path, os.O_RDWR | (0 if buffered else os.O_DIRECT))
        status = os.fstat(self.fd)
        if stat.S_ISBLK(status.st_mode):
            device = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
            with open(f"/sys/dev/block/{device}/serial", encoding="ascii") as file:
                serial = file.read().strip()
            if serial != (named or area.address):
                raise OSError(f"{path} has the serial {serial}, so it is not vdisk {named or area.address}")
        if os.lseek(self.fd, 0, os.SEEK_END) < area.offset(area.blocks):
            raise OSError(f"{path} ends before block {area.blocks} of the area that begins at {area.start}")
        self.busy = bytearray(area.blocks)

    def read(self, buffer: mmap.mmap, first: int, count: int) -> bytes:
        with memoryview(buffer) as view, view[: count * BLOCK] as part:
            got = os.preadv(self.fd, [part], self.area.offset(first))
        if got != count * BLOCK:
            raise OSError(f"{got} of {count * BLOCK} bytes were read")
        return buffer[: count * BLOCK]

    def write(self, buffer: mmap.mmap, first: int, count: int, sequence: int) -> None:
        area = self.area
        data = b"".join([block(Mark(area.run, area.address, area.offset(first + n), sequence)) for n in range(count)])
        buffer[: len(data)] = data
        with memoryview(buffer) as view, view[: len(data)] as part:
            done = os.pwritev(self.fd, [part], area.offset(first))
        if done != len(data):
            raise OSError(f"{done} of {len(data)} bytes were written")


class Load:
    """Requests to all disks at once, ``depth`` at a time to each; a block has one request at a time."""

    def __init__(
        self, disks: Sequence[Disk], depth: int, reads: int, pause: float, filled: Callable[[], object] = bool
    ) -> None:
        self._filled = filled
        self._disks, self._depth, self._reads, self._pause = disks, depth, reads, pause
        self._lock = threading.Lock()
        self.stop = threading.Event()
        self._ended = False
        self.tally = Tally()
        self.errors: list[str] = []
        self.error_count = 0
        self.requests = {"write": 0, "read": 0}
        self.filling = len(disks) * depth  # threads that still fill their part
        self.worst = self.longest_gap = 0.0
        self.worst_by_second: dict[int, float] = {}  # second since 1970 in which they ended -> seconds of the slowest
        self._completed_at = 0.0

    def end(self) -> None:
        """As ``stop``, for a signal handler: what it interrupts may hold any of the locks, that of ``stop`` too."""
        self._ended = True

    def run(self) -> list[str]:
        """Fill each area, then go on until ``stop``. Return the names of requests that never came back."""
        threads = []
        for number, disk in enumerate(self._disks):
            for place in range(self._depth):
                name = f"request {place} to {disk.area.address}"
                work = threading.Thread(target=self._work, args=(disk, place, 977 * number + place), name=name)
                work.daemon = True
                threads.append(work)
        self._completed_at = time.monotonic()
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads) and not (self._ended or self.stop.is_set()):
            time.sleep(0.2)
        self.stop.set()
        deadline = time.monotonic() + _STUCK
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return [thread.name for thread in threads if thread.is_alive()]

    def _work(self, disk: Disk, place: int, seed: int) -> None:
        buffer = mmap.mmap(-1, _LONGEST * BLOCK)
        area = disk.area
        for first in range(place * _LONGEST, area.blocks, self._depth * _LONGEST):
            count = min(_LONGEST, area.blocks - first)
            while not self.stop.is_set() and not self._take(disk, first, count):
                self.stop.wait(0.001)  # another, which is done with its part, is busy there
            if self.stop.is_set():
                return
            self._write(disk, buffer, first, count)
        with self._lock:
            self.filling -= 1
            if not self.filling:
                self._filled()
        state = seed
        while not self.stop.is_set():
            state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
            first, count = self._place(disk, state >> 20)
            if not count:
                continue
            if (state >> 12) % 100 < self._reads:
                self._read(disk, buffer, first, count)
            else:
                self._write(disk, buffer, first, count)
            if (state >> 13) % 256 == 0:
                self._flush(disk)
            if self._pause:
                self.stop.wait(self._pause)

    def _place(self, disk: Disk, chance: int) -> tuple[int, int]:
        """Blocks that no request is out for, taken; (0, 0) if there are some in that place."""
        count = min((1, 1, 1, 1, 2, 4, 8, _LONGEST)[chance % 8], disk.area.blocks)
        first = (chance >> 3) % (disk.area.blocks - count + 1)
        return (first, count) if self._take(disk, first, count) else (0, 0)

    def _take(self, disk: Disk, first: int, count: int) -> bool:
        with self._lock:
            if any(disk.busy[first : first + count]):
                return False
            disk.busy[first : first + count] = b"\1" * count
            return True

    def _write(self, disk: Disk, buffer: mmap.mmap, first: int, count: int) -> None:
        """Write to blocks that are taken."""
        area = disk.area
        with self._lock:
            area.sequence += 1
            sequence = area.sequence
            for number in range(first, first + count):  # until it is done, both the old and the new are right
                area.failed.setdefault(number, []).append(sequence)
        begun = time.monotonic()
        try:
            disk.write(buffer, first, count, sequence)
        except OSError as exc:
            self._failed(f"write {sequence} to {area.address} at {area.offset(first)}", exc)
        else:
            for number in range(first, first + count):
                area.last[number] = sequence
                del area.failed[number]
        self._done(disk, first, count, begun, "write")

    def _read(self, disk: Disk, buffer: mmap.mmap, first: int, count: int) -> None:
        begun = time.monotonic()
        try:
            data = disk.read(buffer, first, count)
        except OSError as exc:
            self._failed(f"read of {disk.area.address} at {disk.area.offset(first)}", exc)
        else:
            for number in range(count):
                self.tally.add(disk.area.judge(first + number, data[number * BLOCK : (number + 1) * BLOCK]))
        self._done(disk, first, count, begun, "read")

    def _flush(self, disk: Disk) -> None:
        try:
            os.fdatasync(disk.fd)
        except OSError as exc:
            self._failed(f"flush of {disk.area.address}", exc)

    def _failed(self, what: str, exc: OSError) -> None:
        with self._lock:
            self.error_count += 1
            if len(self.errors) < _SHOWN:
                self.errors.append(f"{what}: {exc.strerror or exc}")

    def _done(self, disk: Disk, first: int, count: int, begun: float, kind: str) -> None:
        now = time.monotonic()
        with self._lock:
            self.requests[kind] += 1
            disk.busy[first : first + count] = bytes(count)
            self.worst = max(self.worst, now - begun)
            second = int(time.time())
            self.worst_by_second[second] = max(self.worst_by_second.get(second, 0.0), now - begun)
            self.longest_gap = max(self.longest_gap, now - self._completed_at)
            self._completed_at = now


def whole(disk: Disk) -> Iterator[Defect | None]:
    """Read every block of the area that was written, and judge it."""
    buffer = mmap.mmap(-1, _LONGEST * BLOCK)
    for first in range(0, disk.area.blocks, _LONGEST):
        count = min(_LONGEST, disk.area.blocks - first)
        data = disk.read(buffer, first, count)
        for number in range(count):
            yield disk.area.judge(first + number, data[number * BLOCK : (number + 1) * BLOCK])


def _run(options: argparse.Namespace) -> int:
    run = int.from_bytes(os.urandom(8), "little")
    areas: list[Area] = []
    for text in options.vdisk:
        address, start, blocks = text.rsplit(",", 2)
        area = Area(run, address, int(start), int(blocks))
        if area.start < 0 or area.start % BLOCK or area.blocks < 1 or address in {one.address for one in areas}:
            raise ValueError(
                f"--vdisk {text}: give each address once, a start that is a multiple of {BLOCK}, and blocks"
            )
        areas.append(area)
    disks = [Disk(options.directory, area, options.buffered, options.serial) for area in areas]
    filled = f"{options.ledger}.filled"
    for path in (options.ledger, filled):
        if os.path.exists(path):
            os.unlink(path)  # of a run before
    load = Load(disks, options.depth, options.reads, options.pause, lambda: open(filled, "w").close())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: load.end())
    if options.seconds:
        timer = threading.Timer(options.seconds, load.stop.set)
        timer.daemon = True
        timer.start()
    stuck = load.run()
    summary = {
        "ok": not (stuck or load.error_count or load.tally.defects),
        "writes": load.requests["write"],
        "reads": load.requests["read"],
        "worst_latency": round(load.worst, 6),
        "longest_gap": round(load.longest_gap, 6),
        "worst_by_second": [[second, round(took, 6)] for second, took in load.worst_by_second.items()],
        "stuck": stuck,
        "errors": load.error_count,
        "first_errors": load.errors,
        **load.tally.dump(),
    }
    _save(options.ledger, {"run": f"{run:016x}", "vdisks": {area.address: area.dump() for area in areas}} | summary)
    print(json.dumps(summary), flush=True)
    os._exit(0 if summary["ok"] else 1)  # a thread whose request never comes back would keep it from ending


def _check(options: argparse.Namespace) -> int:
    with open(options.ledger, encoding="ascii") as file:
        ledger = json.load(file)
    tally, errors, checked = Tally(), [], 0
    for area in areas_of(ledger):
        try:
            for defect in whole(Disk(options.directory, area, options.buffered, options.serial)):
                tally.add(defect)
        except OSError as exc:
            errors.append(f"{area.address}: {exc.strerror or exc}")
        checked += sum(map(area.written, range(area.blocks)))
        ledger["vdisks"][area.address] = area.dump()
    ok = not (errors or tally.defects) and checked > 0
    _save(options.ledger, ledger)
    print(json.dumps({"ok": ok, "checked": checked, "errors": errors, **tally.dump()}))
    return 0 if ok else 1


def _save(path: str, ledger: dict[str, Any]) -> None:
    with open(f"{path}.new", "w", encoding="ascii") as file:
        json.dump(ledger, file)
    os.rename(f"{path}.new", path)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="guest.py", description="A load that notes each of its writes")
    parser.add_argument("--directory", default="/dev/disk/by-address", help="where the vdisks are, by address")
    parser.add_argument("--serial", help="what the serial of every disk is, if not its address")
    parser.add_argument("--buffered", action="store_true", help="through the page cache, for tests on files")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="write and read until SIGTERM")
    run.add_argument("--vdisk", action="append", required=True, metavar="ADDRESS,START,BLOCKS", help="area to write to")
    run.add_argument("--depth", type=int, default=4, help="requests at a time to each vdisk")
    run.add_argument("--reads", type=int, default=30, help="percent of the requests that read")
    run.add_argument("--pause", type=float, default=0.0, help="seconds that each waits after a request")
    run.add_argument("--seconds", type=float, default=0.0, help="end by itself after so long")
    check = commands.add_parser("check", help="read every block back")
    for command in (run, check):
        command.add_argument("--ledger", required=True, help="file of what was written")
    options = parser.parse_args(arguments)
    try:
        return _run(options) if options.command == "run" else _check(options)
    except (OSError, ValueError) as exc:
        print(f"guest.py: {exc}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
