# SPDX-License-Identifier: GPL-3.0-or-later
"""The adapter as the kernel shows it: a PF with VFs that are online, driven and see the storage."""

import json

import pytest
from testinfra.host import Host

PF = "0000:01:00.0"
VFS = [f"0000:01:00.{function}" for function in range(1, 5)]


@pytest.mark.parametrize("name", ["hv1", "hv2"])
def test_lspci_shows_the_pf_and_its_vfs(hypervisors: dict[str, Host], name: str) -> None:
    lines = hypervisors[name].check_output("lspci -D -d ::0108").splitlines()
    assert [line.split()[0] for line in lines] == [PF, *VFS]


@pytest.mark.parametrize("name", ["hv1", "hv2"])
def test_sysfs_links_the_vfs_to_their_pf(hypervisors: dict[str, Host], name: str) -> None:
    host = hypervisors[name]
    links = host.check_output(f"readlink -f /sys/bus/pci/devices/{PF}/virtfn[0-9]*").split()
    assert [link.rsplit("/", 1)[-1] for link in links] == VFS
    assert host.file(f"/sys/bus/pci/devices/{PF}/sriov_numvfs").content_string.strip() == "4"


@pytest.mark.parametrize("name", ["hv1", "hv2"])
def test_every_vf_is_online_with_its_resources(hypervisors: dict[str, Host], name: str) -> None:
    listed = json.loads(hypervisors[name].check_output("nvme list-secondary /dev/nvme0 -o json"))
    states = [
        (one["secondary-controller-state"], one["num-virtual-queues"], one["num-virtual-interrupts"])
        for one in listed["secondary-controllers"][:4]
    ]
    assert states == [(1, 2, 2)] * 4


@pytest.mark.parametrize("name", ["hv1", "hv2"])
def test_every_vf_shows_the_storage_as_a_block_device_of_its_own(hypervisors: dict[str, Host], name: str) -> None:
    sizes = hypervisors[name].check_output("cat /sys/bus/pci/devices/0000:01:00.*/nvme/nvme*/nvme*n1/size").split()
    assert len(sizes) == 5
    assert set(sizes) == {str(2 * 1024**3 // 512)}
