# SPDX-License-Identifier: GPL-3.0-or-later
"""RPC: JSON-RPC 2.0 over a Unix socket, one object a line each way; only the engine's own user gets an answer."""

import asyncio
import inspect
import json
import os
import socket
import struct
import types
import typing
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from vportd import journal
from vportd.engine import Engine
from vportd.errors import RpcError, VportdError

MAX_LINE = 64 << 20  # a million extents are 35 MB
METHODS = (
    "get_version",
    "adapter_list",
    "vport_create",
    "mapping_set",
    "mapping_get",
    "mapping_delete",
    "vport_bind",
    "vport_unbind",
    "vport_switch",
    "vport_suspend",
    "vport_get_state",
    "vport_set_state",
    "vport_resume",
    "vport_fence",
    "vport_unfence",
    "lease_get",
    "lease_take",
    "lease_break",
    "vport_list",
    "vport_get",
    "vport_set_policy",
    "vport_samples",
    "vport_delete",
)

_PARSE_ERROR, _INVALID_REQUEST, _NO_METHOD, _INTERNAL = -32700, -32600, -32601, -32603
_WORDS = {
    str: "a string",
    bool: "true or false",
    int: "a number",
    float: "a number of seconds",
    list: "a list",
    dict: "an object",
}
Method = Callable[..., Awaitable[Any]]


def _fits(value: object, kind: Any) -> bool:
    """True when a JSON value is of the annotated type."""
    if isinstance(kind, types.UnionType):
        return any(_fits(value, one) for one in typing.get_args(kind))
    kind = typing.get_origin(kind) or kind
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def words(kind: Any) -> str:
    """Return an annotation in the words of JSON."""
    if isinstance(kind, types.UnionType):
        return " or ".join(words(one) for one in typing.get_args(kind))
    return "null" if kind is types.NoneType else _WORDS[typing.get_origin(kind) or kind]


class RpcServer:
    """The server at ``path``."""

    def __init__(self, engine: Engine, path: Path) -> None:
        self._path = path
        self._methods: dict[str, tuple[Method, inspect.Signature]] = {}
        for name in METHODS:
            method = getattr(engine, name)
            self._methods[name] = (method, inspect.signature(method, eval_str=True))
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        """Listen, with mode 0600."""
        self._path.unlink(missing_ok=True)
        mask = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._connection, str(self._path), limit=MAX_LINE)
        finally:
            os.umask(mask)

    async def close(self) -> None:
        """Stop listening, end the connections."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._writers):
            writer.close()
        self._path.unlink(missing_ok=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        credentials = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid, uid, __ = struct.unpack("3i", credentials)
        self._writers.add(writer)
        try:
            if uid not in (0, os.geteuid()):
                journal.warning(f"RPC: pid {pid} of uid {uid} is refused: only root may ask")
                problem = RpcError("REFUSED", f"uid {uid} may not ask: only root may")
                writer.write(_answer(None, error=_error(problem.code, str(problem), problem.data)))
                await writer.drain()
                return
            while line := await reader.readline():
                if line.strip():
                    writer.write(await self._line(line))
                    line = b""  # it may be of many MiB, and the next one far away
                    await writer.drain()
        except (ConnectionError, ValueError) as problem:  # ValueError: a line beyond the limit
            journal.warning(f"RPC: the connection of pid {pid} has ended: {problem}")
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _line(self, line: bytes) -> bytes:
        try:
            request = json.loads(line)
        except ValueError as problem:
            return _answer(None, error=_error(_PARSE_ERROR, f"not JSON: {problem}"))
        if (
            not isinstance(request, dict)
            or request.get("jsonrpc") != "2.0"
            or not isinstance(request.get("method"), str)
        ):
            return _answer(None, error=_error(_INVALID_REQUEST, "not a JSON-RPC 2.0 request"))
        number = request.get("id")
        found = self._methods.get(request["method"])
        if found is None:
            return _answer(
                number,
                error=_error(_NO_METHOD, f"there is no method {request['method']!r}: there are {', '.join(METHODS)}"),
            )
        try:
            method, signature = found
            return _answer(number, result=await method(**_parameters(signature, request.get("params", {}))))
        except RpcError as problem:
            return _answer(number, error=_error(problem.code, str(problem), problem.data))
        except (VportdError, OSError, TimeoutError) as problem:
            journal.error(f"RPC {request['method']}: {type(problem).__name__}: {problem}")
            return _answer(number, error=_error(RpcError.CODES["STORAGE"], f"{problem}", {"reason": "STORAGE"}))


def _parameters(signature: inspect.Signature, given: object) -> dict[str, Any]:
    """Return the parameters of a call. Raises RpcError INVALID for one that is unknown, missing or of another type."""
    if not isinstance(given, dict):
        raise RpcError("INVALID", "params must be an object: parameters go by name")
    for name in given:
        if name not in signature.parameters:
            raise RpcError(
                "INVALID", f"unknown parameter {name!r}: there are {', '.join(signature.parameters) or 'none'}"
            )
    for name, parameter in signature.parameters.items():
        if name not in given:
            if parameter.default is inspect.Parameter.empty:
                raise RpcError("INVALID", f"parameter {name!r} is missing")
        elif not _fits(given[name], parameter.annotation):
            raise RpcError("INVALID", f"{name} is {given[name]!r}: it must be {words(parameter.annotation)}")
        elif name == "timeout" and not 0 < given[name] <= 86400:
            raise RpcError("INVALID", f"timeout is {given[name]}: it must be above 0 and at most 86400 seconds")
    return given


def _error(code: int, message: str, data: dict[str, object] | None = None) -> dict[str, Any]:
    error: dict[str, Any] = {"code": code, "message": message}
    return error if data is None else {**error, "data": data}


def _answer(number: object, **what: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": number, **what}, separators=(",", ":")).encode() + b"\n"
