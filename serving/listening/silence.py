"""Which connections have never sent anything: the first to go when there are too many."""

import socket
from typing import Protocol

_BYTES_RECEIVED = slice(128, 136)
"""Of Linux's `tcp_info`: how many bytes have come, read or not."""


class _Socket(Protocol):
    def getsockopt(self, level: int, option: int, size: int, /) -> bytes: ...


def has_sent(connection: _Socket) -> bool:
    """Whether the other end has ever sent anything. True where that can't be known: of a Unix socket, or elsewhere."""
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED.stop)
    except (OSError, AttributeError):
        return True
    received = info[_BYTES_RECEIVED]
    return len(received) < 8 or any(received)
