# SPDX-License-Identifier: GPL-3.0-or-later
"""The verifying load: every write that is lost, repeated, misplaced or torn is found, in the guest and from outside."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.load import guest, lvm, outside
from tests.load.guest import BLOCK, SECTOR, Area, Expected, Mark, block, judge

pytestmark = pytest.mark.xdist_group("lvm")  # one test at a time has volume groups on this machine

MIB = 1 << 20
RUN = 0x1122334455667788
HERE = Expected(RUN, "tenant1:0", 8 * BLOCK, last=7, seen=5)
GUEST = Path(guest.__file__)


def mark(**changes: Any) -> Mark:
    return Mark(RUN, "tenant1:0", 8 * BLOCK, 7)._replace(**changes)


# One block


def test_a_block_says_whose_it_is() -> None:
    data = block(mark())
    assert len(data) == BLOCK
    assert [guest.sector(data[at : at + SECTOR]) for at in range(0, BLOCK, SECTOR)] == [(mark(), n) for n in range(8)]
    assert judge(data, HERE) is None


@given(
    st.integers(0, 2**64 - 1),
    st.from_regex(r"[a-z0-9][a-z0-9-]{0,14}:[0-9]{1,3}", fullmatch=True),
    st.integers(0, 2**64 - 1),
    st.integers(1, 2**32 - 1),
)
def test_any_mark_is_read_back(run: int, address: str, offset: int, sequence: int) -> None:
    wanted = Mark(run, address, offset, sequence)
    assert guest.sector(block(wanted)[-SECTOR:]) == (wanted, 7)


def torn(*pieces: tuple[int, Mark]) -> bytes:
    return b"".join(block(one)[start * SECTOR : (start + 1) * SECTOR] for start, one in pieces)


HALF = torn(*((n, mark() if n < 3 else mark(sequence=6)) for n in range(8)))
SWAPPED = torn(*((n ^ 1, mark()) for n in range(8)))
PLANTED: list[tuple[str, bytes, str]] = [
    ("lost", block(mark(sequence=6)), "holds write 6, and write 7 is lost"),
    ("lost", bytes(BLOCK), "holds zeros, and write 7 is lost"),
    ("lost", block(mark(run=1)), "holds a write of another run"),
    ("repeated", block(mark(sequence=4)), "holds write 4 again, where 5 was read before"),
    ("misplaced", block(mark(offset=9 * BLOCK)), "holds write 7 to tenant1:0 at 36864"),
    ("foreign", block(mark(address="tenant1:1")), "holds write 7 to tenant1:1 at 32768"),
    ("foreign", block(mark(address="tenant2:0")), "holds write 7 to tenant2:0 at 32768"),
    ("torn", HALF, "sectors 0 to 2 of write 7 to tenant1:0 at 32768, sectors 3 to 7 of write 6"),
    ("torn", SWAPPED, "sectors out of order"),
    ("torn", block(mark())[:SECTOR] + bytes(BLOCK - SECTOR), "sectors 1 to 7 of nobody"),
    ("torn", block(mark())[SECTOR:] + bytes(SECTOR), "sector 7 of nobody"),
    ("damaged", b"\x5a" * BLOCK, "holds what nobody wrote there"),
    ("unknown", block(mark(sequence=8)), "holds write 8, but 7 was the last"),
]


@pytest.mark.parametrize(("kind", "data", "words"), PLANTED, ids=[f"{kind}: {words}" for kind, __, words in PLANTED])
def test_each_planted_defect_is_found_and_named(kind: str, data: bytes, words: str) -> None:
    defect = judge(data, HERE)
    assert defect is not None
    assert (defect.kind, defect.address, defect.offset) == (kind, "tenant1:0", 8 * BLOCK)
    assert words in defect.text


@given(st.integers(0, BLOCK - 1), st.integers(1, 255))
def test_no_changed_byte_goes_unseen(at: int, change: int) -> None:
    data = bytearray(block(mark()))
    data[at] ^= change
    assert judge(bytes(data), HERE) is not None


@given(st.integers(1, BLOCK // 64 - 1))
def test_no_shift_goes_unseen(cells: int) -> None:
    """A write that begins 64 bytes or more too late, with what was there before in front."""
    data = (block(mark(sequence=6))[: cells * 64] + block(mark()))[:BLOCK]
    assert judge(data, HERE) is not None


def test_a_write_that_failed_may_be_there_or_not() -> None:
    expected = HERE._replace(failed=(8, 9))
    for sequence in (7, 8, 9):
        assert judge(block(mark(sequence=sequence)), expected) is None
    for sequence in (6, 10):
        assert judge(block(mark(sequence=sequence)), expected) is not None


def test_a_ledger_is_read_as_it_was_written() -> None:
    area = Area(RUN, "tenant1:0", MIB, 100)
    area.last[3], area.seen[3], area.failed[5], area.sequence = 70000, 69999, [4, 5], 70001
    (again,) = guest.areas_of(json.loads(json.dumps({"run": f"{RUN:016x}", "vdisks": {"tenant1:0": area.dump()}})))
    assert again.dump() == area.dump()
    assert again.expected(3) == Expected(RUN, "tenant1:0", MIB + 3 * BLOCK, 70000, 69999, ())
    assert again.expected(5).failed == (4, 5)


# The load itself


class Disks(NamedTuple):
    """Files in the place of vdisks, and the program that runs on them."""

    directory: Path
    ledger: Path

    def path(self, lun: int) -> Path:
        return self.directory / f"tenant1:{lun}"

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-IS", str(GUEST), "--directory", str(self.directory), "--buffered", *arguments]

    def start(self, *more: str, **options: Any) -> subprocess.Popen[str]:
        areas = ["--vdisk", "tenant1:0,0,64", "--vdisk", "tenant1:1,1048576,256"]
        return subprocess.Popen(
            self.command("run", "--ledger", str(self.ledger), *areas, *more),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
        )  # fmt: skip

    def run(self, *more: str, **options: Any) -> dict[str, Any]:
        out, err = self.start("--seconds=0.6", *more, **options).communicate(timeout=60)
        assert out, err
        result: dict[str, Any] = json.loads(out)
        return result

    def check(self) -> dict[str, Any]:
        done = subprocess.run(
            self.command("check", "--ledger", str(self.ledger)), capture_output=True, text=True, check=False
        )
        result: dict[str, Any] = json.loads(done.stdout)
        assert done.returncode == (0 if result["ok"] else 1)
        return result

    def kept(self) -> dict[str, Any]:
        ledger: dict[str, Any] = json.loads(self.ledger.read_text())
        return ledger

    def area(self, lun: int) -> Area:
        return guest.areas_of(self.kept())[lun]


@pytest.fixture
def disks(tmp_path: Path) -> Disks:
    disks = Disks(tmp_path / "by-address", tmp_path / "ledger")
    disks.directory.mkdir()
    for lun, size in ((0, MIB), (1, 4 * MIB)):
        disks.path(lun).write_bytes(bytes(size))
    return disks


def test_a_load_on_good_disks_is_good(disks: Disks) -> None:
    result = disks.run()
    assert result["ok"], result
    assert result["writes"] > 40
    assert result["reads"] > 10
    assert (result["errors"], result["stuck"], result["counts"], result["defects"]) == (0, [], {}, [])
    assert 0 < result["worst_latency"] < 60
    area = disks.area(1)
    assert all(area.written(number) for number in range(256)), "each block was filled"
    assert area.failed == {}
    assert max(area.last) == area.sequence
    assert disks.check() == {"ok": True, "checked": 64 + 256, "errors": [], "counts": {}, "defects": []}
    assert list(disks.area(1).seen) == list(area.last), "the check has seen all"
    assert disks.path(1).read_bytes()[:MIB] == bytes(MIB), "nothing but the area is written to"


def test_the_load_ends_on_sigterm_and_keeps_its_ledger(disks: Disks) -> None:
    process = disks.start()
    deadline = time.monotonic() + 30
    while not Path(f"{disks.ledger}.filled").exists():
        assert time.monotonic() < deadline, "the load does not begin"
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert json.loads(out)["ok"]
    assert disks.check() == {"ok": True, "checked": 64 + 256, "errors": [], "counts": {}, "defects": []}


def test_a_signal_may_interrupt_who_holds_a_lock(disks: Disks) -> None:
    disk = guest.Disk(str(disks.directory), Area(RUN, "tenant1:1", 0, 64), buffered=True)
    load = guest.Load([disk], depth=2, reads=50, pause=0)
    handler = threading.Thread(target=load.end, daemon=True)
    with vars(load.stop)["_cond"], vars(load)["_lock"]:
        handler.start()
        handler.join(10)
        assert not handler.is_alive()
    assert load.run() == []


def test_the_load_finds_a_defect_while_it_runs(disks: Disks) -> None:
    disk = guest.Disk(str(disks.directory), Area(RUN, "tenant1:1", 0, 64), buffered=True)
    load = guest.Load([disk], depth=2, reads=50, pause=0)
    thread = threading.Thread(target=load.run)
    thread.start()
    deadline = time.monotonic() + 60
    try:
        while not all(map(disk.area.written, range(64))):
            assert time.monotonic() < deadline, "the area is not filled"
            time.sleep(0.01)
        while not load.tally.defects:
            assert time.monotonic() < deadline, "zeros in the place of all that was written are not seen"
            disks.path(1).write_bytes(bytes(MIB))
            time.sleep(0.05)
    finally:
        load.stop.set()
        thread.join()
    assert set(load.tally.counts) >= {"lost"}
    assert load.tally.defects[0]["kind"] in ("lost", "torn")


def test_errors_are_counted_and_leave_both_contents_right(disks: Disks) -> None:
    """The first 1.25 MiB of a file can be written to; what is beyond gives an error."""
    limit = MIB + 64 * BLOCK

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    with disks.path(1).open("r+b") as file:
        file.truncate(4 * MIB)
    result = disks.run(preexec_fn=limited)
    assert not result["ok"]
    assert result["errors"] > 0
    assert "File too large" in result["first_errors"][0] or "bytes were written" in result["first_errors"][0]
    area = disks.area(1)
    assert any(area.failed.get(number) for number in range(64, 256))
    assert disks.check()["counts"] == {}, "a write that failed is not lost"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--vdisk", "tenant1:7,0,64"], "tenant1:7"),
        (["run", "--vdisk", "tenant1:0,0,9999"], "ends before"),
        (["run", "--vdisk", "tenant1:0,5,64"], "multiple of 4096"),
        (["run", "--vdisk", "tenant1:0,0,8", "--vdisk", "tenant1:0,0,8"], "each address once"),
        (["run", "--vdisk", "tenant1:0"], "not enough values"),
        (["check"], "No such file"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(disks: Disks, arguments: list[str], words: str) -> None:
    done = subprocess.run(
        disks.command(*arguments, "--ledger", str(disks.ledger)), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not disks.ledger.exists()


def test_the_program_runs_as_text_on_standard_input(disks: Disks) -> None:
    """So it gets into the VM, by its guest agent."""
    arguments = disks.command("run", "--ledger", str(disks.ledger), "--vdisk", "tenant1:0,0,64", "--seconds=0.3")
    arguments[arguments.index(str(GUEST))] = "-"
    done = subprocess.run(arguments, input=GUEST.read_text(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ok"]


# LVM on the bytes of the physical volume

EXTENT = MIB
START = MIB
AREA = 4096


def lvm_crc(data: bytes) -> int:
    crc = 0xF597A6CF
    for byte in data:
        crc ^= byte
        for __ in range(8):
            crc = crc >> 1 ^ (0xEDB88320 if crc & 1 else 0)
    return crc


def metadata(volumes: dict[str, list[tuple[int, int]]]) -> str:
    """Each volume as (first physical extent, how many), in order."""

    def segments(runs: list[tuple[int, int]]) -> Iterator[str]:
        start = 0
        for number, (first, count) in enumerate(runs, 1):
            yield (
                f'segment{number} {{\nstart_extent = {start}\nextent_count = {count}\n\ntype = "striped"\n'
                f'stripe_count = 1\t# linear\n\nstripes = [\n"pv0", {first}\n]\n}}\n'
            )
            start += count

    logical = "".join(
        f'{name} {{\nid = "x{name}"\nstatus = ["READ", "WRITE"]\ntags = ["iovlab.wiped=1", "a \\"b\\""]\nflags = []\n'
        f"segment_count = {len(runs)}\n{''.join(segments(runs))}}}\n"
        for name, runs in volumes.items()
    )
    return (
        f'san {{\nid = "abc"\nseqno = 4\nextent_size = {EXTENT // SECTOR}\t\t# 1 Megabytes\n'
        f'physical_volumes {{\npv0 {{\nid = "p"\ndev_size = 99\npe_start = {START // SECTOR}\npe_count = 30\n}}\n}}\n\n'
        f"logical_volumes {{\n{logical}}}\n}}\n"
        '# Generated by LVM2\ncontents = "Text Format Volume Group"\nversion = 1\n'
    )


def physical_volume(path: Path, text: str, size: int = 32 * MIB, area: int = MIB - AREA, at: int = 1536) -> None:
    """A physical volume whose metadata begin ``at`` in their area of ``area`` bytes."""
    data = text.encode() + b"\0"
    header = struct.pack("<16sIQQ", b" LVM2 x[5A%r0N*>", 1, AREA, area)
    header += struct.pack("<QQII", at, len(data), lvm_crc(data), 0)
    header = header.ljust(SECTOR - 4, b"\0")
    body = b"u" * 32 + struct.pack("<Q", size) + struct.pack("<QQQQ", START, 0, 0, 0)
    body += struct.pack("<QQQQ", AREA, area, 0, 0)
    tail = (struct.pack("<I8s", 32, b"LVM2 001") + body).ljust(SECTOR - 20, b"\0")
    label = b"LABELONE" + struct.pack("<QI", 1, lvm_crc(tail)) + tail
    with path.open("wb") as file:
        file.truncate(size)
        file.seek(SECTOR)
        file.write(label)
        file.seek(AREA)
        file.write(struct.pack("<I", lvm_crc(header)) + header)
        first = min(len(data), area - at)
        file.seek(AREA + at)
        file.write(data[:first])
        file.seek(AREA + SECTOR)
        file.write(data[first:]) if first < len(data) else None


VOLUMES = {"tenant1-system": [(3, 1)], "other": [(8, 2)], "tenant1-data": [(5, 2), (12, 1), (1, 1)]}
NAMES = {"tenant1:0": "tenant1-system", "tenant1:1": "tenant1-data"}


def group_of(path: Path) -> lvm.Group:
    with path.open("rb") as image:
        return lvm.read(image)


@pytest.mark.parametrize("at", [1536, MIB - AREA - 100], ids=["at once", "around the end of its area"])
def test_the_extents_are_those_of_the_metadata(tmp_path: Path, at: int) -> None:
    physical_volume(tmp_path / "image", metadata(VOLUMES), at=at)
    group = group_of(tmp_path / "image")
    assert group.name == "san"
    assert group.volumes["tenant1-data"] == ((0, 6 * MIB, 2 * MIB), (2 * MIB, 13 * MIB, MIB), (3 * MIB, 2 * MIB, MIB))


@pytest.mark.parametrize(
    ("at", "words"),
    [
        (SECTOR, "no label"), (SECTOR + 100, "label's checksum"), (AREA + 5, "header of the metadata"),
        (AREA + 1540, "metadata's checksum"),
    ],
)  # fmt: skip
def test_damaged_metadata_are_not_believed(tmp_path: Path, at: int, words: str) -> None:
    physical_volume(tmp_path / "image", metadata(VOLUMES))
    with (tmp_path / "image").open("r+b") as file:
        file.seek(at)
        file.write(b"!")
    with pytest.raises(lvm.NotReadable, match=words):
        group_of(tmp_path / "image")


def test_a_volume_of_another_kind_is_not_taken_for_linear(tmp_path: Path) -> None:
    physical_volume(tmp_path / "image", metadata(VOLUMES).replace("stripe_count = 1", "stripe_count = 2", 1))
    with pytest.raises(lvm.NotReadable, match="tenant1-system is not linear"):
        group_of(tmp_path / "image")


def test_the_checksum_is_lvms() -> None:
    assert lvm._crc(b"LABELONE") == lvm_crc(b"LABELONE") != zlib.crc32(b"LABELONE")


def _loop(image: Path) -> str | None:
    if os.geteuid() != 0 or not all(shutil.which(program) for program in ("losetup", "vgcreate", "lvs")):
        return None
    done = subprocess.run(["losetup", "--find", "--show", str(image)], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def test_what_lvm_itself_wrote_is_read(tmp_path: Path) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    loop = _loop(image)
    if loop is None:
        pytest.skip("needs root, a loop device and lvm2")
    config = 'global{activation=0} devices{filter=["a|.*|"] global_filter=["a|.*|"]}'

    def run(program: str, *arguments: str) -> str:
        command = [program, "--devices", loop, "--config", config, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    try:
        run("vgcreate", "--yes", "--physicalextentsize", "1m", "iovlabload", loop)
        for name in ("a", "b"):
            run("lvcreate", "--yes", "--activate", "n", "--zero", "n", "--wipesignatures", "n", "--addtag", "x.y=1",
                "--size", "2m", "--name", name, "iovlabload")  # fmt: skip
        for __ in range(20):  # until the text has gone round in its area, or nearly
            run("vgchange", "--addtag", "again", "iovlabload")
            run("vgchange", "--deltag", "again", "iovlabload")
        run("lvextend", "--size", "5m", "iovlabload/a")
        subprocess.run(["blockdev", "--flushbufs", loop], check=True)
        assert group_of(image) == (
            "iovlabload",
            {"a": ((0, MIB, 2 * MIB), (2 * MIB, 5 * MIB, 3 * MIB)), "b": ((0, 3 * MIB, 2 * MIB),)},
        )
    finally:
        subprocess.run(["losetup", "--detach", loop], check=True)


# From outside


@pytest.fixture
def storage(disks: Disks, tmp_path: Path) -> Path:
    """The image of the storage after a good load: what is in the vdisks, where LVM has them."""
    image = tmp_path / "san.img"
    physical_volume(image, metadata(VOLUMES))
    assert disks.run("--seconds=0.2")["ok"]
    assert disks.check()["ok"]
    group = group_of(image)
    with image.open("r+b") as file:
        for lun, address in enumerate(NAMES):
            data = disks.path(lun).read_bytes()
            for extent in group.volumes[NAMES[address]]:
                file.seek(extent.physical)
                file.write(data[extent.start : extent.start + extent.length])
    return image


def found(storage: Path, disks: Disks, names: dict[str, str] | None = None) -> dict[str, Any]:
    with storage.open("rb") as image:
        return outside.check(image, disks.kept(), NAMES if names is None else names)


def physical(storage: Path, lun: int, area: Area, number: int) -> int:
    volume = NAMES[f"tenant1:{lun}"]
    return outside.Place(area, volume, group_of(storage).volumes[volume]).physical(number)


def test_what_the_guest_wrote_is_found_outside(storage: Path, disks: Disks) -> None:
    assert found(storage, disks) == {"ok": True, "checked": 64 + 256, "errors": [], "counts": {}, "defects": []}
    assert physical(storage, 1, disks.area(1), 0) == 7 * MIB, "the area begins in the second MiB of the volume"


Plant = Callable[[Callable[[int, int], Mark]], dict[tuple[int, int], bytes]]


PLANTS: list[tuple[str, Plant, dict[str, int]]] = [
    ("lost", lambda of: {(1, 9): bytes(BLOCK)}, {"lost": 1}),
    ("repeated", lambda of: {(1, 9): block(of(1, 9)._replace(sequence=of(1, 9).sequence - 1))}, {"repeated": 1}),
    ("misplaced within a vdisk", lambda of: {(1, 20): block(of(1, 9))}, {"misplaced": 1}),
    ("misplaced to another vdisk", lambda of: {(0, 20): block(of(1, 20))}, {"foreign": 1}),
    ("swapped", lambda of: {(1, 9): block(of(1, 10)), (1, 10): block(of(1, 9))}, {"misplaced": 2}),
    ("torn", lambda of: {(1, 9): block(of(1, 9))[: 5 * SECTOR] + bytes(3 * SECTOR)}, {"torn": 1}),
    (
        "half a sector off",
        lambda of: {(1, 9): (block(of(1, 9))[:256] + block(of(1, 9)))[:BLOCK]},
        {"torn": 1},
    ),
    ("damaged", lambda of: {(0, 1): b"\xff" * BLOCK}, {"damaged": 1}),
]


@pytest.mark.parametrize(("plant", "counts"), [one[1:] for one in PLANTS], ids=[one[0] for one in PLANTS])
def test_each_planted_defect_is_found_outside(
    storage: Path, disks: Disks, plant: Plant, counts: dict[str, int]
) -> None:
    areas = [disks.area(lun) for lun in (0, 1)]

    def of(lun: int, number: int) -> Mark:
        area = areas[lun]
        return Mark(area.run, area.address, area.offset(number), area.last[number])

    with storage.open("r+b") as file:
        for (lun, number), data in plant(of).items():
            file.seek(physical(storage, lun, areas[lun], number))
            file.write(data)
    result = found(storage, disks)
    assert not result["ok"]
    assert result["counts"] == counts, result["defects"]


@pytest.mark.parametrize(
    ("at", "where"),
    [
        (9 * MIB + 5 * BLOCK, "in volume other"),
        (4 * MIB - BLOCK, None),
        (6 * MIB, "in volume tenant1-data"),
        (20 * MIB, "in what no volume has"),
        (32 * MIB - BLOCK, "in what no volume has"),
        (20 * MIB + 3 * SECTOR, "in what no volume has"),
    ],
    ids=[
        "another volume",
        "its own volume, beyond the area",
        "another place of its vdisk",
        "no volume",
        "the end",
        "between blocks",
    ],
)
def test_writes_that_went_astray_are_found(storage: Path, disks: Disks, at: int, where: str | None) -> None:
    area = disks.area(1)
    with storage.open("r+b") as file:
        file.seek(at)
        file.write(block(Mark(area.run, area.address, area.offset(3), 2)))
    result = found(storage, disks)
    assert not result["ok"]
    strays = [defect for defect in result["defects"] if defect["kind"] == "stray"]
    assert strays, result
    assert (strays[0]["address"], strays[0]["offset"]) == (area.address, area.offset(3))
    assert where is None or where in strays[0]["text"]


def test_what_another_run_left_outside_is_no_defect(storage: Path, disks: Disks) -> None:
    with storage.open("r+b") as file:
        file.seek(20 * MIB)
        file.write(block(mark()))
    assert found(storage, disks)["ok"]


def test_disks_that_were_exchanged_are_found(storage: Path, disks: Disks) -> None:
    """The mapping of two vdisks is swapped: each block is well in itself."""
    result = found(storage, disks, {"tenant1:0": "tenant1-data", "tenant1:1": "tenant1-system"})
    assert not result["ok"]


def test_a_volume_that_is_not_there_is_said(storage: Path, disks: Disks) -> None:
    result = found(storage, disks, {"tenant1:0": "tenant1-system"})
    assert not result["ok"]
    assert "no volume None for tenant1:1" in result["errors"][0]


def test_the_command_says_it_all(
    storage: Path, disks: Disks, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = [str(storage), str(disks.ledger), *(f"{address}={name}" for address, name in NAMES.items())]
    assert outside.main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["checked"] == 320
    with storage.open("r+b") as file:
        file.seek(physical(storage, 0, disks.area(0), 0))
        file.write(bytes(BLOCK))
    assert outside.main(arguments) == 1
    assert json.loads(capsys.readouterr().out)["counts"] == {"lost": 1}
    storage.write_bytes(bytes(MIB))
    assert outside.main(arguments) == 2
    assert capsys.readouterr().err == "outside: there is no label of a physical volume\n"
