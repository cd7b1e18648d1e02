# SPDX-License-Identifier: GPL-3.0-or-later
"""Two hosts under a libvirt that keeps domains, moves them in a job that takes time, and can fail at each point."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, cast

ACTIVE = (1, 3)  # running, paused


class libvirtError(Exception):
    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self._code = code

    def get_error_message(self) -> str:
        return str(self)

    def get_error_code(self) -> int:
        return self._code


@dataclass
class Domain:
    host: Host
    name: str
    uuid: str = "11111111-2222-3333-4444-555555555555"
    state_now: int = 1
    persistent: bool = True
    devices: str = ""
    job: bool = False
    operation: int = 5  # of the job: a migration to another host
    passes: int = 1
    post_copy: bool = False
    downtime_asked: int | None = None
    completed: dict[str, Any] = field(default_factory=dict)

    def isActive(self) -> int:
        return int(self.state_now in ACTIVE)

    def isPersistent(self) -> int:
        return int(self.persistent)

    def state(self) -> list[int]:
        return [self.state_now, 0]

    def UUIDString(self) -> str:
        return self.uuid

    def XMLDesc(self, _flags: int) -> str:
        return f"<domain><name>{self.name}</name><devices>{self.devices}</devices></domain>"

    def jobInfo(self) -> list[int]:
        if self.job and self.operation == 4:  # it comes in
            raise libvirtError("Operation not supported: migration statistics are only on the source host", 84)
        return [int(self.job)]

    def resume(self) -> int:
        self.state_now = 1
        return 0

    def undefineFlags(self, _flags: int) -> int:
        del self.host.domains[self.name]
        return 0

    def migrateSetMaxDowntime(self, milliseconds: int) -> int:
        if not self.job:
            raise libvirtError("domain is not being migrated")
        self.downtime_asked = milliseconds
        return 0

    def jobStats(self, flags: int = 0) -> dict[str, Any]:
        if flags & 1:
            return self.completed
        if not self.job:
            return {"type": 0}
        return {
            "type": 2,
            "operation": self.operation,
            "memory_remaining": 64 << 20,
            "memory_processed": 192 << 20,
            "memory_dirty_rate": 256,
            "memory_iteration": self.passes,
            "auto_converge_throttle": 20,
        }

    def abortJob(self) -> int:
        if not self.job:
            raise libvirtError("Requested operation is not valid: no job is active on the domain", 55)
        if self.post_copy:
            raise libvirtError("Requested operation is not valid: cannot abort migration in post-copy mode", 55)
        self.host.network.aborted.set()
        return 0

    def migrateStartPostCopy(self, _flags: int = 0) -> int:
        network = self.host.network
        self.post_copy = True
        self.state_now = 3
        network.there.domains[self.name] = Domain(network.there, self.name, self.uuid)
        network.post_copy.set()
        return 0

    def migrate3(self, destination: Host, parameters: dict[str, Any], flags: int) -> Domain:
        network = self.host.network
        network.asked = (parameters, flags)
        self.job = True
        network.started.set()
        try:
            if network.failure == "start":
                raise libvirtError("internal error: unable to connect to the socket")
            # the memory is being sent until the test lets it end, or somebody aborts
            while not network.proceed.wait(0.005):
                if network.aborted.is_set():
                    raise libvirtError("operation aborted: migration out job: canceled by client")
                if network.failure == "post-copy" and network.post_copy.is_set():
                    raise libvirtError("operation failed: job 'migration out' failed in post-copy phase")
            self.state_now = 3
            if network.failure == "paused":
                raise libvirtError("operation failed: lost connection to destination host")
            moved = Domain(destination, self.name, self.uuid, devices=self.devices)
            moved.completed = {
                "type": 3,
                "time_elapsed": 16000,
                "setup_time": 100,
                "downtime": 140,
                "memory_total": 256 << 20,
                "memory_processed": 300 << 20,
                "memory_iteration": 4,
                "memory_dirty_rate": 256,
                "memory_page_size": 4096,
            }
            destination.domains[self.name] = moved
            if network.failure == "confirm":
                raise libvirtError("Cannot recv data: Connection reset by peer")
            if flags & network.library.VIR_MIGRATE_UNDEFINE_SOURCE:
                del self.host.domains[self.name]
            else:
                self.state_now = 5
            return moved
        finally:
            self.job = False

    def migrateToURI3(self, uri: str, parameters: dict[str, Any], flags: int) -> int:
        self.migrate3(self.host.network.open(uri), parameters, flags)
        return 0


@dataclass
class Host:
    network: Network
    hostname: str
    uuid: str
    domains: dict[str, Domain] = field(default_factory=dict)
    keep_alive: tuple[int, int] | None = None

    def setKeepAlive(self, interval: int, count: int) -> int:
        self.keep_alive = (interval, count)
        return 0

    def getCapabilities(self) -> str:
        return f"<capabilities><host><uuid>{self.uuid}</uuid></host></capabilities>"

    def getHostname(self) -> str:
        return self.hostname

    def lookupByName(self, name: str) -> Domain:
        if name not in self.domains:
            raise libvirtError(f"Domain not found: no domain with matching name '{name}'", 42)
        return self.domains[name]


class Network:
    """``here`` and ``there``, and the library that reaches them."""

    DESTINATION = "qemu+ssh://root@203.0.113.12/system"

    def __init__(self) -> None:
        self.here = Host(self, "hypervisor1", "aaaaaaaa-0000-0000-0000-000000000001")
        self.there = Host(self, "hypervisor2", "aaaaaaaa-0000-0000-0000-000000000002")
        self.started, self.proceed, self.aborted = threading.Event(), threading.Event(), threading.Event()
        self.post_copy = threading.Event()
        self.proceed.set()
        self.failure = ""
        self.unreachable = False
        self.asked: tuple[dict[str, Any], int] | None = None
        self.opened: list[str] = []
        self.library = cast(ModuleType, _Library(self))

    def open(self, uri: str) -> Host:
        self.opened.append(uri)
        if uri == "qemu:///system":
            return self.here
        if self.unreachable:
            raise libvirtError("Cannot recv data: ssh: connect to host 203.0.113.12 port 22: No route to host")
        return self.there

    def fingerprint(self) -> str:
        return repr(
            [
                (host.hostname, sorted((name, domain.uuid, domain.state_now) for name, domain in host.domains.items()))
                for host in (self.here, self.there)
            ]
        )


class _Library:
    VIR_MIGRATE_LIVE = 1
    VIR_MIGRATE_PEER2PEER = 2
    VIR_MIGRATE_PERSIST_DEST = 8
    VIR_MIGRATE_UNDEFINE_SOURCE = 16
    VIR_MIGRATE_UNSAFE = 512
    VIR_MIGRATE_ABORT_ON_ERROR = 4096
    VIR_MIGRATE_AUTO_CONVERGE = 8192
    VIR_MIGRATE_POSTCOPY = 32768
    VIR_MIGRATE_PARAM_URI = "migrate_uri"
    VIR_MIGRATE_PARAM_BANDWIDTH = "bandwidth"
    VIR_DOMAIN_JOB_STATS_COMPLETED = 1
    VIR_DOMAIN_JOB_OPERATION = "operation"
    VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN = 4
    VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT = 5
    VIR_ERR_OPERATION_UNSUPPORTED = 84
    VIR_DOMAIN_UNDEFINE_NVRAM = 4
    VIR_DOMAIN_UNDEFINE_MANAGED_SAVE = 1
    VIR_ERR_NO_DOMAIN = 42

    def __init__(self, network: Network) -> None:
        self.libvirtError = libvirtError
        self.open = network.open
