# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine as a process of its own, on a tree of sysfs in a directory, with files as storage; and its RPC."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PF, VF0, VF1 = "0000:01:00.0", "0000:01:00.1", "0000:01:00.2"
STORAGE_SIZE = 32 << 20
PACKAGES = Path(__file__).resolve().parents[3] / "roles/vportd/files"


class Refusal(Exception):
    """An error that the RPC answered."""

    def __init__(self, error):
        super().__init__(error["message"])
        self.code, self.message, self.data = error["code"], error["message"], error.get("data", {})

    @property
    def reason(self):
        return self.data.get("reason")


class Rpc:
    """A connection to the RPC; methods are called as methods."""

    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(60)
        self.sock.connect(str(path))
        self.file = self.sock.makefile("rb")
        self.number = 0

    def raw(self, line):
        self.sock.sendall(line + b"\n")
        return json.loads(self.file.readline())

    def begin(self, method, **params):
        """Send a request and do not wait."""
        self.number += 1
        request = {"jsonrpc": "2.0", "id": self.number, "method": method, "params": params}
        self.sock.sendall(json.dumps(request).encode() + b"\n")

    def end(self):
        line = self.file.readline()
        assert line, "the RPC connection has ended"
        answer = json.loads(line)
        if "error" in answer:
            raise Refusal(answer["error"])
        return answer["result"]

    def __getattr__(self, method):
        def call(**params):
            self.begin(method, **params)
            return self.end()

        return call

    def close(self):
        self.file.close()
        self.sock.close()


class EngineProcess:
    """vportd on ``directory``: adapter 0000:01:00.0 with VFs .1 and .2, each with its own sysfs entry, all showing
    one file.
    """

    def __init__(self, directory, size=STORAGE_SIZE, settings=None, environment=None, prefix=(), **adapter):
        self.size = size
        self.directory = Path(directory)
        self.run_dir, self.state_dir = self.directory / "run", self.directory / "state"
        self.storage = self.directory / "storage.img"
        self.config = self.directory / "vportd.json"
        self.log = self.directory / "log"
        self.process: Any = None
        self.rpcs = []
        self.make_storage()
        self.make_sysfs()
        self.settings = settings or {}
        self.environment = environment or {}
        self.prefix = list(prefix)
        self.configure(**adapter)

    def replace_storage(self):
        """Take the device away, and have another with the same content in its place; the path of that."""
        anew = self.storage.with_name("anew.img")
        anew.write_bytes(self.storage.read_bytes())
        for link in (self.directory / "dev").iterdir():
            link.unlink()
            link.symlink_to(anew)
        os.truncate(self.storage, 0)  # nothing can be read from a block device that is gone
        return anew

    def make_storage(self):
        with open(self.storage, "wb") as file:
            file.truncate(self.size)

    def make_sysfs(self):
        devices = self.directory / "sys/bus/pci/devices"
        (self.directory / "dev").mkdir()
        for number, address in enumerate((PF, VF0, VF1)):
            space = devices / address / f"nvme/nvme{number}/nvme{number}n1"
            (space / "queue").mkdir(parents=True)
            for name, value in (("wwid", "eui.0011223344556677"), ("size", str(self.size // 512)), ("nsid", "1")):
                (space / name).write_text(value + "\n")
            (space / "queue/logical_block_size").write_text("512\n")
            (space / "inflight").write_text("       0        0\n")
            (self.directory / f"dev/nvme{number}n1").symlink_to(self.storage)
            if number:
                (devices / address / "physfn").symlink_to(devices / PF)
                (devices / PF / f"virtfn{number - 1}").symlink_to(devices / address)
        self.devices = devices

    def let_discard(self, *names):
        """Have the PF's device show that it can discard and write zeroes, or what is named, from the next vport on."""
        queue = self.devices / PF / "nvme/nvme0/nvme0n1/queue"
        for name in names or ("discard_max_bytes", "write_zeroes_max_bytes"):
            (queue / name).write_text("2199023255040\n")

    def configure(self, **adapter):
        config = {
            "adapters": [{"pf": PF, "nsid": 1, **adapter}],
            "state_dir": str(self.state_dir),
            "run_dir": str(self.run_dir),
            "socket_user": "nobody",
            "worker_user": "nobody",
            "sysfs_root": str(self.directory / "sys"),
            "dev_root": str(self.directory / "dev"),
            **self.settings,
        }
        self.config.write_text(json.dumps(config).replace("RUN/", f"{self.run_dir}/"))

    def start(self):
        ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        ready_path = self.directory / "notify"
        ready_path.unlink(missing_ok=True)
        ready.bind(str(ready_path))
        ready.settimeout(0.05)
        environment = {**os.environ, "PYTHONPATH": str(PACKAGES), "NOTIFY_SOCKET": str(ready_path)}
        with open(self.log, "ab") as log:
            status = os.fstat(log.fileno())
            stream = f"{status.st_dev}:{status.st_ino}"
            environment |= {key: value.replace("STDERR", stream) for key, value in self.environment.items()}
            self.process = subprocess.Popen(
                [*self.prefix, sys.executable, "-m", "vportd", "--config", str(self.config)],
                env=environment,
                stderr=log,
            )
        deadline = time.monotonic() + 30
        while True:
            try:
                assert ready.recv(100) == b"READY=1"
                break
            except TimeoutError:
                assert self.process.poll() is None, self.log.read_text()
                assert time.monotonic() < deadline, self.log.read_text()
        ready.close()
        return self

    def rpc(self):
        rpc = Rpc(self.run_dir / "rpc.sock")
        self.rpcs.append(rpc)
        return rpc

    def workers(self):
        """The pids of the engine's workers, by the path in their log line."""
        found = {}
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for line in self.log.read_text().splitlines():
            if " worker is pid " in line:
                vport, path = line.split("vport ")[1].split(":")[0], line.split(": ")[2].split(" ")[0].lower()
                pid = int(line.split(" worker is pid ")[1].split(",")[0])
                if str(pid) in children:
                    found[vport, path] = pid
        return found

    def kill(self):
        """SIGKILL to the engine alone."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self):
        for rpc in self.rpcs:
            rpc.close()
        self.rpcs.clear()
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                assert self.process.wait(30) == 0, self.log.read_text()
            finally:
                self.process.kill()  # nothing when it has ended
                self.process.wait(10)

    def socket(self, vport="vp0", lun=0):
        return self.run_dir / vport / f"{lun}.sock"
