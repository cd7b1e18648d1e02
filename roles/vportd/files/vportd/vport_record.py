# SPDX-License-Identifier: GPL-3.0-or-later
"""What a vport is: its fields, its state on disk, its history, and the records that tell others of it."""

import mmap
import os
import time
from collections import deque
from pathlib import Path
from typing import Any

from vportd import extent_file, journal, state_file
from vportd.adapter import Adapter
from vportd.blk_config import QUEUES
from vportd.blk_queue import BUCKETS, COUNTERS_SIZE, HISTOGRAM
from vportd.errors import RpcError
from vportd.front_end_state import Ring
from vportd.lun_port import LunPort
from vportd.mapping import MAX_LUN, Lun, digest, sha256
from vportd.surroundings import Surroundings

STATE_VERSION = 1
COUNTERS = (
    "reads",
    "writes",
    "flushes",
    "errors",
    "bytes_read",
    "bytes_written",
    "dirty_pages",
    "discards",
    "write_zeroes",
)


class VportRecord:
    """The fields of one vport, and everything that only looks at them."""

    def __init__(self, name: str, adapter: Adapter, around: Surroundings, incoming: bool = False) -> None:
        self.name = name
        self.adapter = adapter
        self.around = around
        self.incoming = incoming
        self.fenced = False
        self.fence_on_stop = False
        self.state = "RUNNING"
        self.path = "pf"
        self.vf: str | None = None
        self.degraded: str | None = None
        self.generation = 0
        self.luns: tuple[Lun, ...] = ()
        self._digest: tuple[tuple[Lun, ...], str] | None = None  # of these LUNs: a million extents take a second
        self.ports: dict[int, LunPort] = {}
        self.history: deque[dict[str, Any]] = deque(maxlen=200)
        self.block_size = 512
        self.discards = self.zeroes = False
        self._counters_fd = os.memfd_create("vportd-counters", os.MFD_CLOEXEC)
        size = (MAX_LUN + 1) * QUEUES * COUNTERS_SIZE
        os.ftruncate(self._counters_fd, size)
        self._counters = memoryview(mmap.mmap(self._counters_fd, size)).cast("Q")

    # State on disk, history

    @property
    def state_path(self) -> Path:
        """The state file."""
        return self.around.state_dir / "vports" / f"{self.name}.json"

    def save(self) -> None:
        """Write the state file. Raises RpcError STORAGE, and then nothing has changed on disk."""
        record: dict[str, Any] = {
            "vport": self.name,
            "adapter": self.adapter.pf,
            "incoming": self.incoming,
            "fenced": self.fenced,
            "fence_on_stop": self.fence_on_stop,
            "vf": self.vf,
            "path": self.path,
            "generation": self.generation,
        }
        directory = self.state_path.parent
        try:
            record["luns"] = extent_file.save(directory, self.name, self.luns)
            state_file.save(self.state_path, record)
            extent_file.forget(directory, self.name, self.luns)
        except OSError as problem:
            raise RpcError("STORAGE", f"the state of vport {self.name} cannot be written: {problem}") from problem

    def note(self, event: str, **detail: object) -> None:
        """Add one line to the history."""
        entry = {
            "time": time.time(),
            "event": event,
            "path": self.path,
            "generation": self.generation,
            "detail": detail,
        }
        self.history.append(entry)

    def _degrade(self, why: str) -> None:
        self.degraded = why
        self.note("degraded", why=why)
        journal.warning(f"vport {self.name}: {why}")

    # Records

    @property
    def held(self) -> bool:
        """True while no ring of this vport may be served."""
        return self.fenced or self.state != "RUNNING"

    @property
    def digest(self) -> str | None:
        """Digest of the mapping, None before there is one."""
        if self._digest is None or self._digest[0] is not self.luns:
            self._digest = (self.luns, digest(self.luns))
        return self._digest[1] if self.generation else None

    def connected(self) -> list[LunPort]:
        """Return the LUNs with a front end."""
        return [port for port in self.ports.values() if port.front is not None]

    def outstanding(self) -> int:
        """Return how many requests were taken and are not done."""
        return sum(
            self._counter(port.lun.lun, ring.index, 2)
            for port in self.connected()
            if port.front
            for ring in port.front.rings
            if ring.running
        )

    def _counter(self, lun: int, queue: int, word: int) -> int:
        return int(self._counters[(lun * QUEUES + queue) * (COUNTERS_SIZE // 8) + word])

    def _queue_record(self, lun: int, ring: Ring) -> dict[str, Any]:
        return {
            "index": ring.index,
            "size": ring.size,
            "started": ring.running,
            "last_avail": self._counter(lun, ring.index, 0) if ring.running else (ring.base or 0),
            "used": self._counter(lun, ring.index, 1) if ring.running else (ring.base or 0),
            "outstanding": self._counter(lun, ring.index, 2) if ring.running else 0,
        }

    def _lun_record(self, port: LunPort) -> dict[str, Any]:
        lun, front = port.lun.lun, port.front
        rings = [] if front is None else [ring for ring in front.rings if ring.size]
        return {
            "lun": lun,
            "vdisk": port.lun.vdisk,
            "capacity": port.capacity,
            "readonly": port.readonly,
            "address": port.address,
            "socket": str(port.path),
            "connected": front is not None,
            "front_end": port.peer(),
            "logging": front is not None and front.logging,
            "queues": [self._queue_record(lun, ring) for ring in rings],
            "counters": {
                name: sum(self._counter(lun, queue, 3 + word) for queue in range(QUEUES))
                for word, name in enumerate(COUNTERS)
            },
            "latency_us": [
                sum(self._counter(lun, queue, HISTOGRAM + bucket) for queue in range(QUEUES))
                for bucket in range(BUCKETS)
            ],
        }

    def record(self) -> dict[str, Any]:
        """Return all there is to say about this vport."""
        return {
            "vport": self.name,
            "adapter": self.adapter.pf,
            "state": self.state,
            "path": self.path,
            "vf": self.vf,
            "degraded": self.degraded,
            "fenced": self.fenced,
            "fence_on_stop": self.fence_on_stop,
            "incoming": self.incoming,
            "generation": self.generation,
            "digest": self.digest,
            "outstanding": self.outstanding(),
            "luns": [self._lun_record(self.ports[one.lun]) for one in self.luns],
            "history": list(self.history),
        }

    def queue_state(self) -> dict[str, Any]:
        """Return the queue state record: where in each ring the next request lies."""
        luns = []
        for port in self.connected():
            front = port.front
            assert front is not None
            queues = []
            for ring in front.rings:
                if ring.running:
                    record = self._queue_record(port.lun.lun, ring)
                    addresses = {"desc": ring.desc, "avail": ring.avail, "used_ring": ring.used}
                    for name, user in addresses.items():
                        for gpa, size, start, _ in front.memory:
                            if start <= user < start + size:
                                addresses[name] = gpa + user - start
                    queues.append(
                        {
                            "index": ring.index,
                            "size": ring.size,
                            **addresses,
                            "last_avail": record["last_avail"],
                            "used": record["used"],
                            "inflight": [],
                        }
                    )
            luns.append({"lun": port.lun.lun, "features": front.features, "queues": queues})
        state = {
            "version": STATE_VERSION,
            "vport": self.name,
            "generation": self.generation,
            "digest": self.digest,
            "luns": luns,
        }
        return {**state, "checksum": sha256(state)}
