# SPDX-License-Identifier: GPL-3.0-or-later
"""vm_migrate: the virtual machine ends up running in one place, whatever happens on the way."""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest

from ansible_collections.iovlab.storage.plugins.module_utils import _libvirt
from ansible_collections.iovlab.storage.plugins.module_utils._migration import Progress
from tests.unit.plugins.libvirt_hosts import Domain, Network
from tests.unit.plugins.machine import MIB
from tests.unit.plugins.runner import Modules
from tests.unit.plugins.vportd_server import Engine

DISKS = """<disk type='vhostuser' device='disk'><source type='unix' path='/run/vportd/v1/0.sock'/></disk>"""
WEB1: dict[str, Any] = {"name": "web1", "destination": Network.DESTINATION}


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    network = Network()
    network.here.domains["web1"] = Domain(network.here, "web1", devices=DISKS)
    monkeypatch.setattr(_libvirt, "load", lambda: network.library)
    return network


@pytest.fixture
def there(modules: Modules, engine: Engine) -> list[dict[str, Any]]:
    """A vport with a mapping here; the records of the destination, which holds the same."""
    modules.vport(name="v1")
    luns = [{"lun": 0, "vdisk": "root", "extents": [[0, MIB, MIB]]}]
    modules.adapter_mapping(vport="v1", luns=luns)
    records: list[dict[str, Any]] = copy.deepcopy(modules.vport_info()["vports"])
    engine.connected["v1", 0] = {"pid": 77, "comm": "qemu-system-x86"}
    return records


def test_the_vm_moves_and_the_numbers_are_told(network: Network, modules: Modules, there: list[dict[str, Any]]) -> None:
    result = modules.settles(
        "vm_migrate",
        network.fingerprint,
        **WEB1,
        destination_vports=there,
        migrate_uri="tcp://203.0.113.12",
        bandwidth=100,
    )
    assert network.here.domains == {}
    assert network.there.domains["web1"].state_now == 1
    assert result["runs_on"] == "hypervisor2"
    assert network.there.keep_alive is not None, "a link that is cut would be waited for until TCP gives up"
    assert result["vports"] == ["v1"]
    numbers = result["migration"]
    assert (numbers["total_time"], numbers["downtime"], numbers["iterations"]) == (16.0, 0.14, 4)
    assert (numbers["memory_transferred"], numbers["dirty_rate"]) == (300 << 20, 1 << 20)
    assert set(numbers["phases"]) == {"preflight", "transfer", "confirm"}
    assert network.asked == ({"migrate_uri": "tcp://203.0.113.12", "bandwidth": 100}, 1 | 8 | 16 | 4096)


def test_no_password_is_ever_asked_for(network: Network, modules: Modules, there: list[dict[str, Any]]) -> None:
    modules.vm_migrate(**WEB1)
    assert network.opened == ["qemu:///system", f"{Network.DESTINATION}?no_tty=1"]


def test_peer2peer_lets_the_daemon_lead(network: Network, modules: Modules, there: list[dict[str, Any]]) -> None:
    modules.settles("vm_migrate", network.fingerprint, **WEB1, mode="peer2peer", auto_converge=True, unsafe=True)
    assert network.asked is not None
    assert network.asked[1] == 1 | 2 | 8 | 16 | 512 | 4096 | 8192


def test_a_vm_that_runs_there_already_is_left_alone(network: Network, modules: Modules) -> None:
    network.there.domains = {"web1": Domain(network.there, "web1")}
    network.here.domains.clear()
    result = modules.settles("vm_migrate", network.fingerprint, **WEB1)
    assert not result["changed"]
    assert result["runs_on"] == "hypervisor2"


def test_a_definition_left_behind_is_removed(network: Network, modules: Modules) -> None:
    network.there.domains = {"web1": Domain(network.there, "web1")}
    network.here.domains["web1"].state_now = 5
    assert modules.settles("vm_migrate", network.fingerprint, **WEB1)["changed"]
    assert network.here.domains == {}


def _absent(network: Network) -> dict[str, Any]:
    network.here.domains.clear()
    return {}


def _stopped(network: Network) -> dict[str, Any]:
    network.here.domains["web1"].state_now = 5
    return {}


def _paused(network: Network) -> dict[str, Any]:
    network.here.domains["web1"].state_now = 3
    return {}


def _busy(network: Network) -> dict[str, Any]:
    network.here.domains["web1"].job = True
    return {}


def _passthrough(network: Network) -> dict[str, Any]:
    address = "<address domain='0x0000' bus='0x01' slot='0x00' function='0x2'/>"
    network.here.domains["web1"].devices += f"<hostdev type='pci'><source>{address}</source></hostdev>"
    return {}


def _to_itself_by_address(network: Network) -> dict[str, Any]:
    return {"destination": "qemu+ssh://root@127.0.0.1/system"}


def _to_itself_by_migrate_uri(network: Network) -> dict[str, Any]:
    return {"migrate_uri": "tcp://127.0.0.1"}


def _to_itself_by_uri(network: Network) -> dict[str, Any]:
    return {"destination": "qemu:///system"}


def _to_itself_by_uuid(network: Network) -> dict[str, Any]:
    network.there.uuid = network.here.uuid
    return {}


def _to_itself_by_name(network: Network) -> dict[str, Any]:
    network.there.hostname = network.here.hostname
    return {}


def _unreachable(network: Network) -> dict[str, Any]:
    network.unreachable = True
    return {}


def _on_both(network: Network) -> dict[str, Any]:
    network.there.domains["web1"] = Domain(network.there, "web1")
    return {}


def _another_there(network: Network) -> dict[str, Any]:
    network.there.domains["web1"] = Domain(network.there, "web1", uuid="9", state_now=5)
    return {}


def _unknown_socket(network: Network) -> dict[str, Any]:
    network.here.domains["web1"].devices = DISKS.replace("v1", "v7")
    return {}


def _no_time(network: Network) -> dict[str, Any]:
    return {"timeout": 0}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_absent, ["no virtual machine web1", "hypervisor1", "hypervisor2"]),
        (_stopped, ["shut off", "start it"]),
        (_paused, ["paused"]),
        (_busy, ["another job", "domjobabort"]),
        (_passthrough, ["0000:01:00.2"]),
        (_to_itself_by_address, ["this same host"]),
        (_to_itself_by_migrate_uri, ["migrate_uri", "this same host"]),
        (_to_itself_by_uri, ["names no host"]),
        (_to_itself_by_uuid, ["this same host"]),
        (_to_itself_by_name, ["same host name"]),
        (_unreachable, ["cannot be reached", "No route to host"]),
        (_on_both, ["at once"]),
        (_another_there, ["another virtual machine web1"]),
        (_unknown_socket, ["/run/vportd/v7/0.sock", "no vport"]),
        (_no_time, ["timeout: 0"]),
    ],
)
@pytest.mark.parametrize("check", [False, True])
def test_what_cannot_go_well_is_refused_before_it_starts(
    network: Network,
    modules: Modules,
    there: list[dict[str, Any]],
    spoil: Callable[[Network], dict[str, Any]],
    words: list[str],
    check: bool,
) -> None:
    arguments = WEB1 | spoil(network)
    before = network.fingerprint()
    message = modules.refused("vm_migrate", check=check, **arguments)
    assert [word for word in words if word not in message] == []
    assert network.fingerprint() == before
    assert not network.started.is_set()


def _not_there(engine: Engine, there: list[dict[str, Any]]) -> None:
    there.clear()


def _other_mapping(engine: Engine, there: list[dict[str, Any]]) -> None:
    there[0]["digest"] = "sha256:0"


def _no_mapping(engine: Engine, there: list[dict[str, Any]]) -> None:
    there[0]["luns"] = []


def _taken_there(engine: Engine, there: list[dict[str, Any]]) -> None:
    there[0]["luns"][0]["connected"] = True


def _fenced_there(engine: Engine, there: list[dict[str, Any]]) -> None:
    there[0]["fenced"] = True


def _fenced_here(engine: Engine, there: list[dict[str, Any]]) -> None:
    engine.vports["v1"]["fenced"] = True


def _direct(engine: Engine, there: list[dict[str, Any]]) -> None:
    engine.call("vport_bind", {"vport": "v1", "vf": "0000:01:00.1"})


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_not_there, ["hypervisor2 has no vport v1"]),
        (_other_mapping, ["another mapping", "sha256:0"]),
        (_no_mapping, ["push the same mapping"]),
        (_taken_there, ["a virtual machine on LUN 0 already"]),
        (_fenced_there, ["fenced on destination"]),
        (_fenced_here, ["fenced on this host"]),
        (_direct, ["on path vf", "path=pf"]),
    ],
)
def test_vports_that_are_not_ready_on_both_sides_are_refused(
    network: Network,
    modules: Modules,
    engine: Engine,
    there: list[dict[str, Any]],
    spoil: Callable[[Engine, list[dict[str, Any]]], None],
    words: list[str],
) -> None:
    spoil(engine, there)
    before = network.fingerprint()
    message = modules.refused("vm_migrate", **WEB1, destination_vports=there)
    assert [word for word in words if word not in message] == []
    assert network.fingerprint() == before
    assert not network.started.is_set()


def test_vportd_not_running_is_said(network: Network, modules: Modules) -> None:
    assert "systemctl start vportd" in modules.refused("vm_migrate", **WEB1)


def test_past_the_deadline_it_is_aborted_and_runs_on_here(
    network: Network, modules: Modules, there: list[dict[str, Any]]
) -> None:
    network.proceed.clear()
    before = network.fingerprint()
    result = modules.vm_migrate(**WEB1, timeout=1, max_downtime=50)
    assert result["failed"]
    assert "was not done within 1 s with 64 MiB left to send and was aborted" in result["msg"]
    assert "it still is running on this host" in result["msg"]
    assert result["runs_on"] == "source"
    assert network.aborted.is_set()
    assert network.here.domains["web1"].downtime_asked == 50
    assert network.fingerprint() == before


@pytest.mark.parametrize(
    ("failure", "runs_on", "words"),
    [
        ("start", "source", "still is running on this host"),
        ("paused", "source", "was resumed"),
        ("confirm", "destination", "the paused copy left on this host must not be resumed"),
    ],
)
def test_a_migration_that_fails_says_where_the_vm_runs(
    network: Network, modules: Modules, there: list[dict[str, Any]], failure: str, runs_on: str, words: str
) -> None:
    network.failure = failure
    result = modules.vm_migrate(**WEB1)
    assert result["failed"]
    assert result["runs_on"] == runs_on
    assert words in result["msg"]
    running = [
        host
        for host in (network.here, network.there)
        if host.domains.get("web1") and host.domains["web1"].state_now == 1
    ]
    assert len(running) == 1


# Progress


def _told(network: Network, modules: Modules, seconds: float, **arguments: Any) -> dict[str, Any]:
    """A migration whose memory is sent for ``seconds``."""
    network.proceed.clear()
    timer = threading.Timer(seconds, network.proceed.set)
    timer.start()
    result: dict[str, Any] = modules.vm_migrate(**WEB1, **arguments)
    timer.join()
    return result


def test_progress_is_told_as_it_was(network: Network, modules: Modules, there: list[dict[str, Any]]) -> None:
    entries = _told(network, modules, 1.3)["migration"]["progress"]
    assert 2 <= len(entries) <= 3, "one each half second"
    assert entries[0]["time"] < entries[1]["time"]
    assert {key: value for key, value in entries[0].items() if key != "time"} == {
        "iteration": 1,
        "memory_remaining": 64 << 20,
        "memory_transferred": 192 << 20,
        "dirty_rate": 256 * 4096,
        "throttle": 20,
    }


def test_the_progress_of_a_migration_that_failed_is_told_too(
    network: Network, modules: Modules, there: list[dict[str, Any]]
) -> None:
    network.proceed.clear()
    result = modules.vm_migrate(**WEB1, timeout=1)
    assert result["failed"]
    assert [entry["iteration"] for entry in result["progress"]][:1] == [1]


def test_a_long_migration_keeps_its_whole_course_in_few_entries() -> None:
    progress = Progress(limit=600)
    seconds = 6 * 3600
    for moment in range(2 * seconds):
        progress.note(1000.0 + moment / 2, {"memory_iteration": moment})
        assert len(progress.entries) <= 600
    times = [entry["time"] for entry in progress.entries]
    assert times[0] == 1000.0
    assert times[-1] > 1000.0 + seconds - 120
    assert len(times) >= 300
    steps = [after - before for before, after in itertools.pairwise(times)]
    assert max(steps) <= 3 * min(steps), "evenly over the whole time"


def test_a_clock_set_back_does_not_end_the_progress() -> None:
    progress = Progress()
    progress.note(1000.0, {})
    progress.note(10.0, {})
    assert [entry["time"] for entry in progress.entries] == [1000.0, 10.0]


# Aborting what another process began

ABORT: dict[str, Any] = {"name": "web1", "state": "aborted"}


def test_no_migration_to_abort_is_fine(network: Network, modules: Modules) -> None:
    result = modules.settles("vm_migrate", network.fingerprint, **ABORT)
    assert (result["changed"], result["runs_on"]) == (False, "hypervisor1")
    assert not network.aborted.is_set()
    assert network.opened == ["qemu:///system"] * 3, "no destination is asked"


def test_a_migration_that_comes_in_is_not_this_host_s_to_abort(network: Network, modules: Modules) -> None:
    coming = network.here.domains["web1"]
    coming.state_now, coming.job, coming.operation = 3, True, 4
    result = modules.settles("vm_migrate", network.fingerprint, **ABORT)
    assert not result["changed"]
    assert not network.aborted.is_set()


def test_no_vm_to_abort_a_migration_of_is_said(network: Network, modules: Modules) -> None:
    network.here.domains.clear()
    result = modules.vm_migrate(**ABORT)
    assert (result["changed"], result["runs_on"]) == (False, None)
    assert "no virtual machine web1 on hypervisor1" in str(result["warnings"])


def test_a_migration_begun_elsewhere_is_aborted_and_the_vm_runs_on_here(network: Network, modules: Modules) -> None:
    network.proceed.clear()
    domain = network.here.domains["web1"]
    failures: list[Exception] = []

    def migrate() -> None:
        try:
            domain.migrate3(network.there, {}, 1)
        except network.library.libvirtError as exc:
            failures.append(exc)

    other = threading.Thread(target=migrate)
    other.start()
    assert network.started.wait(10)
    foretold = modules.vm_migrate(check=True, **ABORT)
    assert foretold["changed"]
    assert not network.aborted.is_set(), "check mode aborted it"
    done = modules.vm_migrate(**ABORT)
    other.join()
    assert (done["changed"], done["runs_on"]) == (True, "hypervisor1")
    assert done["steps"] == foretold["steps"] == ["abort the migration of virtual machine web1 on hypervisor1"]
    assert done["diff"] == foretold["diff"]
    assert "canceled by client" in str(failures[0])
    assert domain.state_now == 1
    assert not modules.vm_migrate(**ABORT)["changed"]


def test_a_job_that_is_no_migration_is_not_aborted(network: Network, modules: Modules) -> None:
    domain = network.here.domains["web1"]
    domain.job, domain.operation = True, 2
    assert "no migration to another host" in modules.refused("vm_migrate", **ABORT)
    assert not network.aborted.is_set()


def test_a_migration_that_cannot_be_aborted_is_said(network: Network, modules: Modules) -> None:
    domain = network.here.domains["web1"]
    domain.job, domain.post_copy = True, True
    message = modules.refused("vm_migrate", **ABORT)
    assert "cannot abort migration in post-copy mode" in message


def test_a_migration_that_was_faster_than_its_abort_is_said(
    network: Network, modules: Modules, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain = network.here.domains["web1"]
    domain.job = True

    def too_late(self: Domain) -> int:
        network.there.domains["web1"] = domain
        network.here.domains.clear()
        return 0

    monkeypatch.setattr(Domain, "abortJob", too_late)
    assert "ended before it could be aborted" in modules.refused("vm_migrate", **ABORT)


def test_a_destination_is_needed_to_migrate(network: Network, modules: Modules) -> None:
    result = modules.vm_migrate(name="web1")
    assert result["failed"]
    assert "destination" in result["msg"]


# Post-copy


@pytest.mark.parametrize("check", [False, True])
def test_post_copy_is_refused_with_disks_on_vports(
    network: Network, modules: Modules, there: list[dict[str, Any]], check: bool
) -> None:
    message = modules.refused("vm_migrate", check=check, **WEB1, post_copy=True)
    assert "/run/vportd/v1/0.sock" in message
    assert "auto_converge" in message
    assert not network.started.is_set()


def test_post_copy_begins_after_the_first_pass(network: Network, modules: Modules) -> None:
    domain = network.here.domains["web1"]
    domain.devices = ""
    network.proceed.clear()
    threading.Timer(0.5, setattr, (domain, "passes", 2)).start()
    threading.Timer(1.0, network.proceed.set).start()
    result = modules.vm_migrate(**WEB1, post_copy=True)
    assert not result.get("failed"), result
    assert network.asked is not None
    assert network.asked[1] & 32768
    assert domain.post_copy
    assert result["migration"]["progress"][0]["iteration"] == 1


def test_post_copy_that_breaks_off_resumes_nothing(network: Network, modules: Modules) -> None:
    domain = network.here.domains["web1"]
    domain.devices, domain.passes, network.failure = "", 2, "post-copy"
    network.proceed.clear()
    result = modules.vm_migrate(**WEB1, post_copy=True)
    assert result["failed"]
    assert "--postcopy-resume" in result["msg"]
    assert domain.state_now == 3, "the source has old memory and must stay paused"


def test_post_copy_past_the_deadline_is_not_aborted(network: Network, modules: Modules) -> None:
    domain = network.here.domains["web1"]
    domain.devices, domain.passes = "", 2
    network.proceed.clear()
    result = modules.vm_migrate(**WEB1, post_copy=True, timeout=1)
    network.proceed.set()
    assert result["failed"]
    assert "past aborting, and it goes on" in result["msg"]
    assert not network.aborted.is_set()


def test_libvirt_missing_is_said(modules: Modules, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ImportError("libvirt")

    monkeypatch.setattr(_libvirt, "load", missing)
    monkeypatch.setattr(_libvirt, "probe_interpreters_for_module", lambda _interpreters, _name: None)
    assert "install the package python3-libvirt" in modules.refused("vm_migrate", **WEB1)
