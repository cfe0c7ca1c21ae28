"""State that all HTTP connections share: routes, options, counters, and the limit on connections.

At `--max-connections` a new connection is put into a small reserve, in which health checks are answered. With any other
request it takes the slot of the connection that has been idle the longest. If none is idle, the answer is 503.
"""

import fcntl
import struct
import termios
import time
from collections.abc import Container, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from trpo_tf.serving.errors import quoted
from trpo_tf.serving.listening.silent_connections import has_sent
from trpo_tf.serving.metrics.series import Metrics
from trpo_tf.serving.options import ServeOptions
from trpo_tf.serving.rest.cross_origin import CrossOrigin, authority_of, host_check
from trpo_tf.serving.rest.responses import HttpError, busy, too_large
from trpo_tf.serving.rest.routes import Route, Routes, find_route, no_content, retired_routes
from trpo_tf.serving.tracing.records import NO_OBSERVERS, Observers

if TYPE_CHECKING:
    from trpo_tf.serving.keys import KeyRing
    from trpo_tf.serving.rest.connection import Connection

RESERVE = 64
"""Connections beyond `--max-connections`, for health checks and for clients that wait for a slot."""

IDLE_SECONDS = 1.0
"""How long a connection must be idle before another may take its slot. A client that asks in a loop keeps its own."""

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

MOST_KNOWN_HOSTS = 64
"""Limit on the number of allowed Host headers that are cached."""


class ServerState:
    """State that all connections share."""

    def __init__(
        self,
        routes: Routes,
        options: ServeOptions,
        metrics: Metrics,
        keys: "KeyRing | None" = None,
        observers: Observers = NO_OBSERVERS,
    ) -> None:
        self.routes, self.options, self.keys = routes, options, keys
        self.metrics, self.observers = metrics, observers.http
        self.retired: Routes = {}  # of versions that are not loaded any more
        self.unrouted = metrics.series(None)
        metrics.loads.append(self._load)
        self.connections: set[Connection] = set()
        self.reserve: dict[Connection, None] = {}  # oldest first
        self.buffered = 0  # bytes of request bodies under way
        self.unread = 0  # bytes of unread answers
        self.stopping = False
        self.decoder = ThreadPoolExecutor(1, "decode")
        self._is_allowed_host = host_check(options)
        self.known_hosts: set[bytes] = set()  # cache of allowed Host headers
        self.cross_origin = CrossOrigin(options.cors_origin)
        self.common = _date() + self.cross_origin.vary  # headers of every answer

    def replace_routes(self, routes: Routes, places: Container[Hashable]) -> None:
        """Take the routes of a new catalog, and keep those that the running sequences at these places need."""
        current = {path: route for path, route in routes.items() if not route.is_retired}
        self.retired = retired_routes(self.routes, current, places)
        self.routes = current | self.retired

    def sweep(self, now: float) -> None:
        """End overdue connections, publish the metrics and renew the Date header."""
        self.common = _date() + self.cross_origin.vary
        self.metrics.publish()
        for connection in [connection for connection in self.connections if now > connection.deadline]:
            connection.expire()

    def stop(self) -> None:
        """Close idle connections now, and the others after their next answer.

        A busy process may not have read yet what a client has sent: such a connection is not idle.
        """
        self.stopping = True
        for connection in list(self.connections):
            if not (connection.is_idle and has_input(connection.sock.fileno())):
                connection.stop()

    def match_route(self, target: bytes, method: bytes, headers: dict[bytes, bytes]) -> Route:
        """Return the route of a request, by its head alone. Raises `HttpError`."""
        if b"origin" in headers:
            if not self.cross_origin.allows(headers):
                origin, host = (quoted(headers.get(name, b"").decode("latin-1")) for name in (b"origin", b"host"))
                raise HttpError(
                    403,
                    f"pages of other sites may not ask: Origin {origin} is not of Host {host}; let the proxy pass the "
                    "browser's Host on, or allow the origin with --cors-origin",
                )
            if method == b"OPTIONS" and b"access-control-request-method" in headers:
                return no_content(self.cross_origin.preflight_headers(headers))
        try:
            route = find_route(self.routes, target, method)
        except HttpError:
            self._authorize(headers)
            raise
        if self.keys is not None and not route.is_open:
            self._authorize(headers)
        length = headers.get(b"content-length", b"0")
        if len(length) > 18 or int(length) > self.options.max_body:
            raise too_large(self.options.max_body)
        return route

    def check_host(self, target: bytes, host: bytes | None) -> None:
        """Raise `HttpError` if the target or the Host header of a request names another server."""
        for name in (host or b"", authority_of(target)):
            if not self._is_allowed_host(name):
                named = quoted(name.decode("latin-1"))
                raise HttpError(403, f"Host {named} is none of this server's names; add its name with --allow-host")
        if host is not None and len(self.known_hosts) < MOST_KNOWN_HOSTS:
            self.known_hosts.add(host)

    def _load(self) -> tuple[int, int]:
        """Return the number of connections, and of those with a request under way."""
        return len(self.connections), sum(connection.is_under_way for connection in self.connections)

    def key_of(self, headers: dict[bytes, bytes]) -> str | None:
        """Return the name of a request's key, or None without a valid key."""
        return self.keys.name_of(headers.get(b"authorization", b"")) if self.keys is not None else None

    def _authorize(self, headers: dict[bytes, bytes]) -> None:
        if self.keys is not None and self.key_of(headers) is None:
            from trpo_tf.serving.keys import gives_key, refusal

            given = headers.get(b"authorization", b"")
            problem = b' error="invalid_token"' if gives_key(given) else b""
            raise HttpError(401, refusal(given), b"www-authenticate: Bearer%b\r\n" % problem)

    # Slots

    def admit(self, connection: "Connection") -> None:
        """Add a new connection, to the reserve if all slots are taken. A full reserve drops one for it."""
        self.connections.add(connection)
        if len(self.connections) - len(self.reserve) <= self.options.max_connections:
            return
        if len(self.reserve) >= RESERVE:
            dropped = self._eviction_candidate()
            self.metrics.evictions += 1
            dropped.abort()
            self.dismiss(dropped)
        self.reserve[connection] = None

    def _eviction_candidate(self) -> "Connection":
        """Return the connection of the reserve to drop: the oldest silent one, else without a request, else the oldest.

        The kernel says which are silent: in the turn in which connections are accepted, no request is read yet.
        """
        quiet = [waiting for waiting in self.reserve if not waiting.is_under_way]
        silent = (waiting for waiting in quiet if not has_sent(waiting.sock))
        return next(silent, next(iter(quiet or self.reserve)))

    def dismiss(self, connection: "Connection") -> None:
        """Remove a connection that has ended."""
        self.connections.discard(connection)
        self.reserve.pop(connection, None)

    def take_slot(self, connection: "Connection", now: float) -> None:
        """Move a connection from the reserve to a slot, closing the longest idle one if all slots are taken.

        Raises `HttpError` if all slots are taken and none is idle.
        """
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
            if not has_input(connection.sock.fileno()):
                return connection
        return None

    # Unread answers

    def bound_unread(self) -> None:
        """Abort connections, those with the most unread bytes first, until the total is within `--max-buffered`."""
        if self.unread <= self.options.max_buffered:
            return
        for connection in list(self.connections):
            connection.count_unread()  # what has been read since
        while self.unread > self.options.max_buffered:
            max(self.connections, key=lambda connection: connection.unread).abort()


def has_input(descriptor: int) -> bool:
    """Return whether a socket has received bytes that are not read yet."""
    (size,) = struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)))
    return bool(size)


def _date() -> bytes:
    """Return the Date header (RFC 9110, 5.6.7), whose names of days and months are English in every locale."""
    now = time.gmtime()
    day, month = _DAYS[now.tm_wday], _MONTHS[now.tm_mon - 1]
    return time.strftime(f"date: {day}, %d {month} %Y %H:%M:%S GMT\r\n", now).encode()
