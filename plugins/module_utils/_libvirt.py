# SPDX-License-Identifier: GPL-3.0-or-later
"""libvirt as the migration needs it: two connections, one job with a deadline, and where the guest runs in the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

from ansible.module_utils.common.respawn import has_respawned, probe_interpreters_for_module, respawn_module

from ._background import Background
from ._errors import IovlabError, Refused, StepFailed
from ._migration import RUNNING, Guest, Progress, Side

CONNECT_TIMEOUT = 30.0
KEEP_ALIVE = (5, 4)  # seconds between questions, and how many may stay without an answer
ABORT_TIMEOUT = 60.0
_POLL = 0.1
_MIB = 1024 * 1024


@cache  # a process has one loop of events, however often the binding is asked for
def load() -> ModuleType:
    """libvirt's binding; ImportError where the distribution's package is missing."""
    import libvirt  # type: ignore[import-not-found, unused-ignore]

    module: ModuleType = libvirt
    module.registerErrorHandler(lambda _context, _error: None, None)  # errors come as exceptions, not on stderr as well
    module.virEventRegisterDefaultImpl()  # sends what keeps connections alive; has to be there before the first of them
    threading.Thread(target=_run_events, args=(module,), daemon=True).start()
    return module


def _run_events(module: ModuleType) -> None:
    while True:
        module.virEventRunDefaultImpl()


def load_or_respawn(load: Callable[[], Any], binding: str) -> Any:
    """What ``load`` returns; where this Python lacks ``binding`` the module starts again under the system's."""
    try:
        return load()
    except ImportError as exc:
        if not has_respawned():
            interpreter = probe_interpreters_for_module(["/usr/bin/python3", "/usr/libexec/platform-python"], binding)
            if interpreter:
                respawn_module(interpreter)
        raise Refused("this host has no Python binding of libvirt; install the package python3-libvirt") from exc


def said(exc: Exception) -> str:
    """What libvirt gave as the reason."""
    message = getattr(exc, "get_error_message", lambda: None)()
    return message or str(exc)


class Hypervisor:
    """A connection to one host's libvirt."""

    def __init__(self, libvirt: ModuleType, uri: str, what: str, timeout: float = CONNECT_TIMEOUT) -> None:
        self._libvirt = libvirt
        self.uri = uri
        late = (
            f"{what}: libvirt of {uri} did not answer within {timeout:.0f} s; "
            "check that the host is up and its libvirt daemon runs"
        )
        try:
            self.connection: Any = Background(lambda: libvirt.open(_never_ask(uri))).result(timeout, late)
        except libvirt.libvirtError as exc:
            raise Refused(
                f"{what}: libvirt of {uri} cannot be reached: {said(exc)}; check that the host is up, its libvirt "
                "daemon runs and this host's root may log in"
            ) from exc
        # A host that is gone without a word would else be waited for until TCP gives up, for a quarter of an hour.
        with suppress(libvirt.libvirtError):
            self.connection.setKeepAlive(*KEEP_ALIVE)

    def side(self, name: str) -> Side:
        capabilities = ElementTree.fromstring(self.connection.getCapabilities())
        return Side(
            uri=self.uri,
            hostname=self.connection.getHostname(),
            uuid=(capabilities.findtext("host/uuid") or "").strip(),
            guest=self.guest(name),
        )

    def domain(self, name: str) -> Any:
        try:
            return self.connection.lookupByName(name)
        except self._libvirt.libvirtError as exc:
            if exc.get_error_code() == self._libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise Refused(f"name: libvirt of {self.uri} cannot look up {name}: {said(exc)}; look at its log") from exc

    def guest(self, name: str) -> Guest | None:
        domain = self.domain(name)
        if domain is None:
            return None
        try:
            active = bool(domain.isActive())
            description = ElementTree.fromstring(domain.XMLDesc(0))
            state = state_name(domain)
            operation = self._job_operation(domain) if active else None
            return Guest(
                name=name,
                uuid=domain.UUIDString(),
                state=state,
                active=active,
                persistent=bool(domain.isPersistent()),
                busy=operation not in (None, self._libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN),
                leaving=operation == self._libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT,
                sockets=tuple(_vhost_user_sockets(description)),
                host_devices=tuple(host_devices(description)),
            )
        except self._libvirt.libvirtError as exc:
            if exc.get_error_code() == self._libvirt.VIR_ERR_NO_DOMAIN:  # it went away between two calls
                return None
            raise Refused(
                f"name: libvirt of {self.uri} cannot tell about {name}: {said(exc)}; look at its log"
            ) from exc

    def _job_operation(self, domain: Any) -> int | None:
        """What job the domain has now, None without one. Of a migration that comes in libvirt tells nothing."""
        try:
            if domain.jobInfo()[0] == 0:
                return None
            return int(domain.jobStats().get(self._libvirt.VIR_DOMAIN_JOB_OPERATION, 0))
        except self._libvirt.libvirtError as exc:
            if exc.get_error_code() != self._libvirt.VIR_ERR_OPERATION_UNSUPPORTED:
                raise
            return int(self._libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN)

    def abort(self, name: str) -> None:
        """End the migration of ``name`` to another host, whoever began it, and see that it stays."""
        domain = self.domain(name)
        failure = ""
        if domain is not None:
            try:
                domain.abortJob()
            except self._libvirt.libvirtError as exc:
                failure = said(exc)  # it may just have ended; what is so now counts
        deadline = time.monotonic() + ABORT_TIMEOUT
        while (guest := self.guest(name)) is not None and guest.leaving and not failure:
            if time.monotonic() > deadline:
                failure = f"it goes on {ABORT_TIMEOUT:.0f} s later"
                break
            time.sleep(_POLL)
        if guest is None or not guest.active:
            raise StepFailed(
                f"the migration of {name} ended before it could be aborted; look on the destination, where it should "
                "be running",
                runs_on="unknown",
            )
        if guest.leaving:
            raise StepFailed(
                f"the migration of {name} could not be aborted: {failure}; see virsh domjobinfo {name}",
                runs_on="unknown",
            )

    def undefine(self, name: str) -> None:
        domain = self.domain(name)
        if domain is None:
            return
        try:
            domain.undefineFlags(
                self._libvirt.VIR_DOMAIN_UNDEFINE_NVRAM | self._libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
            )
        except self._libvirt.libvirtError as exc:
            raise StepFailed(
                f"virtual machine {name} could not be undefined on {self.uri}: {said(exc)}; do it with virsh "
                f"undefine {name}"
            ) from exc


_STATES = {
    0: "in no state",
    1: RUNNING,
    2: "blocked",
    3: "paused",
    4: "shutting down",
    5: "shut off",
    6: "crashed",
    7: "suspended by its own",
}


def state_name(domain: Any) -> str:
    return _STATES.get(domain.state()[0], "in an unknown state")


def _never_ask(uri: str) -> str:
    """Without a terminal nobody could answer a password prompt: let ssh fail instead."""
    if "+ssh" not in uri.split(":", 1)[0] or "no_tty=" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}no_tty=1"


def _vhost_user_sockets(description: ElementTree.Element) -> list[str]:
    return [
        source.get("path", "")
        for disk in description.findall("devices/disk[@type='vhostuser']")
        for source in disk.findall("source")
    ]


def host_devices(description: ElementTree.Element) -> list[str]:
    """PCI addresses, or types, of what a virtual machine holds of its host."""
    found = []
    for device in description.findall("devices/hostdev"):
        address = device.find("source/address")
        parts = (
            {}
            if address is None
            else {key: int(address.get(key, "0"), 0) for key in ("domain", "bus", "slot", "function")}
        )
        name = "{domain:04x}:{bus:02x}:{slot:02x}.{function:x}".format(**parts) if parts else device.get("type", "?")
        found.append(name)
    return found


@dataclass(frozen=True, slots=True)
class Wish:
    """How a migration is to be made. ``timeout`` seconds, ``max_downtime`` milliseconds, ``bandwidth`` MiB/s."""

    migrate_uri: str | None
    timeout: float
    max_downtime: int
    bandwidth: int | None
    auto_converge: bool
    peer2peer: bool
    unsafe: bool
    post_copy: bool


class Migration:
    """One live migration of ``name``, watched to its end."""

    def __init__(self, libvirt: ModuleType, source: Hypervisor, destination: Hypervisor, name: str, wish: Wish) -> None:
        self._libvirt = libvirt
        self._source = source
        self._destination = destination
        self._name = name
        self._wish = wish
        self.stats: dict[str, Any] = {}
        self.progress = Progress()
        self._post_copy = False  # the guest runs on the destination already, and needs the rest of its memory
        self.moved = 0.0  # when the job ended, by time.monotonic()

    def run(self) -> Mapping[str, Any]:
        """libvirt's statistics of the finished job. Raises StepFailed, which says where the guest runs now."""
        domain = self._source.domain(self._name)
        if domain is None:
            raise StepFailed(
                f"virtual machine {self._name} went away before it could be migrated; look where it runs",
                runs_on="unknown",
            )
        failure: list[Exception] = []

        def work() -> None:
            try:
                self._call(domain)
            except self._libvirt.libvirtError as exc:
                failure.append(exc)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        late = self._watch(domain, thread)
        self.moved = time.monotonic()
        if thread.is_alive():
            where, text = self._settle()
            effect = "it goes on" if self._post_copy else "aborting it has no effect yet"
            raise StepFailed(f"{late}, and {effect}; {text}", runs_on=where, progress=self.progress.entries)
        if failure:
            where, text = self._settle()
            reason = late or f"the migration of {self._name} failed: {said(failure[0])}"
            raise StepFailed(f"{reason}; {text}", runs_on=where, progress=self.progress.entries)
        if not self._is(self._destination, RUNNING):
            where, text = self._settle()
            raise StepFailed(
                f"libvirt says that {self._name} was migrated, but it does not run on {self._destination.uri}; {text}",
                runs_on=where,
                progress=self.progress.entries,
            )
        self._completed()
        return self.stats

    def _call(self, domain: Any) -> None:
        lib, wish = self._libvirt, self._wish
        flags = lib.VIR_MIGRATE_LIVE | lib.VIR_MIGRATE_PERSIST_DEST | lib.VIR_MIGRATE_ABORT_ON_ERROR
        flags |= lib.VIR_MIGRATE_UNDEFINE_SOURCE if domain.isPersistent() else 0
        flags |= lib.VIR_MIGRATE_AUTO_CONVERGE if wish.auto_converge else 0
        flags |= lib.VIR_MIGRATE_UNSAFE if wish.unsafe else 0
        flags |= lib.VIR_MIGRATE_POSTCOPY if wish.post_copy else 0
        parameters: dict[str, Any] = {}
        if wish.migrate_uri:
            parameters[lib.VIR_MIGRATE_PARAM_URI] = wish.migrate_uri
        if wish.bandwidth:
            parameters[lib.VIR_MIGRATE_PARAM_BANDWIDTH] = wish.bandwidth
        if wish.peer2peer:
            domain.migrateToURI3(_never_ask(self._destination.uri), parameters, flags | lib.VIR_MIGRATE_PEER2PEER)
        else:
            domain.migrate3(self._destination.connection, parameters, flags)

    def _watch(self, domain: Any, thread: threading.Thread) -> str:
        """Keep the newest statistics until the job ends; past the deadline abort it and say so."""
        deadline = time.monotonic() + self._wish.timeout
        downtime_set = False
        while thread.is_alive() and time.monotonic() < deadline:
            with suppress(self._libvirt.libvirtError):  # the job has not begun, or has ended already
                downtime_set = downtime_set or domain.migrateSetMaxDowntime(self._wish.max_downtime) == 0
            self._sample(domain)
            self._go_post_copy(domain)
            thread.join(_POLL)
        if not thread.is_alive():
            return ""
        if self._post_copy:
            return f"the migration of {self._name} was not done within {self._wish.timeout:g} s, and is past aborting"
        with suppress(self._libvirt.libvirtError):  # it ended in this very moment; the thread tells how
            domain.abortJob()
        thread.join(ABORT_TIMEOUT)
        left = self.stats.get("memory_remaining")
        amount = f" with {left // _MIB} MiB left to send" if isinstance(left, int) else ""
        return f"the migration of {self._name} was not done within {self._wish.timeout:g} s{amount} and was aborted"

    def _sample(self, domain: Any) -> None:
        try:
            stats = domain.jobStats()
        except self._libvirt.libvirtError:
            return  # no job at this moment
        if stats.get("type", 0):
            self.stats = {**self.stats, **stats}
            self.progress.note(time.time(), stats)

    def _go_post_copy(self, domain: Any) -> None:
        """After the first pass over the memory, let the guest run there and fetch what it misses."""
        if not self._wish.post_copy or self._post_copy or self.stats.get("memory_iteration", 0) < 2:
            return
        with suppress(self._libvirt.libvirtError):  # it has ended already, or is not as far yet
            self._post_copy = domain.migrateStartPostCopy() == 0

    def _completed(self) -> None:
        """The final numbers, downtime above all, which libvirt keeps on the destination."""
        try:
            stats = self._destination.domain(self._name).jobStats(self._libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED)
        except (self._libvirt.libvirtError, AttributeError):
            return
        self.stats = {**self.stats, **stats}

    def _settle(self) -> tuple[str, str]:
        """After a failure: see that the guest runs in one place, the source if possible. (place, sentence)"""
        try:
            late = f"{self._destination.uri} does not answer"
            there = Background(lambda: self._destination.guest(self._name)).result(CONNECT_TIMEOUT, late)
        except IovlabError as exc:
            return "unknown", f"the destination cannot be asked ({exc}); look by hand where {self._name} runs"
        here = self._source.guest(self._name)
        if self._post_copy:
            states = f"{here.state if here else 'unknown'} here, {there.state if there else 'unknown'} there"
            return "unknown", (
                f"it is in post-copy ({states}), and neither host has the whole of its memory until that ends; resume "
                "and stop nothing, and if it has broken off, go on with virsh migrate --postcopy-resume"
            )
        if there is not None and there.active:
            if here is not None and here.state == "paused" and there.state == RUNNING:
                left = (
                    f"the paused copy left on this host must not be resumed, remove it with virsh destroy {self._name}"
                )
                return "destination", f"it runs on the destination {self._destination.uri}; {left}"
            if here is not None and here.active:
                states = f"{here.state} here, {there.state} there"
                return "both", f"it is active on both hosts ({states}); look by hand before starting anything"
            return "destination", f"it is {there.state} on the destination {self._destination.uri}"
        if here is None or not here.active:
            return "nowhere", "it runs on neither host now; look at libvirt's log and start it on one"
        if here.state == "paused":
            try:
                self._source.domain(self._name).resume()
            except self._libvirt.libvirtError as exc:
                return "source", f"it is on this host, but paused and could not be resumed: {said(exc)}"
            return "source", "it was left paused and was resumed; it still runs on this host"
        return "source", f"it still is {here.state} on this host"

    def _is(self, hypervisor: Hypervisor, state: str) -> bool:
        guest = hypervisor.guest(self._name)
        return guest is not None and guest.state == state
