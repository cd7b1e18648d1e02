# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine's RPC as ``vportctl`` calls it: one request, one answer."""

import json
import socket
from typing import Any


class CtlError(Exception):
    """The engine cannot be asked, or has refused; ``str()`` is one clear line, ``error`` what the engine has said."""

    def __init__(self, message: str, error: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.error = error


class Client:
    """A connection to the RPC socket ``path``."""

    def __init__(self, path: str) -> None:
        """Raises CtlError."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(path)
        except OSError as problem:
            raise CtlError(f"{path}: {problem.strerror}: is vportd running, and are you root?") from problem
        self._file = self._socket.makefile("rb")

    def call(self, method: str, **params: object) -> Any:
        """Return the result of a method. Raises CtlError with what the engine says."""
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            line = self._file.readline()
        except OSError as problem:
            raise CtlError(f"the engine does not answer: {problem}") from problem
        if not line:
            raise CtlError("the engine has closed the connection")
        answer = json.loads(line)
        if "error" in answer:
            reason = answer["error"].get("data", {}).get("reason", answer["error"]["code"])
            raise CtlError(f"{reason}: {answer['error']['message']}", answer["error"])
        return answer["result"]
