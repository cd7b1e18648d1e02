# SPDX-License-Identifier: GPL-3.0-or-later
"""Surroundings: what all vports of an engine share."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from vportd.lease_protocol import Host, Timing


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all vports share: directories, who owns sockets and workers (None = leave it), the lock each worker
    holds, and how often they are looked at while they do something; and for leases, who this host is, their times, and
    the threads that wait for the storage.
    """

    run_dir: Path
    state_dir: Path
    socket_owner: tuple[int, int] | None
    worker_ids: tuple[int, int] | None
    lock_fd: int
    host: Host
    timing: Timing
    lease_threads: ThreadPoolExecutor
    sample_seconds: float = 1.0
