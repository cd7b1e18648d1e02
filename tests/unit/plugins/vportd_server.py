# SPDX-License-Identifier: GPL-3.0-or-later
"""A JSON-RPC server on a Unix socket that keeps vports, mappings, bindings and fences by the engine's rules."""

from __future__ import annotations

import copy
import hashlib
import json
import socketserver
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.unit.plugins.machine import IDENTITY, PF

HOST_ID = "2" * 32


class RpcError(Exception):
    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Engine:
    """What vportd knows. ``on_call`` is run before each method: a test uses it to let another writer come first."""

    def __init__(self, storage_size: int, device: str = "/dev/nvme0n1") -> None:
        self.adapters: list[dict[str, Any]] = [
            {
                "adapter": PF,
                "nsid": 1,
                "device": device,
                "size": storage_size,
                "identity": IDENTITY,
                "vfs": [
                    {"vf": "0000:01:00.1", "device": "/dev/nvme1n1", "vport": None},
                    {"vf": "0000:01:00.2", "device": "/dev/nvme2n1", "vport": None},
                    {"vf": "0000:01:00.3", "device": None, "vport": None},
                ],
            }
        ]
        self.vports: dict[str, dict[str, Any]] = {}
        self.mappings: dict[str, dict[str, Any]] = {}
        self.connected: dict[tuple[str, int], dict[str, Any]] = {}
        self.calls: list[str] = []
        self.on_call: Callable[[str], None] = lambda _method: None
        self.drain_hangs = False
        self.run_dir = "/run/vportd"
        self.leases: list[dict[str, Any]] = []  # of any vport

    def fingerprint(self) -> str:
        state = [self.adapters, self.vports, self.mappings, self.leases, sorted(map(repr, self.connected))]
        return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()

    def call(self, method: str, params: dict[str, Any]) -> Any:
        self.calls.append(method)
        self.on_call(method)
        handler = getattr(self, f"do_{method}", None)
        if handler is None:
            raise RpcError("INVALID", f"there is no method {method}")
        return copy.deepcopy(handler(**params))

    def _get(self, vport: str) -> dict[str, Any]:
        if vport not in self.vports:
            raise RpcError("NOT_FOUND", f"there is no vport {vport}; create it first")
        return self.vports[vport]

    def _vf(self, address: str) -> dict[str, Any]:
        for vf in self.adapters[0]["vfs"]:
            if vf["vf"] == address:
                found: dict[str, Any] = vf
                return found
        raise RpcError("INVALID", f"VF {address} is not of this adapter")

    def _record(self, vport: str) -> dict[str, Any]:
        record = self._get(vport)
        mapping = self.mappings.get(vport)
        luns = []
        for lun in mapping["luns"] if mapping else []:
            front_end = self.connected.get((vport, lun["lun"]))
            luns.append(
                {
                    "lun": lun["lun"],
                    "vdisk": lun["vdisk"],
                    "capacity": max(extent[0] + extent[2] for extent in lun["extents"]),
                    "readonly": lun["readonly"],
                    "address": f"{vport}:{lun['lun']}",
                    "socket": f"{self.run_dir}/{vport}/{lun['lun']}.sock",
                    "connected": front_end is not None,
                    "front_end": front_end,
                }
            )
        return record | {
            "generation": mapping["generation"] if mapping else 0,
            "digest": mapping["digest"] if mapping else None,
            "luns": luns,
        }

    def do_get_version(self) -> Any:
        features = ["switch", "fence", "lease"]
        return {"version": "1.2.3", "protocol": 1, "features": features, "host_id": HOST_ID, "host_name": "hv2"}

    def do_adapter_list(self) -> Any:
        return self.adapters

    def do_vport_list(self) -> Any:
        return [self._record(vport) for vport in sorted(self.vports)]

    def do_vport_get(self, vport: str) -> Any:
        return self._record(vport)

    def do_vport_create(self, vport: str, adapter: str | None = None, incoming: bool = False) -> Any:
        if vport not in self.vports:
            self.vports[vport] = {
                "vport": vport,
                "adapter": adapter or PF,
                "state": "RUNNING",
                "path": "pf",
                "vf": None,
                "degraded": None,
                "fenced": False,
                "fence_on_stop": False,
                "fence_next": None,
                "incoming": incoming,
                "outstanding": 0,
                "history": [],
            }
        return self._record(vport)

    def do_vport_delete(self, vport: str, force: bool = False) -> Any:
        record = self._get(vport)
        if not force and (record["vf"] or any(key[0] == vport for key in self.connected)):
            raise RpcError("IN_USE", f"vport {vport} is in use")
        if record["vf"]:
            self._vf(record["vf"])["vport"] = None
        del self.vports[vport]
        self.mappings.pop(vport, None)
        return {}

    def do_mapping_get(self, vport: str) -> Any:
        self._get(vport)
        return self.mappings.get(vport) or {"vport": vport, "generation": 0, "digest": None, "luns": []}

    def do_mapping_set(self, vport: str, expected_generation: int | None, luns: list[dict[str, Any]]) -> Any:
        self._get(vport)
        old = self.do_mapping_get(vport)
        if expected_generation is not None and expected_generation != old["generation"]:
            raise RpcError(
                "STALE_GENERATION",
                f"generation {expected_generation} is stale, vport {vport} is at {old['generation']}; read it again",
            )
        digest = "sha256:" + hashlib.sha256(json.dumps(luns, sort_keys=True).encode()).hexdigest()
        changed = digest != old["digest"]
        generation = old["generation"] + changed
        self.mappings[vport] = {"vport": vport, "generation": generation, "digest": digest, "luns": luns}
        return {"generation": generation, "digest": digest, "changed": changed}

    def do_mapping_delete(self, vport: str, expected_generation: int | None) -> Any:
        if self._get(vport)["vf"]:
            raise RpcError("IN_USE", f"vport {vport} is bound")
        self.mappings.pop(vport, None)
        return {}

    def do_vport_bind(self, vport: str, vf: str, path: str = "vf", timeout: float = 10) -> Any:
        record = self._get(vport)
        if vport not in self.mappings:
            raise RpcError("BAD_STATE", f"vport {vport} has no mapping")
        entry = self._vf(vf)
        if entry["vport"] not in (None, vport):
            raise RpcError("IN_USE", f"VF {vf} is bound to vport {entry['vport']}; choose another VF")
        entry["vport"] = vport
        record["vf"] = vf
        switch = self.do_vport_switch(vport, path, timeout)
        return {"vport": self._record(vport), "switch": switch if switch["changed"] else None}

    def do_vport_switch(self, vport: str, path: str, timeout: float = 10) -> Any:
        record = self._get(vport)
        if self.drain_hangs:
            raise RpcError(
                "TIMEOUT",
                f"vport {vport} still had 3 requests outstanding after {timeout} s; it runs on path {record['path']} "
                "again",
            )
        old, record["path"] = record["path"], path
        return {
            "changed": old != path,
            "from": old,
            "to": path,
            "outstanding": 2,
            "drain_seconds": 0.001,
            "blackout_seconds": 0.002,
        }

    def do_vport_unbind(self, vport: str, timeout: float = 10) -> Any:
        record = self._get(vport)
        if record["vf"] is None:
            return {"vport": self._record(vport), "switch": None}
        switch = self.do_vport_switch(vport, "pf", timeout)
        self._vf(record["vf"])["vport"] = None
        record["vf"] = None
        return {"vport": self._record(vport), "switch": switch}

    def do_vport_fence(self, vport: str, when: str, next: str | None = None) -> Any:
        self._get(vport)["fenced" if when == "now" else "fence_on_stop"] = True
        self._get(vport)["fence_next"] = next
        return self._record(vport)

    def do_vport_unfence(self, vport: str) -> Any:
        self._get(vport).update(fenced=False, fence_on_stop=False, fence_next=None)
        return self._record(vport)

    def do_lease_get(self, vport: str) -> Any:
        self._get(vport)
        return self.leases

    def do_lease_take(self, vport: str) -> Any:
        for one in self.leases:
            if one["state"] != "free" and HOST_ID not in (one["owner"], one["next"]):
                raise RpcError("IN_USE", f"the lease of vdisk {one['vdisk']} cannot be taken")
        return self.do_lease_break(vport)

    def do_lease_break(self, vport: str) -> Any:
        for one in self.leases:
            one.update(state="held", owner=HOST_ID, owner_name="hv2", next=None, generation=one["generation"] + 1)
        return self._record(vport)


_CODES = {
    "NOT_FOUND": -32001,
    "IN_USE": -32003,
    "STALE_GENERATION": -32004,
    "INVALID": -32005,
    "TIMEOUT": -32006,
    "BAD_STATE": -32007,
}


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        engine: Engine = self.server.engine  # type: ignore[attr-defined]
        for line in self.rfile:
            request = json.loads(line)
            reply: dict[str, Any] = {"jsonrpc": "2.0", "id": request["id"]}
            try:
                reply["result"] = engine.call(request["method"], request["params"])
            except RpcError as exc:
                reply["error"] = {"code": _CODES[exc.reason], "message": str(exc), "data": {"reason": exc.reason}}
            self.wfile.write(json.dumps(reply).encode() + b"\n")


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def __init__(self, path: Path, engine: Engine) -> None:
        super().__init__(str(path), _Handler)
        self.engine = engine
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self._thread.start()

    def stop(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()
