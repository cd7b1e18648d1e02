# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m tests.bench [--quick]``: measures both sides in turns, prints a table, writes build/bench/bench.json.

Each figure is the median over repeats, each ratio the median of the ratios of the repeats, in which the sides follow
each other at once: what else the machine does meets them alike.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench import fio, qemu_img
from tests.bench.back_ends import MIB, Ours, Theirs, cpu_seconds, extents, packed, private_mib
from tests.bench.load import Figures, Load, Shape
from tests.slow_file import NoFuse, SlowFile, loop_device

ROOT = Path(__file__).resolve().parents[2]
SPAN = 128 * MIB
MANY = 1 << 20  # extents, of 4 KiB each
LATENCY = 100e-6  # seconds of the device that is made slow
REPEATS = {True: (3, 0.3), False: (7, 1.0)}  # quick: how often, and for how many seconds
OURS, DEFAULT, URING = "vportd", "peer", "peer io_uring"
FIO, ONE = "fio io_uring", "one extent"  # in rows that have no peer
Row = dict[str, Any]


def shapes(quick: bool) -> list[tuple[str, Shape]]:
    """What is asked of both sides."""
    depths = (1, 32) if quick else (1, 4, 32, 128)
    found = []
    for kind, writes in (("read", 0), ("write", 10)):
        found += [(f"4 KiB {kind} QD{depth}", Shape(4096, depth, writes, SPAN)) for depth in depths]
        found.append((f"128 KiB {kind} QD32", Shape(128 << 10, 32, writes, SPAN)))
    found.append(("4 KiB mixed 70/30 QD32", Shape(4096, 32, 3, SPAN)))
    return found


def once(path: Path, pids: list[int], shape: Shape, seconds: float) -> tuple[Figures, float]:
    """One measurement after a short warm-up: the figures, and CPU seconds for a million requests."""
    load = Load(path, shape)
    try:
        load.run(seconds / 8)
        before = cpu_seconds(pids)
        figures = load.run(seconds)
        return figures, (cpu_seconds(pids) - before) / figures.requests * 1e6
    finally:
        load.close()


def compare(name: str, sides: dict[str, tuple[Path, list[int]]], shape: Shape, repeats: int, seconds: float) -> Row:
    """Measure all sides in turns."""
    rates: dict[str, list[float]] = {side: [] for side in sides}
    costs: dict[str, list[float]] = {side: [] for side in sides}
    shares: list[float] = []
    for __ in range(repeats):
        for side, (path, pids) in sides.items():
            figures, cost = once(path, pids, shape, seconds)
            rates[side].append(figures.rate)
            costs[side].append(cost)
            shares.append(figures.own / figures.seconds)
    row = _row(name, rates) | {"load": statistics.median(shares)}
    return row | {f"{side} cpu": statistics.median(found) for side, found in costs.items()}


def in_turns(name: str, sides: Mapping[str, Callable[[], float]], repeats: int) -> Row:
    """Ask all sides in turns for requests a second."""
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for __ in range(repeats):
        for side, measure in sides.items():
            rates[side].append(measure())
    return _row(name, rates)


def _row(name: str, rates: dict[str, list[float]]) -> Row:
    """The medians of what was found in turns, and those of the first side's ratio to each."""
    row: Row = {"case": name}
    first = next(iter(rates))
    for side, found in rates.items():
        row[side] = statistics.median(found)
        row[f"x {side}"] = statistics.median(a / b for a, b in zip(rates[first], found, strict=True))
    return row


def ceiling(
    name: str, side: tuple[Path, list[int]], reach: Callable[[Shape, float], float], repeats: int, seconds: float
) -> list[Row]:
    """Reads and writes of the engine at QD32 against what fio reaches on what the engine stores to."""
    rows = []
    for kind, writes in (("read", 0), ("write", 10)) if fio.installed() else ():
        shape = Shape(4096, 32, writes, SPAN)
        sides = {OURS: partial(_rate, *side, shape, seconds), FIO: partial(reach, shape, seconds)}
        rows.append(in_turns(f"4 KiB {kind} QD32, {name}, against fio", sides, repeats))
    return rows


def _rate(path: Path, pids: list[int], shape: Shape, seconds: float) -> float:
    return once(path, pids, shape, seconds)[0].rate


def by_qemu_img(paths: dict[str, Path], repeats: int, seconds: float) -> list[Row]:
    """All sides under the load that is not our own."""
    return [
        in_turns(
            f"4 KiB read QD{depth}, 64 extents, by qemu-img bench",
            {side: partial(qemu_img.rate, path, depth, seconds) for side, path in paths.items()},
            repeats,
        )
        for depth in ((1, 32) if not qemu_img.lacks() else ())
    ]


def _one_of_many(path: Path, shape: Shape, seconds: float, gate: Any, results: Any) -> None:
    load = Load(path, shape)
    load.run(seconds / 8)
    gate.wait(60)
    results.put(load.run(seconds).rate)
    load.close()


def many(paths: list[Path], shape: Shape, seconds: float) -> float:
    """Requests a second of loads on all the paths at once."""
    context = multiprocessing.get_context("fork")
    gate, results = context.Barrier(len(paths)), context.Queue()
    arguments = [(path, shape, seconds, gate, results) for path in paths]
    processes = [context.Process(target=_one_of_many, args=one) for one in arguments]
    for process in processes:
        process.start()
    total: float = sum(results.get(timeout=120) for __ in paths)
    for process in processes:
        process.join()
    return total


def worst_of(path: Path, switch: Callable[[], None]) -> float:
    """The worst latency, in seconds, that a load of 4 KiB reads at QD4 sees while another process switches."""
    load = Load(path, Shape(4096, 4, 0, SPAN))
    try:
        load.run(0.1)
        process = multiprocessing.get_context("fork").Process(target=_later, args=(switch,))
        process.start()
        worst = load.run(0.3).worst
        process.join()
        assert process.exitcode == 0
        return worst
    finally:
        load.close()


def _later(switch: Callable[[], None]) -> None:
    time.sleep(0.1)
    switch()


def switches(ours: Ours, path: Path, theirs: Theirs, times: int) -> list[Row]:
    """Worst latency during a change of path, and during the peer's ``blockdev-reopen``, and without either; in
    turns.
    """

    def switch(turn: int) -> None:
        ours.engine.rpc().vport_switch(vport="bound", path=("pf", "vf")[turn % 2])

    def reopen(turn: int) -> None:
        theirs.reopen(("other", "image")[turn % 2])

    mine, other, idle = [], [], []
    for turn in range(times):
        mine.append(worst_of(path, partial(switch, turn)))
        other.append(worst_of(theirs.paths[0], partial(reopen, turn)))
        idle.append(worst_of(path, lambda: None))
    history = ours.rpc.vport_get(vport="bound")["history"]
    blackouts = [one["detail"]["blackout_seconds"] for one in history if one["event"] == "switched"]
    a, b = statistics.median(mine), statistics.median(other)
    return [
        {"case": "worst latency in a switch, ms", OURS: a * 1e3, DEFAULT: b * 1e3, f"x {DEFAULT}": b / a},
        {"case": "worst latency without one, ms", OURS: statistics.median(idle) * 1e3},
        {"case": "suspend to resumed on the other path, ms", OURS: statistics.median(blackouts) * 1e3},
    ]


def pushes(ours: Ours, counts: list[int], repeats: int) -> list[Row]:
    """Seconds from a list of extents to the answer of ``mapping_set``, when the mapping is live in every worker."""
    rows = []
    for count in counts:
        found = extents(count, 4096, 0)
        taken = []
        for __ in range(repeats):
            ours.rpc.vport_create(vport="push")
            began = time.perf_counter()
            ours.rpc.mapping_set(vport="push", luns=[{"lun": 0, "vdisk": "push", "extents": packed(found)}])
            taken.append(time.perf_counter() - began)
            ours.delete("push")
        rows.append({"case": f"push of {count} extents, s", OURS: statistics.median(taken)})
    return rows


def run(quick: bool, directory: Path) -> list[Row]:
    """Everything, one row a case."""
    repeats, seconds = REPEATS[quick]
    size = MANY * 4096 + SPAN
    ours = Ours(directory, size)
    with open(ours.engine.storage, "r+b") as file:
        file.seek(MANY * 4096)
        for __ in range(SPAN // MIB):
            file.write(os.urandom(MIB))
    top = MANY * 4096
    ours.start()
    rows: list[Row] = []
    peers = {
        DEFAULT: Theirs(directory, ours.engine.storage, "threads", [(top, SPAN)]),
        URING: Theirs(directory, ours.engine.storage, "io_uring", [(top, SPAN)]),
    }
    for peer in peers.values():
        peer.start()
    try:
        rows += pushes(ours, [1000, 100_000, MANY], 1 if quick else 3)
        path = ours.add("bound", extents(64, SPAN // 64, top), bind=True)
        others = {name: (peer.paths[0], peer.pids()) for name, peer in peers.items()}
        mine = {OURS: (path, ours.pids())}
        for name, shape in shapes(quick):
            rows.append(compare(f"{name}, 64 extents", {**mine, **others}, shape, repeats, seconds))
        reach = partial(fio.rate, ours.engine.storage, top, False)
        rows += ceiling("64 extents", mine[OURS], reach, repeats, seconds)
        rows += by_qemu_img({OURS: path} | {name: peer.paths[0] for name, peer in peers.items()}, repeats, seconds)
        rows += switches(ours, path, peers[DEFAULT], 5 if quick else 15)
        rows.append(
            {"case": "private memory, MiB", OURS: private_mib(ours.pids()), DEFAULT: private_mib(others[DEFAULT][1])}
        )
        ours.delete("bound")
        rows += _extent_counts(ours, repeats, seconds)
        rows += _several(ours, directory, top, repeats, seconds)
    finally:
        for peer in peers.values():
            peer.stop()
        ours.stop()
    return rows


def _extent_counts(ours: Ours, repeats: int, seconds: float) -> list[Row]:
    """The same requests over one extent and over a million, on the part of the storage that both have."""
    shape = Shape(4096, 32, 0, 4 * SPAN)
    one = ours.add("one", [[0, 0, MANY * 4096]])
    load = Load(one, Shape(128 << 10, 32, 0, 4 * SPAN))  # into the page cache
    load.run(1.0)
    load.close()
    rates: dict[str, list[float]] = {OURS: [], ONE: []}
    memory = private_mib(ours.pids())
    for __ in range(repeats):
        rates[ONE].append(once(one, ours.pids(), shape, seconds)[0].rate)
        ours.delete("one")
        million = ours.add("million", extents(MANY, 4096, 0))
        rates[OURS].append(once(million, ours.pids(), shape, seconds)[0].rate)
        grown = private_mib(ours.pids()) - memory
        ours.delete("million")
        one = ours.add("one", [[0, 0, MANY * 4096]])
    ours.delete("one")
    return [
        _row("4 KiB read QD32, a million extents against one", rates),
        {"case": "memory of a million extents, MiB, all processes", OURS: grown},
    ]


def _several(ours: Ours, directory: Path, top: int, repeats: int, seconds: float) -> list[Row]:
    """Four vports at once, against four exports of slices of the file in one peer."""
    part = SPAN // 4
    slices = [(top + number * part, part) for number in range(4)]
    paths = [ours.add(f"vp{number}", [[0, offset, size]]) for number, (offset, size) in enumerate(slices)]
    peer = Theirs(directory, ours.engine.storage, "threads", slices)
    peer.start()
    shape = Shape(4096, 32, 0, part)
    sides = {OURS: partial(many, paths, shape, seconds), DEFAULT: partial(many, peer.paths, shape, seconds)}
    try:
        return [in_turns("4 KiB read QD32, 4 vports at once", sides, repeats)]
    finally:
        peer.stop()


def slow_device(directory: Path, quick: bool, repeats: int, seconds: float) -> list[Row]:
    """The same requests to a block device whose every request takes LATENCY seconds, past the page cache on all sides.
    Raises NoFuse where there is none to be had.
    """
    rows = []
    directory.mkdir()
    backing = directory / "backing"
    with open(backing, "wb") as file:
        for __ in range(SPAN // MIB):
            file.write(os.urandom(MIB))
    with SlowFile(directory / "slow", backing, LATENCY) as slow, loop_device(slow.point) as device:
        ours = Ours(directory, SPAN, device)
        peers = {
            DEFAULT: Theirs(directory, device, "threads", [(0, SPAN)], direct=True),
            URING: Theirs(directory, device, "io_uring", [(0, SPAN)], direct=True),
        }
        ours.start()
        for peer in peers.values():
            peer.start()
        try:
            sides = {OURS: (ours.add("slow", extents(64, SPAN // 64, 0)), ours.pids())}
            sides |= {name: (peer.paths[0], peer.pids()) for name, peer in peers.items()}
            for depth in (1, 32) if quick else (1, 4, 32, 128):
                shape = Shape(4096, depth, 0, SPAN)
                name = f"4 KiB read QD{depth}, device of {LATENCY * 1e6:.0f} us"
                rows.append(compare(name, sides, shape, repeats, seconds))
            name = f"device of {LATENCY * 1e6:.0f} us"
            rows += ceiling(name, sides[OURS], partial(fio.rate, device, 0, True), repeats, seconds)
        finally:
            for peer in peers.values():
                peer.stop()
            ours.stop()
    return rows


def table(rows: list[Row]) -> str:
    """The rows for reading."""

    def show(row: Row, key: str) -> str:
        value = row.get(key)
        return "-" if value is None else f"{value:.0f}" if value >= 1000 else f"{value:.2f}"

    keys = [OURS, DEFAULT, f"x {DEFAULT}", URING, f"x {URING}", f"{OURS} cpu", f"{DEFAULT} cpu"]
    heads = ["vportd", "peer", "ratio", "p. uring", "ratio", "cpu s/M", "peer cpu"]
    width = max(len(row["case"]) for row in rows)
    lines = [f"{'':{width}}" + "".join(f"{head:>10}" for head in heads)]
    for row in rows:
        shown = [show(row, key) for key in keys]
        for other in (FIO, ONE):
            if other in row:
                shown[1:3] = [show(row, other), show(row, f"x {other}")]
        lines.append(f"{row['case']:{width}}" + "".join(f"{one:>10}" for one in shown))
    return "\n".join(lines)


def missing() -> list[str]:
    """What cannot be compared on this machine, and why."""
    found = []
    if not fio.installed():
        found.append("what fio reaches on the same storage: it is not installed; `make setup-dev` does that")
    if lacks := qemu_img.lacks():
        found.append(f"load by qemu-img bench: {lacks}")
    return found


def main() -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(prog="bench")
    parser.add_argument("--quick", action="store_true", help="fewer cases and repeats, under three minutes")
    parser.add_argument("--directory", help="where the storage lies (5 GiB, sparse); default: a temporary one")
    chosen = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=chosen.directory, prefix="iovlab-bench-") as directory:
        rows = run(chosen.quick, Path(directory))
        without = missing()
        try:
            rows += slow_device(Path(directory) / "device", chosen.quick, *REPEATS[chosen.quick])
        except NoFuse as problem:
            without.append(f"a device of {LATENCY * 1e6:.0f} us: {problem}")
    version = subprocess.run(["qemu-storage-daemon", "--version"], capture_output=True, text=True, check=True).stdout
    result = {
        "machine": {"cpus": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()},
        "peer": version.splitlines()[0],
        "quick": chosen.quick,
        "seconds": time.monotonic() - began,
        "rows": rows,
        "missing": without,
    }
    target = ROOT / "build/bench/bench.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n")
    print(table(rows))
    print(f"\npeer: {result['peer']}; its default is aio=threads; ratios above 1 are in favour of vportd")
    for line in without:
        print(f"not measured: {line}")
    print(f"{target.relative_to(ROOT)} after {result['seconds']:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
