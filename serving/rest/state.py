"""What all HTTP connections share: routes, options, counts of what is under way, and who gets a place.

At `--max-connections` a newcomer is taken into a small reserve, where health is answered. When it asks anything else
it takes the place of the connection that has been idle the longest; if none is idle, it is told to come again.
"""

import fcntl
import struct
import termios
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from typing import TYPE_CHECKING

from trpo_tf.serving.keys import KeyRing, gives_key, refusal
from trpo_tf.serving.listening.silence import has_sent
from trpo_tf.serving.metrics.series import Metrics
from trpo_tf.serving.options import ServeOptions
from trpo_tf.serving.rest.cross_origin import CrossOrigin, authority_of, host_check
from trpo_tf.serving.rest.responses import HttpError, busy, too_large
from trpo_tf.serving.rest.routes import Route, Routes, find_route, no_content
from trpo_tf.serving.tracing.records import NO_OBSERVERS, Observers

if TYPE_CHECKING:
    from trpo_tf.serving.rest.connection import Connection

RESERVE = 64
"""Connections beyond `--max-connections`, for health and for those who wait for a place."""

IDLE_SECONDS = 1.0
"""How long a connection is idle before another may take its place: a client that asks in a loop keeps its own."""


MOST_KNOWN_HOSTS = 64


class ServerState:
    """State that all connections share."""

    def __init__(
        self,
        routes: Routes,
        options: ServeOptions,
        metrics: Metrics,
        keys: KeyRing | None = None,
        observers: Observers = NO_OBSERVERS,
    ) -> None:
        self.routes, self.options, self.keys = routes, options, keys
        self.metrics, self.observers = metrics, observers.http
        self.unrouted = metrics.series(None)
        metrics.loads.append(self._load)
        self.connections: set[Connection] = set()
        self.reserve: dict[Connection, None] = {}  # in the order in which they came
        self.buffered = 0  # bytes of bodies under way
        self.unread = 0  # bytes of answers that clients leave unread
        self.stopping = False
        self.decoder = ThreadPoolExecutor(1, "decode")
        self._is_allowed_host = host_check(options)
        self.known_hosts: set[bytes] = set()  # that are allowed
        self.cross_origin = CrossOrigin(options.cors_origin)
        self.common = _date() + self.cross_origin.vary  # headers of every answer

    def sweep(self, now: float) -> None:
        """End the connections that are overdue, and publish what was counted."""
        self.common = _date() + self.cross_origin.vary
        self.metrics.publish()
        for connection in [connection for connection in self.connections if now > connection.deadline]:
            connection.expire()

    def stop(self) -> None:
        """Close every connection after its next answer, or soon if it asks nothing more."""
        self.stopping = True
        for connection in list(self.connections):
            connection.stop()

    def judge(self, target: bytes, method: bytes, headers: dict[bytes, bytes]) -> Route:
        """The route of a request, by its head alone. Raises `HttpError`."""
        if b"origin" in headers:
            if not self.cross_origin.allows(headers):
                raise HttpError(403, "pages of other sites may not ask; the server has --cors-origin to allow one")
            if method == b"OPTIONS" and b"access-control-request-method" in headers:
                return no_content(self.cross_origin.preflight_headers(headers))
        try:
            route = find_route(self.routes, target, method)
        except HttpError:
            self._authorize(headers)
            raise
        if not route.is_open:
            self._authorize(headers)
        length = headers.get(b"content-length", b"0")
        if len(length) > 18 or int(length) > self.options.max_body:
            raise too_large(self.options.max_body)
        return route

    def check_host(self, target: bytes, host: bytes | None) -> None:
        """Raise `HttpError` if a request names a server that this is not, in its target or its Host header."""
        if not self._is_allowed_host(host or b"") or not self._is_allowed_host(authority_of(target)):
            raise HttpError(403, "the Host is none of this server's names; the server has --allow-host to add one")
        if host is not None and len(self.known_hosts) < MOST_KNOWN_HOSTS:
            self.known_hosts.add(host)

    def _load(self) -> tuple[int, int]:
        """How many connections there are, and how many of them have a request under way."""
        return len(self.connections), sum(connection.is_under_way for connection in self.connections)

    def key_of(self, headers: dict[bytes, bytes]) -> str | None:
        """The name of a request's key, if it has one that is in force."""
        return self.keys.name_of(headers.get(b"authorization", b"")) if self.keys is not None else None

    def _authorize(self, headers: dict[bytes, bytes]) -> None:
        if self.keys is not None and self.key_of(headers) is None:
            given = headers.get(b"authorization", b"")
            problem = b' error="invalid_token"' if gives_key(given) else b""
            raise HttpError(401, refusal(given), b"www-authenticate: Bearer%b\r\n" % problem)

    # Who gets a place

    def admit(self, connection: "Connection") -> None:
        """Count a newcomer. It is in the reserve if all places are taken, and the reserve's oldest has to go for it."""
        self.connections.add(connection)
        if len(self.connections) - len(self.reserve) <= self.options.max_connections:
            return
        if len(self.reserve) >= RESERVE:
            leaving = self._first_to_leave()
            self.metrics.evictions += 1
            leaving.abort()
            self.dismiss(leaving)
        self.reserve[connection] = None

    def _first_to_leave(self) -> "Connection":
        """Of the reserve the oldest that has never sent anything; or else that asks nothing; or else the oldest.

        Many may come in one turn of the event loop, and the requests of those who ask are not read yet.
        """
        quiet = [waiting for waiting in self.reserve if not waiting.is_under_way]
        silent = (waiting for waiting in quiet if not has_sent(waiting.sock))
        return next(silent, next(iter(quiet or self.reserve)))

    def dismiss(self, connection: "Connection") -> None:
        """Forget a connection that has ended."""
        self.connections.discard(connection)
        self.reserve.pop(connection, None)

    def find_place(self, connection: "Connection", now: float) -> None:
        """Take one out of the reserve, if need be in exchange for the longest idle. Raises `HttpError` if none is."""
        if len(self.connections) - len(self.reserve) >= self.options.max_connections:
            longest = self._longest_idle(now)
            if longest is None:
                raise busy("connections")
            self.metrics.evictions += 1
            self.reserve[longest] = None
            longest.close()
        self.reserve.pop(connection, None)

    def _longest_idle(self, now: float) -> "Connection | None":
        idle = [
            connection
            for connection in self.connections
            if connection not in self.reserve and connection.is_idle and now - connection.idle_since >= IDLE_SECONDS
        ]
        for connection in sorted(idle, key=lambda connection: connection.idle_since):
            if not _has_input(connection.sock.fileno()):
                return connection
        return None

    # Answers that nobody reads

    def bound_unread(self) -> None:
        """Drop the connections that leave the most unread, until all together hold no more than `--max-buffered`."""
        if self.unread <= self.options.max_buffered:
            return
        for connection in list(self.connections):
            connection.count_unread()  # what has been read since
        while self.unread > self.options.max_buffered:
            max(self.connections, key=lambda connection: connection.unread).abort()


def _has_input(descriptor: int) -> bool:
    """Whether bytes have come on a socket that are not read yet."""
    (size,) = struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)))
    return bool(size)


def _date() -> bytes:
    return f"date: {formatdate(usegmt=True)}\r\n".encode()
