# SPDX-License-Identifier: GPL-3.0-or-later
"""A simulated hypervisor, for measuring real runs of Ansible without hardware. Root only.

It has mount and process namespaces of its own. In them the machine of the unit tests is at ``/sys/bus/pci`` and
``/dev``: files of sysfs that act are served by FUSE, ``nvme`` asks that machine's adapter, LVM is the real one on a
loop device, and vportd is the real one too. Modules get there by an interpreter that enters the namespaces, so that
nothing in them knows of it. Not simulated: times of the kernel and of firmware, which are next to none here.

``python -m tests.bench.hypervisor DIRECTORY VFS MIB`` is the first process inside.
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import select
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from ansible_collections.iovlab.storage.plugins.module_utils._errors import SysfsError
from tests.slow_file import NoFuse, mount
from tests.unit.plugins.machine import MIB, PF, Machine

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "roles/vportd/files"
PYTHON = "/usr/bin/python3"
NODES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "fuse": (10, 229)}
LOOP_CTL_GET_FREE, LOOP_CONFIGURE, LO_FLAGS_AUTOCLEAR = 0x4C82, 0x4C0A, 4  # linux/loop.h
_IN = struct.Struct("<IIQQIIII")
_OUT = struct.Struct("<IiQ")
_GETATTR, _SETATTR, _OPEN, _READ, _WRITE, _RELEASE, _FSYNC, _FLUSH, _INIT = 3, 4, 14, 15, 16, 18, 20, 25, 26
_FORGET, _INTERRUPT, _BATCH_FORGET, _DIRECT_IO = 2, 36, 42, 1
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_libc = ctypes.CDLL(None, use_errno=True)

NVME = f"""\
#!{PYTHON} -ISE
import socket, sys
with socket.socket(socket.AF_UNIX) as asked:
    asked.connect("{{directory}}/nvme.sock")
    asked.sendall("\\0".join(sys.argv[1:]).encode() + b"\\n")
    with asked.makefile("rb") as answer:
        code, out, err = answer.readline().split()
        sys.stdout.buffer.write(answer.read(int(out)))
        sys.stderr.buffer.write(answer.read(int(err)))
sys.exit(int(code))
"""
RPC = f"""\
#!{PYTHON} -ISE
# rpc METHOD PARAMETERS: what somebody without this collection would write
import json, socket, sys
with socket.socket(socket.AF_UNIX) as asked:
    asked.connect("/run/vportd/rpc.sock")
    request = {{"jsonrpc": "2.0", "id": 1, "method": sys.argv[1], "params": json.loads(sys.argv[2])}}
    asked.sendall(json.dumps(request).encode() + b"\\n")
    reply = json.loads(asked.makefile().readline())
print(json.dumps(reply))
sys.exit("error" in reply)
"""
ANSWERS = """\
import socket, time
end = time.monotonic() + 60
while True:
    try:
        socket.socket(socket.AF_UNIX).connect("/run/vportd/rpc.sock")
        break
    except OSError:
        if time.monotonic() > end:
            raise SystemExit(1)
        time.sleep(0.05)
"""
INTERPRETER = """\
#!/bin/sh
PATH={directory}/bin:/usr/sbin:/usr/bin:/sbin:/bin exec nsenter --target {pid} --mount --pid -- {python} "$@"
"""


def loop(backing: Path, directory: Path) -> tuple[int, os.PathLike[str]]:
    """A loop device on a file that goes when nobody has it open any more: a descriptor, and its node."""
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    file = os.open(backing, os.O_RDWR | os.O_CLOEXEC)
    node = directory / "loop"
    try:
        while True:
            number = fcntl.ioctl(control, LOOP_CTL_GET_FREE)
            node.unlink(missing_ok=True)
            os.mknod(node, stat.S_IFBLK | 0o660, os.makedev(7, number))
            device = os.open(node, os.O_RDWR | os.O_CLOEXEC)
            info = struct.pack("<5Q4I", 0, 0, 0, 0, 0, 0, 0, 0, LO_FLAGS_AUTOCLEAR).ljust(232, b"\0")
            try:
                fcntl.ioctl(device, LOOP_CONFIGURE, struct.pack("<II", file, 512) + info + bytes(64))
            except OSError as problem:
                os.close(device)
                if problem.errno == errno.EBUSY:  # somebody else was faster
                    continue
                raise
            return device, node
    finally:
        os.close(control)
        os.close(file)


class SimulatedMachine(Machine):
    """Its namespace is a block device, which each VF shows too."""

    def __init__(self, root: Path, size: int, vfs: int, device: int) -> None:
        self.rdev = os.fstat(device).st_rdev
        super().__init__(root, size, vfs)

    def show_device(self, node: str, address: str) -> None:
        (self.dev / node).unlink(missing_ok=True)
        os.mknod(self.dev / node, stat.S_IFBLK | 0o660, self.rdev)


class ActingFile:
    """One attribute of sysfs: what is written to it is done before the write returns."""

    def __init__(self, path: Path, text: Callable[[], str], act: Callable[[str], None]) -> None:
        self.fd = mount(path)
        self._text = text
        self._act = act

    def fileno(self) -> int:
        return self.fd

    def serve(self) -> None:
        """Answer one request."""
        try:
            request = os.read(self.fd, (1 << 20) + 8192)
        except FileNotFoundError:  # taken back while it was read
            return
        __, code, unique, *__ = _IN.unpack_from(request)
        body, error = b"", 0
        if code in (_FORGET, _BATCH_FORGET, _INTERRUPT):
            return
        if code == _INIT:
            body = struct.pack("<IIIIHHIIHH7I", 7, 31, 0, 0, 16, 12, 4096, 1, 1, 0, *[0] * 7)
        elif code in (_GETATTR, _SETATTR):
            facts = (1, 4096, 8, 0, 0, 0, 0, 0, 0, stat.S_IFREG | 0o644, 1, 0, 0, 0, 4096, 0)
            body = struct.pack("<QII6Q10I", 3600, 0, 0, *facts)
        elif code == _OPEN:
            body = struct.pack("<QII", 1, _DIRECT_IO, 0)
        elif code == _READ:
            __, offset, count = struct.unpack_from("<QQI", request, 40)
            body = self._text().encode()[offset : offset + count]
        elif code == _WRITE:
            __, __, count = struct.unpack_from("<QQI", request, 40)
            error = self._done(request[80 : 80 + count].decode().strip())
            body = b"" if error else struct.pack("<II", count, 0)
        elif code not in (_RELEASE, _FSYNC, _FLUSH):
            error = -errno.ENOSYS
        with contextlib.suppress(FileNotFoundError):  # who asked has been interrupted
            os.writev(self.fd, [_OUT.pack(16 + len(body), error, unique), body])

    def _done(self, value: str) -> int:
        try:
            self._act(value)
        except SysfsError as problem:
            print(f"{value!r}: {problem}", file=sys.stderr, flush=True)
            return -errno.EINVAL
        except OSError as problem:
            return -(problem.errno or errno.EIO)
        return 0


def _mount(source: str, target: str, kind: str, flags: int = 0) -> None:
    if _libc.mount(source.encode(), target.encode(), kind.encode(), flags, None) != 0:
        raise OSError(ctypes.get_errno(), f"mount on {target}: {os.strerror(ctypes.get_errno())}")


def _program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def _inside(directory: Path, vfs: int, size: int) -> None:
    """Make the machine, start vportd, say ready, and serve until standard input ends."""
    tree = directory / "tree"
    with (directory / "storage").open("wb") as file:
        file.truncate(size)
    device, __ = loop(directory / "storage", directory)
    machine = SimulatedMachine(tree, size, vfs, device)
    for name, (major, minor) in NODES.items():
        os.mknod(tree / "dev" / name, stat.S_IFCHR, os.makedev(major, minor))
        (tree / "dev" / name).chmod(0o666)
    (tree / "dev/fd").symlink_to("/proc/self/fd")
    (directory / "bin").mkdir()
    _program(directory / "bin/nvme", NVME.format(directory=directory))
    _program(directory / "bin/rpc", RPC)
    (tree / "sys/bus/pci/drivers/nvme/unbind").touch()
    _mount("none", "/", "none", _MS_REC | _MS_PRIVATE)
    _mount(str(tree / "sys/bus/pci"), "/sys/bus/pci", "none", _MS_BIND)
    _mount(str(tree / "dev"), "/dev", "none", _MS_BIND)
    for path in ("/run", "/etc/lvm/archive", "/etc/lvm/backup"):
        if os.path.isdir(path):
            _mount("none", path, "tmpfs")
    os.makedirs("/run/lock")

    def acting(path: str, act: Callable[[str], None]) -> ActingFile:
        return ActingFile(Path("/sys") / path, lambda: machine.read(path) + "\n", act)

    waiting: list[ActingFile | socket.socket] = [
        acting(f"bus/pci/devices/{PF}/sriov_numvfs", lambda value: machine.adapter.set_numvfs(int(value))),
        acting("bus/pci/drivers_probe", machine.adapter.probe),
        acting("bus/pci/drivers/nvme/unbind", machine.adapter.unbind),
    ]
    nvme = socket.socket(socket.AF_UNIX)
    nvme.bind(str(directory / "nvme.sock"))
    nvme.listen(64)
    waiting.append(nvme)
    settings = {
        "adapters": [{"pf": PF, "nsid": 1}],
        "state_dir": "/run/vportd-state",
        "socket_user": "root",
        "worker_user": "nobody",
        "host_id": os.urandom(16).hex(),
    }
    (directory / "vportd.json").write_text(json.dumps(settings))
    with (directory / "vportd.log").open("wb") as log:
        subprocess.Popen(
            [PYTHON, "-m", "vportd", "--config", str(directory / "vportd.json")],
            env=os.environ | {"PYTHONPATH": str(SOURCE)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    print("ready", flush=True)
    while True:
        for one in select.select([*waiting, sys.stdin], [], [])[0]:
            if isinstance(one, ActingFile):
                one.serve()
            elif isinstance(one, socket.socket):
                _answer(one, machine)
            else:
                return
        with contextlib.suppress(ChildProcessError):  # what this process inherits as the first one here
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _answer(listening: socket.socket, machine: Machine) -> None:
    asked, __ = listening.accept()
    with asked, asked.makefile("rb") as lines:
        arguments = lines.readline().decode().rstrip("\n").split("\0")
        code, out, err = machine.run(["timeout", "--kill-after=5", "60", "nvme", *arguments], None)
        asked.sendall(f"{code} {len(out)} {len(err)}\n".encode() + out + err)


class Hypervisor:
    """``with Hypervisor(directory, vfs=64, size=2 << 30) as host:`` - ``host.interpreter`` is for Ansible.

    Raises NoFuse, with the reason, where there can be none.
    """

    def __init__(self, directory: Path, vfs: int, size: int) -> None:
        directory.mkdir(parents=True)
        self.directory = directory
        self.interpreter = directory / "python3"
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable]
        with (directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [*command, "-m", "tests.bench.hypervisor", str(directory), str(vfs), str(size // MIB)],
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT / "build/collections")},
                stdin=subprocess.PIPE,  # its end is how the first process inside notices that this one has ended
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def wait(self) -> None:
        """Until vportd answers."""
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != "ready":
            self.stop()
            raise NoFuse(f"a simulated hypervisor: {(self.directory / 'log').read_text().strip().splitlines()[-1:]}")
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        text = INTERPRETER.format(directory=self.directory, pid=children[0], python=PYTHON)
        _program(self.interpreter, text)
        if subprocess.run([self.interpreter, "-c", ANSWERS], check=False).returncode != 0:
            log = (self.directory / "vportd.log").read_text()
            self.stop()
            raise NoFuse(f"vportd on a simulated hypervisor does not answer: {log}")

    def stop(self) -> None:
        """All its processes end; its loop device goes with the last that had it open."""
        self._process.kill()
        self._process.wait(30)

    def __enter__(self) -> "Hypervisor":
        self.wait()
        return self

    def __exit__(self, *__: object) -> None:
        self.stop()


if __name__ == "__main__":
    _inside(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) * MIB)
