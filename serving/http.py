"""HTTP/1.1 on one connection: a uvloop protocol on httptools' parser, with every limit that a stranger must meet.

The policy runs inline in the event loop: its few microseconds are cheaper than a hop to a thread. What a request
may cost is bounded before it is parsed: its head, its body, all bodies together, its time, and the answers that its
sender leaves unread. docs/serving.md lists the limits.
"""

import asyncio
import logging
import math
from email.utils import formatdate
from http import HTTPStatus
from time import perf_counter
from typing import Any

import httptools

from serving.events import emit, shown
from serving.exchange import NOBODY, Exchange, Observers, http_client, sane_id
from serving.keys import KeyRing
from serving.metrics import Metrics
from serving.options import ServeOptions
from serving.routes import RETRY_SECONDS, HttpError, Response, Route, Routes, find_route, too_large
from serving.traceparent import parse_traceparent

MAX_HEAD = 16 * 1024
"""Most bytes of a request's target and headers."""

MAX_UNREAD = 2**20
"""Bytes of answers that a client may leave unread and still be answered."""

LINGER_SECONDS = 2.0
"""How long to go on reading, and throwing away, after a connection's last answer: closed at once, it could be lost."""

SWEEP_SECONDS = 0.5
"""How often overdue connections are looked for."""

_STATUS_LINES = {status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}


class Site:
    """What all connections share: routes, options, and how much is under way."""

    def __init__(
        self,
        routes: Routes,
        options: ServeOptions,
        metrics: Metrics,
        keys: KeyRing | None = None,
        observers: Observers = NOBODY,
    ) -> None:
        self.routes, self.options, self.keys = routes, options, keys
        self.metrics, self.observers = metrics, observers.http
        self.unrouted = metrics.series(None)
        metrics.loads.append(self._load)
        self.connections: set[Connection] = set()
        self.buffered = 0
        self.stopping = False
        self.date = _date()

    def sweep(self, now: float) -> None:
        """End the connections that are overdue, and publish what was counted."""
        self.date = _date()
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
        if headers.get(b"transfer-encoding", b"chunked").lower() != b"chunked":
            raise HttpError(501, "the only transfer coding is chunked")
        return route

    def key_of(self, headers: dict[bytes, bytes]) -> str | None:
        """The name of a request's key, if it has one that is in force."""
        return self.keys.name_of(headers.get(b"authorization", b"")) if self.keys is not None else None

    def _load(self) -> tuple[int, int]:
        """How many connections there are, and how many of them have a request under way."""
        return len(self.connections), sum(connection.is_under_way for connection in self.connections)

    def _authorize(self, headers: dict[bytes, bytes]) -> None:
        if self.keys is not None and self.key_of(headers) is None:
            raise HttpError(401, "give a key: Authorization: Bearer KEY", b"www-authenticate: Bearer\r\n")


class Connection(asyncio.Protocol):
    """One client. Requests are answered in the order in which they come, each as soon as it is whole."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._now = asyncio.get_running_loop().time
        self._headers: dict[bytes, bytes] = {}
        self.on_header = self._headers.__setitem__  # the parser's callback; a method in Python would cost more
        self._parser: Any = httptools.HttpRequestParser(self)
        self._closing = self._paused = self._is_timed = False
        self._counted = 0
        self.deadline = self._now() + site.options.timeout
        self._await_request()

    def _await_request(self) -> None:
        self._target = b""
        self._head: dict[bytes, bytes] = {}
        self._route: Route | None = None
        self._refusal: Response | None = None
        self._body: bytes | bytearray = b""
        self._size = 0  # of the body, kept or not
        self._unproductive = 0  # bytes received since the request began, or since the last of its body
        self._method = b""
        self._began = self._was_whole = 0.0  # when its first and its last byte were there
        self.is_under_way = False

    # The transport's side

    def connection_made(self, transport: Any) -> None:
        """Take the connection; one too many is told so."""
        self._transport = transport
        if self._site.observers:
            self._client = http_client(transport)  # now, for one that has left has no address any more
        self._site.connections.add(self)
        most = self._site.options.max_connections
        if len(self._site.connections) > 2 * most:
            self.abort()
        elif len(self._site.connections) > most:
            self._refuse(_busy("connections"))

    def data_received(self, data: bytes) -> None:
        """Parse, and answer each request that is whole now."""
        if self._closing:
            return
        self._unproductive += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._end()  # its request is answered, and what follows would be in another protocol
        except httptools.HttpParserError as error:
            if not self._closing:
                self._refuse(HttpError(400, f"this is not HTTP/1.1: {error}"))
        if self._closing:
            return
        if self.is_under_way:
            self._bound()
        elif not self._paused:
            self.deadline = self._now() + self._site.options.keep_alive

    def eof_received(self) -> bool:
        """A client that sends no more has its answers: close when they are written."""
        self._closing = True
        return False

    def connection_lost(self, _error: Exception | None) -> None:
        """Forget it."""
        self._closing = True
        self._site.connections.discard(self)
        self._release()

    def pause_writing(self) -> None:
        """The client doesn't read its answers: take no more requests until it does."""
        self._paused = True
        self._transport.pause_reading()
        self.deadline = self._now() + self._site.options.timeout

    def resume_writing(self) -> None:
        """It does again."""
        self._paused = False
        if not self._closing:
            self._transport.resume_reading()
            self.deadline = self._now() + self._site.options.timeout

    # The parser's side

    def on_message_begin(self) -> None:
        """A request begins."""
        self._began = perf_counter()
        self.is_under_way = True

    def on_url(self, part: bytes) -> None:
        """The request's target, or the next part of it."""
        self._target += part

    def on_headers_complete(self) -> None:
        """Judge the head. A request that is refused by it has its body thrown away, not kept."""
        if self._closing:
            return
        self._method = self._parser.get_method()
        if self._unproductive > MAX_HEAD and _head_size(self._target, self._headers) > MAX_HEAD:
            self._refuse(_HEAD_TOO_LARGE)
            return
        self._head = {name.lower(): value for name, value in self._headers.items()}
        self._headers.clear()
        try:
            if b"host" not in self._head and self._parser.get_http_version() != "1.0":
                raise HttpError(400, "the Host header is missing")
            self._route = self._site.judge(self._target, self._method, self._head)
        except HttpError as error:
            self._refusal = error.response
            if b"expect" in self._head or error.response.status == 413:
                self._refuse(error)
        else:
            if b"expect" in self._head and self._head[b"expect"].lower() == b"100-continue":
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, part: bytes) -> None:
        """Keep a part of the body."""
        if self._closing:
            return
        self._unproductive = 0
        self._size += len(part)
        if self._size > self._site.options.max_body:
            self._refuse(too_large(self._site.options.max_body))
        elif self._route is not None:
            if not self._body:
                self._body = part
            elif isinstance(self._body, bytearray):
                self._body += part
            else:
                self._body = bytearray(self._body + part)

    def on_message_complete(self) -> None:
        """Answer."""
        if self._closing:
            return
        if self._transport.get_write_buffer_size() > MAX_UNREAD:
            self.abort()
            return
        self._was_whole = perf_counter()
        response = self._respond()
        if isinstance(response, asyncio.Future):
            self._answer_later(response)
        else:
            self._finish(response, keep=self._parser.should_keep_alive())

    def _finish(self, response: Response, *, keep: bool) -> None:
        keep = keep and not self._site.stopping
        self._write(response, keep=keep)
        self._headers.clear()  # of trailers
        self._release()
        self._await_request()
        self._is_timed = False
        if not keep:
            self._end()

    def _respond(self) -> "Response | asyncio.Future[Response]":
        if self._route is None:
            return self._refusal or _INTERNAL_ERROR
        try:
            return self._route.answer(self._head, self._body)
        except Exception as error:  # noqa: BLE001 (each has its answer)
            return self._failed(error)

    def _failed(self, error: Exception) -> Response:
        """The answer to a request that has raised `error`; the server's own fault is logged."""
        fault: BaseException | None = error
        response = _INTERNAL_ERROR
        if isinstance(error, HttpError):
            fault, response = error.__cause__, error.response
        if fault is not None:
            self._report(fault)
        return response

    def _report(self, fault: BaseException) -> None:
        path = shown(self._target)
        emit("fault", f"{path} failed", level=logging.ERROR, fault=fault, path=path)

    def _answer_later(self, response: "asyncio.Future[Response]") -> None:
        """Write what comes, and take nothing more: what followed would be answered too soon."""
        self._closing = True
        self.deadline = math.inf
        self._release()

        def answer(done: "asyncio.Future[Response]") -> None:
            if error := done.exception():
                self._report(error)
            if not self._transport.is_closing():
                self._write(_INTERNAL_ERROR if error else done.result(), keep=False)
                self._end()

        response.add_done_callback(answer)

    def _write(self, response: Response, *, keep: bool) -> None:
        status, body, headers, content_type, series, error = response
        request_id = b""
        if b"x-request-id" in self._head and (request_id := sane_id(self._head[b"x-request-id"])):
            headers += b"x-request-id: %b\r\n" % request_id
        if not keep:
            headers += b"connection: close\r\n"
        elif b"connection" in self._head and self._parser.get_http_version() == "1.0":
            headers += b"connection: keep-alive\r\n"
        self._transport.write(
            b"%b%b%bcontent-type: %b\r\ncontent-length: %d\r\n\r\n%b"
            % (
                _STATUS_LINES[status],
                self._site.date,
                headers,
                content_type,
                len(body),
                b"" if self._route and self._method == b"HEAD" else body,
            )
        )
        if series is None:
            self._site.unrouted.answered(status, None, error)
        else:
            series.answered(status, perf_counter() - self._was_whole, error)
        if self._site.observers:
            self._observe(response, request_id)

    def _observe(self, response: Response, request_id: bytes) -> None:
        exchange = Exchange(
            self._method,
            self._target,
            self._head,
            self._route is not None,
            response,
            perf_counter() - self._began if self._began else 0.0,
            request_id,
            parse_traceparent(self._head.get(b"traceparent", b"")),
            self._client,
            self._site.key_of(self._head) or "",
        )
        for observer in self._site.observers:
            observer(exchange)

    # What is under way, and how it ends

    def _bound(self) -> None:
        """Hold a request that isn't whole yet to its limits."""
        if not self._is_timed:
            self._is_timed = True
            self.deadline = self._now() + self._site.options.timeout
        if self._unproductive > MAX_HEAD:
            self._refuse(_HEAD_TOO_LARGE)
            return
        grown = len(self._body) - self._counted
        self._counted += grown
        self._site.buffered += grown
        if self._site.buffered > self._site.options.max_buffered:
            self._refuse(_busy("requests"))

    def _release(self) -> None:
        self._site.buffered -= self._counted
        self._counted = 0

    def expire(self) -> None:
        """The deadline is over: end what is idle, refuse what is half sent, drop what isn't read."""
        if self._closing or self._paused:
            self.abort()
        elif self.is_under_way:
            self._refuse(HttpError(408, f"the request did not arrive within {self._site.options.timeout:g} s"))
        else:
            self._end()

    def stop(self) -> None:
        """Close, unless a request is under way."""
        if not (self._closing or self.is_under_way):
            self._end()

    def abort(self) -> None:
        """End it at once."""
        self._closing = True
        self._transport.abort()

    def _refuse(self, error: HttpError) -> None:
        """Answer, and take nothing more."""
        self._write(error.response, keep=False)
        self._closing = True
        self.is_under_way = False
        self._body = b""
        self._release()
        if self._transport.can_write_eof():
            self.deadline = self._now() + LINGER_SECONDS
            self._transport.write_eof()
        else:
            self._end()

    def _end(self) -> None:
        """Close once everything is written."""
        self._closing = True
        self.deadline = self._now() + self._site.options.timeout
        self._transport.close()


_HEAD_TOO_LARGE = HttpError(431, f"the request's target and headers are larger than {MAX_HEAD} bytes")
_INTERNAL_ERROR = HttpError(500, "internal error").response


def _busy(what: str) -> HttpError:
    return HttpError(503, f"too many {what} at a time; come again", b"retry-after: %d\r\n" % RETRY_SECONDS)


def _head_size(target: bytes, headers: dict[bytes, bytes]) -> int:
    return len(target) + sum(len(name) + len(value) for name, value in headers.items())


def _date() -> bytes:
    return f"date: {formatdate(usegmt=True)}\r\n".encode()
