# SPDX-License-Identifier: GPL-3.0-or-later
"""What a migration meets on its way: a dead engine, a link that is cut, a VM that writes too fast, no VF, no memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.driver import Lab, begin, other, play, refused, wait_until
from tests.lab.load import Load

VM = "tenant1"


@pytest.mark.parametrize("side", [pytest.param("source", marks=pytest.mark.long), "destination"])
def test_the_engine_is_killed_while_memory_is_copied(lab: Lab, side: str, written: Load) -> None:
    source, run = begin(lab, VM)
    victim = source if side == "source" else other(source)
    lab.host(victim).check_output("systemctl kill --signal=KILL vportd.service")
    code = run.end()
    play("recover", vm=VM)
    place = lab.settled(VM)
    assert place == (other(source) if code == 0 else source), run.output[-3000:]


@pytest.mark.long
def test_the_link_between_the_hypervisors_is_cut(lab: Lab, written: Load) -> None:
    source, run = begin(lab, VM, migration_timeout=20)
    links = lab.host(source).check_output("ls /sys/class/net").split()
    address = "10.77.0." + other(source)[-1]
    link = lab.host(source).check_output("ip -o route get %s", address).split(" dev ")[1].split()[0]
    assert link in links
    lab.host(source).check_output("ip link set %s down", link)
    try:
        assert run.end() != 0
        assert lab.place(VM) == source
    finally:
        lab.host(source).check_output("ip link set %s up", link)
    assert "was not migrated" in run.output
    reached = f"bash -c '</dev/tcp/{address}/22'"
    wait_until("link", lambda: lab.host(source).run(reached).rc == 0, 60)
    play("recover", vm=VM)
    assert lab.settled(VM) == source


@pytest.mark.long
def test_the_memory_cannot_be_copied_in_time(lab: Lab, written: Load) -> None:
    source = lab.place(VM)
    said = refused("migrate", vm=VM, to=other(source), migration_timeout=10, migration_bandwidth=1)
    assert "was not done within 10 s" in said
    assert f"{VM} was not migrated, and runs on {source}" in said
    assert lab.settled(VM) == source


@pytest.mark.long
def test_an_operator_aborts_it(lab: Lab, written: Load) -> None:
    source, run = begin(lab, VM, migration_bandwidth=1)
    for playbook in ("recover", "migrate"):
        assert "is under way, by process" in refused(playbook, vm=VM)
    play("migrate_abort", vm=VM)
    assert run.end() != 0
    assert f"runs on {source}" in run.output
    assert lab.settled(VM) == source


@pytest.fixture
def no_free_vf(lab: Lab) -> Iterator[str]:
    """The destination of the next migration, all of whose VFs are bound to other vports."""
    destination = other(lab.place(VM))
    made: list[str] = []
    try:
        adapter = lab.rpc(destination, "adapter_list")[0]
        for number, vf in enumerate(vf["vf"] for vf in adapter["vfs"] if not vf["vport"]):
            name = f"taken{number}"
            lab.rpc(destination, "vport_create", vport=name)
            made.append(name)
            extents = [[0, adapter["size"] - (number + 1) * 4096, 4096]]
            luns = [{"lun": 0, "vdisk": name, "extents": extents}]
            lab.rpc(destination, "mapping_set", vport=name, luns=luns)
            lab.rpc(destination, "vport_bind", vport=name, vf=vf)
        yield destination
    finally:
        for name in made:
            lab.rpc(destination, "vport_delete", vport=name, force=True)


def test_without_a_free_vf_it_stays_on_the_pf(lab: Lab, no_free_vf: str) -> None:
    output = play("migrate", vm=VM, to=no_free_vf)
    assert lab.settled(VM, path="pf") == no_free_vf
    assert "path pf" in output


def test_it_goes_back_to_a_vf_when_one_is_free(lab: Lab) -> None:
    place = lab.place(VM)
    play("recover", vm=VM)
    assert lab.settled(VM) == place


@pytest.mark.long
def test_without_memory_on_the_destination_nothing_is_begun(lab: Lab) -> None:
    source = lab.place(VM)
    destination = lab.host(other(source))
    before = lab.vports(source)[VM]["history"]
    # Huge pages take what is available but for 300 MiB, less than the VM needs and enough for the hypervisor itself.
    available = int(destination.check_output("awk '/^MemAvailable/ {print $2}' /proc/meminfo"))
    try:
        destination.check_output("sysctl -q vm.nr_hugepages=%s", str((available - (300 << 10)) // 2048))
        said = refused("migrate", vm=VM, to=other(source))
    finally:
        destination.check_output("sysctl -q vm.nr_hugepages=0")
    assert "memory" in said
    assert lab.settled(VM) == source
    assert lab.vports(source)[VM]["history"] == before


@pytest.mark.long
def test_offline_and_mediated(lab: Lab) -> None:
    """The other two modes: one that ends on the PF, one that shuts the VM down."""
    source = lab.place(VM)
    play("migrate", vm=VM, to=other(source), migration_mode="stay_mediated")
    assert lab.settled(VM, path="pf") == other(source)
    output = play("migrate", vm=VM, to=source, migration_mode="offline")
    assert lab.settled(VM) == source
    found = re.search(r"the report is (\S+)\.html", output)
    assert found is not None, output[-2000:]
    assert json.loads(Path(found[1] + ".json").read_text())["verdict"] == "ok"
