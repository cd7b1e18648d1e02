# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m tests.bench.migrate [rounds]``: what a guest notices of a migration, against plain libvirt with
qemu-storage-daemon's disks, on the same lab in turns. Prints a table, writes build/bench/migrate.json.

Both VMs are alike, have two disks on the shared storage, and run the same load while they are on their way. The peer's
disks are slices of the PF's device that qemu-storage-daemon exports on both hypervisors; it has no VF, and no paths to
switch. Times are those that the guest measures itself (worst request), libvirt's (pause) and the clock's.

The load waits between its requests. On the hypervisors' one processor VMs have the share that systemd gives by default
(the lab gives them less, so that its tests are done sooner), and ssh sessions, so every module, a tenth of that. The
control node, in life another machine, comes after the hypervisors on the cores of this one. Otherwise the guest would
measure how long it waits for a processor.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from xml.etree import ElementTree

from tests.lab.driver import PROJECT, Lab, other, play
from tests.lab.load import MIB, start, stop

OURS, PEER = "tenant1", "peer"
PEERS_DISKS = ("--directory", "/tmp/disks", "--serial", "vhost_user_blk")
SIZES = (64 * MIB, 256 * MIB)
PAUSE = 0.25  # seconds between requests of a thread: a load that keeps the one processor busy measures its own turns
FIGURES = PROJECT / "build" / "bench" / "migrate.json"
Figures = dict[str, float]
Window = tuple[float, float]  # seconds since 1970 in which the VM itself was on its way
Move = Callable[[Lab, str], tuple[Figures, Window]]


def prepare_peer(lab: Lab) -> None:
    """Exports on both hypervisors, the VM on the first one."""
    remove_peer(lab)  # what a run that was killed has left
    for name in ("hv1", "hv2"):
        host = lab.host(name)
        for unit, weight in (("machine.slice", "100"), ("user.slice", "10")):
            host.check_output("systemctl set-property --runtime %s CPUWeight=%s", unit, weight)
        adapter = lab.rpc(name, "adapter_list")[0]
        assert host.run("which qemu-storage-daemon").rc == 0, "the lab's image has no qemu-storage-daemon"
        end = adapter["size"]
        for number, size in enumerate(SIZES):
            end -= size
            host.check_output(
                "systemd-run --unit=peer-%s --collect -p User=libvirt-qemu -p SupplementaryGroups=disk "
                "-p RuntimeDirectory=peer-%s qemu-storage-daemon "
                "--blockdev driver=host_device,node-name=storage,filename=%s,cache.direct=on,locking=off "
                "--blockdev driver=raw,node-name=disk,file=storage,offset=%s,size=%s "
                "--export type=vhost-user-blk,id=disk,node-name=disk,writable=on,addr.type=unix,"
                "addr.path=/run/peer-%s/sock",
                *map(str, (number, number, adapter["device"], end, size, number)),
            )
    root = ElementTree.fromstring(lab.host("hv1").check_output("cat /var/lib/iovlab/tenant/%s.xml", OURS))
    for tag, text in (("name", PEER), ("uuid", "5bd1c2f0-7a55-4b6c-9b7f-6d65726f7065")):
        element = root.find(tag)
        assert element is not None
        element.text = text
    for number, source in enumerate(root.iterfind("devices/disk/source")):
        source.set("path", f"/run/peer-{number}/sock")
    console = root.find("devices/serial/source")
    assert console is not None
    console.set("path", f"/var/log/libvirt/qemu/{PEER}.console.log")
    xml = ElementTree.tostring(root, encoding="unicode")
    lab.host("hv1").check_output("cat >/tmp/peer.xml <<'EOF'\n" + xml + "\nEOF\nvirsh -q create /tmp/peer.xml")


def remove_peer(lab: Lab) -> None:
    for name in ("hv1", "hv2"):
        lab.host(name).run("virsh destroy %s", PEER)
        lab.host(name).run("systemctl stop peer-0.service peer-1.service")


def measured(lab: Lab, vm: str, move: Move, *where: str) -> Figures:
    """Load ``vm``, move it, end the load: what the guest saw, and what ``move`` tells."""
    place = lab.place(vm)
    pid = start(lab, vm, (f"{vm}:{number}" for number in range(len(SIZES))), *where, pause=PAUSE)
    ahead = int(lab.guest(place, vm, "/usr/bin/busybox", "date", "+%s")[1]) - time.time()
    began, since = time.monotonic(), time.time()
    told, (begin, end) = move(lab, place)
    total = time.monotonic() - began
    seen = stop(lab, vm, pid)

    def worst(begin: float, end: float) -> float:
        """Of the requests that were under way in that time, to about a second: the guest's clock is not ours."""
        found = [(second - ahead, took) for second, took in seen["worst_by_second"]]
        return max(float(took) for ended, took in found if ended + 1.5 > begin and ended - took - 0.5 < end)

    return {
        "worst_request": worst(since, since + total),
        "worst_moving": worst(begin, end),
        "longest_gap": seen["longest_gap"],
        "total": total,
        **told,
    }


def move_ours(lab: Lab, place: str) -> tuple[Figures, Window]:
    output = play("migrate", vm=OURS, to=other(place))
    found = re.search(r"the report is (\S+)\.html", output)
    assert found is not None, output[-2000:]
    report = json.loads(Path(found[1] + ".json").read_text())
    figures = {
        "pause": report["migration"]["downtime"],
        "live": report["migration"]["total_time"],
        "switch": max(switch["blackout_seconds"] for switch in report["switches"]),
    }
    (phase,) = [phase for phase in report["phases"] if phase["name"] == "live migration"]
    begin, end = (datetime.fromisoformat(phase[key]).timestamp() for key in ("start", "end"))
    return figures, (begin, end)


def move_peer(lab: Lab, place: str) -> tuple[Figures, Window]:
    since = time.time()
    address = "10.77.0." + other(place)[-1]
    lab.host(place).run("virsh -q migrate-setmaxdowntime %s 500", PEER)  # as ours
    lab.host(place).check_output(
        "virsh -q migrate --live --p2p %s qemu+ssh://root@%s/system tcp://%s", PEER, address, address
    )
    until = time.time()
    job = lab.host(other(place)).check_output("LC_ALL=C virsh domjobinfo --completed %s", PEER)
    found = {
        key: int(value) / 1000 for key, value in re.findall(r"^(Time elapsed|Total downtime): +(\d+) +ms", job, re.M)
    }
    names = {"pause": "Total downtime", "live": "Time elapsed"}
    return {ours: found[theirs] for ours, theirs in names.items()}, (since, until)


def ping(lab: Lab, place: str) -> tuple[Figures, Window]:
    """No move: Ansible's ping module, five times, on the VM's hypervisor. What any management costs a guest here."""
    since = time.time()
    command = ["ansible", f"--inventory={PROJECT}/molecule/inventory", "--module-name=ansible.builtin.ping", place]
    for __ in range(5):
        subprocess.run(command, cwd=PROJECT, stdout=subprocess.DEVNULL, check=True)
    return {}, (since, time.time())


def main() -> int:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    lab = Lab()
    play("lab_up")
    play("provision")
    os.nice(10)
    results: dict[str, list[Figures]] = {OURS: [], PEER: []}
    try:
        prepare_peer(lab)
        links = "mkdir -p /tmp/disks && ln -sf /dev/vda /tmp/disks/peer:0 && ln -sf /dev/vdb /tmp/disks/peer:1"
        lab.guest("hv1", PEER, "/usr/bin/busybox", "sh", "-c", links)
        for number in range(rounds):
            for vm, move, where in ((OURS, move_ours, ()), (PEER, move_peer, PEERS_DISKS)):
                pinged = measured(lab, vm, ping, *where)["worst_request"]
                results[vm].append({**measured(lab, vm, move, *where), "worst_pinged": pinged})
                print(f"round {number + 1} of {rounds}: {vm}: {results[vm][-1]}", flush=True)
            FIGURES.parent.mkdir(parents=True, exist_ok=True)
            FIGURES.write_text(json.dumps(results, indent=1) + "\n")
    finally:
        remove_peer(lab)
    print("\n".join(table(results)))
    return 0


def table(results: Mapping[str, Sequence[Figures]]) -> list[str]:
    """A line a figure: the medians of both, and the median of the rounds' ratios."""
    lines = [f"{'median of ' + str(len(results[PEER])):24} {'vportd':>10} {'peer':>10} {'ratio':>7}"]
    for key in ("worst_request", "worst_moving", "worst_pinged", "longest_gap", "pause", "live", "total", "switch"):
        ours, peer = ([one[key] for one in results[side] if key in one] for side in (OURS, PEER))
        text = f"{key.replace('_', ' ') + ' (s)':24} {statistics.median(ours):10.3f}"
        if len(peer) == len(ours):
            ratio = statistics.median(one / two for one, two in zip(ours, peer, strict=True) if two)
            text += f" {statistics.median(peer):10.3f} {ratio:7.2f}"
        lines.append(text)
    return lines


if __name__ == "__main__":
    sys.exit(main())
