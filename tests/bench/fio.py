# SPDX-License-Identifier: GPL-3.0-or-later
"""The ceiling: what fio reaches with io_uring on the storage itself, without a guest, a ring or a mapping."""

import json
import shutil
import subprocess
from pathlib import Path

from tests.bench.load import Shape


def installed() -> bool:
    """True when it can be asked."""
    return shutil.which("fio") is not None


def rate(storage: Path, offset: int, direct: bool, shape: Shape, seconds: float) -> float:
    """Requests a second at random over ``shape.span`` bytes from ``offset`` on; ``direct`` = past the page cache, as
    the engine opens a block device and not a file.
    """
    command = [
        *("fio", "--name=ceiling", f"--filename={storage}", "--allow_file_create=0", "--fallocate=none"),
        *("--ioengine=io_uring", f"--iodepth={shape.depth}", f"--bs={shape.size}", f"--direct={direct:d}"),
        *(f"--rw={'randwrite' if shape.writes else 'randread'}", "--norandommap"),
        *(f"--offset={offset}", f"--size={shape.span}"),
        "--invalidate=0",  # what is in the page cache stays there, as it does for the engine
        *("--thread", "--time_based", f"--runtime={seconds * 1000:.0f}ms", f"--ramp_time={seconds * 125:.0f}ms"),
        "--output-format=json",
    ]
    assert shape.writes in (0, 10), "reads or writes"
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=True)
    (job,) = json.loads(done.stdout)["jobs"]
    assert job["error"] == 0, job
    found: float = job["write" if shape.writes else "read"]["iops"]
    return found
