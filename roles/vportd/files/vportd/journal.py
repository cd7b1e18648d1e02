# SPDX-License-Identifier: GPL-3.0-or-later
"""Messages: with their fields over the journal's own socket where the service's output goes to the journal anyway
(systemd's Native Journal Protocol), else one line a message on standard error, with the priority prefix of
sd-daemon(3).
"""

import os
import re
import socket
import struct

SOCKET = "/run/systemd/journal/socket"
_LONGEST = 4096  # characters of one field: a message must fit into one datagram

_who = "vportd"
_socket: socket.socket | None = None
_address = ""


def name_process(who: str) -> None:
    """Set the words every line of this process starts with."""
    global _who
    _who = who


def connect(address: str = SOCKET, stream: str | None = None) -> bool:
    """Send messages to the journal from now on, if standard error goes there: if it is ``stream`` = "device:inode", as
    the service manager says in JOURNAL_STREAM. False = it does not, or there is no journal.
    """
    global _socket, _address
    status = os.fstat(2)
    if stream != f"{status.st_dev}:{status.st_ino}" or not os.path.exists(address):
        return False
    _socket, _address = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC), address
    _socket.setblocking(False)
    return True


def datagram(fields: dict[str, object]) -> bytes:
    """Return fields as the journal takes them. A value of several lines goes with its length."""
    found = b""
    for name, value in fields.items():
        text = str(value)[:_LONGEST].encode(errors="backslashreplace")
        key = re.sub(r"[^A-Z0-9_]", "_", name.upper()).lstrip("_0123456789").encode()[:64]
        if b"\n" in text:
            found += key + b"\n" + struct.pack("<Q", len(text)) + text + b"\n"
        else:
            found += key + b"=" + text + b"\n"
    return found


def say(priority: int, text: str, **fields: object) -> None:
    """Write a message, with more fields for who looks for them."""
    text = " ".join(text.split())
    if _socket is not None:
        message: dict[str, object] = {"MESSAGE": text, "PRIORITY": priority, "SYSLOG_IDENTIFIER": _who}
        try:
            _socket.sendto(datagram({**message, **fields}), _address)
            return
        except OSError:  # it is being restarted, or has too much to do: what matters goes the other way
            pass
    try:
        os.write(2, f"<{priority}>{_who}: {text}\n".encode(errors="backslashreplace"))
    except OSError:  # nowhere left to say it
        return


def info(text: str) -> None:
    """Write a message of priority informational."""
    say(6, text)


def warning(text: str) -> None:
    """Write a message of priority warning."""
    say(4, text)


def error(text: str) -> None:
    """Write a message of priority error."""
    say(3, text)
