# SPDX-License-Identifier: GPL-3.0-or-later
"""Surroundings: what all vports of an engine share."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all vports share: directories, who owns sockets and workers (None = leave it), the lock each worker
    holds, and how often they are looked at while they do something.
    """

    run_dir: Path
    state_dir: Path
    socket_owner: tuple[int, int] | None
    worker_ids: tuple[int, int] | None
    lock_fd: int
    sample_seconds: float = 1.0
