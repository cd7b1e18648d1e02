# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine and what the tenant VM sees of it: mapping, addresses, rights, and the way its requests really take."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from testinfra.host import Host

from tests.lab.driver import wait_until

Rpc = Callable[..., Any]
Guest = Callable[..., str]
DATA = "/dev/disk/by-address/tenant1:1"
MIB = 1024**2


def _record(rpc: Rpc) -> dict[str, Any]:
    (record,) = rpc("vport_list")
    return dict(record)


@pytest.mark.parametrize("name", ["hv1", "hv2"])
def test_the_engine_runs_and_starts_at_boot(hypervisors: dict[str, Host], name: str) -> None:
    service = hypervisors[name].service("vportd")
    assert service.is_running
    assert service.is_enabled


def test_only_root_gets_an_answer(hv1: Host) -> None:
    socket = hv1.file("/run/vportd/rpc.sock")
    assert (socket.user, socket.mode) == ("root", 0o600)
    ask = "import socket; socket.socket(socket.AF_UNIX).connect('/run/vportd/rpc.sock')"
    refused = hv1.run("setpriv --reuid=nobody --clear-groups python3 -c %s", ask)
    assert "PermissionError" in refused.stderr


def test_workers_run_without_privileges_and_with_their_own_device_only(hv1: Host) -> None:
    workers = hv1.check_output("pgrep -u vportd").split()
    assert len(workers) == 2, "one PF worker and one VF worker for the one bound vport"
    opened = [
        {file for file in hv1.check_output(f"readlink /proc/{pid}/fd/*").split() if file.startswith("/dev/nvme")}
        for pid in workers
    ]
    assert sorted(map(sorted, opened)) == [["/dev/nvme0n1"], ["/dev/nvme1n1"]]


def test_the_mapping_is_what_lvm_says(hv1: Host, rpc: Rpc) -> None:
    report = json.loads(
        hv1.check_output(
            "lvs --devices /dev/nvme0n1 --readonly --segments --reportformat json --units b --nosuffix "
            "-o lv_name,seg_start,seg_size,seg_pe_ranges,vg_extent_size san"
        )
    )["report"][0]["seg"]
    start = int(hv1.check_output("pvs --devices /dev/nvme0n1 --readonly --noheadings --units b --nosuffix -o pe_start"))
    told: dict[str, list[list[int]]] = {}
    for row in report:
        if row["lv_name"].startswith("tenant1-"):
            physical = start + int(row["seg_pe_ranges"].rsplit(":", 1)[1].split("-")[0]) * int(row["vg_extent_size"])
            told.setdefault(row["lv_name"], []).append([int(row["seg_start"]), physical, int(row["seg_size"])])
    mapped = {lun["vdisk"]: lun["extents"] for lun in rpc("mapping_get", vport="tenant1")["luns"]}
    assert mapped == {name: sorted(extents) for name, extents in told.items()}


def test_vdisks_are_never_activated(hv1: Host) -> None:
    assert "No devices found" in hv1.run("dmsetup ls").stdout


def test_the_vm_sees_its_addresses_and_nothing_physical(guest: Guest) -> None:
    assert guest("/usr/bin/busybox", "ls", "/dev/disk/by-address").split() == ["tenant1:0", "tenant1:1"]
    assert guest("/usr/bin/busybox", "cat", "/sys/block/vda/serial").strip() == "tenant1:0"
    assert _size(guest) >= 256 * MIB


def _size(guest: Guest) -> int:
    """Of the VM's second disk, in bytes, as its kernel knows it."""
    return int(guest("/usr/bin/busybox", "cat", "/sys/block/vdb/size")) * 512


def _writes_where_the_mapping_says(hv1: Host, rpc: Rpc, guest: Guest, offset: int) -> None:
    length, pattern = 64 * 1024, "0x5ca1ab1e"
    guest(
        "/usr/bin/fio", "--name=mark", f"--filename={DATA.replace(':', chr(92) + ':')}", "--rw=write", "--direct=1",
        f"--offset={offset}", f"--size={length}", "--bs=16k", f"--buffer_pattern={pattern}", "--end_fsync=1",
    )  # fmt: skip
    lun = next(lun for lun in rpc("mapping_get", vport="tenant1")["luns"] if lun["lun"] == 1)
    ((start, physical),) = [one[:2] for one in lun["extents"] if one[0] <= offset < one[0] + one[2]]
    script = (
        "import os, sys\n"
        "fd = os.open('/dev/nvme0n1', os.O_RDONLY | os.O_DIRECT)\n"
        "import mmap\n"
        f"area = mmap.mmap(-1, {length})\n"
        f"os.preadv(fd, [area], {physical + offset - start})\n"
        f"print(bytes(area) == bytes.fromhex('{pattern[2:]}') * ({length} // 4))"
    )
    assert hv1.check_output("python3 -c %s", script) == "True"


def test_what_the_vm_writes_lies_where_the_mapping_says(hv1: Host, rpc: Rpc, guest: Guest) -> None:
    _writes_where_the_mapping_says(hv1, rpc, guest, 5 * MIB)


def test_a_vdisk_that_grows_is_larger_in_the_running_vm(
    hv1: Host, rpc: Rpc, guest: Guest, module: Callable[..., dict[str, Any]]
) -> None:
    before = _size(guest)
    larger = before + 8 * MIB
    luns = [{"lun": lun, "vdisk": name} for lun, name in enumerate(("tenant1-system", "tenant1-data"))]
    for name, options in (
        ("vdisk", {"pool": "san", "name": "tenant1-data", "size": str(larger), "adapter": "0000:01:00.0"}),
        ("adapter_mapping", {"vport": "tenant1", "pool": "san", "luns": luns}),
    ):
        assert module("hv1", name, **options)["changed"]
    wait_until("the VM's kernel to know the new size", lambda: _size(guest) == larger, 30)
    _writes_where_the_mapping_says(hv1, rpc, guest, before)
    _writes_where_the_mapping_says(hv1, rpc, guest, larger - MIB)


def _limit(hv1: Host, device: str, writes: int | str) -> None:
    """Let the engine's processes write ``writes`` times a second to ``device``, or as often as they like ("max")."""
    number = hv1.check_output("cat /sys/class/block/%s/dev", device)
    hv1.check_output("echo %s wiops=%s >/sys/fs/cgroup/system.slice/vportd.service/io.max", number, str(writes))


@pytest.fixture
def unthrottled(hv1: Host, rpc: Rpc) -> Iterator[None]:
    """Whatever a test does, the engine's I/O runs freely and over the VF afterwards."""
    yield
    for device in ("nvme0n1", "nvme1n1"):
        _limit(hv1, device, "max")
    rpc("vport_switch", vport="tenant1", path="vf", timeout=60)
    assert _record(rpc)["path"] == "vf"


def _writes_in_two_seconds(guest: Guest) -> int:
    output = guest(
        "/usr/bin/fio", "--name=pulse", f"--filename={DATA.replace(':', chr(92) + ':')}", "--rw=randwrite", "--bs=4k",
        "--direct=1", "--iodepth=1", "--offset=64M", "--size=8M", "--time_based", "--runtime=2", "--output-format=json",
    )  # fmt: skip
    return int(json.loads(output[output.index("{") :])["jobs"][0]["write"]["total_ios"])


@pytest.mark.usefixtures("unthrottled")
@pytest.mark.parametrize(("path", "own", "other"), [("vf", "nvme1n1", "nvme0n1"), ("pf", "nvme0n1", "nvme1n1")])
def test_stopping_the_paths_own_device_stops_the_vm(
    hv1: Host, rpc: Rpc, guest: Guest, path: str, own: str, other: str
) -> None:
    rpc("vport_switch", vport="tenant1", path=path, timeout=60)
    _limit(hv1, other, 2)
    free = _writes_in_two_seconds(guest)
    _limit(hv1, other, "max")
    _limit(hv1, own, 2)
    stopped = _writes_in_two_seconds(guest)
    assert free > 50, "the other path's device is not on the way"
    assert stopped <= 12, f"{stopped} writes came through though {own} takes two a second"


@pytest.mark.usefixtures("unthrottled")
def test_a_switch_under_load_hands_over_the_exact_position(rpc: Rpc) -> None:
    for path in ("pf", "vf"):
        report = rpc("vport_switch", vport="tenant1", path=path, timeout=60)
        before = [queue for lun in report["state_before"]["luns"] for queue in lun["queues"]]
        after = [queue for lun in report["state_after"]["luns"] for queue in lun["queues"]]
        assert before == after
        assert all(queue["last_avail"] == queue["used"] for queue in before)
        assert before, "no queue was handed over"
