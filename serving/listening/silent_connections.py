"""Detection of connections that have never sent anything: they are closed first when there are too many."""

import socket
from typing import Protocol

_BYTES_RECEIVED = slice(128, 136)
"""Field of Linux's `tcp_info`: how many bytes have been received, read or not."""


class _Socket(Protocol):
    def getsockopt(self, level: int, option: int, size: int, /) -> bytes: ...


def has_sent(connection: _Socket) -> bool:
    """Return whether the client has ever sent anything; True where that is unknown, as for Unix sockets."""
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED.stop)
    except (OSError, AttributeError):
        return True
    received = info[_BYTES_RECEIVED]
    return len(received) < 8 or any(received)
