"""Reading of HTTP/1.1 requests on one connection, by httptools' parser, with limits against hostile clients.

Limits hold before a request is parsed: on its head, its body, all bodies together, and its time.
docs/reference/serve/server.md lists them. `serving.rest.connection` answers the requests.
"""

import asyncio
import socket
from abc import abstractmethod
from enum import IntEnum
from time import perf_counter
from typing import Any

import httptools

from trpo_tf.serving.rest.responses import HttpError, Response, busy, too_large
from trpo_tf.serving.rest.routes import Route
from trpo_tf.serving.rest.server_state import ServerState

MAX_HEAD = 16 * 1024
"""Limit on the bytes of a request's target and headers."""

MUCH = 64 * 1024
"""Bytes received at once after which reading pauses, so that other connections have their turn."""


class Phase(IntEnum):
    """State of a connection.

    | from | to | when |
    |---|---|---|
    | IDLE | RECEIVING | the first byte of a request comes |
    | RECEIVING | PENDING | the request is whole, and a policy answers it |
    | RECEIVING, PENDING | IDLE | the answer is written, and the connection is kept |
    | RECEIVING | DEFERRED | an answer comes later that is the connection's last |
    | any | CLOSING | the last answer is written, the client has closed its side, or the deadline has passed |
    """

    IDLE = 0
    RECEIVING = 1
    PENDING = 2
    """A thread parses the whole request, or it waits for the batch that it is run in."""
    DEFERRED = 3
    """Nothing more is read; the last answer is still to be written."""
    CLOSING = 4
    """Nothing more is read."""


IDLE, RECEIVING, PENDING, DEFERRED, CLOSING = Phase  # looked up thousands of times a second

LAST = DEFERRED
"""From this phase on nothing more is read."""


class RequestReader(asyncio.Protocol):
    """Collects one request at a time from a connection's input. A subclass answers it when it is complete."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._now = asyncio.get_running_loop().time
        self._parser: Any = httptools.HttpRequestParser(self)
        self._paused = self._is_timed = False
        self._counted = 0  # bytes of the body that are included in `ServerState.buffered`
        self.deadline = self._now() + state.options.timeout
        self._await_request()

    @abstractmethod
    def _flush(self) -> None:
        """Answer the pending request before anything else happens."""

    @abstractmethod
    def _refuse(self, error: HttpError) -> None:
        """Answer with the error, and read nothing more."""

    def _await_request(self) -> None:
        self._target = b""
        self._head: dict[bytes, bytes] = {}
        self._route: Route | None = None
        self._refusal: Response | None = None
        self._body: bytes | bytearray = b""
        self._size = 0  # bytes of the body, kept or discarded
        self._unproductive = 0  # bytes received since the request began, or since the last of its body
        self._method = b""  # set once the head is complete
        self._is_offered = False  # whether the client offers another protocol
        self._began = self._was_whole = 0.0  # when its first and its last byte arrived
        self._phase = IDLE

    def connection_made(self, transport: Any) -> None:
        """Keep the transport."""
        self._transport = transport
        self._checks_host = transport.get_extra_info("socket").family != socket.AF_UNIX

    def data_received(self, data: bytes) -> None:
        """Parse the input, and answer each request that is complete."""
        if self._phase >= LAST:
            return
        self._unproductive += len(data)
        try:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                self._decline(memoryview(data), offer)
        except httptools.HttpParserError as error:
            if self._phase < LAST:
                other = next((told for begin, told in _OTHER_PROTOCOLS.items() if data.startswith(begin)), error)
                self._refuse(HttpError(400, f"this is not HTTP/1.1: {other}"))
        if self._phase is RECEIVING:
            self._bound()
            if len(data) >= MUCH:
                self._let_others()

    def _decline(self, rest: memoryview, offer: httptools.HttpParserUpgrade) -> None:
        """Continue with HTTP/1.1 after the client offered another protocol (RFC 9110, 7.8).

        The parser has stopped after the head. Another one reads the head again without the offer, and then the body.
        """
        while self._phase < LAST:
            rest = rest[offer.args[0] :]
            self._head.pop(b"upgrade", None)
            lines = b"".join(b"%b: %b\r\n" % header for header in self._head.items())
            version = self._parser.get_http_version().encode()
            head = b"%b %b HTTP/%b\r\n%b\r\n" % (self._method, self._target, version, lines)
            self._await_request()
            self._unproductive = len(rest)
            self._parser = httptools.HttpRequestParser(self)
            self._parser.feed_data(head)
            try:
                self._parser.feed_data(rest)
            except httptools.HttpParserUpgrade as another:
                offer = another
            else:
                return

    def _let_others(self) -> None:
        """Pause reading for one turn of the event loop, which could otherwise read up to 8 MB of one client at once."""
        if self._phase < LAST and not self._paused:
            self._transport.pause_reading()
            asyncio.get_running_loop().call_soon(self._read_on)

    def _read_on(self) -> None:
        if self._phase is not PENDING and not (self._paused or self._transport.is_closing()):
            self._transport.resume_reading()

    # The parser's side

    def on_message_begin(self) -> None:
        """Begin a request, and answer a pending one before it."""
        if self._phase is PENDING:
            self._flush()
        self._began = perf_counter()
        if self._phase is IDLE:
            self._phase = RECEIVING

    def on_url(self, part: bytes) -> None:
        """Append a part of the request's target."""
        self._target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        """Store a header. Repeated headers are joined to one list of values (RFC 9110, 5.3). Trailers are ignored."""
        if not self._method:
            name, value, head = name.lower(), value.rstrip(b" \t"), self._head  # the parser leaves blanks at the end
            if name not in head:
                head[name] = value
            elif len(head[name]) <= MAX_HEAD:  # a longer one is refused anyway, and to copy it each time takes seconds
                head[name] = b"%b, %b" % (head[name], value)

    def on_headers_complete(self) -> None:
        """Find the route of the request. If its head is refused, its body is discarded."""
        if self._phase >= LAST:
            return
        self._method, head = self._parser.get_method(), self._head
        if self._unproductive > MAX_HEAD and _head_size(self._target, head) > MAX_HEAD:
            self._refuse(_HEAD_TOO_LARGE)
            return
        if (version := self._parser.get_http_version()) not in _VERSIONS:
            self._refuse(HttpError(400, f"this is not HTTP/1.1, but HTTP/{version}"))
            return
        if b"upgrade" in head and self._method != b"CONNECT" and self._parser.should_upgrade():
            self._is_offered = True
            return
        try:
            self._route = self._match_route()
        except HttpError as error:
            self._refusal = error.response
            if self._method == b"CONNECT":
                self._refuse(_NO_PROXY)
            elif b"expect" in head or error.response.status in _FINAL:
                self._refuse(error)
        else:
            if b"expect" in head and head[b"expect"].lower() == b"100-continue" and not self._is_old():
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _match_route(self) -> Route:
        """Check the head, and return the route of the request. Raises `HttpError`."""
        head = self._head
        if head.get(b"host") not in self._state.known_hosts or self._target[0] != _SLASH:
            self._check_host()
        route = self._state.match_route(self._target, self._method, head)
        if b"transfer-encoding" in head:
            if self._is_old():  # its framing is faulty (RFC 9112, 6.1): a proxy may have seen another request
                self._refuse(HttpError(400, "HTTP/1.0 has no transfer codings"))
            elif head[b"transfer-encoding"].lower() != b"chunked":
                raise HttpError(501, "the only transfer coding is chunked")
        if self._state.reserve and self in self._state.reserve and not route.is_health:
            self._state.take_slot(self, self._now())
        return route

    def _check_host(self) -> None:
        host = self._head.get(b"host")
        if host is None and not self._is_old():
            raise HttpError(400, "the Host header is missing")
        if host is not None and b"," in host:
            raise HttpError(400, "there is more than one Host header")
        if self._checks_host:
            self._state.check_host(self._target, host)

    def _is_old(self) -> bool:
        return bool(self._parser.get_http_version() == "1.0")

    def on_body(self, part: bytes) -> None:
        """Store a part of the body, or refuse a body that is too large."""
        if self._phase >= LAST:
            return
        self._unproductive = 0
        self._size += len(part)
        if self._size > self._state.options.max_body:
            self._refuse(too_large(self._state.options.max_body))
        elif self._route is not None:
            if not self._body:
                self._body = part
            elif isinstance(self._body, bytearray):
                self._body += part
            else:
                self._body = bytearray(self._body + part)

    # What is under way

    def _bound(self) -> None:
        """Enforce the limits on a request that is still arriving."""
        if not self._is_timed:
            self._is_timed = True
            self.deadline = self._now() + self._state.options.timeout
        if self._unproductive > MAX_HEAD:
            self._refuse(_HEAD_TOO_LARGE)
            return
        grown = len(self._body) - self._counted
        self._counted += grown
        self._state.buffered += grown
        if self._state.buffered > (most := self._state.options.max_buffered):
            self._refuse(too_large(most) if self._counted > most else busy("requests"))

    def _release(self) -> None:
        self._state.buffered -= self._counted
        self._counted = 0


_HEAD_TOO_LARGE = HttpError(431, f"the request's target and headers are larger than {MAX_HEAD} bytes")
_SLASH = ord("/")
_VERSIONS = ("1.1", "1.0")
"""Versions of requests that are answered; the parser knows others, whose framing has other rules."""

_NO_PROXY_PROTOCOL = "it begins with the PROXY protocol, which the proxy has to be told not to send"
_OTHER_PROTOCOLS = {
    b"PROXY ": _NO_PROXY_PROTOCOL,
    b"\r\n\r\n\0\r\nQUIT\n": _NO_PROXY_PROTOCOL,
    b"PRI * HTTP/2.0\r\n": "it is HTTP/2; for gRPC ask the port of --grpc-port",
    b"\x16\x03": "it is TLS; begin the URL with http://, or start the server with --tls-cert",
}
"""What to do about connections of another protocol, by how they begin."""

_NO_PROXY = HttpError(405, "this server is no proxy", b"allow: GET, HEAD, POST, OPTIONS\r\n")
_FINAL = {413, 503}
"""Statuses with which a head is refused at once, without waiting for the body."""


def _head_size(target: bytes, headers: dict[bytes, bytes]) -> int:
    return len(target) + sum(len(name) + len(value) for name, value in headers.items())
