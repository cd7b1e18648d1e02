# SPDX-License-Identifier: GPL-3.0-or-later
"""Control channel between the engine and a worker: JSON objects with file descriptors over a SEQPACKET socket pair.

A body too large for one packet travels in a memfd that is sent in front of the other descriptors.
"""

import json
import os
import socket
from array import array

from vportd.errors import ChannelClosed

MAX_PACKET = 65536
MAX_FDS = 64


def send(sock: socket.socket, message: dict[str, object], fds: list[int]) -> None:
    """Send one message with copies of ``fds``. Raises BlockingIOError, ChannelClosed."""
    body = json.dumps(message, separators=(",", ":")).encode()
    memory = -1
    try:
        if len(body) > MAX_PACKET - 64:
            memory = os.memfd_create("vportd-message", os.MFD_CLOEXEC)
            with open(os.dup(memory), "wb") as file:
                file.write(body)
            body = json.dumps({"in_memory": len(body)}).encode()
            fds = [memory, *fds]
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
        sock.sendmsg([body], ancillary)
    except (BrokenPipeError, ConnectionResetError) as problem:
        raise ChannelClosed(str(problem)) from problem
    finally:
        if memory >= 0:
            os.close(memory)


def receive(sock: socket.socket) -> tuple[dict[str, object], list[int]]:
    """Receive one message; its descriptors become the caller's. Raises BlockingIOError, ChannelClosed."""
    try:
        body, ancillary, flags, __ = sock.recvmsg(MAX_PACKET, socket.CMSG_SPACE(MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError as problem:
        raise ChannelClosed(str(problem)) from problem
    fds = array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) // 4 * 4])
    descriptors = list(fds)
    try:
        if not body:
            raise ChannelClosed("end of file")
        if flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
            raise ChannelClosed("a message was cut short")
        message = json.loads(body)
        if "in_memory" in message:
            memory = descriptors.pop(0)
            try:
                message = json.loads(os.pread(memory, message["in_memory"], 0))
            finally:
                os.close(memory)
    except (ValueError, IndexError, ChannelClosed) as problem:
        for fd in descriptors:
            os.close(fd)
        raise ChannelClosed(str(problem)) from problem
    if not isinstance(message, dict):
        raise ChannelClosed("a message that is not an object")
    return message, descriptors
