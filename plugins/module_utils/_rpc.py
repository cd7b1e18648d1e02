# SPDX-License-Identifier: GPL-3.0-or-later
"""vportd's JSON-RPC 2.0: one object a line over a Unix socket, one connection a client."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ._errors import VportdDown, VportdError

SOCKET = "/run/vportd/rpc.sock"
ANSWER_TIMEOUT = 15.0
LEASE_TIMEOUT = 120.0  # that a method may take which waits for a lease: the engine's validity of it, with all margins
_LONGEST = 64 * 1024 * 1024


class Vportd:
    """``Vportd("/run/vportd/rpc.sock").call("vport_get", vport="web1")``; connects at the first call."""

    def __init__(self, path: str = SOCKET, timeout: float = ANSWER_TIMEOUT) -> None:
        self.path = path
        self.timeout = timeout
        self._socket: socket.socket | None = None
        self._received = b""
        self._last = 0

    def __enter__(self) -> Vportd:
        return self

    def __exit__(self, *__: object) -> None:
        self.close()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def call(self, method: str, wait: float = 0.0, **params: Any) -> Any:
        """The result of ``method``; ``wait`` = seconds that the method itself may take.

        Raises VportdError with vportd's own words, or VportdDown when nobody answers.
        """
        self._last += 1
        request = {"jsonrpc": "2.0", "id": self._last, "method": method, "params": params}
        deadline = time.monotonic() + self.timeout + wait
        try:
            if self._socket is None:
                self._socket = self._connect(deadline)
            self._socket.settimeout(_remaining(deadline))
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            reply = self._line(self._socket, deadline)
        except TimeoutError:
            self.close()
            raise VportdDown(
                f"vportd on {self.path} did not answer {method} within {self.timeout + wait:.0f} s; look at "
                "journalctl -u vportd"
            ) from None
        except OSError as exc:
            self.close()
            raise VportdDown(
                f"vportd does not answer on {self.path}: {exc.strerror or exc}; start it with systemctl start vportd"
            ) from exc
        return self._result(method, reply)

    def _connect(self, deadline: float) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(_remaining(deadline))
            connection.connect(self.path)
        except OSError:
            connection.close()
            raise
        self._received = b""
        return connection

    def _line(self, connection: socket.socket, deadline: float) -> bytes:
        while b"\n" not in self._received:
            connection.settimeout(_remaining(deadline))
            chunk = connection.recv(1 << 16)
            if not chunk:
                raise ConnectionResetError("it closed the connection without an answer")
            self._received += chunk
            if len(self._received) > _LONGEST:
                raise ConnectionResetError("its answer has no end")
        line, __, self._received = self._received.partition(b"\n")
        return line

    def _result(self, method: str, line: bytes) -> Any:
        try:
            reply = json.loads(line)
        except ValueError:
            reply = None
        if not isinstance(reply, dict) or reply.get("id") != self._last:
            raise VportdDown(
                f"what answers on {self.path} is not vportd: {line[:80]!r} to {method}; look at systemctl status vportd"
            )
        error = reply.get("error")
        if error is None:
            return reply.get("result")
        data = error.get("data") or {} if isinstance(error, dict) else {}
        message = error.get("message", "no reason given") if isinstance(error, dict) else str(error)
        raise VportdError(message, str(data.get("reason", "")), vportd_error=error)

    def verbs(self, vport: str, timeout: float | None = None) -> dict[str, Callable[..., Any]]:
        """Actions for the steps of a plan on ``vport``: each step's verb is a method of vportd.

        ``timeout``: seconds that a switch between paths may drain, for the methods that make one.
        """

        def verb(method: str, fixed: dict[str, Any], wait: float = timeout or 0.0) -> Callable[..., Any]:
            return lambda **params: self.call(method, wait=wait, vport=vport, **fixed, **params)

        switching = {"vport_bind", "vport_unbind", "vport_switch"}
        plain = {"vport_create"}
        leases = {"vport_delete", "vport_fence", "vport_unfence", "mapping_set", "mapping_delete"}
        leases |= {"lease_take", "lease_break"}
        drain = {} if timeout is None else {"timeout": timeout}
        found = {method: verb(method, drain if method in switching else {}) for method in switching | plain}
        return found | {method: verb(method, {}, LEASE_TIMEOUT) for method in leases}

    # What more than one module asks for

    def adapters(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.call("adapter_list")
        return found

    def vports(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.call("vport_list")
        return found

    def vport(self, name: str) -> dict[str, Any] | None:
        """The record of a vport, None when there is none of that name."""
        try:
            record: dict[str, Any] = self.call("vport_get", vport=name)
        except VportdError as exc:
            if exc.reason == "NOT_FOUND":
                return None
            raise
        return record

    def mapping(self, name: str) -> dict[str, Any]:
        """Generation, digest and LUNs of a vport's mapping; generation 0 when there is none yet."""
        try:
            found: dict[str, Any] = self.call("mapping_get", vport=name)
        except VportdError as exc:
            if exc.reason == "NOT_FOUND":
                return {"vport": name, "generation": 0, "digest": None, "luns": []}
            raise
        return found

    def samples(self, name: str, since: float) -> list[dict[str, Any]]:
        """What a vport did in each second after ``since``; nothing when it has gone meanwhile."""
        try:
            found: list[dict[str, Any]] = self.call("vport_samples", vport=name, since=since)
        except VportdError as exc:
            if exc.reason == "NOT_FOUND":
                return []
            raise
        return found

    def leases(self, name: str) -> list[dict[str, Any]]:
        """The leases of a vport, read from the storage now."""
        found: list[dict[str, Any]] = self.call("lease_get", vport=name)
        return found

    def engine(self) -> dict[str, Any]:
        """What the engine says of itself, and by which id and name its host holds leases."""
        found: dict[str, Any] = self.call("get_version")
        return found


def bound_vfs(adapters: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """VF address -> vport, for the VFs that are bound, of what ``Vportd.adapters`` returned."""
    return {vf["vf"]: vf["vport"] for adapter in adapters for vf in adapter.get("vfs", ()) if vf.get("vport")}


def waiting_vfs(records: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """VFs that failed their vport, of what ``Vportd.vports`` returned: it is still bound, and takes its requests over
    the PF meanwhile.
    """
    return frozenset(
        record["vf"] for record in records if record["vf"] and record["path"] == "pf" and record["degraded"]
    )


def _remaining(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
