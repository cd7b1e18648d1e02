# SPDX-License-Identifier: GPL-3.0-or-later
"""The two sides of the bench, on one file: vportd with a mapping, and the C peer with the file or slices of it."""

import base64
import contextlib
import json
import os
import socket
from array import array
from pathlib import Path

from tests.unit.vportd.engine_process import VF0, EngineProcess
from tests.unit.vportd.peer import StorageDaemon

MIB = 1 << 20
TICK = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pids: list[int]) -> float:
    """CPU time that the processes have used so far."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICK


def private_mib(pids: list[int]) -> float:
    """Memory in MiB that nobody else has."""
    kib = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Private_Clean", "Private_Dirty")):
                kib += int(line.split()[1])
    return kib / 1024


def extents(count: int, length: int, base: int) -> list[list[int]]:
    """``count`` extents of ``length`` bytes each, scattered over the storage from ``base`` on."""
    step = next(one for one in (524287, 65537, 37, 1) if one < count or one == 1)
    return [[at * length, base + at * step % count * length, length] for at in range(count)]


def packed(found: list[list[int]]) -> str:
    """Extents as the module ``adapter_mapping`` sends very many of them."""
    columns = [array("q", column).tobytes() for column in zip(*found, strict=True)]
    return base64.b64encode(b"".join(columns) + bytes(len(found))).decode()


class Ours:
    """vportd; ``name`` says with how many extents."""

    def __init__(self, directory: Path, size: int, device: Path | None = None) -> None:
        """The storage is a file of ``size`` bytes, or ``device``, which is as large."""
        self.engine = EngineProcess(directory, size=size)
        if device is not None:
            for link in (self.engine.directory / "dev").iterdir():
                link.unlink()
                link.symlink_to(device)

    def start(self) -> None:
        """Start the engine on its storage."""
        self.engine.start()
        self.rpc = self.engine.rpc()

    def add(self, vport: str, found: list[list[int]], bind: bool = False) -> Path:
        """Make a vport with one LUN; return its socket."""
        self.rpc.vport_create(vport=vport)
        self.rpc.mapping_set(vport=vport, luns=[{"lun": 0, "vdisk": vport, "extents": found}])
        if bind:
            self.rpc.vport_bind(vport=vport, vf=VF0)
        path: Path = self.engine.socket(vport)
        return path

    def delete(self, vport: str) -> None:
        """Remove a vport."""
        self.rpc.vport_delete(vport=vport, force=True)

    def pids(self) -> list[int]:
        """The engine and its workers."""
        pid = self.engine.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *map(int, children)]

    def stop(self) -> None:
        """End it."""
        self.engine.stop()


class Theirs:
    """qemu-storage-daemon, with one export or one for each slice ``(offset, bytes)`` of the file."""

    def __init__(
        self, directory: Path, image: Path, aio: str, slices: list[tuple[int, int]], direct: bool = False
    ) -> None:
        self.paths = [directory / f"{aio}-{number}" for number in range(len(slices))]
        self.monitor = directory / f"{aio}-monitor"
        options = [
            *("--chardev", f"socket,id=monitor,path={self.monitor},server=on,wait=off"),
            *("--monitor", "monitor"),
        ]
        if not direct:
            options += ["--blockdev", f"file,node-name=other,filename={image},aio={aio},locking=off"]
        for number, (offset, size) in enumerate(slices[1:], 1):
            options += ["--blockdev", f"raw,node-name=part{number},file=image,offset={offset},size={size}"]
            where = f"addr.type=unix,addr.path={self.paths[number]}"
            options += ["--export", f"vhost-user-blk,id=disk{number},node-name=part{number},{where},writable=on"]
        offset, size = slices[0]
        options += ["--blockdev", f"raw,node-name=top,file=image,offset={offset},size={size}"]
        self.slice = slices[0]
        self.daemon = StorageDaemon(image, self.paths[0], options, aio=aio, direct=direct)

    def start(self) -> None:
        """Start it."""
        self.daemon.start()

    def reopen(self, node: str) -> None:
        """Move the export to another node of the same file, by QMP ``blockdev-reopen``."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock, sock.makefile("rb") as file:
            sock.connect(str(self.monitor))
            file.readline()
            offset, size = self.slice
            options = {"driver": "raw", "node-name": "top", "file": node, "offset": offset, "size": size}
            for command, arguments in (("qmp_capabilities", {}), ("blockdev-reopen", {"options": [options]})):
                sock.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
                while "return" not in (answer := json.loads(file.readline())):
                    assert "error" not in answer, answer

    def pids(self) -> list[int]:
        """Its process."""
        return [self.daemon.process.pid]

    def stop(self) -> None:
        """End it."""
        with contextlib.suppress(ProcessLookupError):
            self.daemon.kill()
