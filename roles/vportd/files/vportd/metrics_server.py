# SPDX-License-Identifier: GPL-3.0-or-later
"""The metrics over HTTP/1.1, on a Unix socket or on loopback: ``GET /metrics`` and nothing else."""

import asyncio
import os
from collections.abc import Callable

from vportd.config import metrics_address
from vportd.errors import ConfigError
from vportd.metrics import CONTENT_TYPE

LONGEST = 8192  # bytes of a request
TIMEOUT = 5.0  # seconds for a request, and for its answer
CONNECTIONS = 16


class MetricsServer:
    """Answers with what ``exposition`` returns at that moment. ``where`` as in the configuration."""

    def __init__(self, where: str, exposition: Callable[[], str]) -> None:
        self._where = metrics_address(where)
        self._exposition = exposition
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Listen; a Unix socket has mode 0600. Raises ConfigError."""
        where = self._where
        mask = os.umask(0o177)
        try:
            if isinstance(where, str):
                if os.path.exists(where):
                    os.unlink(where)
                self._server = await asyncio.start_unix_server(self._connection, where, limit=LONGEST)
            elif where is not None:
                self._server = await asyncio.start_server(self._connection, *where, limit=LONGEST)
        except OSError as problem:
            raise ConfigError(f"metrics: cannot listen on {where}: {problem.strerror}") from problem
        finally:
            os.umask(mask)

    async def close(self) -> None:
        """Stop listening, end the connections."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        if isinstance(self._where, str) and os.path.exists(self._where):
            os.unlink(self._where)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            async with asyncio.timeout(TIMEOUT):
                writer.write(await self._answer(reader))
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.CancelledError):
            return  # whoever asked has gone, is too slow, or the engine ends
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _response("431 Request Header Fields Too Large")
        if len(self._tasks) > CONNECTIONS:
            return _response("503 Service Unavailable")
        words = head.split(b"\r\n", 1)[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return _response("400 Bad Request")
        method, target = words[0], words[1].split(b"?")[0]
        if target != b"/metrics":
            return _response("404 Not Found")
        if method not in (b"GET", b"HEAD"):
            return _response("405 Method Not Allowed", more="Allow: GET, HEAD\r\n")
        body = self._exposition().encode()
        return _response("200 OK", body, CONTENT_TYPE, send_body=method == b"GET")


def _response(
    status: str, body: bytes = b"", kind: str = "text/plain; charset=utf-8", more: str = "", send_body: bool = True
) -> bytes:
    if not body:
        body = status.encode() + b"\n"
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{more}Connection: close\r\n\r\n"
    )
    return head.encode() + (body if send_body else b"")
