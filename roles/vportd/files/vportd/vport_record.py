# SPDX-License-Identifier: GPL-3.0-or-later
"""What a vport is: its fields, its state on disk, its history, and the records that tell others of it."""

import time
from collections import Counter, deque
from pathlib import Path
from typing import Any

from vportd import extent_file, journal, state_file
from vportd.adapter import Adapter
from vportd.blk_config import QUEUES
from vportd.blk_queue import BUCKETS, HELD, LAST_AVAIL, OUTSTANDING, USED, WORST
from vportd.counters import PATHS, Counters
from vportd.errors import RpcError
from vportd.front_end_state import Positions, Ring
from vportd.lease_disk import LeaseDisk
from vportd.lun_port import LunPort
from vportd.mapping import Lun, digest, sha256
from vportd.sampler import Look, Sampler
from vportd.surroundings import Surroundings
from vportd.vport_leases import VportLeases

STATE_VERSION = 1
MESSAGE_ID = "357333b0c17c4329b27de02e789f63d3"  # of all journal messages that say that a vport has changed
WARNINGS = {
    "broken",
    "degraded",
    "disconnecting",
    "disowned",
    "rolled_back",
    "not_returned",
    "storage_failed",
    "lease_awaited",
    "lease_expired",
    "lease_lost",
    "worker_died",
}


class VportRecord:
    """The fields of one vport, and everything that only looks at them."""

    def __init__(self, name: str, adapter: Adapter, around: Surroundings, incoming: bool = False) -> None:
        self.name = name
        self.adapter = adapter
        self.around = around
        self.incoming = incoming
        self.fenced = False
        self.fence_on_stop = False
        self.fence_next: str | None = None  # the host that the leases go to when the fence falls
        self.fence_why: str | None = None
        self.state = "RUNNING"
        self.stood_since = time.monotonic()  # when it was RUNNING last, or the engine was not there yet
        self.path = "pf"
        self.vf: str | None = None
        self.degraded: str | None = None
        self.wanted = "pf"  # the path that somebody asked for last
        self.error_policy: str | None = None  # None = that of the adapter
        self.auto_return: bool | None = None
        self.generation = 0
        self.luns: tuple[Lun, ...] = ()
        self._digest: tuple[tuple[Lun, ...], str] | None = None  # of these LUNs: a million extents take a second
        self.ports: dict[int, LunPort] = {}
        self.history: deque[dict[str, Any]] = deque(maxlen=200)
        self.block_size = 512
        self.discards = self.zeroes = False
        self.counters = Counters()
        self.events: Counter[str] = Counter()
        self.sampler = Sampler(self.look, self._worst, self.counters.watch, around.sample_seconds)
        self.leases = VportLeases(self, around, LeaseDisk(lambda: adapter.device(adapter.pf).path))

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
            "wanted": self.wanted,
            "error_policy": self.error_policy,
            "auto_return": self.auto_return,
            "generation": self.generation,
            "fence_next": self.fence_next,
            "fence_why": self.fence_why,
            "lease_to_pass": self.leases.to_pass,
            "lease_passing": self.leases.passing,
            "lease_known": self.leases.known,
        }
        directory = self.state_path.parent
        try:
            record["luns"] = extent_file.save(directory, self.name, self.luns)
            state_file.save(self.state_path, record)
            extent_file.forget(directory, self.name, self.luns)
        except OSError as problem:
            raise RpcError("STORAGE", f"the state of vport {self.name} cannot be written: {problem}") from problem

    def note(self, event: str, **detail: object) -> None:
        """Add one line to the history, and tell the journal. A detail that ends in ``seconds`` is how long it took."""
        entry = {
            "time": time.time(),
            "event": event,
            "path": self.path,
            "generation": self.generation,
            "detail": detail,
        }
        self.history.append(entry)
        self.events[event] += 1
        self.sampler.wake()
        text = ", ".join(
            f"{key} {value:.6f}" if isinstance(value, float) else f"{key} {value}" for key, value in detail.items()
        )
        fields = {f"VPORT_{key}": value for key, value in detail.items()}
        for key in ("blackout_seconds", "drain_seconds", "seconds"):
            if isinstance(taken := detail.get(key), float):
                fields["DURATION_USEC"] = round(taken * 1e6)
                break
        journal.say(
            4 if event in WARNINGS else 6,
            f"vport {self.name}: {event.replace('_', ' ')}{': ' if text else ''}{text}",
            MESSAGE_ID=MESSAGE_ID,
            VPORT=self.name,
            VPORT_EVENT=event,
            VPORT_PATH=self.path,
            VPORT_STATE=self.state,
            GENERATION=self.generation,
            **fields,
        )

    # vport_leases.Holder, but for ``save`` and ``note``

    def waited_for(self) -> bool:
        """True while a front end is there."""
        return bool(self.connected())

    def lease_lost(self, why: str) -> None:
        """A lease is another host's: this vport must not do anything any more."""
        raise NotImplementedError

    def end_stale(self) -> bool:
        """End a worker that has a device which is gone, if there is another one now; True when there was one."""
        raise NotImplementedError

    def lease_renewed(self) -> None:
        """The gate is open again: whoever waits there is to be told."""
        raise NotImplementedError

    def _degrade(self, why: str) -> None:
        self.degraded = why
        self.note("degraded", why=why)

    # Policies

    def policy_of(self, path: str) -> str:
        """Return what a worker does with a request that the storage has failed (``storage_errors``)."""
        return "leave" if path == "vf" else self.error_policy or self.adapter.config.error_policy

    def returns(self) -> bool:
        """True when the vport goes back by itself to a VF that it has lost."""
        return self.adapter.config.auto_return if self.auto_return is None else self.auto_return

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
            self.counters.word(self.path, port.lun.lun, ring.index, OUTSTANDING)
            for port in self.connected()
            if port.front
            for ring in port.front.rings
            if ring.running
        )

    def waiting(self) -> int:
        """Return how many requests wait for the storage to come back."""
        return sum(self.counters.word(self.path, one.lun, queue, HELD) for one in self.luns for queue in range(QUEUES))

    def look(self) -> Look:
        """Return what the vport has done, over both paths, and its state."""
        found = [self.counters.sums(one.lun) for one in self.luns]
        counts: Counter[str] = Counter()
        for one in found:
            counts.update(one.counts)
        done = ("reads", "writes", "flushes", "discards", "write_zeroes", "errors")
        return Look(
            self.path,
            self.state,
            self.outstanding(),
            sum(counts[name] for name in done),
            counts["bytes_read"] + counts["bytes_written"],
            counts["errors"],
            counts["dirty_pages"],
            tuple(map(sum, zip(*(one.histogram for one in found), strict=True))) or (0,) * BUCKETS,
        )

    def _worst(self) -> int:
        """Return the longest latency since this was last asked, in microseconds."""
        takes = self.counters.take
        queues = ((path, one.lun, queue) for path in PATHS for one in self.luns for queue in range(QUEUES))
        return max((takes(*queue, WORST) for queue in queues), default=0)

    def _queue_record(self, lun: int, ring: Ring) -> dict[str, Any]:
        def now(word: int) -> int:
            return self.counters.word(self.path, lun, ring.index, word)

        return {
            "index": ring.index,
            "size": ring.size,
            "started": ring.running,
            "last_avail": now(LAST_AVAIL) if ring.running else (ring.base or 0),
            "used": now(USED) if ring.running else (ring.base or 0),
            "outstanding": now(OUTSTANDING) if ring.running else 0,
        }

    def _lun_record(self, port: LunPort) -> dict[str, Any]:
        lun, front = port.lun.lun, port.front
        rings = [] if front is None else [ring for ring in front.rings if ring.size]
        sums = self.counters.sums(lun)
        return {
            "lun": lun,
            "vdisk": port.lun.vdisk,
            "capacity": port.capacity,
            "readonly": port.readonly,
            "address": port.address,
            "socket": str(port.path),
            "connected": front is not None,
            "front_end": port.peer(),
            "lease": self.leases.record(lun),
            "logging": front is not None and front.logging,
            "queues": [self._queue_record(lun, ring) for ring in rings],
            "counters": sums.counts,
            "latency_us": sums.histogram,
            "paths": {
                path: {"counters": one.counts, "latency_us": one.histogram}
                for path in PATHS
                if any((one := self.counters.sums(lun, (path,))).counts.values())
            },
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
            "fence_next": self.fence_next,
            "fence_why": self.fence_why,
            "incoming": self.incoming,
            "generation": self.generation,
            "digest": self.digest,
            "outstanding": self.outstanding(),
            "waiting": self.waiting(),
            "error_policy": self.policy_of("pf"),
            "auto_return": self.returns(),
            "luns": [self._lun_record(self.ports[one.lun]) for one in self.luns],
            "history": list(self.history),
        }

    def queue_state(self, positions: Positions | None = None) -> dict[str, Any]:
        """Return the queue state record: where in each ring the next request lies, or lay at ``positions``."""
        told = positions or {}
        luns = []
        for port in self.connected():
            front = port.front
            assert front is not None
            queues = []
            for ring in front.rings:
                if ring.running or (port.lun.lun, ring.index) in told:
                    record = self._queue_record(port.lun.lun, ring)
                    now = record["last_avail"], record["used"]
                    last_avail, used = told.get((port.lun.lun, ring.index), now)
                    addresses = {"desc": ring.desc, "avail": ring.avail, "used_ring": ring.used}
                    for name, user in addresses.items():
                        for gpa, size, start, __ in front.memory:
                            if start <= user < start + size:
                                addresses[name] = gpa + user - start
                    queues.append(
                        {
                            "index": ring.index,
                            "size": ring.size,
                            **addresses,
                            "last_avail": last_avail,
                            "used": used,
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
