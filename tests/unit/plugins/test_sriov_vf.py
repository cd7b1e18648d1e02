# SPDX-License-Identifier: GPL-3.0-or-later
"""sriov_vf: VFs come and go as asked, and never from under somebody."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from ansible_collections.iovlab.storage.plugins.module_utils import _sriov_apply
from tests.unit.plugins.machine import IDENTITY, MIB, PF, Machine
from tests.unit.plugins.runner import Modules
from tests.unit.plugins.vportd_server import Engine

VF0, VF1 = "0000:01:00.1", "0000:01:00.2"


def test_vfs_get_resources_go_online_and_show_the_namespace(machine: Machine, modules: Modules) -> None:
    result = modules.settles("sriov_vf", machine.fingerprint, pf=PF, count=2, queues=2, interrupts=1)

    assert [vf["address"] for vf in result["vfs"]] == [VF0, VF1]
    for vf in result["vfs"]:
        assert (vf["online"], vf["queues"], vf["interrupts"], vf["driver"]) == (True, 2, 1, "nvme")
        assert [(space["nsid"], space["size"], space["identity"]) for space in vf["namespaces"]] == [
            (1, machine.size, IDENTITY)
        ]
        assert vf["users"] == []
    assert machine.read(f"bus/pci/devices/{PF}/sriov_drivers_autoprobe") == "1"


def test_the_kernel_is_kept_from_binding_a_vf_before_it_is_online(machine: Machine, modules: Modules) -> None:
    modules.sriov_vf(pf=PF, count=1)

    order = [path.rsplit("/", 1)[-1] for path, _value in machine.written]
    assert order == [
        "sriov_drivers_autoprobe",
        "sriov_numvfs",
        "driver_override",
        "drivers_probe",
        "sriov_drivers_autoprobe",
    ]
    actions = [command[6] for command in machine.commands if command[1] == "virt-mgmt"]
    assert actions == ["7", "8", "8", "9"]


def test_resources_left_out_are_shared_out_evenly(modules: Modules) -> None:
    result = modules.sriov_vf(pf=PF, count=4)
    assert {(vf["queues"], vf["interrupts"]) for vf in result["vfs"]} == {(2, 2)}


def test_autoprobe_that_was_off_stays_off(machine: Machine, modules: Modules) -> None:
    machine.write(f"bus/pci/devices/{PF}/sriov_drivers_autoprobe", "0")
    modules.sriov_vf(pf=PF, count=1)
    assert machine.read(f"bus/pci/devices/{PF}/sriov_drivers_autoprobe") == "0"


def test_links_that_come_late_are_waited_for(machine: Machine, modules: Modules) -> None:
    machine.adapter.late_links = True
    assert len(modules.sriov_vf(pf=PF, count=3)["vfs"]) == 3


@pytest.mark.parametrize("style", ["current", "short", "unusable"])
def test_every_form_of_the_secondary_list_is_understood(machine: Machine, modules: Modules, style: str) -> None:
    machine.adapter.json_style = style
    result = modules.settles("sriov_vf", machine.fingerprint, pf=PF, count=2)
    assert [vf["cntlid"] for vf in result["vfs"]] == [1, 2]
    assert ("binary" in str(machine.commands)) == (style == "unusable")


def test_vfio_pci_is_loaded_and_takes_the_vfs(machine: Machine, modules: Modules) -> None:
    machine.adapter.automatic.clear()
    result = modules.settles("sriov_vf", machine.fingerprint, pf=PF, count=2, driver="vfio-pci")
    assert {vf["driver"] for vf in result["vfs"]} == {"vfio-pci"}
    assert "load driver vfio-pci" in result["steps"]


def test_a_driver_is_changed_without_touching_the_controller(machine: Machine, modules: Modules) -> None:
    modules.sriov_vf(pf=PF, count=1)
    machine.commands.clear()
    result = modules.settles("sriov_vf", machine.fingerprint, pf=PF, count=1, driver="none")
    assert result["vfs"][0]["driver"] is None
    assert not [command for command in machine.commands if command[1] == "virt-mgmt"]


def test_a_vf_that_went_offline_is_brought_back(machine: Machine, modules: Modules) -> None:
    modules.sriov_vf(pf=PF, count=2)
    machine.adapter.virt_mgmt({"-c": 2, "-a": 7})
    result = modules.settles("sriov_vf", machine.fingerprint, pf=PF, count=2)
    assert result["vfs"][1]["online"]
    assert not [step for step in result["steps"] if VF0 in step or re.search(r"\bVF 0\b", step)]


def test_resources_left_with_vfs_that_will_not_exist_are_taken_back(machine: Machine, modules: Modules) -> None:
    machine.adapter.flexible_queues = 5
    machine.adapter.total = 2
    for cntlid in (3, 4):
        machine.adapter.controllers[cntlid].queues = 2
    result = modules.settles("sriov_vf", machine.fingerprint, pf=PF, count=1, queues=2)
    assert result["vfs"][0]["queues"] == 2
    assert machine.adapter.controllers[4].queues == 0


def test_all_vfs_are_removed(machine: Machine, modules: Modules) -> None:
    modules.sriov_vf(pf=PF, count=3)
    result = modules.settles("sriov_vf", machine.fingerprint, pf=PF, state="absent")
    assert result["vfs"] == []


def test_another_count_recreates_all_vfs_only_with_leave(machine: Machine, modules: Modules) -> None:
    modules.sriov_vf(pf=PF, count=2)
    before = machine.fingerprint()
    message = modules.refused("sriov_vf", pf=PF, count=3)
    assert "2 VFs" in message
    assert "allow_recreate" in message
    assert machine.fingerprint() == before
    assert len(modules.settles("sriov_vf", machine.fingerprint, pf=PF, count=3, allow_recreate=True)["vfs"]) == 3


def _no_device(machine: Machine) -> dict[str, Any]:
    return {"pf": "0000:09:00.0", "count": 1}


def _no_sriov(machine: Machine) -> dict[str, Any]:
    (machine.sys / f"bus/pci/devices/{PF}/sriov_totalvfs").unlink()
    return {"pf": PF, "count": 1}


def _a_vf(machine: Machine) -> dict[str, Any]:
    machine.adapter.set_numvfs(1)
    return {"pf": VF0, "count": 1}


def _a_nic(machine: Machine) -> dict[str, Any]:
    machine.write(f"bus/pci/devices/{PF}/class", "0x020000")
    return {"pf": PF, "count": 1}


def _undriven(machine: Machine) -> dict[str, Any]:
    (machine.sys / f"bus/pci/devices/{PF}/driver").unlink()
    shutil.rmtree(machine.sys / f"bus/pci/devices/{PF}/nvme")
    return {"pf": PF, "count": 1}


def _too_many(machine: Machine) -> dict[str, Any]:
    return {"pf": PF, "count": 5}


def _no_driver(machine: Machine) -> dict[str, Any]:
    machine.modules.clear()
    return {"pf": PF, "count": 1, "driver": "vfio-pci"}


def _no_iommu(machine: Machine) -> dict[str, Any]:
    (machine.sys / f"bus/pci/devices/{PF}/iommu_group").unlink()
    return {"pf": PF, "count": 1, "driver": "vfio-pci"}


def _no_nvme_cli(machine: Machine) -> dict[str, Any]:
    machine.missing.add("nvme")
    return {"pf": PF, "count": 1}


def _too_many_queues(machine: Machine) -> dict[str, Any]:
    return {"pf": PF, "count": 4, "queues": 3}


def _too_few_queues(machine: Machine) -> dict[str, Any]:
    return {"pf": PF, "count": 4, "queues": 1}


def _pf_has_most(machine: Machine) -> dict[str, Any]:
    machine.adapter.primary_queues = 5
    return {"pf": PF, "count": 2}


def _pf_has_all(machine: Machine) -> dict[str, Any]:
    machine.adapter.primary_interrupts = 8
    machine.adapter.json_style = "unusable"
    return {"pf": PF, "count": 2, "interrupts": 1}


def _vfs_have_some(machine: Machine) -> dict[str, Any]:
    machine.adapter.primary_queues = 3
    for cntlid, queues in ((1, 2), (3, 2)):
        machine.adapter.controllers[cntlid].queues = queues
    return {"pf": PF, "count": 3, "queues": 2}


def _too_few_for_any(machine: Machine) -> dict[str, Any]:
    caps = '{"vqfrt": 1, "vqrfap": 0, "vqfrsm": 2, "vifrt": 8, "virfap": 0, "vifrsm": 2}'
    machine.interceptor = lambda command: (0, caps, "") if command[1] == "primary-ctrl-caps" else None
    return {"pf": PF, "count": 1}


def _bad_address(machine: Machine) -> dict[str, Any]:
    return {"pf": "nvme0", "count": 1}


def _no_count(machine: Machine) -> dict[str, Any]:
    return {"pf": PF, "count": 0}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_no_device, ["no PCI device 0000:09:00.0"]),
        (_no_sriov, [PF, "no SR-IOV"]),
        (_a_vf, [VF0, f"VF of {PF}"]),
        (_a_nic, ["no NVMe controller", "0x020000"]),
        (_undriven, ["no driver", "bind the PF"]),
        (_too_many, ["5 VFs", "4"]),
        (_no_driver, ["no driver vfio-pci"]),
        (_no_iommu, ["IOMMU"]),
        (_no_nvme_cli, ["nvme is not installed", "nvme-cli"]),
        (_too_many_queues, ["queues: 3", "2 at most"]),
        (_too_few_queues, ["queues: 1", "2 or more"]),
        (
            _pf_has_most,
            [
                "queues: 2 VFs with 2 each need 4 flexible VQ resources",
                f"adapter {PF} has 8: 5 are held by the PF itself (VQRFAP), 3 are free",
                "ask for 1 VFs at most, or take them from the PF",
                "nvme virt-mgmt /dev/nvme0 -c CNTLID-OF-THE-PF -r 0 -a 1 -n 0",
            ],
        ),
        (
            _pf_has_all,
            [
                f"adapter {PF} has 8: 8 are held by the PF itself (VIRFAP), 0 are free; take them from the PF",
                "-r 1 -a 1 -n 0",
            ],
        ),
        (
            _vfs_have_some,
            [
                "3 are held by the PF itself (VQRFAP), 2 are held by VF 0000:01:00.1, "
                "2 are held by VF 0000:01:00.3, 1 are free",
                "ask for 2 VFs at most, or take them from the PF",
            ],
        ),
        (_too_few_for_any, ["queues: 1 VFs with 2 each need 2", f"adapter {PF} has 1: 1 are free; it has too few"]),
        (_bad_address, ["'nvme0' is not a PCI address"]),
        (_no_count, ["count: 0", "state=absent"]),
    ],
)
@pytest.mark.parametrize("check", [False, True])
def test_what_cannot_be_is_refused_before_anything_is_touched(
    machine: Machine, modules: Modules, spoil: Callable[[Machine], dict[str, Any]], words: list[str], check: bool
) -> None:
    arguments = spoil(machine)
    before = machine.fingerprint()
    message = modules.refused("sriov_vf", check=check, **arguments)
    assert [word for word in words if word not in message] == []
    assert machine.fingerprint() == before


def _opened_block_device(machine: Machine) -> str:
    machine.process(4711, "dd", ["dd", "if=/dev/nvme2n1"], [machine.dev / "nvme2n1"])
    return "process 4711 (dd) with nvme2n1 open"


def _vfio_holder(machine: Machine) -> str:
    machine.symlink(f"bus/pci/devices/{VF1}/other", "x")
    (machine.sys / f"bus/pci/devices/{VF1}/driver").unlink()
    machine.symlink(f"bus/pci/devices/{VF1}/driver", "../../../../bus/pci/drivers/vfio-pci")
    machine.process(4712, "spdk_tgt", ["spdk_tgt"], [machine.dev / "vfio/21"])
    return "process 4712 (spdk_tgt) by VFIO"


def _vfio_character_device(machine: Machine) -> str:
    (machine.sys / f"bus/pci/devices/{VF1}/vfio-dev/vfio3").mkdir(parents=True)
    machine.process(4715, "engine", ["engine"], [machine.dev / "vfio/devices/vfio3"])
    return "process 4715 (engine) by VFIO"


def _guest(machine: Machine) -> str:
    machine.process(
        4713,
        "qemu-system-x86",
        [
            "/usr/bin/qemu-system-x86_64",
            "-name",
            "guest=web1,debug-threads=on",
            "-device",
            f'{{"driver":"vfio-pci","host":"{VF1}"}}',
        ],
    )
    return "virtual machine web1 (process 4713)"


def _mounted(machine: Machine) -> str:
    (machine.proc / "self").mkdir()
    (machine.proc / "self/mountinfo").write_text("36 35 259:2 / /srv/data rw,noatime - ext4 /dev/nvme2n1 rw\n")
    return "mount of nvme2n1 on /srv/data"


def _lvm_held(machine: Machine) -> str:
    (machine.sys / f"bus/pci/devices/{VF1}/nvme/nvme2/nvme2n1/holders/dm-0").mkdir()
    machine.write("class/block/dm-0/dm/name", "san-web1")
    machine.write("class/block/dm-0/dm/uuid", "LVM-abc")
    return "LVM volume san-web1 on nvme2n1"


def _swap(machine: Machine) -> str:
    (machine.proc / "swaps").write_text("Filename Type Size Used Priority\n/dev/nvme2n1 partition 1 0 -2\n")
    return "swap on nvme2n1"


@pytest.mark.parametrize(
    "use", [_opened_block_device, _vfio_holder, _vfio_character_device, _guest, _mounted, _lvm_held, _swap]
)
@pytest.mark.parametrize(
    "change",
    [{"count": 3, "allow_recreate": True}, {"count": 3}, {"state": "absent"}, {"count": 2, "driver": "none"}],
    ids=["recreate", "count", "absent", "driver"],
)
def test_a_vf_in_use_is_never_taken_away(
    machine: Machine, modules: Modules, use: Callable[[Machine], str], change: dict[str, Any]
) -> None:
    modules.sriov_vf(pf=PF, count=2)
    user = use(machine)
    before = machine.fingerprint()
    message = modules.refused("sriov_vf", pf=PF, **change)
    assert f"VF {VF1} is in use by {user}" in message
    assert machine.fingerprint() == before
    listed = modules.sriov_vf_info(pf=PF)["adapters"][0]["vfs"][1]["users"]
    assert any(user in entry for entry in listed)


def _define(machine: Machine, name: str, device: str) -> None:
    path = machine.root / f"etc/libvirt/qemu/{name}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"<!-- made by libvirt -->\n<domain type='kvm'><name>{name}</name><devices>{device}\n"
        "<controller type='pci'><address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x1'/>"
        "</controller></devices></domain>"
    )


def _source(function: int) -> str:
    return f"<source><address domain='0x0000' bus='0x01' slot='0x00' function='{function:#x}'/></source>"


HOSTDEVS = {
    "hostdev": "<hostdev mode='subsystem' type='pci' managed='yes'>{}</hostdev>",
    "interface": "<interface type='hostdev'>{}</interface>",
}


@pytest.mark.parametrize("device", HOSTDEVS)
@pytest.mark.parametrize("check", [False, True])
def test_a_vf_that_a_vm_needs_to_start_is_not_removed(
    machine: Machine, modules: Modules, device: str, check: bool
) -> None:
    modules.sriov_vf(pf=PF, count=3)
    _define(machine, "web1", HOSTDEVS[device].format(_source(3)))
    before = machine.fingerprint()
    for change in ({"state": "absent"}, {"count": 2, "allow_recreate": True}):
        message = modules.refused("sriov_vf", check=check, pf=PF, **change)
        assert "VF 0000:01:00.3 is in the definition of virtual machine web1, which is shut off" in message
        assert "virsh edit web1" in message
    assert machine.fingerprint() == before
    users = [vf["users"] for vf in modules.sriov_vf_info(pf=PF)["adapters"][0]["vfs"]]
    assert users == [[], [], ["virtual machine web1, shut off, when it is started"]]
    assert modules.sriov_vf(pf=PF, count=4, allow_recreate=True, check=check)["changed"], "it is there again"
    (machine.root / "etc/libvirt/qemu/web1.xml").unlink()
    assert modules.sriov_vf(pf=PF, state="absent", check=check)["changed"]


def test_a_vf_is_not_taken_from_vfio_pci_when_a_vm_needs_it_there(machine: Machine, modules: Modules) -> None:
    machine.adapter.automatic.clear()
    modules.sriov_vf(pf=PF, count=2, driver="vfio-pci")
    _define(machine, "web1", HOSTDEVS["hostdev"].format(_source(1)))
    assert f"VF {VF0} is in the definition of" in modules.refused("sriov_vf", pf=PF, count=2, driver="nvme")
    machine.adapter.virt_mgmt({"-c": 1, "-a": 7})
    assert modules.sriov_vf(pf=PF, count=2, driver="vfio-pci")["changed"], "this is help, and no loss"


def test_a_vm_that_runs_with_its_vf_is_named_once(machine: Machine, modules: Modules) -> None:
    modules.sriov_vf(pf=PF, count=2)
    _define(machine, "web1", HOSTDEVS["hostdev"].format(_source(2)))
    _define(machine, "web2", HOSTDEVS["hostdev"].format(_source(2)))
    user = _guest(machine)
    assert f"in use by {user}" in modules.refused("sriov_vf", pf=PF, state="absent")
    users = modules.sriov_vf_info(pf=PF)["adapters"][0]["vfs"][1]["users"]
    assert users == [user, "virtual machine web2, shut off, when it is started"]


def test_definitions_that_name_no_vf_of_ours_are_no_users(machine: Machine, modules: Modules) -> None:
    modules.sriov_vf(pf=PF, count=2)
    _define(machine, "usb", "<hostdev type='usb'><source><address bus='1' device='2'/></source></hostdev>")
    _define(machine, "other", HOSTDEVS["hostdev"].format(_source(7)))
    (machine.root / "etc/libvirt/qemu/broken.xml").write_text("<domain><name>")
    (machine.root / "etc/libvirt/qemu/gone.xml").symlink_to("nowhere")
    assert modules.sriov_vf(pf=PF, state="absent")["changed"]


def test_udev_that_looks_at_a_new_device_is_no_user(machine: Machine, modules: Modules) -> None:
    modules.sriov_vf(pf=PF, count=2)
    machine.process(500, "(udev-worker)", ["(udev-worker)"], [machine.dev / "nvme2n1"])
    assert modules.sriov_vf(pf=PF, state="absent")["changed"]


@pytest.mark.parametrize("count_before", [0, 2])
def test_a_step_that_fails_takes_the_adapter_back_to_where_it_was(
    machine: Machine, modules: Modules, count_before: int
) -> None:
    if count_before:
        modules.sriov_vf(pf=PF, count=count_before)
    shown = modules.sriov_vf_info(pf=PF)["adapters"][0]
    machine.adapter.broken_probe = {"0000:01:00.3"}
    message = modules.refused("sriov_vf", pf=PF, count=3, allow_recreate=True, timeout=1)
    assert "0000:01:00.3 did not come to driver nvme" in message
    assert "was put back to the state before" in message
    after = modules.sriov_vf_info(pf=PF)["adapters"][0]
    for adapter in (shown, after):
        for vf in adapter["vfs"]:
            del vf["controller"], vf["namespaces"]  # the kernel gives new names
    assert after == shown
    assert machine.read(f"bus/pci/devices/{PF}/sriov_drivers_autoprobe") == "1"


def test_what_is_left_is_said_when_going_back_fails_too(machine: Machine, modules: Modules) -> None:
    modules.sriov_vf(pf=PF, count=2)
    machine.adapter.automatic.clear()
    machine.adapter.broken_probe = {VF0, VF1}
    message = modules.refused("sriov_vf", pf=PF, count=2, driver="vfio-pci", timeout=1)
    assert "did not come to driver nvme" in message
    assert f"left: 2 VFs on {PF} ({VF0} with no driver, {VF1} with no driver)" in message


def test_a_namespace_hidden_by_multipath_is_reported(machine: Machine, modules: Modules) -> None:
    machine.adapter.multipath = True
    message = modules.refused("sriov_vf", pf=PF, count=1, timeout=1)
    assert "nvme_core.multipath=N" in message
    assert "was put back" in message


def test_a_write_that_hangs_is_reported(machine: Machine, modules: Modules) -> None:
    machine.adapter.stuck = True
    assert "did not come back" in modules.refused("sriov_vf", pf=PF, count=1, timeout=1)


def test_a_command_that_hangs_is_reported(machine: Machine, modules: Modules) -> None:
    machine.interceptor = lambda command: (124, "", "") if command[1] == "virt-mgmt" else None
    assert "gave no answer within" in modules.refused("sriov_vf", pf=PF, count=1, timeout=1)


def test_two_runs_on_one_adapter_wait_for_each_other(machine: Machine, modules: Modules) -> None:
    with machine.host.locked(f"sriov-{PF}", 1):
        message = modules.refused("sriov_vf", pf=PF, count=1, timeout=1)
    assert "held by another run" in message
    assert modules.sriov_vf(pf=PF, count=1)["changed"]


def test_info_reads_all_adapters(machine: Machine, modules: Modules) -> None:
    modules.sriov_vf(pf=PF, count=1)
    before = machine.fingerprint()
    result = modules.sriov_vf_info()
    assert [(adapter["pf"], adapter["totalvfs"], adapter["numvfs"]) for adapter in result["adapters"]] == [(PF, 4, 1)]
    assert machine.fingerprint() == before


# Isolation: a VF that is handed to a virtual machine must not see the pool's namespace.


def test_a_vf_for_a_virtual_machine_sees_no_namespace_unless_told(machine: Machine, modules: Modules) -> None:
    machine.adapter.automatic.clear()
    machine.adapter.namespaces = {1, 2}
    alone = modules.settles("sriov_vf", machine.fingerprint, pf=PF, count=2, driver="vfio-pci")
    assert [vf["attached"] for vf in alone["vfs"]] == [[], []]
    given = modules.settles("sriov_vf", machine.fingerprint, pf=PF, count=2, driver="vfio-pci", namespaces=[2])
    assert [(vf["attached"], vf["driver"]) for vf in given["vfs"]] == [([2], "vfio-pci")] * 2
    assert [step for step in given["steps"] if "see to it" in step] == [
        f"see to it that VF {vf} shows namespace 2 alone" for vf in (VF0, VF1)
    ]


@pytest.mark.parametrize("when", ["enabled", "reset"])
@pytest.mark.parametrize("manages", [True, False])
@pytest.mark.parametrize("count_before", [0, 1])
def test_a_namespace_that_comes_back_is_not_handed_over(
    machine: Machine, modules: Modules, when: str, manages: bool, count_before: int
) -> None:
    machine.adapter.manages_namespaces = manages
    if when == "reset":
        machine.adapter.reset_attaches, machine.adapter.automatic = {1}, set()
    if count_before:
        modules.sriov_vf(pf=PF, count=1)
    message = modules.refused("sriov_vf", pf=PF, count=1, driver="vfio-pci")
    assert (f"VF {VF0} shows namespaces [1] instead of []" if manages else "nvme detach-ns") in message
    assert "was put back to the state before" in message
    assert [vf["driver"] for vf in modules.sriov_vf_info(pf=PF)["adapters"][0]["vfs"]] == ["nvme"] * count_before


def test_the_pools_namespace_is_handed_over_only_by_name(machine: Machine, modules: Modules) -> None:
    result = modules.settles("sriov_vf", machine.fingerprint, pf=PF, count=1, driver="vfio-pci", namespaces=[1])
    assert result["vfs"][0]["attached"] == [1]
    assert not [command for command in machine.commands if command[1] in ("attach-ns", "detach-ns")]


def test_a_namespace_that_came_back_later_is_seen(machine: Machine, modules: Modules) -> None:
    machine.adapter.automatic.clear()
    modules.sriov_vf(pf=PF, count=2, driver="vfio-pci")
    machine.adapter.attached.add((2, 1))
    result = modules.settles("sriov_vf", machine.fingerprint, pf=PF, count=2, driver="vfio-pci")
    assert result["diff"]["before"]["vfs"][1]["attached"] == [1]
    assert not [step for step in result["steps"] if VF0 in step]


def test_going_back_leaves_no_vf_that_sees_more_than_before(machine: Machine, modules: Modules) -> None:
    machine.adapter.automatic.clear()
    machine.adapter.namespaces = {1, 2}
    modules.sriov_vf(pf=PF, count=1, driver="vfio-pci", namespaces=[2])
    machine.adapter.broken_probe = {VF1}
    message = modules.refused("sriov_vf", pf=PF, count=2, driver="vfio-pci", allow_recreate=True, timeout=1)
    assert "was put back" in message
    (adapter,) = modules.sriov_vf_info(pf=PF)["adapters"]
    assert [(vf["driver"], vf["attached"]) for vf in adapter["vfs"]] == [("vfio-pci", [2])]


# The adapter's life: resets, runs that were killed, other names


def test_after_a_reset_of_the_pf_all_is_asserted_again(machine: Machine, modules: Modules) -> None:
    modules.sriov_vf(pf=PF, count=2, queues=2, interrupts=1)
    machine.adapter.reset_pf()
    before = modules.sriov_vf_info(pf=PF)["adapters"][0]["vfs"]
    assert [(vf["online"], vf["queues"], vf["namespaces"]) for vf in before] == [(False, 0, [])] * 2
    result = modules.settles("sriov_vf", machine.fingerprint, pf=PF, count=2, queues=2, interrupts=1)
    assert [(vf["online"], vf["queues"], vf["interrupts"]) for vf in result["vfs"]] == [(True, 2, 1)] * 2
    assert [len(vf["namespaces"]) for vf in result["vfs"]] == [1, 1]
    assert not [step for step in result["steps"] if "create" in step or "remove" in step]


def test_after_a_reset_a_vf_with_a_vport_is_named_and_left(machine: Machine, modules: Modules, engine: Engine) -> None:
    modules.sriov_vf(pf=PF, count=2)
    modules.vport(name="web1", adapter=PF)
    modules.adapter_mapping(vport="web1", luns=[{"lun": 0, "vdisk": "root", "extents": [[0, MIB, MIB]]}])
    modules.vport_binding(vport="web1", vf=VF1)
    machine.adapter.reset_pf()
    before = machine.fingerprint()
    message = modules.refused("sriov_vf", pf=PF, count=2)
    assert f"VF {VF1} is in use by vport web1, though its controller is offline" in message
    assert "vport_binding state=absent" in message
    assert machine.fingerprint() == before
    modules.vport_binding(vport="web1", state="absent")
    modules.settles("sriov_vf", machine.fingerprint, pf=PF, count=2)


def test_a_vport_that_waits_for_its_vf_gets_it_back_but_is_not_robbed(
    machine: Machine, modules: Modules, engine: Engine
) -> None:
    modules.sriov_vf(pf=PF, count=2)
    modules.vport(name="web1", adapter=PF)
    modules.adapter_mapping(vport="web1", luns=[{"lun": 0, "vdisk": "root", "extents": [[0, MIB, MIB]]}])
    modules.vport_binding(vport="web1", vf=VF1)
    machine.adapter.reset_pf()
    engine.vports["web1"].update(path="pf", degraded="the VF worker ended; the PF path has taken over")
    assert f"VF {VF1} is in use by vport web1" in modules.refused("sriov_vf", pf=PF, state="absent")
    modules.settles("sriov_vf", machine.fingerprint, pf=PF, count=2)
    message = modules.refused("sriov_vf", pf=PF, count=2, driver="none")
    assert f"VF {VF1} is in use by vport web1" in message


@pytest.mark.parametrize("verb", ["numvfs", "virt_mgmt", "bind", "ready", "let_go"])
def test_killed_before_any_kind_of_step_the_next_run_puts_it_right(
    machine: Machine, modules: Modules, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    def die(_self: Any, **_arguments: Any) -> None:
        raise SystemExit("killed")

    with monkeypatch.context() as patched:
        patched.setattr(_sriov_apply.Changes, f"_{verb}", die)
        with pytest.raises(ValueError, match="Expecting value"):  # no result
            modules.sriov_vf(pf=PF, count=2)
    assert machine.read(f"bus/pci/devices/{PF}/sriov_drivers_autoprobe") == "0"

    modules.settles("sriov_vf", machine.fingerprint, pf=PF, count=2)

    assert machine.read(f"bus/pci/devices/{PF}/sriov_drivers_autoprobe") == "1"


def test_an_adapter_is_found_by_serial_number_or_nqn(machine: Machine, modules: Modules) -> None:
    by_serial = modules.sriov_vf(serial="SERIAL-01", count=1)
    by_nqn = modules.sriov_vf(nqn="nqn.2019-08.org.example:01", count=1)
    assert (by_serial["pf"], by_serial["changed"]) == (PF, True)
    assert (by_nqn["pf"], by_nqn["changed"]) == (PF, False)
    assert [adapter["pf"] for adapter in modules.sriov_vf_info(serial="SERIAL-01")["adapters"]] == [PF]


def test_a_name_that_is_of_no_adapter_or_of_two_is_refused(machine: Machine, modules: Modules) -> None:
    assert f"{PF} has SERIAL-01" in modules.refused("sriov_vf", serial="OTHER", count=1)
    machine.double()
    message = modules.refused("sriov_vf", serial="SERIAL-01", count=1)
    assert f"2 adapters ({PF}, 0000:05:00.0)" in message
    assert "mutually exclusive" in modules.sriov_vf(pf=PF, serial="SERIAL-01", count=1)["msg"]
    assert "required" in modules.sriov_vf(count=1)["msg"]


def test_info_shows_the_resources_that_are_left(modules: Modules) -> None:
    modules.sriov_vf(pf=PF, count=1, queues=2, interrupts=1)
    assert modules.sriov_vf_info(pf=PF)["adapters"][0]["resources"] == {
        "queues": {"total": 8, "most": 2, "free": 6},
        "interrupts": {"total": 8, "most": 2, "free": 7},
    }
