# SPDX-License-Identifier: GPL-3.0-or-later
"""Engine: all vports of all adapters of one hypervisor, and the verbs that are about more than one of them."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from vportd import __version__, extent_file, journal, state_file
from vportd.adapter import Adapter, BlockDevice
from vportd.config import PCI_ADDRESS, Config
from vportd.errors import RpcError, StateError, StorageError, VportdError
from vportd.mapping import Lun, digest, parse_luns, refuse_lease_overlap, refuse_overlap
from vportd.surroundings import Surroundings
from vportd.temporary_memory import give_back
from vportd.vport import Vport

VPORT_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,14}")
PROTOCOL = 1
FEATURES = [
    "mapping",
    "binding",
    "switch",
    "suspend",
    "queue-state",
    "fence",
    "dirty-log",
    "inflight",
    "history",
    "samples",
    "error-policy",
    "lease",
]
MAPPING_TIMEOUT = 10.0


class Engine:
    """Every public coroutine is one method of the RPC, its parameters those of the request."""

    def __init__(self, config: Config, around: Surroundings) -> None:
        self.around = around
        self.adapters = {one.pf: Adapter(one, config.sysfs_root, config.dev_root) for one in config.adapters}
        self.vports: dict[str, Vport] = {}
        self.refused: dict[str, str] = {}  # vports whose state file cannot be used, and why
        self._lock = asyncio.Lock()
        self._coming: dict[str, tuple[Lun, ...]] = {}  # mappings that were checked and are not in force yet

    # Start and end

    async def restore(self) -> None:
        """Bring back every vport that has a state file. One that cannot be brought back is refused, the others live."""
        directory = self.around.state_dir / "vports"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left_over in directory.glob("*.new"):
            left_over.unlink()
        await asyncio.gather(*(self._restore(path) for path in sorted(directory.glob("*.json"))))

    async def _restore(self, path: Path) -> None:
        name = path.stem
        try:
            vport, where = self._from_record(name, state_file.load(path))
            await vport.open(where)
        except (VportdError, KeyError, TypeError, ValueError, OSError, TimeoutError) as problem:
            self.refused[name] = f"{type(problem).__name__}: {problem}"
            journal.error(f"vport {name} is refused, the others live: {self.refused[name]}")
            return
        vport.note("restored")
        self.vports[name] = vport

    def _from_record(self, name: str, record: dict[str, Any]) -> tuple[Vport, str]:
        """Return the vport of a state file and the path it was on. Raises StateError, KeyError, TypeError, RpcError."""
        if record["vport"] != name or not VPORT_NAME.fullmatch(name):
            raise StateError(f"the state file of {name} is of vport {record['vport']!r}")
        adapter = self.adapters.get(record["adapter"])
        if adapter is None:
            raise StateError(f"its adapter {record['adapter']} is not in the configuration")
        vport = Vport(name, adapter, self.around, bool(record["incoming"]))
        vport.fenced, vport.fence_on_stop = bool(record["fenced"]), bool(record["fence_on_stop"])
        vport.state = "FROZEN" if vport.fenced else "RUNNING"
        vport.fence_next, vport.fence_why = record.get("fence_next"), record.get("fence_why")
        vport.leases.to_pass = bool(record.get("lease_to_pass"))
        vport.leases.passing = record.get("lease_passing")
        vport.leases.known = {str(at): int(number) for at, number in record.get("lease_known", {}).items()}
        vport.vf = record["vf"]
        vport.wanted = record.get("wanted", record["path"])
        vport.error_policy, vport.auto_return = record.get("error_policy"), record.get("auto_return")
        vport.generation = int(record["generation"])
        try:
            device = adapter.device(adapter.pf)
        except StorageError as problem:
            raise StateError(str(problem)) from problem
        vport.block_size = device.block_size
        luns = extent_file.load(vport.state_path.parent, record["luns"])
        vport.luns = parse_luns(luns, device.block_size, device.size)
        return vport, record["path"]

    async def close(self) -> None:
        """Drain for a moment, then end every vport's processes and sockets; state files stay."""

        async def end(vport: Vport) -> None:
            try:
                if vport.state == "RUNNING":
                    await vport.suspend(3)
            except RpcError as problem:
                journal.warning(f"vport {vport.name} ends undrained; its front ends know what is in flight: {problem}")
            await vport.close()

        await asyncio.gather(*(end(vport) for vport in self.vports.values()))

    # Helpers

    def _find(self, name: object) -> Vport:
        vport = self.vports.get(name) if isinstance(name, str) else None
        if vport is None:
            if isinstance(name, str) and name in self.refused:
                raise RpcError("STORAGE", f"vport {name} could not be restored: {self.refused[name]}")
            raise RpcError(
                "NOT_FOUND",
                f"there is no vport {name!r}: those there are are {', '.join(sorted(self.vports)) or 'none'}",
            )
        return vport

    def _adapter(self, address: object) -> Adapter:
        if address is None:
            if len(self.adapters) == 1:
                return next(iter(self.adapters.values()))
            raise RpcError("INVALID", f"adapter is missing: name one of {', '.join(self.adapters)}")
        found = self.adapters.get(address) if isinstance(address, str) else None
        if found is None:
            raise RpcError(
                "NOT_FOUND", f"adapter {address!r} is not in the configuration: it has {', '.join(self.adapters)}"
            )
        return found

    @staticmethod
    def _check_generation(vport: Vport, expected: int | None) -> None:
        if expected is not None and expected != vport.generation:
            raise RpcError(
                "STALE_GENERATION",
                f"the mapping of vport {vport.name} is of generation {vport.generation}, not {expected}: read it "
                f"again, then decide",
                generation=vport.generation,
            )

    # Methods

    async def get_version(self) -> dict[str, Any]:
        """What this engine is."""
        host = self.around.host
        return {
            "version": __version__,
            "protocol": PROTOCOL,
            "features": FEATURES,
            "host_id": host.host or None,
            "host_name": host.name,
        }

    async def adapter_list(self) -> list[dict[str, Any]]:
        """The adapters, their VFs, and whose they are."""
        owners = {vport.vf: vport.name for vport in self.vports.values() if vport.vf is not None}
        found = []
        for adapter in self.adapters.values():
            device: BlockDevice | None = None
            error: str | None = None
            try:
                device = adapter.device(adapter.pf)
            except StorageError as problem:
                error = str(problem)
            vfs = []
            for vf in adapter.vfs():
                try:
                    path: str | None = adapter.vf_device(vf).path
                except StorageError:
                    path = None
                vfs.append({"vf": vf, "device": path, "vport": owners.get(vf)})
            found.append(
                {
                    "adapter": adapter.pf,
                    "nsid": adapter.config.nsid,
                    "device": device and device.path,
                    "size": device.size if device else 0,
                    "identity": device and device.identity,
                    "error": error,
                    "vfs": vfs,
                }
            )
        return found

    async def vport_create(self, vport: str, adapter: str | None = None, incoming: bool = False) -> dict[str, Any]:
        """Create a vport without a mapping."""
        if not VPORT_NAME.fullmatch(vport):
            raise RpcError("INVALID", f"vport is {vport!r}: 1 to 15 of a-z, 0-9 and -, the first no -")
        async with self._lock:
            known = self.vports.get(vport)
            chosen = self._adapter(adapter) if known is None or adapter is not None else known.adapter
            if known is not None:
                if known.adapter is not chosen:
                    raise RpcError("EXISTS", f"vport {vport} is there, on adapter {known.adapter.pf}")
                return known.record()
            if vport in self.refused:
                raise RpcError(
                    "EXISTS",
                    f"vport {vport} is there and could not be restored ({self.refused[vport]}): mend it, or "
                    f"delete it by force",
                )
            new = Vport(vport, chosen, self.around, incoming)
            await new.open()
            try:
                new.save()
            except RpcError:
                await new.close()
                raise
            new.note("created", incoming=incoming)
            self.vports[vport] = new
            return new.record()

    async def mapping_set(self, vport: str, luns: list[Any], expected_generation: int | None = None) -> dict[str, Any]:
        """Replace the mapping of a vport, if it is of the generation expected."""
        async with self._remapping(vport) as found:
            async with self._lock:
                self._check_generation(found, expected_generation)
                try:
                    device = found.adapter.device(found.adapter.pf)
                except StorageError as problem:
                    raise RpcError("STORAGE", str(problem)) from problem
                # a million extents take a second, in which leases are to be renewed and front ends answered
                new, name = await asyncio.to_thread(_checked, vport, luns, device, self._others(found))
                changed = not found.generation or name != found.digest
                if changed:
                    found.refuse_mapping(new)
                    self._coming[vport] = new
            if changed:  # new leases take more than a second to settle: other vports do not wait for that
                try:
                    await found.set_mapping(new, name, MAPPING_TIMEOUT)
                finally:
                    del self._coming[vport]
            if sum(len(one.extents) for one in new) > extent_file.MANY:
                give_back()
            return {"generation": found.generation, "digest": found.digest, "changed": changed}

    @contextlib.asynccontextmanager
    async def _remapping(self, name: str) -> AsyncIterator[Vport]:
        """The vport ``name``, whose mapping nobody else changes meanwhile. Before the engine's lock, never in it."""
        found = self._find(name)
        async with found.remapping:
            if self._find(name) is not found:
                raise RpcError("BAD_STATE", f"vport {name} was deleted and created anew meanwhile: try again")
            yield found

    def _others(self, vport: Vport) -> list[tuple[str, tuple[Lun, ...]]]:
        """The mappings of the same storage that one of ``vport`` must leave alone: those in force and those to come."""
        found = [other for other in self.vports.values() if other is not vport and self._same_storage(vport, other)]
        coming = [(other.name, self._coming[other.name]) for other in found if other.name in self._coming]
        return [(other.name, other.luns) for other in found] + coming

    @staticmethod
    def _same_storage(one: Vport, other: Vport) -> bool:
        if one.adapter is other.adapter:
            return True
        try:
            return one.adapter.device(one.adapter.pf).identity == other.adapter.device(other.adapter.pf).identity
        except StorageError:
            return True  # not known, so nothing may overlap

    async def mapping_get(self, vport: str) -> dict[str, Any]:
        """The mapping as it was set."""
        found = self._find(vport)
        luns = [one.as_json() for one in found.luns]
        return {"vport": vport, "generation": found.generation, "digest": found.digest, "luns": luns}

    async def mapping_delete(self, vport: str, expected_generation: int | None = None) -> dict[str, Any]:
        """Remove the mapping of a vport that nobody uses."""
        async with self._remapping(vport) as found, self._lock:
            if not found.luns:
                return {}
            self._check_generation(found, expected_generation)
            self._refuse_use(found, "its mapping")
            await found.set_mapping((), digest(()), MAPPING_TIMEOUT)
            return {}

    @staticmethod
    def _refuse_use(vport: Vport, what: str) -> None:
        for port in vport.connected():
            peer = port.peer() or {}
            raise RpcError(
                "IN_USE",
                f"{what} is in use: front end {peer.get('comm')} (pid {peer.get('pid')}) is connected to "
                f"{port.address}",
                **peer,
            )
        for vf in filter(None, (vport.vf, *vport.binding)):
            raise RpcError(
                "IN_USE", f"{what} is in use: vport {vport.name} is bound to VF {vf}: unbind it first", vf=vf
            )

    async def vport_bind(self, vport: str, vf: str, path: str = "vf", timeout: float = 10.0) -> dict[str, Any]:
        """Bind a vport to a VF, and move it to a path."""
        found = self._find(vport)
        if not PCI_ADDRESS.fullmatch(vf):
            raise RpcError("INVALID", f"vf is {vf!r}: it must be a PCI address such as 0000:01:00.1")
        for other in self.vports.values():
            if other is not found and vf in (other.vf, *other.binding):
                raise RpcError("IN_USE", f"VF {vf} is bound to vport {other.name}", vport=other.name)
        switch = await found.bind(vf, path, timeout)
        return {"vport": found.record(), "switch": switch}

    async def vport_unbind(self, vport: str, timeout: float = 10.0) -> dict[str, Any]:
        """Move a vport to the PF path and let go of its VF."""
        found = self._find(vport)
        switch = await found.unbind(timeout)
        return {"vport": found.record(), "switch": switch}

    async def vport_switch(self, vport: str, path: str, timeout: float = 10.0) -> dict[str, Any]:
        """Move a vport to the other path."""
        return await self._find(vport).switch(path, timeout)

    async def vport_suspend(self, vport: str, timeout: float = 10.0) -> dict[str, Any]:
        """Suspend and drain a vport."""
        return await self._find(vport).suspend(timeout)

    async def vport_get_state(self, vport: str) -> dict[str, Any]:
        """The queue state record of a FROZEN vport."""
        return self._find(vport).get_state()

    async def vport_set_state(self, vport: str, state: dict[str, Any]) -> dict[str, Any]:
        """Set the positions of a FROZEN vport."""
        return await self._find(vport).set_state(state)

    async def vport_resume(self, vport: str, path: str | None = None) -> dict[str, Any]:
        """Resume a FROZEN vport."""
        return await self._find(vport).resume(path)

    async def vport_fence(self, vport: str, when: str = "now", next: str | None = None) -> dict[str, Any]:
        """Fence a vport, now or when its front end next stops the rings; then its leases go to a host, or are free."""
        return await self._find(vport).fence(when, next)

    async def vport_unfence(self, vport: str) -> dict[str, Any]:
        """Take the leases back, and undo a fence."""
        return await self._find(vport).unfence()

    async def lease_get(self, vport: str) -> list[dict[str, Any]]:
        """The leases of a vport, read anew."""
        found = self._find(vport)
        await found.leases.look()
        leases = [(one, found.leases.record(one.lun)) for one in found.luns]
        return [{"lun": one.lun, "vdisk": one.vdisk, **lease} for one, lease in leases if lease is not None]

    async def lease_take(self, vport: str) -> dict[str, Any]:
        """Take the leases of a vport that are free, handed to this host, or its own."""
        return await self._find(vport).take_leases(False)

    async def lease_break(self, vport: str) -> dict[str, Any]:
        """Take the leases of a vport also from hosts that have not renewed them for long: they must be off."""
        return await self._find(vport).take_leases(True)

    async def vport_list(self) -> list[dict[str, Any]]:
        """The records of all vports."""
        return [self.vports[name].record() for name in sorted(self.vports)]

    async def vport_get(self, vport: str) -> dict[str, Any]:
        """The record of one vport."""
        return self._find(vport).record()

    async def vport_set_policy(
        self, vport: str, error_policy: str | None = None, auto_return: bool | None = None
    ) -> dict[str, Any]:
        """Set what a vport does when its storage fails; what is left out stays as it is."""
        found = self._find(vport)
        await found.set_policy(error_policy, auto_return)
        return found.record()

    async def vport_samples(self, vport: str, since: float | None = None) -> list[dict[str, Any]]:
        """What a vport did in each of its last seconds in which something changed."""
        return self._find(vport).sampler.since(since)

    async def vport_delete(self, vport: str, force: bool = False) -> dict[str, Any]:
        """Delete a vport, with its mapping; one that is gone already is fine."""
        found = self.vports.get(vport)
        async with found.remapping if found else contextlib.nullcontext(), self._lock:
            if found is not None:
                if self.vports.get(vport) is found:
                    await self._delete(found, force)
            elif vport in self.refused:
                if not force:
                    self._find(vport)
                path = self.around.state_dir / "vports" / f"{vport}.json"
                state_file.remove(path)
                extent_file.forget(path.parent, vport, ())
                del self.refused[vport]
            return {}

    async def _delete(self, vport: Vport, force: bool) -> None:
        if not force:
            self._refuse_use(vport, f"vport {vport.name}")
        del self.vports[vport.name]
        await vport.close(forget=True)  # the leases before the state: a kill between leaves both to be found again
        try:
            state_file.remove(vport.state_path)
            extent_file.forget(vport.state_path.parent, vport.name, ())
        except OSError as problem:
            raise RpcError("STORAGE", f"the state of vport {vport.name} cannot be removed: {problem}") from problem
        journal.info(f"vport {vport.name}: deleted{' by force' if force else ''}")


def _checked(
    vport: str, luns: list[Any], device: BlockDevice, others: list[tuple[str, tuple[Lun, ...]]]
) -> tuple[tuple[Lun, ...], str]:
    """Return the mapping that ``luns`` says, and its digest. Raises RpcError INVALID."""
    new = parse_luns(luns, device.block_size, device.size)
    refuse_overlap(vport, new, others)
    refuse_lease_overlap(vport, new, others)
    return new, digest(new)
