"""Messages between the parent and a worker: JSON objects over a socket pair, each a packet."""

import json
import socket
from contextlib import suppress
from typing import Any

_MAX_PACKET = 2**20

MOST_TEXT = 4000
"""Limit on a text in a message, in characters: a packet must fit the socket's buffer, some 200 kB."""


def open_channel() -> tuple[socket.socket, socket.socket]:
    """Return the parent's end and the worker's end of a channel; neither blocks."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


def send(channel: socket.socket, message: dict[str, Any]) -> None:
    """Send a message. It is lost if the other end has closed, or if its buffer is full."""
    with suppress(OSError):
        channel.send(json.dumps(message).encode())


def receive(channel: socket.socket) -> dict[str, Any] | None:
    """Return the next message, empty if there is none yet; None once the other end has closed."""
    try:
        packet = channel.recv(_MAX_PACKET)
    except BlockingIOError:
        return {}
    except OSError:
        return None
    return dict(json.loads(packet)) if packet else None
