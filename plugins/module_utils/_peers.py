# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether this host reaches another one: its ssh, a port for migrations, and its libvirt as a migration would.

Each look has a deadline and runs in the background, so that a host that is down costs no more than one of them.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree

from . import _libvirt
from ._background import Background
from ._errors import IovlabError

SSH = 22
CONNECT_TIMEOUT = 10.0
_ANSWERED = (0, errno.ECONNREFUSED)  # also who refuses has got the packet, and has answered it


class Peer:
    """The looks at one peer, begun at once. ``address`` is an address, or the URI of its libvirt."""

    def __init__(self, address: str, port: int, load: Callable[[], ModuleType], timeout: float) -> None:
        self._given = address
        self._timeout = timeout
        self.uri = address if "://" in address else f"qemu+ssh://root@{_bracketed(address)}/system"
        parts = urlsplit(self.uri)
        host = parts.hostname or address
        ssh_port = parts.port or SSH
        connecting = min(timeout, CONNECT_TIMEOUT)
        self._ssh = Background(lambda: _connect(host, ssh_port, connecting, (0,)))
        self._port = Background(lambda: _connect(host, port, connecting, _ANSWERED))
        self._libvirt = Background(lambda: self._open(load))

    def told(self) -> dict[str, Any]:
        """``ssh``, ``migration_port`` and ``libvirt``, each with ``reachable``, ``seconds`` and ``reason``."""
        late = f"no answer within {self._timeout:g} s"
        found = {}
        for name, look in (("ssh", self._ssh), ("migration_port", self._port), ("libvirt", self._libvirt)):
            try:
                found[name] = look.result(self._timeout + 1, late)
            except IovlabError as exc:
                found[name] = {"reachable": False, "seconds": None, "reason": str(exc)}
        return {"address": self._given, "uri": self.uri} | found

    def _open(self, load: Callable[[], ModuleType]) -> dict[str, Any]:
        started = time.monotonic()
        peer = _libvirt.Hypervisor(load(), self.uri, "peers", self._timeout)
        try:
            about = ElementTree.fromstring(peer.connection.getCapabilities())
            name = peer.connection.getHostname()
        finally:
            peer.connection.close()
        return {
            "reachable": True,
            "seconds": round(time.monotonic() - started, 3),
            "reason": None,
            "hostname": name,
            "uuid": (about.findtext("host/uuid") or "").strip() or None,
        }


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address and not address.startswith("[") else address


def _connect(host: str, port: int, timeout: float, good: tuple[int, ...]) -> dict[str, Any]:
    """Nothing is sent over the connection."""
    started = time.monotonic()
    reason: str | None = None
    try:
        socket.create_connection((host, port), timeout).close()
        answer = 0
    except TimeoutError:
        answer, reason = errno.ETIMEDOUT, f"no answer within {timeout:g} s"
    except OSError as exc:
        answer, reason = exc.errno or errno.EIO, exc.strerror or str(exc)
    reachable = answer in good
    return {
        "reachable": reachable,
        "seconds": round(time.monotonic() - started, 3),
        "reason": None if reachable else f"{host} port {port}: {reason}",
    }
