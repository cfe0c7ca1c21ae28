"""Accepting TLS connections, which are counted and limited before their handshake.

An event loop's own server passes a connection to its protocol only after the handshake. Until then silent connections
would be neither counted nor limited.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress

from trpo_tf.serving.listening.silent_connections import has_sent
from trpo_tf.serving.listening.sockets import accept_waiting
from trpo_tf.serving.listening.tls import Tls
from trpo_tf.serving.support.logs import emit

HANDSHAKE_RESERVE = 16
"""Handshakes that are always allowed at a time, so that a client is answered when the server is full."""

ACCEPTS_AT_A_TIME = 64

PAUSE_SECONDS = 0.1
"""How long to accept no connection after the system has refused to open another file."""

QUIET_SECONDS = 60.0
"""How long not to repeat the warning about too many connections."""

_METHODS_BEGIN, _METHODS_END = b"A", b"Z"
"""First letters of HTTP's methods. TLS begins with the byte 22."""

_MOST_DISCARDED = 2**16
"""Bytes of a request without TLS that are taken: a connection that is closed with unread input is reset."""

_USE_HTTPS = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: 63\r\nconnection: close\r\n\r\n"
    b'{"error":"this port speaks HTTPS; begin the URL with https://"}'
)

_LEAST_SECONDS = 0.001
"""Least time for a handshake whose first byte has arrived in time."""


class TlsAcceptor:
    """Accepts connections, and runs the TLS handshake of each with the certificates that are current then.

    At the limit a connection is closed for a new one: the oldest that has never sent anything, or else the oldest.
    """

    def __init__(
        self,
        connect: Callable[[], asyncio.Protocol],
        listeners: Sequence[socket.socket],
        tls: Tls,
        timeout: float,
        room: Callable[[], int],
        evicted: Callable[[], None],
    ) -> None:
        """Begin to accept connections, in the event loop.

        `room` returns how many handshakes may run now. `evicted` is called for each connection that is closed for
        another.
        """
        self._connect, self._listeners, self._tls = connect, listeners, tls
        self._timeout, self._room, self._evicted = timeout, room, evicted
        self._pending: dict[asyncio.Task[None], socket.socket] = {}  # oldest first
        self._loop = asyncio.get_running_loop()
        self._quiet_until = 0.0
        self._is_closed = False
        for listener in listeners:
            listener.setblocking(False)
            self._loop.add_reader(listener, self._accept, listener)

    @property
    def pending(self) -> int:
        """Number of handshakes under way."""
        return len(self._pending)

    def close(self) -> None:
        """Stop accepting connections, once those that wait are accepted; handshakes under way go on."""
        self._is_closed = True
        for listener in self._listeners:
            self._loop.remove_reader(listener)
            for connection in accept_waiting(listener):
                self._take(connection)
            listener.close()

    def abort(self) -> None:
        """End the handshakes under way."""
        for task in list(self._pending):
            task.cancel()

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS_AT_A_TIME):
            try:
                connection, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                return
            except OSError:  # no file, or no memory: the connection waits
                self._loop.remove_reader(listener)
                self._loop.call_later(PAUSE_SECONDS, self._resume, listener)
                return
            self._take(connection)

    def _take(self, connection: socket.socket) -> None:
        """Begin the handshake of an accepted connection."""
        connection.setblocking(False)
        if len(self._pending) >= max(HANDSHAKE_RESERVE, self._room()):
            self._end_longest()
        task = self._loop.create_task(self._shake_hands(connection))
        self._pending[task] = connection
        task.add_done_callback(lambda done: self._pending.pop(done, None))

    def _resume(self, listener: socket.socket) -> None:
        if not self._is_closed:
            self._loop.add_reader(listener, self._accept, listener)

    def _end_longest(self) -> None:
        silent = (task for task, connection in self._pending.items() if not has_sent(connection))
        longest = next(silent, next(iter(self._pending)))
        del self._pending[longest]
        longest.cancel()
        self._evicted()
        if self._loop.time() >= self._quiet_until:
            message = "too many TLS connections wait for their handshake; for each new one the longest is closed"
            emit("connections", message, level=logging.WARNING)
        self._quiet_until = self._loop.time() + QUIET_SECONDS

    async def _shake_hands(self, connection: socket.socket) -> None:
        until = self._loop.time() + self._timeout
        with suppress(OSError, asyncio.CancelledError):  # the client's failure, or it was ended
            try:
                first = await self._first_byte(connection, until)
            except BaseException:
                connection.close()
                raise
            if _METHODS_BEGIN <= first <= _METHODS_END:
                _answer_plain_http(connection)
                return
            left = max(until - self._loop.time(), _LEAST_SECONDS)
            await self._loop.connect_accepted_socket(
                self._connect, connection, ssl=self._tls.context, ssl_handshake_timeout=left
            )

    async def _first_byte(self, connection: socket.socket, until: float) -> bytes:
        """Wait for what a client sends first, and return it without taking it: nothing if the client has left.

        Raises `TimeoutError` if nothing arrives `until` then.
        """
        with suppress(BlockingIOError):
            return connection.recv(1, socket.MSG_PEEK)
        arrived = asyncio.Event()
        self._loop.add_reader(connection, arrived.set)
        try:
            async with asyncio.timeout_at(until):
                await arrived.wait()
        finally:
            self._loop.remove_reader(connection)
        return connection.recv(1, socket.MSG_PEEK)


def _answer_plain_http(connection: socket.socket) -> None:
    """Tell a client that speaks HTTP without TLS to use it, and close the connection."""
    with connection:
        connection.recv(_MOST_DISCARDED)  # what is unread when a connection is closed resets it
        connection.send(_USE_HTTPS)
        connection.shutdown(socket.SHUT_WR)
