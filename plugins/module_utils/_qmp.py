# SPDX-License-Identifier: GPL-3.0-or-later
"""A client for one QEMU's monitor (QMP): greeting, capabilities, one command at a time."""

from __future__ import annotations

import json
import os
import socket
from types import TracebackType
from typing import Any

from ._errors import IovlabError


class QmpError(IovlabError):
    """QEMU's monitor does not answer, or answered with an error."""


class Qmp:
    """``with Qmp(directory, "qmp.sock", timeout) as qmp: qmp.execute("query-status")``.

    The socket is reached through its directory's descriptor, so its path may be longer than a socket address holds.
    """

    def __init__(self, directory: str, name: str, timeout: float = 10.0) -> None:
        self._where = os.path.join(directory, name)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY)
        try:
            self._socket.connect(f"/proc/self/fd/{descriptor}/{name}")
            self._lines = self._socket.makefile("r", encoding="utf-8")
            self._lines.readline()
        except OSError as exc:
            self._socket.close()
            raise QmpError(f"QEMU's monitor does not answer on {self._where}: {exc}") from exc
        finally:
            os.close(descriptor)
        self.execute("qmp_capabilities")

    def __enter__(self) -> Qmp:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.close()
        self._socket.close()

    def execute(self, command: str, **arguments: Any) -> Any:
        """The command's return value; QmpError when QEMU refuses it or the connection ends."""
        request = {"execute": command} | ({"arguments": arguments} if arguments else {})
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            for line in self._lines:
                answer = json.loads(line)
                if "return" in answer:
                    return answer["return"]
                if "error" in answer:
                    raise QmpError(f"QEMU refused {command} on {self._where}: {answer['error'].get('desc')}")
        except OSError as exc:
            raise QmpError(f"QEMU's monitor on {self._where} broke off: {exc}") from exc
        raise QmpError(f"QEMU closed its monitor {self._where} before it answered {command}")
