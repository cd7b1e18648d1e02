# SPDX-License-Identifier: GPL-3.0-or-later
"""``python3 -m vportd --config FILE``: the engine's own process."""

import argparse
import asyncio
import fcntl
import os
import pwd
import secrets
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vportd import journal
from vportd.config import Config, read_config
from vportd.engine import Engine
from vportd.errors import ConfigError
from vportd.host_identity import host_id
from vportd.lease_protocol import Host, Timing
from vportd.metrics import exposition
from vportd.metrics_server import MetricsServer
from vportd.rpc import RpcServer
from vportd.surroundings import Surroundings

LEASE_THREADS = 16  # each may wait for one read or write of a lease
LOCK_TIMEOUT = 60.0  # seconds to wait for the workers of an engine that was killed


class LockHeld(ConfigError):
    """The run directory is still in use; that may end by itself."""


def notify(state: str) -> None:
    """Tell the service manager, where there is one (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            try:
                sock.sendto(state.encode(), "\0" + address[1:] if address[0] == "@" else address)
            except OSError as problem:
                journal.warning(f"the service manager cannot be told {state}: {problem}")


def _user(key: str, name: str) -> tuple[int, int]:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise ConfigError(f"{key} is {name!r}: there is no such user: install it, or name another") from None
    return entry.pw_uid, entry.pw_gid


def take_lock(path: Path) -> int:
    """Return a descriptor with the lock of this run directory. Each worker holds it too, so once it is here no
    earlier worker is left.

    Raises LockHeld when it stays held: by another engine, or by I/O of a worker that the storage does not end.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + LOCK_TIMEOUT
    said = False
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise LockHeld(
                    f"{path} is held: another engine is on this run directory, or the storage is still busy with what "
                    f"a dead worker gave to it"
                ) from None
        if not said:
            journal.info("waiting for the end of an earlier engine or its workers")
            said = True
        time.sleep(0.02)


def surroundings(config: Config) -> Surroundings:
    """Make the directories, look up the users, take the lock. Raises ConfigError."""
    root = os.geteuid() == 0
    socket_owner = _user("socket_user", config.socket_user) if root else None
    worker_ids = _user("worker_user", config.worker_user) if root else None
    run_dir, state_dir = Path(config.run_dir), Path(config.state_dir)
    try:
        run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock_fd = take_lock(run_dir / "vportd.lock")
    except OSError as problem:
        raise ConfigError(f"run_dir {run_dir} or state_dir {state_dir} cannot be used: {problem}") from problem
    host = Host(config.host_id or host_id(), config.host_name or socket.gethostname(), secrets.token_hex(16))
    timing = Timing(config.lease_validity_seconds, config.lease_renew_seconds)
    threads = ThreadPoolExecutor(LEASE_THREADS, "lease")
    leases = (host, timing, threads)
    return Surroundings(run_dir, state_dir, socket_owner, worker_ids, lock_fd, *leases, config.sample_seconds)


async def serve(config: Config, around: Surroundings) -> None:
    """Run until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    engine = Engine(config, around)
    metrics = None
    if config.metrics is not None:
        metrics = MetricsServer(config.metrics, lambda: exposition(list(engine.vports.values()), len(engine.refused)))
        await metrics.open()
    await engine.restore()
    rpc = RpcServer(engine, around.run_dir / "rpc.sock")
    await rpc.open()
    notify("READY=1")
    journal.info(f"ready with {len(engine.vports)} vports, {len(engine.refused)} refused")
    await stop.wait()
    notify("STOPPING=1")
    await rpc.close()
    if metrics is not None:
        await metrics.close()
    await engine.close()
    journal.info("ended")


def main(arguments: list[str] | None = None) -> int:
    """Return the exit status: 0 after a stop, 2 for a wrong configuration."""
    parser = argparse.ArgumentParser(prog="vportd", description="vport engine of an SR-IOV storage adapter")
    parser.add_argument("--config", default="/etc/vportd/vportd.json", help="configuration file (JSON)")
    chosen = parser.parse_args(arguments)
    if sys.byteorder != "little":
        journal.error("this engine runs on little-endian machines only: virtio 1.x rings are shared as they are")
        return 2
    journal.connect(os.environ.get("VPORTD_JOURNAL", journal.SOCKET), os.environ.get("JOURNAL_STREAM"))
    try:
        config = read_config(chosen.config)
        around = surroundings(config)
    except LockHeld as problem:  # the service manager tries again
        journal.error(str(problem))
        return 1
    except ConfigError as problem:
        journal.error(str(problem))
        return 2
    try:
        asyncio.run(serve(config, around))
    except ConfigError as problem:
        journal.error(str(problem))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
