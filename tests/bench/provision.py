# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m tests.bench.provision [--quick]``: what it takes to provision adapters, by real runs of ansible-playbook.

Hypervisors are simulated (hypervisor.py). One adapter is provisioned in three ways (provision_tasks.py), in turns
within a repeat; a ratio is the median of the ratios of the repeats. After each way's first run, a check run of
adapter_config must find nothing to change, so that all have made the same. Then a fleet. Prints tables, writes
build/bench/provision.json. Times include the start of ansible-playbook, which the first row has alone.
"""

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.bench.hypervisor import Hypervisor
from tests.bench.provision_tasks import MODULE, SHELL, SIDES, SINGLE, Case, Task, tasks
from tests.slow_file import NoFuse
from tests.unit.plugins.machine import MIB

ROOT = Path(__file__).resolve().parents[2]
WHOLE = {True: Case(4, 8, 4), False: Case(64, 256, 64)}
GROWTH = {
    True: ([Case(1, 0), Case(4, 0)], [Case(0, 1), Case(0, 8)]),
    False: ([Case(1, 0), Case(16, 0), Case(64, 0)], [Case(0, 1), Case(0, 64), Case(0, 256)]),
}
MANY = 64  # objects from which on the single modules are left out: they take minutes, and a line has two points already
PARTS = ("growth", "whole", "fleet")
FLEET = Case(4, 4, 2)
FLEETS = {True: [(1, 5), (10, 5)], False: [(1, 20), (10, 20), (100, 5), (100, 20), (100, 50)]}
Row = dict[str, Any]


class Unlike(Exception):
    """A run did not do what it was to do; ``str()`` says what it printed."""


def play(hosts: Sequence[Hypervisor], found: Sequence[Task], *arguments: str, forks: int = 5) -> tuple[float, int]:
    """Run tasks on hosts: seconds, and how many tasks changed something. Raises Unlike when one failed."""
    directory = hosts[0].directory
    variables = {
        host.directory.name: {"ansible_connection": "local", "ansible_python_interpreter": str(host.interpreter)}
        for host in hosts
    }
    (directory / "hosts.json").write_text(json.dumps({"all": {"hosts": variables}}))
    content = [{"name": "Provision", "hosts": "all", "gather_facts": False, "tasks": list(found)}]
    (directory / "play.yml").write_text(json.dumps(content))
    command = [str(Path(sys.executable).parent / "ansible-playbook"), "--inventory", str(directory / "hosts.json")]
    command += ["--forks", str(forks), *arguments, str(directory / "play.yml")]
    environment = os.environ | {
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "build/collections"),
        "ANSIBLE_NOCOLOR": "1",
    }
    began = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode != 0:
        raise Unlike(done.stdout[-4000:] + done.stderr[-2000:])
    return seconds, sum(int(count) for count in re.findall(r"changed=(\d+)", done.stdout))


def runs(hosts: Sequence[Hypervisor], side: str, case: Case, forks: int = 5) -> dict[str, float]:
    """Seconds of a check run, the first run and the second one. The shell has no check mode to speak of."""
    found = tasks(side, case)
    times = {} if side == SHELL else {"check": play(hosts, found, "--check", forks=forks)[0]}
    times["first"], changed = play(hosts, found, forks=forks)
    if not changed:
        raise Unlike(f"{side} changed nothing in its first run")
    times["second"], changed = play(hosts, found, forks=forks)
    if changed:
        raise Unlike(f"{side} changed {changed} tasks in its second run")
    __, changed = play(hosts, tasks(MODULE, case), "--check", forks=forks)
    if changed:
        raise Unlike(f"{side} has made something else than {MODULE} would")
    return times


def start(directory: Path, count: int, case: Case, stack: ExitStack) -> list[Hypervisor]:
    """Hypervisors that stop with the stack."""
    base = Path(tempfile.mkdtemp(dir=directory))
    base.chmod(0o755)
    stack.callback(shutil.rmtree, base)
    size = (16 + 4 * (case.vdisks + 8)) * MIB
    hosts = []
    for number in range(count):
        host = Hypervisor(base / f"hv{number}", max(case.vfs, 1), size)
        stack.callback(host.stop)
        hosts.append(host)
    for host in hosts:
        host.wait()
    return hosts


def compare(directory: Path, case: Case, sides: Sequence[str], repeats: int) -> list[Row]:
    """All sides in turns, each on a bare hypervisor: a row for each kind of run."""
    times: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for __ in range(repeats):
        for side in sides:
            with ExitStack() as stack:
                times[side].append(runs(start(directory, 1, case, stack), side, case))
            told(f"{case}: {side} {times[side][-1]}")
    rows = []
    for kind in ("first", "second", "check"):
        row: Row = {"case": str(case), "run": kind, "repeats": repeats, "vfs": case.vfs, "vdisks": case.vdisks}
        for side in sides:
            if all(kind in one for one in times[side]):
                row[side] = statistics.median(one[kind] for one in times[side])
                pairs = zip(times[side], times[MODULE], strict=True)
                row[f"x {side}"] = statistics.median(theirs[kind] / ours[kind] for theirs, ours in pairs)
        rows.append(row)
    return rows


def sides(case: Case) -> tuple[str, ...]:
    return SIDES if case.vfs + case.vdisks <= MANY else (MODULE, SHELL)


def cost(rows: Sequence[Row], what: str) -> list[Row]:
    """Seconds for one more VF or vdisk: between the smallest and the largest case that has nothing else."""
    found = []
    for kind in ("first", "second"):
        alone = [row for row in rows if row["run"] == kind and row.get("case") == f"{row.get(what)} {_word(what)}"]
        row: Row = {"case": f"one more {_word(what)[:-1]}, ms", "run": kind}
        for side in SIDES:
            mine = [one for one in alone if side in one]
            low, high = min(mine, key=lambda one: int(one[what])), max(mine, key=lambda one: int(one[what]))
            row[side] = (high[side] - low[side]) / (high[what] - low[what]) * 1000
        found.append(row)
    return found


def _word(what: str) -> str:
    return "VFs" if what == "vfs" else what


def fleet(directory: Path, count: int, forks: int) -> Row:
    """A fleet of hypervisors that are provisioned by one play."""
    with ExitStack() as stack:
        hosts = start(directory, count, FLEET, stack)
        times = runs(hosts, MODULE, FLEET, forks)
    told(f"{count} hypervisors, {forks} forks: {times}")
    return {"hosts": count, "forks": forks} | times | {f"{kind} a host": times[kind] / count for kind in times}


def told(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def table(rows: Sequence[Row]) -> str:
    lines = [f"{'':34}{'run':>8}{MODULE:>16}{SINGLE:>16}{SHELL:>8}{'x single':>10}{'x shell':>9}"]
    for row in rows:
        cells = [
            _shown(row.get(key), width)
            for key, width in ((MODULE, 16), (SINGLE, 16), (SHELL, 8), (f"x {SINGLE}", 10), (f"x {SHELL}", 9))
        ]
        lines.append(f"{row['case']:34}{row['run']:>8}" + "".join(cells))
    return "\n".join(lines)


def fleet_table(rows: Sequence[Row]) -> str:
    lines = [f"{'hosts':>5}{'forks':>7}{'first':>9}{'a host':>8}{'second':>9}{'a host':>8}{'check':>9}{'a host':>8}"]
    for row in rows:
        cells = "".join(
            _shown(row[kind], 9) + _shown(row[f"{kind} a host"], 8) for kind in ("first", "second", "check")
        )
        lines.append(f"{row['hosts']:5}{row['forks']:7}{cells}")
    return "\n".join(lines)


def _shown(value: float | None, width: int) -> str:
    return f"{'-' if value is None else f'{value:.2f}':>{width}}"


def main() -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and smaller cases")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this part; may be given again")
    parser.add_argument("--repeats", type=int, help="of each comparison (3, quick: 1)")
    options = parser.parse_args()
    quick: bool = options.quick
    repeats = options.repeats or (1 if quick else 3)
    directory = Path(tempfile.mkdtemp(prefix="bench-provision-"))
    directory.chmod(0o755)
    rows: list[Row] = []
    try:
        with ExitStack() as stack:
            (host,) = start(directory, 1, Case(1, 0), stack)
            nothing = [{"name": "Nothing", "ansible.builtin.ping": {}}]
            floor = statistics.median(play([host], nothing)[0] for __ in range(3))
        rows.append({"case": "a play that does nothing", "run": "any", MODULE: floor})
        parts = options.part or PARTS
        for cases in GROWTH[quick] if "growth" in parts else ():
            for case in cases:
                rows += compare(directory, case, sides(case), repeats)
        costs = cost(rows, "vfs") + cost(rows, "vdisks") if "growth" in parts else []
        rows += compare(directory, WHOLE[quick], sides(WHOLE[quick]), repeats) if "whole" in parts else []
        rows += costs
        fleets = [fleet(directory, count, forks) for count, forks in FLEETS[quick]] if "fleet" in parts else []
    except NoFuse as problem:
        print(f"this machine cannot simulate hypervisors: {problem}; it takes root, FUSE and loop devices")
        return 1
    except Unlike as problem:
        print(f"a run did not do what it was to do:\n{problem}")
        return 1
    finally:
        shutil.rmtree(directory)
    machine = f"{os.cpu_count()} x {platform.machine()}, load {os.getloadavg()[0]:.1f}"
    print(f"\nSeconds, median of {repeats}; {machine}\n\n{table(rows)}")
    if fleets:
        print(f"\nA fleet, {FLEET} each, {MODULE}; seconds\n\n{fleet_table(fleets)}")
    target = ROOT / "build/bench/provision.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps({"machine": machine, "rows": rows, "fleet": fleets}, indent=2) + "\n")
    print(f"\nwritten to {target.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
