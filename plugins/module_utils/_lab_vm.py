# SPDX-License-Identifier: GPL-3.0-or-later
"""A hypervisor VM of the lab on the control node: its files, its QEMU, its way to running and back.

Layout of a lab's directory::

    <lab>/<vm>/overlay.qcow2  seed.tar  console.log  qemu.log  qemu.pid  qmp.sock  command.json
    <lab>/links/<vm>-<peer>.sock      one end of the link between two VMs
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tarfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import _lab_cache
from ._errors import CommandFailed, Refused, TimedOut
from ._host import Host, wait_until
from ._plan import Plan, Step
from ._qmp import Qmp, QmpError

QEMU = "qemu-system-x86_64"
QEMU_FLOOR = (7, 2)
_NAMESPACE = uuid.UUID("3b0f5a54-5b0e-4f0a-9d3b-6a9a1f6f2f11")
_START_TIMEOUT = 60.0
_STOP_TIMEOUT = 60.0


@dataclass(frozen=True, slots=True)
class Image:
    """Files of the lab image: the root disk (qcow2), its kernel and initramfs."""

    root: str
    kernel: str
    initrd: str


@dataclass(frozen=True, slots=True)
class Adapter:
    """The emulated NVMe SR-IOV adapter. ``queues`` and ``interrupts`` are the flexible resources of one VF."""

    serial: str
    max_vfs: int
    queues: int
    interrupts: int
    storage: str
    storage_uuid: str

    def devices(self) -> list[str]:
        flexible_queues, flexible_interrupts = self.max_vfs * self.queues, self.max_vfs * self.interrupts
        return [
            "-device", "pcie-root-port,id=rp0,chassis=1,slot=1,addr=5",
            "-device", f"nvme-subsys,id=subsystem0,nqn={self.serial}",
            "-device",
            f"nvme,bus=rp0,id=nvme0,serial={self.serial},subsys=subsystem0,sriov_max_vfs={self.max_vfs},"
            f"sriov_vq_flexible={flexible_queues},sriov_vi_flexible={flexible_interrupts},"
            f"max_ioqpairs={flexible_queues + 2},msix_qsize={flexible_interrupts + 3}",
            "-drive", f"if=none,id=storage,file={self.storage},format=raw,file.locking=off,cache=none,discard=unmap",
            "-device", f"nvme-ns,drive=storage,bus=nvme0,nsid=1,shared=on,uuid={self.storage_uuid}",
        ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class LabVm:
    """What one lab VM is. Memory in MiB; ``peers`` are the names of the other VMs, in the order of their links."""

    lab: str
    name: str
    directory: str
    image: Image
    memory: int
    cpus: int
    accelerator: str
    ssh_port: int
    peers: tuple[str, ...]
    adapter: Adapter
    seed: tuple[tuple[str, str, int], ...]

    @property
    def home(self) -> str:
        return os.path.join(self.directory, self.name)

    @property
    def identity(self) -> uuid.UUID:
        return uuid.uuid5(_NAMESPACE, f"{self.lab}/{self.name}")

    @property
    def process_name(self) -> str:
        """QEMU's -name, by which its process is told from any other that got its number."""
        return process_name(self.lab, self.name, self.directory)

    def path(self, file: str) -> str:
        return os.path.join(self.home, file)

    def command(self) -> list[str]:
        """QEMU's command line. Paths of sockets are relative to the VM's directory: a socket's address is short."""
        cpu = "host" if self.accelerator == "kvm" else "max"
        accelerator = "kvm" if self.accelerator == "kvm" else "tcg,thread=multi"
        kernel_arguments = (
            "root=/dev/vda rw console=ttyS0 nvme_core.multipath=N intel_iommu=on mitigations=off panic=1 "
            f"fsck.mode=skip systemd.hostname={self.name} systemd.machine_id={self.identity.hex}"
        )
        command = [
            QEMU, "-name", self.process_name, "-uuid", str(self.identity),
            "-machine", "q35,kernel-irqchip=split", "-accel", accelerator, "-cpu", cpu,
            "-smp", str(self.cpus), "-m", f"{self.memory}M", "-nodefaults", "-display", "none",
            "-kernel", self.image.kernel, "-initrd", self.image.initrd, "-append", kernel_arguments,
            "-chardev", "file,id=console,path=console.log,append=on", "-serial", "chardev:console",
            "-qmp", "unix:qmp.sock,server=on,wait=off", "-pidfile", "qemu.pid",
            "-device", "intel-iommu,intremap=on,caching-mode=on",
            "-drive", "if=none,id=root,file=overlay.qcow2,cache=unsafe",
            "-device", "virtio-blk-pci,drive=root,addr=2",
            "-drive", "if=none,id=seed,file=seed.tar,format=raw,readonly=on",
            "-device", "virtio-blk-pci,drive=seed,serial=seed,addr=7",
            "-netdev", f"user,id=management,hostfwd=tcp:127.0.0.1:{self.ssh_port}-:22",
            "-device", "virtio-net-pci,netdev=management,addr=3,romfile=",
        ]  # fmt: skip
        for number, peer in enumerate(self.peers):
            ends = [f"../links/{self.name}-{peer}.sock", f"../links/{peer}-{self.name}.sock"]
            command += [
                "-netdev",
                f"dgram,id=link{number},local.type=unix,local.path={ends[0]},remote.type=unix,remote.path={ends[1]}",
                "-device",
                f"virtio-net-pci,netdev=link{number},mac={link_mac(self.lab, self.name, peer)},"
                f"addr={8 + number:x},romfile=",
            ]
        return command + self.adapter.devices()

    def seed_archive(self) -> bytes:
        """The seed disk: a tar archive, padded to whole sectors, the same bytes for the same content."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for path, content, mode in self.seed:
                member = tarfile.TarInfo(path.lstrip("/"))
                data = content.encode()
                member.size, member.mode = len(data), mode
                archive.addfile(member, io.BytesIO(data))
        return buffer.getvalue()


def process_name(lab: str, name: str, directory: str) -> str:
    return f"iovlab:{lab}:{name}:{os.path.realpath(directory)}"


def link_mac(lab: str, name: str, peer: str) -> str:
    """MAC address of ``name``'s end of the link to ``peer``."""
    digest = hashlib.sha256(f"{lab}/{name}/{peer}".encode()).digest()
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in digest[:3])


def qemu_version(host: Host) -> tuple[int, int]:
    """Installed QEMU's version; CommandFailed when there is none."""
    said = host.output([QEMU, "--version"], 30)
    words = said.split()
    try:
        major, minor = words[words.index("version") + 1].split(".")[:2]
        return int(major), int(minor)
    except (ValueError, IndexError) as exc:
        raise CommandFailed(f"{QEMU} --version says nothing usable: {said[:80]!r}") from exc


def running_pid(vm_home: str, process_name: str) -> int | None:
    """Process of the VM's QEMU, or None. A number that another program has got since is not taken for it."""
    found = _running(vm_home, process_name)
    return found and found[0]


def _running(vm_home: str, process_name: str) -> tuple[int, list[str]] | None:
    """Process of the VM's QEMU and the arguments it was started with."""
    try:
        with open(os.path.join(vm_home, "qemu.pid"), encoding="ascii") as file:
            pid = int(file.read())
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            arguments = file.read().decode(errors="surrogateescape").rstrip("\0").split("\0")
    except (OSError, ValueError):
        return None
    return (pid, arguments) if process_name in arguments else None


def read(vm: LabVm) -> dict[str, Any]:
    """The VM as it is: ``state`` (absent, stopped, started), process, the command line it was started with."""
    pid, command = _running(vm.home, vm.process_name) or (None, None)
    state = "started" if pid else "stopped" if os.path.exists(vm.path("overlay.qcow2")) else "absent"
    return {"state": state, "pid": pid, "command": command}


def vms_in(directory: str) -> list[dict[str, Any]]:
    """The VMs whose files are in a lab's directory, as their files and processes tell."""
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return []
    homes = [(name, os.path.join(directory, name)) for name in names]
    return [_found(name, home) for name, home in homes if os.path.exists(os.path.join(home, "overlay.qcow2"))]


def _found(name: str, home: str) -> dict[str, Any]:
    try:
        with open(os.path.join(home, "command.json"), encoding="utf-8") as file:
            command = json.load(file)
    except FileNotFoundError:  # never started
        command = []
    except ValueError as exc:
        raise Refused(f"{home}/command.json is cut short ({exc}); start the VM again, or remove it") from None
    process = _option(command, "-name", "(.*)")
    pid = None if process is None else running_pid(home, process)
    port = _option(command, "-netdev", r"user,.*hostfwd=tcp:127\.0\.0\.1:(\d+)-:22")
    memory, cpus = _option(command, "-m", r"(\d+)M"), _option(command, "-smp", r"(\d+)")
    return {
        "name": name,
        "state": "started" if pid else "stopped",
        "pid": pid,
        "ssh": port and f"127.0.0.1:{port}",
        "console": os.path.join(home, "console.log"),
        "accelerator": _option(command, "-accel", "([a-z]+)"),
        "memory": memory and int(memory),
        "cpus": cpus and int(cpus),
    }


def _option(command: Sequence[str], option: str, pattern: str) -> str | None:
    """What ``pattern`` finds in the first value of ``option`` that it matches."""
    values = (value for name, value in itertools.pairwise(command) if name == option)
    return next((match[1] for value in values if (match := re.match(pattern, value))), None)


def plan(vm: LabVm, current: Mapping[str, Any], state: str) -> Plan:
    """Steps from ``current`` (of :func:`read`) to ``state``: started, stopped or absent."""
    steps: list[Step] = []
    is_now = current["state"]
    if state == "started":
        if is_now == "started" and _differs(current["command"], vm.command()):
            raise Refused(
                f"lab VM {vm.name} runs with other settings than asked for ({_difference(current['command'], vm)}); "
                "take the lab down first, or ask for what runs"
            )
        if is_now == "absent":
            steps.append(Step("create", f"create the disk of lab VM {vm.name}"))
        if is_now != "started":
            steps.append(Step("start", f"start lab VM {vm.name}, {vm.accelerator}, ssh on 127.0.0.1:{vm.ssh_port}"))
    if state in ("stopped", "absent") and is_now == "started":
        steps.append(Step("stop", f"stop lab VM {vm.name}", {"force": state == "absent"}))
    if state == "absent" and (is_now != "absent" or os.path.exists(vm.home)):
        steps.append(Step("remove", f"remove lab VM {vm.name}"))
    return Plan(before={"state": is_now}, after={"state": state}, steps=tuple(steps))


def _differs(running: Sequence[str] | None, wanted: Sequence[str]) -> bool:
    return running is None or list(running)[1:] != list(wanted)[1:]


def _difference(running: Sequence[str] | None, vm: LabVm) -> str:
    pairs = zip(list(running or [])[1:], vm.command()[1:], strict=False)
    return next((f"{now} instead of {wanted}" for now, wanted in pairs if now != wanted), "a shorter command line")


def create(host: Host, vm: LabVm) -> None:
    os.makedirs(vm.home, exist_ok=True)
    partial, overlay = vm.path("overlay.qcow2.partial"), vm.path("overlay.qcow2")
    with _lab_cache.claimed(vm.image.root, overlay):
        host.output(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", vm.image.root, partial], 120)
        os.replace(partial, overlay)


def start(vm: LabVm) -> None:
    """Start QEMU; returns when its monitor listens. The guest boots on."""
    os.makedirs(os.path.join(vm.directory, "links"), exist_ok=True)
    for stale in ["qmp.sock", "qemu.pid", *(f"../links/{vm.name}-{peer}.sock" for peer in vm.peers)]:
        if os.path.lexists(vm.path(stale)):
            os.unlink(vm.path(stale))
    with open(vm.path("seed.tar"), "wb") as file:
        file.write(vm.seed_archive())
    with open(vm.path("command.json"), "w", encoding="utf-8") as file:
        json.dump(vm.command(), file, indent=1)
    # Not -daemonize: it changes to /, and the links' addresses are relative to the VM's directory.
    with open(vm.path("qemu.log"), "w+", encoding="utf-8", errors="replace") as log:
        # It outlives this module, so that run_command cannot start it.
        process = subprocess.Popen(  # pylint: disable=ansible-bad-function
            vm.command(), cwd=vm.home, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        try:
            wait_until(lambda: process.poll() is not None or _listens(vm), _START_TIMEOUT, "no monitor")
        except TimedOut:
            process.kill()
            raise TimedOut(
                f"QEMU of lab VM {vm.name} does not open its monitor within {_START_TIMEOUT:.0f} s; see {log.name}"
            ) from None
        if process.returncode is not None:
            log.seek(0)
            said = " ".join(log.read().split()) or "no message"
            raise CommandFailed(f"QEMU of lab VM {vm.name} ended with {process.returncode} at once: {said[-400:]}")


def _listens(vm: LabVm) -> bool:
    """Whether QEMU has started: its process number is written, and its monitor answers."""
    if running_pid(vm.home, vm.process_name) is None:
        return False
    try:
        with Qmp(vm.home, "qmp.sock"):
            return True
    except QmpError:
        return False


def stop(vm: LabVm, force: bool) -> None:
    """Power the VM down; one that does not go in time, or with ``force``, is ended at once."""
    pid = running_pid(vm.home, vm.process_name)
    if pid is None:
        return
    if not force:
        try:
            with Qmp(vm.home, "qmp.sock") as qmp:
                qmp.execute("system_powerdown")
            wait_until(lambda: running_pid(vm.home, vm.process_name) is None, _STOP_TIMEOUT, "still running", 0.1)
            return
        except (QmpError, TimedOut):
            pass  # a guest that does not listen is ended below
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(pid, number)
            wait_until(lambda: running_pid(vm.home, vm.process_name) is None, 10.0, "still running")
        except ProcessLookupError:
            return
        except TimedOut:
            continue
        return
    raise TimedOut(f"QEMU of lab VM {vm.name} (process {pid}) does not end on SIGKILL; see dmesg of the control node")


def remove(vm: LabVm, logs: str | None) -> None:
    """Remove the VM's files; the console log is kept in the directory ``logs``."""
    if logs and os.path.exists(vm.path("console.log")):
        os.makedirs(logs, exist_ok=True)
        shutil.copyfile(vm.path("console.log"), os.path.join(logs, f"{vm.name}.console.log"))
    shutil.rmtree(vm.home, ignore_errors=False)
    for peer in vm.peers:
        end = os.path.join(vm.directory, "links", f"{vm.name}-{peer}.sock")
        if os.path.lexists(end):
            os.unlink(end)
    links = os.path.join(vm.directory, "links")
    if os.path.isdir(links) and not os.listdir(links):
        os.rmdir(links)


def wait_for_ssh(vm: LabVm, key: str, host_key: str, timeout: float) -> float:
    """Return once ``true`` runs in the VM over ssh, with the seconds it took. The host key must be the lab's own."""
    import paramiko  # only the control node has it

    kind, material = host_key.split()[:2]
    known = paramiko.HostKeys()
    known.add(f"[127.0.0.1]:{vm.ssh_port}", kind, paramiko.PKey.from_type_string(kind, _decoded(material)))
    began, said = time.monotonic(), "no answer"
    while time.monotonic() - began < timeout:
        if running_pid(vm.home, vm.process_name) is None:
            raise CommandFailed(f"lab VM {vm.name} ended while it booted; its console is in {vm.path('console.log')}")
        client = paramiko.SSHClient()
        client.get_host_keys().update(known)
        client.set_missing_host_key_policy(paramiko.RejectPolicy())
        try:
            client.connect(
                "127.0.0.1", port=vm.ssh_port, username="root", key_filename=key, look_for_keys=False,
                allow_agent=False, timeout=10, banner_timeout=15, auth_timeout=30,
            )  # fmt: skip
            output = client.exec_command("systemctl is-system-running --wait", timeout=timeout)[1]
            said = f"systemd says {output.read().decode().strip()}"
            if output.channel.recv_exit_status() == 0:
                return time.monotonic() - began
            if "degraded" in said:
                output = client.exec_command("systemctl --failed --no-legend --plain", timeout=60)[1]
                raise CommandFailed(
                    f"lab VM {vm.name} booted with failed units ({output.read().decode().strip()}); "
                    f"its console is in {vm.path('console.log')}"
                )
        except paramiko.BadHostKeyException as exc:
            raise CommandFailed(
                f"127.0.0.1:{vm.ssh_port} answers with a host key that is not lab VM {vm.name}'s; "
                "another program has this port, choose another ssh_port"
            ) from exc
        except (paramiko.SSHException, OSError, EOFError) as exc:
            said = str(exc) or type(exc).__name__
            time.sleep(0.3)  # sshd is not up yet; there is nothing to be woken by
        finally:
            client.close()
    raise TimedOut(
        f"lab VM {vm.name} did not come up within {timeout:g} s (last: {said}); "
        f"its console is in {vm.path('console.log')}"
    )


def port_is_free(port: int) -> bool:
    """Whether a server could listen on 127.0.0.1:port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _decoded(material: str) -> bytes:
    import base64

    return base64.b64decode(material)
