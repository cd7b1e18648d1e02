# SPDX-License-Identifier: GPL-3.0-or-later
"""A whole adapter at once: VFs, pool, vdisks, vports with their mapping and binding.

Each part is planned by the code that plans it alone, in the order in which they build on each other; a part sees those
before it as they will be. So all refusals come before the first change, and check mode shows the same plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from . import _mapped, _mapping, _nvme, _pool, _sriov, _sriov_plan, _vf_report, _vfs, _vport
from ._errors import IovlabError, Missing, Refused, StepFailed, VportdDown, VportdError
from ._host import Host
from ._plan import Plan, Step, carry_out
from ._rpc import Vportd
from ._units import lvm_name, parse_size, pci_address, vport_name

Options = Mapping[str, Any]
_AT_ONCE = 16  # vports that are configured at a time
_LATER = "known once it is made"


@dataclass(frozen=True, slots=True)
class VportPlans:
    """Plans of one vport, and what the second is made from again once the extents of new vdisks are known."""

    name: str
    entries: Sequence[Options]
    current: _mapping.VportMapping
    connected: Mapping[int, str]
    vport: Plan
    mapping: Plan
    binding: Plan

    @property
    def steps(self) -> tuple[Step, ...]:
        return self.vport.steps + self.mapping.steps + self.binding.steps


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that was read before the first change. ``storage`` None: nobody has to know it; ``engine``: whether
    vportd answers.
    """

    namespace: _nvme.Namespace | None
    storage: _pool.Storage | None
    engine: bool
    adapters: Sequence[Mapping[str, Any]]
    records: Mapping[str, Mapping[str, Any]]
    mappings: Mapping[str, _mapping.VportMapping]


class AdapterConfig:
    """Use it in a ``with``, which holds the locks: ``plan()`` first, then ``apply()``. ``assume``: what another host or
    an earlier task is to make may be missing, vportd included.
    """

    def __init__(self, host: Host, vportd: Vportd, options: Options, assume: bool) -> None:
        self._host = host
        self._vportd = vportd
        self._options = options
        self._assume = assume
        self._notes: list[str] = []
        refuse_wrong(options)
        self.address = _sriov.choose(host, options["pf"], options["serial"], options["nqn"])
        self._locks = ExitStack()

    def __enter__(self) -> AdapterConfig:
        with ExitStack() as locks:
            if self._options["vfs"]:
                locks.enter_context(self._host.locked(f"sriov-{self.address}", self._options["timeout"]))
            if self._makes_storage:
                name = f"pool-{self.address}-{self._options['nsid']}"
                locks.enter_context(self._host.locked(name, _pool.LVM_TIMEOUT))
            self._locks = locks.pop_all()
        return self

    def __exit__(self, *__: object) -> None:
        self._locks.close()

    @property
    def _makes_storage(self) -> bool:
        return bool(self._options["pool"] or self._options["vdisks"])

    # What is there

    def _read(self) -> Facts:
        options, vportd = self._options, self._vportd
        namespace = storage = None
        looked_up = any(lun["extents"] is None for vport in options["vports"] for lun in vport["luns"])
        if self._makes_storage or looked_up:
            namespace = _nvme.namespace(self._host, self.address, options["nsid"])
            storage = _pool.read_storage(self._host, namespace.device, namespace.size, readonly=not self._makes_storage)
        try:
            adapters = vportd.adapters()
            records = {record["vport"]: record for record in vportd.vports()}
            mappings = {
                name: _mapping.from_vportd(vportd.mapping(name))
                for name, record in records.items()
                if options["vports"] and record["adapter"] == self.address
            }
        except VportdDown as exc:
            if options["vports"] and not self._assume:
                raise
            if options["vports"]:
                self._take_for_granted(exc)
            return Facts(namespace, storage, False, (), {}, {})
        return Facts(namespace, storage, True, adapters, records, mappings)

    def _take_for_granted(self, why: IovlabError) -> None:
        self._notes.append(f"planned as if an earlier task had made it: {why}")

    # What is to be done

    def plan(self) -> Plan:
        """All parts; Refused when one of them cannot be."""
        options = self._options
        self._facts = facts = self._read()
        self._vfs: _vfs.Planned | None = None
        self._pool: Plan | None = None
        self._vdisks: dict[str, Plan] = {}
        self._vports: list[VportPlans] = []
        if options["vfs"]:
            with _about(f"VFs of {self.address}"):
                request = _vfs.request(options["vfs"], options["vfs"]["count"])
                bound = _vf_report.bindings_of(facts.adapters, facts.records.values())
                self._vfs = _vfs.plan(self._host, self.address, request, bound, options["vfs"])
        self._pool_then = facts.storage.pool if facts.storage else None
        if options["pool"] and facts.storage:
            with _about(f"pool {options['pool']['name']}"):
                size = parse_size(options["pool"]["extent_size"], "extent_size")
                self._pool = _pool.plan_pool(facts.storage, options["pool"]["name"], True, size)
                self._pool_then = _pool.pool_then(facts.storage, self._pool)
        if options["vdisks"] and facts.storage:
            self._plan_vdisks(facts.storage)
        if options["vports"]:
            self._plan_vports()
        return self._whole()

    def _plan_vdisks(self, storage: _pool.Storage) -> None:
        pool = self._pool_then
        if pool is None:
            raise Missing(f"vdisks: there is no pool on {storage.device} to make them in; give pool too")
        for entry in self._options["vdisks"]:
            with _about(f"vdisk {entry['name']}"):
                size = parse_size(entry["size"], "size")
                planned = _pool.plan_vdisk(pool, entry["name"], size, entry["wipe"])
                pool = _pool.vdisk_then(pool, planned)
                self._vdisks[entry["name"]] = planned
        if storage.pool:
            self._guard().refuse(storage.pool, *self._vdisks.values())
        self._pool_then = pool

    def _guard(self) -> _mapped.Guard:
        return _mapped.Guard(self._vportd, self.address, self._options["nsid"], must_answer=False)

    def _plan_vports(self) -> None:
        facts, wanted = self._facts, self._options["vports"]
        adapter = self._adapter_then()
        taken = {vf["vf"] for vf in adapter["vfs"] if vf["vport"]}
        named = {vport["vf"] for vport in wanted if vport["vf"] != _vport.AUTO}
        ours = {vport["name"] for vport in wanted}
        mapped = [(name, lun) for name, one in facts.mappings.items() for lun in one.luns if name not in ours]
        for vport in wanted:
            name = vport["name"]
            with _about(f"vport {name}"):
                record = facts.records.get(name)
                made = _vport.plan_vport(name, record, self.address, vport["incoming"], False, True)
                then = record or {"vport": name, "adapter": self.address, "vf": None, "path": "pf", "luns": []}
                luns = _mapping.wanted(vport["luns"], self._pool_name(), self._look_up)
                known = [replace(lun, extents=_known(lun.extents)) for lun in luns]
                _mapping.refuse_bad_extents([lun for lun in known if lun.extents], adapter["size"], mapped)
                mapped += [(name, lun) for lun in known]
                current = facts.mappings.get(name, _mapping.VportMapping(0, None, ()))
                connected = _vport.front_ends(then)
                mapping = _mapping.plan(name, current, luns, connected, None)
                free = {"adapter": self.address, "vfs": [vf for vf in adapter["vfs"] if vf["vf"] not in taken | named]}
                binding = self._plan_binding(vport, then, adapter if vport["vf"] != _vport.AUTO else free)
                if binding.after["vf"] is not None:
                    taken.add(binding.after["vf"])
                    for vf in adapter["vfs"]:
                        vf["vport"] = name if vf["vf"] == binding.after["vf"] else vf["vport"]
                self._vports.append(VportPlans(name, vport["luns"], current, connected, made, mapping, binding))

    def _plan_binding(self, wanted: Options, record: Mapping[str, Any], adapter: Mapping[str, Any]) -> Plan:
        name, asked = record["vport"], wanted["vf"]
        entry = next((vf for vf in adapter["vfs"] if vf["vf"] == asked), None)
        to_come = self._assume and not (self._facts.engine and self._options["vfs"])
        try:
            vf = _vport.choose_vf(record, adapter, asked)
        except Refused:
            if not to_come or record["vf"] or (entry and entry["device"]):
                raise
            vf = None
        if vf is None and to_come:
            before = {"vport": name, "vf": record["vf"], "path": record["path"]}
            what = "the first free VF" if asked == _vport.AUTO else f"VF {asked}"
            step = Step("vport_bind", f"bind vport {name} to {what} on path {wanted['path']}")
            return Plan(before, before | {"vf": asked, "path": wanted["path"]}, (step,))
        if vf is None:
            if wanted["on_no_vf"] == "fail":
                raise _vport.no_free_vf(record)
            self._notes.append(f"no VF is free for vport {name}: it stays on path pf")
        return _vport.plan_binding({**record, "generation": 1}, vf, wanted["path"])

    def _adapter_then(self) -> dict[str, Any]:
        """The adapter as vportd will show it once the VFs are as planned."""
        facts, options = self._facts, self._options
        if facts.engine:
            adapter = dict(_vport.adapter_of(facts.adapters, self.address))
            if facts.storage and adapter["nsid"] != options["nsid"]:
                raise Refused(
                    f"nsid: vportd uses namespace {adapter['nsid']} of adapter {self.address}, not {options['nsid']}; "
                    "correct it"
                )
            if adapter["device"] is None:
                raise Refused(f"pf: {adapter['error']}")
        else:
            size = facts.namespace.size if facts.namespace else 1 << 63
            adapter = {"adapter": self.address, "nsid": options["nsid"], "size": size, "vfs": []}
        adapter["vfs"] = [dict(vf) for vf in adapter["vfs"]]
        if self._vfs is None or not self._vfs.vfs.changed:
            return adapter
        was = {vf["vf"]: vf for vf in adapter["vfs"]}
        request, current = self._vfs.request, self._vfs.adapter
        shows = request.driver == _sriov_plan.NVME and (
            request.namespaces is None or adapter["nsid"] in request.namespaces
        )
        untouched = set(was) - set(_sriov_plan.disturbed(current, self._vfs.vfs))
        adapter["vfs"] = [
            was[address]
            if address in untouched
            else {"vf": address, "device": _LATER if shows else None, "vport": None}
            for address in map(current.vf_address, range(request.count))
        ]
        for vf in adapter["vfs"]:
            vf["vport"] = was.get(vf["vf"], vf)["vport"]
        return adapter

    def _pool_name(self) -> str:
        """The pool of vdisks that do not name theirs: the one that there is, or will be, on the namespace."""
        return self._pool_then.name if self._pool_then else "any"

    def _look_up(self, pool: str, vdisk: str) -> tuple[tuple[_mapping.Extent, ...], int | None]:
        storage = self._facts.storage
        if storage is None:
            raise Missing(f"vdisk: {vdisk} is on no storage that was read; run it again")
        try:
            if self._pool_then is None:
                raise Missing(
                    f"vdisk: there is no pool on {storage.device} to look {vdisk} up in; create it with the pool "
                    "module first"
                )
            return _mapped.extents_of(_pool.pool_of(replace(storage, pool=self._pool_then), pool), vdisk)
        except Missing as exc:
            if not self._assume:
                raise
            self._take_for_granted(exc)
            return (_mapping.Extent(0, _pool.UNKNOWN, 0),), None

    def _whole(self) -> Plan:
        """One plan of all parts, for the report."""
        before: dict[str, Any] = {}
        after: dict[str, Any] = {}
        steps: list[Step] = []
        notes: list[str] = []

        def add(name: str, plan: Plan, was: Any, then: Any) -> None:
            before[name], after[name] = was, then if plan.changed else was
            steps.extend(plan.steps)
            notes.extend(plan.notes)

        if self._vfs:
            planned = self._vfs.plan
            add("vfs", planned, dict(planned.before), dict(planned.after))
        if self._pool:
            add("pool", self._pool, dict(self._pool.before), dict(self._pool.after))
        for name, planned in self._vdisks.items():
            add(f"vdisk {name}", planned, dict(planned.before), dict(planned.after))
        for vport in self._vports:
            whole = Plan({}, {}, vport.steps)
            was = dict(vport.vport.before) | _shown_luns(vport.mapping.before) | dict(vport.binding.before)
            then = dict(vport.vport.after) | _shown_luns(vport.mapping.after) | dict(vport.binding.after)
            add(f"vport {vport.name}", whole, was if vport.vport.before else {}, then)
        return Plan(before, after, tuple(steps), (*notes, *dict.fromkeys(self._notes)))

    def changes(self) -> list[dict[str, Any]]:
        """The objects that change, each with its steps as sentences."""
        found: list[tuple[str, tuple[Step, ...]]] = []
        if self._vfs:
            found.append((f"VFs of {self.address}", self._vfs.plan.steps))
        if self._pool:
            found.append((f"pool {self._options['pool']['name']}", self._pool.steps))
        found += [(f"vdisk {name}", planned.steps) for name, planned in self._vdisks.items()]
        found += [(f"vport {vport.name}", vport.steps) for vport in self._vports]
        return [{"object": what, "steps": [step.text for step in steps]} for what, steps in found if steps]

    # Doing it

    def apply(self) -> None:
        """Carry out what ``plan`` found. A failure names the object and what is done already; run again, it goes on."""
        done: list[str] = []
        self._apply_vfs(done)
        self._apply_storage(done)
        self._apply_vports(done)

    def _apply_vfs(self, done: list[str]) -> None:
        if self._vfs and self._vfs.plan.changed:
            with _doing(f"VFs of {self.address}", done):
                adapter = _vfs.apply(self._host, self._vfs, self._options["timeout"])
                self._vfs = replace(self._vfs, adapter=adapter)

    def _apply_storage(self, done: list[str]) -> None:
        storage = self._facts.storage
        if storage is None:
            return
        if self._pool and self._pool.changed:
            with _doing(f"pool {self._options['pool']['name']}", done):
                _pool.apply_pool(self._host, storage, self._pool)
                storage = self._storage_now()
        plans = [planned for planned in self._vdisks.values() if planned.changed]
        if plans and storage.pool:
            try:
                _pool.apply_vdisks(
                    self._host,
                    storage.pool,
                    plans,
                    lambda wipes: self._guard().refuse_zeroing(wipes),
                    lambda name: done.append(f"vdisk {name}"),
                )
            except _pool.VdiskFailed as exc:
                with _doing(f"vdisk {exc.name}", done):
                    raise exc.reason from None
            with _doing("the report of LVM", []):
                storage = self._storage_now()
        self._pool_then = storage.pool

    def _storage_now(self) -> _pool.Storage:
        namespace = self._facts.namespace
        if namespace is None:
            raise Missing(f"adapter {self.address} shows no namespace; run it again")
        return _pool.read_storage(self._host, namespace.device, namespace.size, readonly=not self._makes_storage)

    def _apply_vports(self, done: list[str]) -> None:
        """One after the other those that may give up what another one gets; then the new ones, of which each waits for
        its leases to settle, at once.
        """
        vports = [vport for vport in self._vports if vport.steps]
        for vport in vports:
            if vport.current.luns:
                with _doing(f"vport {vport.name}", done):
                    self._apply_vport(vport)
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            running = {one.name: threads.submit(self._apply_vport, one) for one in vports if not one.current.luns}
            wait(running.values(), return_when=FIRST_EXCEPTION)
            for future in running.values():
                future.cancel()
        ended = {name: future for name, future in running.items() if not future.cancelled()}
        for name in sorted(ended, key=lambda name: ended[name].exception() is not None):  # a failure tells what is done
            with _doing(f"vport {name}", done):
                ended[name].result()

    def _apply_vport(self, vport: VportPlans) -> None:
        """Whether extents that LVM has chosen are free vportd looks at, as for every mapping."""
        with Vportd(self._vportd.path, self._vportd.timeout) as vportd:
            verbs = vportd.verbs(vport.name, self._options["drain_timeout"])
            carry_out(vport.vport, verbs)
            if vport.mapping.changed:
                luns = _mapping.wanted(vport.entries, self._pool_name(), self._look_up)
                carry_out(_mapping.plan(vport.name, vport.current, luns, vport.connected, None), verbs)
            carry_out(vport.binding, verbs)

    def described(self) -> dict[str, Any]:
        """What there is now, of what the options name."""
        pool = self._pool_then
        result: dict[str, Any] = {"pf": self.address}
        if self._vfs:
            result["vfs"] = [asdict(vf) for vf in self._vfs.adapter.vfs]
        if self._options["pool"]:
            result["pool"] = _pool.described_pool(pool)
        if self._options["vdisks"]:
            found = [pool.vdisk(entry["name"]) for entry in self._options["vdisks"]] if pool else []
            result["vdisks"] = [_pool.described(pool, vdisk) for vdisk in found if pool and vdisk]
        if self._options["vports"]:
            names = {vport["name"] for vport in self._options["vports"]}
            records = self._vportd.vports() if self._facts.engine else []
            result["vports"] = [record for record in records if record["vport"] in names]
        return result

    def before(self) -> None:
        """Have ``described`` tell what there is before the change, for check mode."""
        self._pool_then = self._facts.storage.pool if self._facts.storage else None


def refuse_wrong(options: Options) -> None:
    """What can be seen from the options alone."""
    _vfs.refuse_timeout(options["timeout"])
    if options["drain_timeout"] <= 0:
        raise Refused(f"drain_timeout: {options['drain_timeout']} seconds is no time to drain in; give more than 0")
    if options["pf"] is not None:
        pci_address(options["pf"], "pf")
    if options["vfs"]:
        _vfs.refuse_count(options["vfs"]["count"])
    if options["pool"]:
        lvm_name(options["pool"]["name"], "pool.name")
        parse_size(options["pool"]["extent_size"], "pool.extent_size")
    for vdisk in options["vdisks"]:
        with _about(f"vdisk {vdisk['name']}"):
            lvm_name(vdisk["name"], "name")
            parse_size(vdisk["size"], "size")
    _refuse_twice("vdisks", [vdisk["name"] for vdisk in options["vdisks"]])
    mapped: dict[str, str] = {}
    for vport in options["vports"]:
        with _about(f"vport {vport['name']}"):
            vport_name(vport["name"], "name")
            if vport["vf"] != _vport.AUTO:
                vport["vf"] = pci_address(vport["vf"], "vf")
            if not vport["luns"]:
                raise Refused("luns: a vport without a LUN cannot be bound; give it one at least")
            _mapping.refuse_doubles(vport["luns"])
            for lun in vport["luns"]:
                if lun["extents"] is not None:
                    _mapping.parse_extents(lun["vdisk"], lun["extents"])
                elif lun["vdisk"] in mapped:
                    raise Refused(
                        f"vdisk: {lun['vdisk']} is a LUN of vport {mapped[lun['vdisk']]} too; give each vport "
                        "vdisks of its own"
                    )
                else:
                    mapped[lun["vdisk"]] = vport["name"]
    _refuse_twice("vports", [vport["name"] for vport in options["vports"]])
    _refuse_twice("vf", [vport["vf"] for vport in options["vports"] if vport["vf"] != _vport.AUTO])


def _refuse_twice(what: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise Refused(f"{what}: {name} is named twice; name it once")


def _known(extents: Sequence[_mapping.Extent]) -> tuple[_mapping.Extent, ...]:
    return tuple(extent for extent in extents if extent.physical != _pool.UNKNOWN)


def _shown_luns(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The LUNs of a mapping for a diff; where LVM has not chosen yet, it says so."""
    shown = []
    for lun in mapping["luns"]:
        later = any(extent[1] == _pool.UNKNOWN for extent in lun["extents"])
        size = max((extent[0] + extent[2] for extent in lun["extents"]), default=0)
        kept = {key: value for key, value in lun.items() if key != "lease"}
        shown.append(kept | {"size": size or None, "extents": _LATER if later else lun["extents"]})
    return {"luns": shown}


@contextmanager
def _about(what: str) -> Iterator[None]:
    """A refusal says which of many objects it is about."""
    try:
        yield
    except Refused as exc:
        raise type(exc)(f"{what}: {exc}", **exc.details) from exc


@contextmanager
def _doing(what: str, done: list[str]) -> Iterator[None]:
    """A failure says at which object, and what has been done before."""
    try:
        yield
    except VportdError as exc:
        raise VportdError(_told(what, exc, done), exc.reason, **exc.details) from exc
    except (IovlabError, OSError) as exc:
        raise StepFailed(_told(what, exc, done), **getattr(exc, "details", {})) from exc
    done.append(what)


def _told(what: str, exc: Exception, done: Sequence[str]) -> str:
    before = f"{len(done)} before it are done ({_listed(done)})" if done else "nothing before it was to be changed"
    return f"{what}: {exc}; {before}; run it again, it goes on from here"


def _listed(done: Sequence[str]) -> str:
    if len(done) <= 6:
        return ", ".join(done)
    return f"{', '.join(done[:3])} to {', '.join(done[-2:])}"
