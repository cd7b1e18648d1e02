# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine for the modules: /sys, /dev and /proc as a tree of files, and what acts behind them.

What acts keeps state and says no where hardware and tools do: an adapter whose number of VFs goes from 0 to N only, a
controller that does not go online without resources or before its VF exists, a volume group that runs full.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shlex
import shutil
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.iovlab.storage.plugins.module_utils._errors import SysfsError
from ansible_collections.iovlab.storage.plugins.module_utils._host import Host
from ansible_collections.iovlab.storage.plugins.module_utils._sysfs import Sysfs

PF = "0000:01:00.0"
SERIAL = "SERIAL-01"
NQN = "nqn.2019-08.org.example:01"
IDENTITY = "uuid.0b9d1f8a-5c1e-4a55-9d3e-2f6f1c1f7a10"
MIB = 1024 * 1024


@dataclass
class Controller:
    """A secondary controller."""

    cntlid: int
    vf: int
    online: bool = False
    queues: int = 0
    interrupts: int = 0


@dataclass
class Adapter:
    """The NVMe adapter behind a PF, with the rules of its firmware and of the kernel."""

    machine: Machine
    total: int = 4
    flexible_queues: int = 8
    flexible_interrupts: int = 8
    primary_queues: int = 0  # flexible ones that the PF has itself
    primary_interrupts: int = 0
    json_style: str = "current"
    late_links: bool = False  # virtfnN links come a moment after the write returned
    broken_probe: set[str] = field(default_factory=set)  # VFs that no driver takes
    multipath: bool = False
    numvfs: int = 0
    attached: set[tuple[int, int]] = field(default_factory=set)  # (controller, namespace)
    automatic: set[int] = field(default_factory=lambda: {1})  # namespaces attached to any controller that is enabled
    reset_attaches: set[int] = field(default_factory=set)  # namespaces attached when a VF is reset
    namespaces: set[int] = field(default_factory=lambda: {1})
    manages_namespaces: bool = True
    stuck: bool = False  # a write to sriov_numvfs never comes back

    def __post_init__(self) -> None:
        self.controllers = {number: Controller(cntlid=number, vf=number) for number in range(1, self.total + 1)}
        self._names = iter(range(1, 1000))

    def address(self, index: int) -> str:
        return f"0000:01:{(index + 1) >> 3:02x}.{(index + 1) & 7}"

    def controller_of(self, address: str) -> Controller:
        device, function = address.removeprefix("0000:01:").split(".")
        return self.controllers[int(device, 16) << 3 | int(function)]

    # What the kernel does on writes to sysfs

    def set_numvfs(self, count: int) -> None:
        if self.stuck:
            raise SysfsError(f"writing '{count}' to sriov_numvfs did not come back within 1 s")
        if count and self.numvfs:
            raise OSError(errno.EBUSY, "Device or resource busy")
        if count > self.total:
            raise OSError(errno.ERANGE, "Numerical result out of range")
        for index in range(self.numvfs if count == 0 else 0):
            if self.machine.link(f"bus/pci/devices/{self.address(index)}/driver"):
                self.unbind(self.address(index))
            shutil.rmtree(self.machine.sys / "bus/pci/devices" / self.address(index))
            (self.machine.sys / "bus/pci/devices" / PF / f"virtfn{index}").unlink()
            (self.machine.sys / "kernel/iommu_groups" / str(20 + index)).rmdir()
        if count == 0:
            self.attached.clear()
        self.numvfs = count
        self.machine.write(f"bus/pci/devices/{PF}/sriov_numvfs", str(count))
        if self.late_links:
            threading.Timer(0.05, self._show_vfs).start()
        else:
            self._show_vfs()

    def _show_vfs(self) -> None:
        for index in range(self.numvfs):
            address = self.address(index)
            base = f"bus/pci/devices/{address}"
            self.machine.write(f"{base}/class", "0x010802")
            self.machine.write(f"{base}/driver_override", "(null)")
            self.machine.write(f"{base}/reset", "")
            self.machine.symlink(f"{base}/physfn", f"../{PF}")
            (self.machine.sys / "kernel/iommu_groups" / str(20 + index)).mkdir(exist_ok=True)
            self.machine.symlink(f"{base}/iommu_group", f"../../../../kernel/iommu_groups/{20 + index}")
            self.machine.symlink(f"bus/pci/devices/{PF}/virtfn{index}", f"../{address}")
            if self.machine.read(f"bus/pci/devices/{PF}/sriov_drivers_autoprobe") == "1":
                self.bind(address, "nvme")

    def probe(self, address: str) -> None:
        override = self.machine.read(f"bus/pci/devices/{address}/driver_override")
        if override not in ("", "(null)") and address not in self.broken_probe:
            self.bind(address, override)

    def bind(self, address: str, driver: str) -> None:
        if not (self.machine.sys / "bus/pci/drivers" / driver).is_dir():
            return
        base = f"bus/pci/devices/{address}"
        self.machine.symlink(f"{base}/driver", f"../../../../bus/pci/drivers/{driver}")
        if driver == "nvme":
            online = self.controller_of(address).online
            if online:  # the driver enables it
                self.attached |= {(self.controller_of(address).cntlid, nsid) for nsid in self.automatic}
            self.machine.show_controller(
                address, f"nvme{next(self._names)}", online, self.multipath, self.attached_to(address)
            )

    def unbind(self, address: str) -> None:
        base = self.machine.sys / "bus/pci/devices" / address
        (base / "driver").unlink()
        for controller in (base / "nvme").glob("nvme*"):
            for node in self.machine.dev.glob(f"{controller.name}*"):
                node.unlink()
        shutil.rmtree(base / "nvme", ignore_errors=True)

    # What the firmware answers

    def nvme(self, command: str, device: str, options: dict[str, str]) -> tuple[int, str | bytes, str]:
        if command == "virt-mgmt":
            return self.virt_mgmt({key: int(value) for key, value in options.items() if key != "all"})
        if command == "list-secondary":
            return 0, self.list_secondary(int(options["-c"]), options["-o"]), ""
        if command == "primary-ctrl-caps":
            return 0, self.capabilities(options["-o"]), ""
        if command == "list-ns" and options["all"] == "False":
            return 0, json.dumps({"nsid_list": [{"nsid": nsid} for nsid in self.seen_by(device)]}), ""
        if not self.manages_namespaces:
            return 1, "", "NVMe status: Invalid Field in Command: A reserved coded value (0x4002)"
        if command == "list-ns":
            return 0, json.dumps({"nsid_list": [{"nsid": nsid} for nsid in sorted(self.namespaces)]}), ""
        if command == "list-ctrl":
            listed = sorted(cntlid for cntlid, nsid in self.attached | {(0, 1)} if nsid == int(options["-n"]))
            return 0, json.dumps({"num_ctrl": len(listed), "ctrl_list": [{"ctrl_id": one} for one in listed]}), ""
        if command in ("detach-ns", "attach-ns"):
            return self.attach(int(options["-c"]), int(options["-n"]), command == "attach-ns")
        return 1, "", f"ERROR: Invalid sub-command '{command}'"

    def attach(self, cntlid: int, nsid: int, attach: bool) -> tuple[int, str, str]:
        there = (cntlid, nsid) in self.attached
        if cntlid not in self.controllers or there == attach or nsid not in self.namespaces:
            return 1, "", "NVMe status: Namespace Already Attached or Not Attached: (0x4118)"
        (self.attached.add if attach else self.attached.discard)((cntlid, nsid))
        return 0, "success", ""

    def seen_by(self, device: str) -> list[int]:
        """Namespaces that the controller with this name has."""
        (address,) = [path.parts[-3] for path in self.machine.sys.glob(f"bus/pci/devices/*/nvme/{device}")]
        return [1] if address == PF else self.attached_to(address)

    def reset_vf(self, address: str) -> None:
        self.attached |= {(self.controller_of(address).cntlid, nsid) for nsid in self.reset_attaches}

    def attached_to(self, address: str) -> list[int]:
        cntlid = self.controller_of(address).cntlid
        return sorted(nsid for one, nsid in self.attached if one == cntlid)

    def reset_pf(self) -> None:
        """What a reset of the PF's controller does: every VF offline, without resources, its namespaces gone."""
        for controller in self.controllers.values():
            controller.online, controller.queues, controller.interrupts = False, 0, 0
        self.attached.clear()
        for index in range(self.numvfs):
            for state in (self.machine.sys / "bus/pci/devices" / self.address(index)).glob("nvme/nvme*/state"):
                state.write_text("dead\n")
                for space in state.parent.glob("nvme*n*"):
                    shutil.rmtree(space)
                    (self.machine.dev / space.name).unlink()

    def virt_mgmt(self, options: dict[str, int]) -> tuple[int, str, str]:
        controller = self.controllers.get(options["-c"])
        if controller is None:
            return 1, "", "NVMe status: Invalid Controller Identifier: (0x411f)"
        action = options["-a"]
        if action == 7:
            controller.online, controller.queues, controller.interrupts = False, 0, 0
        elif action == 8:
            if controller.online:
                return 1, "", "NVMe status: Invalid Secondary Controller State: (0x4120)"
            kind = "queues" if options["-r"] == 0 else "interrupts"
            limit = self.flexible_queues if options["-r"] == 0 else self.flexible_interrupts
            limit -= self.primary_queues if options["-r"] == 0 else self.primary_interrupts
            others = sum(getattr(other, kind) for other in self.controllers.values() if other is not controller)
            if others + options["-n"] > limit or options["-n"] > limit // self.total:
                return 1, "", "NVMe status: Invalid Number of Controller Resources: (0x4121)"
            setattr(controller, kind, options["-n"])
        elif action == 9:
            if controller.vf > self.numvfs or controller.queues < 2 or controller.interrupts < 1:
                return 1, "", "NVMe status: Invalid Secondary Controller State: (0x4120)"
            controller.online = True
        return 0, f"success, Number of Controller Resources Modified (NRM):{options.get('-n', 0)}\n", ""

    def list_secondary(self, lowest: int, form: str) -> str | bytes:
        listed = [entry for entry in self.controllers.values() if entry.cntlid >= lowest][:127]
        if form == "binary":
            data = struct.pack("<B31x", len(listed))
            for entry in listed:
                data += struct.pack(
                    "<HHB3xHHH18x", entry.cntlid, 0, entry.online, entry.vf, entry.queues, entry.interrupts
                )
            return data.ljust(4096, b"\0")
        if self.json_style == "unusable":
            return '{"secondary-controllers":[{"scid":1,'
        if self.json_style == "short":
            rows: list[Any] = [
                {"scid": e.cntlid, "vfn": e.vf, "scs": str(int(e.online)), "nvq": e.queues, "nvi": e.interrupts}
                for e in listed
            ]
            return json.dumps(rows)
        rows = [
            {
                "secondary-controller-identifier": entry.cntlid,
                "primary-controller-identifier": 0,
                "secondary-controller-state": int(entry.online),
                "virtual-function-number": entry.vf,
                "num-virtual-queues": entry.queues,
                "num-virtual-interrupts": entry.interrupts,
            }
            for entry in listed
        ]
        return json.dumps({"num": len(rows), "secondary-controllers": rows})

    def capabilities(self, form: str) -> str | bytes:
        queues, interrupts = self.flexible_queues, self.flexible_interrupts
        if form == "binary":
            data = bytearray(4096)
            struct.pack_into("<IIHHHH", data, 32, queues, 0, self.primary_queues, 2, queues // self.total, 1)
            struct.pack_into(
                "<IIHHHH", data, 64, interrupts, 0, self.primary_interrupts, 1, interrupts // self.total, 1
            )
            return bytes(data)
        if self.json_style == "unusable":
            return "not json"
        caps = {"vqfrt": queues, "vqrfa": 0, "vqrfap": self.primary_queues, "vqprt": 2, "vqfrsm": queues // self.total}
        caps |= {"vifrt": interrupts, "virfa": 0, "virfap": self.primary_interrupts, "viprt": 1}
        return json.dumps(caps | {"vifrsm": interrupts // self.total})


class KernelSysfs(Sysfs):
    """sysfs whose attributes act when they are written."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(str(machine.sys))
        self._machine = machine

    def write(self, path: str, value: str, timeout: float) -> None:
        machine = self._machine
        machine.written.append((path, value.strip()))
        value = value.strip()
        target = machine.sys / path
        try:
            if not (target.exists() or (path.endswith("/driver/unbind") and machine.link(os.path.dirname(path)))):
                raise OSError(errno.ENOENT, "No such file or directory")
            if path.endswith("/sriov_numvfs"):
                machine.adapter.set_numvfs(int(value))
            elif path == "bus/pci/drivers_probe":
                machine.adapter.probe(value)
            elif path.endswith("/driver/unbind"):
                machine.adapter.unbind(value)
            elif path.endswith("/reset"):
                machine.adapter.reset_vf(path.split("/")[-2])
            else:
                machine.write(path, value or "(null)")
        except OSError as exc:
            raise SysfsError(f"the kernel refused {value!r} for {target}: {exc.strerror}; see dmesg for why") from exc


class Machine:
    """``Machine(tmp_path)`` has one PF, 0000:01:00.0, with up to ``vfs`` VFs and a namespace of 24 MiB; ``host`` is
    what modules get.
    """

    def __init__(self, root: Path, size: int = 24 * MIB, vfs: int = 4) -> None:
        self.root = root
        self.sys, self.dev, self.proc = root / "sys", root / "dev", root / "proc"
        self.size = size
        self.missing: set[str] = set()  # programs that are not installed
        self.modules = {"vfio-pci"}  # drivers that modprobe can load
        self.written: list[tuple[str, str]] = []
        self.commands: list[list[str]] = []
        self.interceptor: Callable[[list[str]], tuple[int, str, str] | None] = lambda _arguments: None
        for directory in (
            "sys/bus/pci/drivers/nvme",
            "sys/class/block",
            "sys/kernel/iommu_groups/9",
            "dev",
            "proc",
            "lock",
        ):
            (root / directory).mkdir(parents=True)
        self.write("bus/pci/drivers_probe", "")
        self.adapter = Adapter(self, vfs, flexible_queues=2 * vfs, flexible_interrupts=2 * vfs)
        base = f"bus/pci/devices/{PF}"
        for name, value in {
            "class": "0x010802",
            "sriov_totalvfs": str(vfs),
            "sriov_numvfs": "0",
            "sriov_offset": "1",
            "sriov_stride": "1",
            "sriov_drivers_autoprobe": "1",
        }.items():
            self.write(f"{base}/{name}", value)
        self.symlink(f"{base}/driver", "../../../../bus/pci/drivers/nvme")
        self.symlink(f"{base}/iommu_group", "../../../../kernel/iommu_groups/9")
        self.show_controller(PF, "nvme0", live=True, multipath=False, nsids=[1])
        self.lvm = VolumeGroups(self)
        self.host = Host(KernelSysfs(self), str(self.dev), str(self.proc), str(root / "lock"), self.run, str(root))

    @property
    def device(self) -> Path:
        return self.dev / "nvme0n1"

    def double(self) -> None:
        """Another adapter, with the serial number and the NQN of the first."""
        devices = self.sys / "bus/pci/devices"
        shutil.copytree(devices / PF, devices / "0000:05:00.0", symlinks=True)

    def read(self, path: str) -> str:
        return (self.sys / path).read_text().strip()

    def write(self, path: str, value: str) -> None:
        target = self.sys / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(value + "\n")

    def symlink(self, path: str, target: str) -> None:
        link = self.sys / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)

    def link(self, path: str) -> str | None:
        link = self.sys / path
        return os.path.basename(os.readlink(link)) if link.is_symlink() else None

    def show_controller(self, address: str, name: str, live: bool, multipath: bool, nsids: list[int]) -> None:
        """What the nvme driver shows for a function: a controller, and its namespace when the controller is live."""
        base = f"bus/pci/devices/{address}/nvme/{name}"
        self.write(f"{base}/state", "live" if live else "connecting")
        self.write(f"{base}/serial", "SERIAL-" + address[5:7])
        self.write(f"{base}/subsysnqn", "nqn.2019-08.org.example:" + address[5:7])
        (self.dev / name).write_text("")
        for nsid in nsids if live else []:
            node = f"{name[:5]}c1n{nsid}" if multipath else f"{name}n{nsid}"
            for key, value in {
                "nsid": str(nsid),
                "size": str(self.size // 512),
                "wwid": IDENTITY,
                "dev": f"259:{name[4:]}",
            }.items():
                self.write(f"{base}/{node}/{key}", value)
            (self.sys / base / node / "holders").mkdir()
            if not multipath:
                self.show_device(node, address)

    def show_device(self, node: str, address: str) -> None:
        """The block device: a file, which is the one storage through the PF and through every VF."""
        if address != PF:
            (self.dev / node).symlink_to(self.device)
            return
        with (self.dev / node).open("wb") as file:
            file.truncate(self.size)

    def reboot(self) -> None:
        """Files stay. The adapter forgets VFs and resources, the kernel everything."""
        self.adapter.set_numvfs(0)
        for controller in self.adapter.controllers.values():
            controller.online, controller.queues, controller.interrupts = False, 0, 0
        self.write(f"bus/pci/devices/{PF}/sriov_drivers_autoprobe", "1")
        shutil.rmtree(self.sys / "bus/pci/drivers/vfio-pci", ignore_errors=True)
        for process in self.proc.iterdir():
            shutil.rmtree(process)
        for lock in (self.root / "lock").iterdir():
            lock.unlink()

    def process(self, pid: int, comm: str, cmdline: list[str], opened: list[Path] | None = None) -> None:
        base = self.proc / str(pid)
        (base / "fd").mkdir(parents=True)
        (base / "comm").write_text(comm + "\n")
        (base / "cmdline").write_bytes(b"\0".join(argument.encode() for argument in cmdline) + b"\0")
        for number, path in enumerate(opened or ()):
            (base / "fd" / str(number)).symlink_to(path)

    def run(self, arguments: list[str], encoding: str | None) -> tuple[int, Any, Any]:
        """The runner: ``timeout`` and what it is asked to run."""
        assert arguments[:2] == ["timeout", "--kill-after=5"], f"a command without a deadline: {arguments}"
        assert float(arguments[2]) > 0
        command = arguments[3:]
        self.commands.append(command)
        code, out, err = self._answer(command)
        if encoding is None:
            return code, out if isinstance(out, bytes) else out.encode(), err.encode()
        return code, out.decode(errors="replace") if isinstance(out, bytes) else out, err

    def _answer(self, command: list[str]) -> tuple[int, str | bytes, str]:
        program = command[0]
        if program in self.missing:
            return 127, "", f"timeout: failed to run command '{program}': No such file or directory"
        intercepted = self.interceptor(command)
        if intercepted is not None:
            return intercepted
        if program == "nvme":
            words = [word for word in command[3:] if word != "-a" or command[1] == "virt-mgmt"]
            options = dict(zip(words[::2], words[1::2], strict=True))
            return self.adapter.nvme(command[1], os.path.basename(command[2]), options | {"all": str("-a" in command)})
        if program == "modprobe":
            return self._modprobe(command)
        return self.lvm.command(command)

    def _modprobe(self, command: list[str]) -> tuple[int, str, str]:
        driver = command[-1]
        if driver not in self.modules:
            return 1, "", f"modprobe: FATAL: Module {driver} not found in directory /lib/modules/6.12"
        if "--dry-run" not in command:
            (self.sys / "bus/pci/drivers" / driver).mkdir(exist_ok=True)
        return 0, "", ""

    def fingerprint(self, data: bool = True) -> str:
        """A hash over everything that a module could change; ``data``: also what the storage holds, in which a running
        vportd renews its leases.
        """
        return hashlib.sha256(repr(sorted(self.state(data).items())).encode()).hexdigest()

    def state(self, data: bool = True) -> dict[str, str]:
        """The same by name: each file, and what adapter and LVM keep."""
        found = {}
        for path in self.root.rglob("*"):
            if path.is_relative_to(self.root / "lock"):
                continue
            content = ""
            if path.is_symlink():
                content = os.readlink(path)
            elif path.is_file() and (data or path != self.device):
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path.relative_to(self.root))] = content
        found["controllers"] = repr(sorted(self.adapter.controllers.items()))
        found["attached"] = repr(sorted(self.adapter.attached))
        found["LVM"] = repr((self.lvm.groups, self.lvm.signature))
        return found


@dataclass
class Volume:
    ranges: list[tuple[int, int]]  # (first physical extent, count)
    tags: set[str]
    kind: str = "linear"

    @property
    def count(self) -> int:
        return sum(count for _first, count in self.ranges)


@dataclass
class Group:
    extent_size: int
    autoactivation: bool
    total: int
    volumes: dict[str, Volume] = field(default_factory=dict)

    def free(self) -> list[int]:
        taken = {first + n for volume in self.volumes.values() for first, count in volume.ranges for n in range(count)}
        return [extent for extent in range(self.total) if extent not in taken]

    def take(self, count: int) -> list[tuple[int, int]]:
        ranges: list[tuple[int, int]] = []
        for extent in self.free()[:count]:
            if ranges and sum(ranges[-1]) == extent:
                ranges[-1] = (ranges[-1][0], ranges[-1][1] + 1)
            else:
                ranges.append((extent, 1))
        return ranges


class VolumeGroups:
    """LVM on the machine's one namespace."""

    PE_START = MIB

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.groups: dict[str, Group] = {}
        self.signature: str | None = None
        self.devices = 1

    def command(self, command: list[str]) -> tuple[int, str, str]:
        program, rest = command[0], command[1:]
        if program == "wipefs":
            found = [{"device": "nvme0n1", "offset": "0x438", "type": self.signature}] if self.signature else []
            found += [{"device": "nvme0n1", "offset": "0x218", "type": "LVM2_member"}] if self.groups else []
            return 0, json.dumps({"signatures": found}) if found else "", ""
        if rest[:2] != ["--devices", str(self._machine.device)] or "activation=0" not in rest[3]:
            return 5, "", f"{shlex.join(command)}: a command that may see another path or activate a volume"
        flags, words = self._parse(rest[4:])
        try:
            return 0, getattr(self, f"_{program}")(flags, words), ""
        except (ValueError, KeyError) as exc:
            return 5, "", f"  {exc}"

    @staticmethod
    def _parse(arguments: list[str]) -> tuple[dict[str, list[str]], list[str]]:
        flags: dict[str, list[str]] = {}
        words: list[str] = []
        valued = {
            "--setautoactivation", "--physicalextentsize", "--type", "--activate", "--zero", "--wipesignatures",
            "--addtag", "--deltag", "--size", "--name", "--reportformat", "--units", "-o",
        }  # fmt: skip
        rest = iter(arguments)
        for argument in rest:
            if argument in valued:
                flags.setdefault(argument, []).append(next(rest))
            elif argument.startswith("-"):
                flags[argument] = []
            else:
                words.append(argument)
        return flags, words

    def _extents(self, group: Group, size: str) -> int:
        assert size.endswith("b")
        return -(-int(size[:-1]) // group.extent_size)

    def _find(self, word: str) -> tuple[Group, str]:
        group, __, volume = word.partition("/")
        if group not in self.groups:
            raise ValueError(f'Volume group "{group}" not found')
        if volume and volume not in self.groups[group].volumes:
            raise ValueError(f'Failed to find logical volume "{word}"')
        return self.groups[group], volume

    def _vgcreate(self, flags: dict[str, list[str]], words: list[str]) -> str:
        assert "--yes" in flags or not self.signature
        name, device = words
        if self.groups:
            raise ValueError(f"Physical volume '{device}' is already in volume group")
        extent_size = int(flags["--physicalextentsize"][0][:-1])
        total = (self._machine.size - self.PE_START) // extent_size
        self.groups[name] = Group(extent_size, flags["--setautoactivation"] != ["n"], total)
        return ""

    def _vgchange(self, flags: dict[str, list[str]], words: list[str]) -> str:
        self._find(words[0])[0].autoactivation = flags["--setautoactivation"] != ["n"]
        return ""

    def _vgremove(self, _flags: dict[str, list[str]], words: list[str]) -> str:
        if self._find(words[0])[0].volumes:
            raise ValueError(f'Volume group "{words[0]}" not removed')
        del self.groups[words[0]]
        return ""

    def _pvremove(self, _flags: dict[str, list[str]], words: list[str]) -> str:
        if self.groups:
            raise ValueError(f"PV {words[0]} is used by a VG")
        return ""

    def _lvcreate(self, flags: dict[str, list[str]], words: list[str]) -> str:
        if flags["--activate"] != ["n"] or flags["--zero"] != ["n"] or flags["--wipesignatures"] != ["n"]:
            raise ValueError("this would activate the volume")
        group, __ = self._find(words[0])
        count = self._extents(group, flags["--size"][0])
        (name,) = flags["--name"]
        if name in group.volumes:
            raise ValueError(f'Logical Volume "{name}" already exists')
        if count > len(group.free()):
            raise ValueError("Insufficient free space")
        group.volumes[name] = Volume(group.take(count), set(flags["--addtag"]))
        return ""

    def _lvextend(self, flags: dict[str, list[str]], words: list[str]) -> str:
        group, name = self._find(words[0])
        volume = group.volumes[name]
        more = self._extents(group, flags["--size"][0]) - volume.count
        if more > len(group.free()):
            raise ValueError("Insufficient free space")
        volume.ranges += group.take(more)
        return ""

    def _lvremove(self, _flags: dict[str, list[str]], words: list[str]) -> str:
        group, name = self._find(words[0])
        del group.volumes[name]
        return ""

    def _lvchange(self, flags: dict[str, list[str]], words: list[str]) -> str:
        for word in words:
            group, name = self._find(word)
            group.volumes[name].tags -= set(flags.get("--deltag", ()))
            group.volumes[name].tags |= set(flags.get("--addtag", ()))
        return ""

    def _pvs(self, _flags: dict[str, list[str]], _words: list[str]) -> str:
        rows = [
            {
                "pv_name": str(self._machine.device),
                "pe_start": str(self.PE_START),
                "vg_name": name,
                "vg_uuid": "AAAAAA-BBBB",
                "vg_seqno": "7",
                "vg_extent_size": str(group.extent_size),
                "vg_size": str(group.total * group.extent_size),
                "vg_free": str(len(group.free()) * group.extent_size),
                "pv_count": str(self.devices),
                "vg_autoactivation": "enabled" if group.autoactivation else "",
            }
            for name, group in self.groups.items()
        ]
        return json.dumps({"report": [{"pv": rows}]})

    def _lvs(self, _flags: dict[str, list[str]], words: list[str]) -> str:
        group, __ = self._find(words[0])
        return json.dumps({"report": [{"seg": list(self._segments(group))}]})

    def _segments(self, group: Group) -> Iterator[dict[str, str]]:
        for name, volume in group.volumes.items():
            start = 0
            for first, count in volume.ranges:
                yield {
                    "lv_name": name,
                    "lv_uuid": re.sub("[^a-z0-9]", "", name),
                    "lv_size": str(volume.count * group.extent_size),
                    "lv_tags": ",".join(sorted(volume.tags)),
                    "segtype": volume.kind,
                    "seg_start": str(start),
                    "seg_size": str(count * group.extent_size),
                    "seg_pe_ranges": f"{self._machine.device}:{first}-{first + count - 1}",
                }
                start += count * group.extent_size
