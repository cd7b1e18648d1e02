# SPDX-License-Identifier: GPL-3.0-or-later
"""Bad input, on the real thing: one clear line, and nothing changed."""

from collections.abc import Callable
from typing import Any

import pytest
from testinfra.host import Host

PF = "0000:01:00.0"
Module = Callable[..., dict[str, Any]]
Rpc = Callable[..., Any]

REFUSALS: dict[str, tuple[str, dict[str, Any], str]] = {
    "no such PCI address": ("sriov_vf", {"pf": "0000:0f:00.0", "count": 1}, "no PCI device 0000:0f:00.0"),
    "a device without SR-IOV": ("sriov_vf", {"pf": "0000:00:03.0", "count": 1}, "0000:00:03.0"),
    "more VFs than the adapter has": ("sriov_vf", {"pf": PF, "count": 5}, "4"),
    "another count while a VF is in use": ("sriov_vf", {"pf": PF, "count": 2, "allow_recreate": True}, "tenant1"),
    "a vdisk that does not fit": ("vdisk", {"pool": "san", "name": "big", "size": "3GiB", "adapter": PF}, "3"),
    "a vdisk that is not there": (
        "adapter_mapping",
        {"vport": "tenant1", "pool": "san", "luns": [{"lun": 0, "vdisk": "nobodys"}]},
        "nobodys",
    ),
    "a LUN number used twice": (
        "adapter_mapping",
        {
            "vport": "tenant1",
            "pool": "san",
            "luns": [{"lun": 1, "vdisk": n} for n in ("tenant1-data", "tenant1-system")],
        },
        "LUN",
    ),
    "overlapping extents": (
        "adapter_mapping",
        {
            "vport": "tenant1",
            "luns": [{"lun": 0, "vdisk": "a", "extents": [[0, "1MiB", "4MiB"], ["2MiB", "8MiB", "4MiB"]]}],
        },
        "overlaps",
    ),
    "an extent beyond the storage": (
        "adapter_mapping",
        {"vport": "tenant1", "luns": [{"lun": 0, "vdisk": "a", "extents": [[0, "4GiB", "4MiB"]]}]},
        "out of range",
    ),
    "a stale generation": (
        "adapter_mapping",
        {
            "vport": "tenant1",
            "generation": 0,
            "luns": [{"lun": 0, "vdisk": "tenant1-system", "pool": "san", "readonly": True}],
        },
        "generation",
    ),
    "a vport with a running VM deleted": ("vport", {"name": "tenant1", "state": "absent"}, "in use by"),
    "an engine that does not answer": (
        "vport",
        {"name": "x", "rpc_socket": "/run/nobody.sock"},
        "systemctl start vportd",
    ),
    "migrating a VM that is not there": (
        "vm_migrate",
        {"name": "ghost", "destination": "qemu+ssh://root@10.77.0.2/system"},
        "ghost",
    ),
    "migrating a VM to where it is": (
        "vm_migrate",
        {"name": "tenant1", "destination": "qemu+ssh://root@10.77.0.1/system"},
        "same",
    ),
    "migrating a VM that is on its VF, to a host without the mapping": (
        "vm_migrate",
        {"name": "tenant1", "destination": "qemu+ssh://root@10.77.0.2/system", "destination_vports": []},
        "tenant1",
    ),
}


def _state(hv1: Host, rpc: Rpc) -> tuple[object, ...]:
    (record,) = rpc("vport_list")
    kept = {key: record[key] for key in ("path", "vf", "generation", "digest", "fenced", "fence_on_stop", "state")}
    vdisks = hv1.check_output("lvs --devices /dev/nvme0n1 --readonly --noheadings -o lv_name,lv_size,lv_tags san")
    numvfs = hv1.check_output(f"cat /sys/bus/pci/devices/{PF}/sriov_numvfs")
    return kept, vdisks, numvfs, hv1.check_output("virsh list --name")


@pytest.mark.parametrize("case", REFUSALS)
def test_refused_in_one_line_with_nothing_changed(hv1: Host, rpc: Rpc, module: Module, case: str) -> None:
    name, options, says = REFUSALS[case]
    before = _state(hv1, rpc)
    result = module("hv1", name, **options)
    assert result["failed"], result
    assert says in result["msg"]
    assert "\n" not in result["msg"].strip()
    assert _state(hv1, rpc) == before


def test_a_vf_that_is_bound_goes_to_no_second_vport(hv1: Host, rpc: Rpc, module: Module) -> None:
    created = rpc("vport_create", vport="second")
    assert created.get("vport") == "second", created
    try:
        extents = [[0, 1536 * 1024**2, 4 * 1024**2]]
        rpc("mapping_set", vport="second", expected_generation=0, luns=[{"lun": 0, "vdisk": "x", "extents": extents}])
        result = module("hv1", "vport_binding", vport="second", vf="0000:01:00.1")
        assert result["failed"]
        assert "bound to vport tenant1" in result["msg"]
    finally:
        rpc("vport_delete", vport="second")
    assert [record["vport"] for record in rpc("vport_list")] == ["tenant1"]
