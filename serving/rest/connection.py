"""Answers to the requests of one connection, and its end: a uvloop protocol, on `serving.rest.request_reader`.

The policy runs inline in the event loop: its few microseconds are cheaper than a hop to a thread. Only large bodies
are decoded in a thread, as that takes tens of milliseconds. Other requests are answered meanwhile.

The answers that a client leaves unread are limited too.
"""

import asyncio
import logging
import math
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import httptools

from trpo_tf.serving.codecs.parameters import SequenceStep
from trpo_tf.serving.codecs.request_validation import InferRequest
from trpo_tf.serving.inference.kept_state import SequenceRunner
from trpo_tf.serving.inference.runners import Outputs, Runner, Waiting
from trpo_tf.serving.inference.sequences import Step
from trpo_tf.serving.rest.endpoints import RestEndpoint
from trpo_tf.serving.rest.request_reader import CLOSING, DEFERRED, IDLE, LAST, PENDING, RECEIVING, RequestReader
from trpo_tf.serving.rest.responses import HttpError, Response, wire_bytes
from trpo_tf.serving.rest.routes import check_running
from trpo_tf.serving.rest.server_state import ServerState, has_input
from trpo_tf.serving.support.logs import emit, shown
from trpo_tf.serving.tracing.records import RequestRecord, http_client, sane_id
from trpo_tf.serving.tracing.trace_context import parse_traceparent

MAX_UNREAD = 2**20
"""Limit on the bytes of unread answers, above which a client's next request ends its connection."""

MAX_QUIET = 64 * 1024
"""Bytes of unread answers above which they are counted: the high-water mark of the write buffer."""

LARGE = 256 * 1024
"""Bodies of more bytes are decoded in a thread; so are compressed ones."""

Parsed = InferRequest | HttpError

_NO_PARSER = httptools.HttpRequestParser(object())
"""Parser of a lost connection."""

LINGER_SECONDS = 2.0
"""How long to read and discard input after a connection's last answer.

Closing at once could reset the connection, and the client would lose the answer.
"""

SWEEP_SECONDS = 0.5
"""How often overdue connections are looked for."""


class _InThread(NamedTuple):
    """A request that a thread parses, and whether its connection is kept."""

    parsing: Future[Parsed]
    endpoint: RestEndpoint
    keep: bool


class Connection(RequestReader):
    """One client's connection. Requests are answered in order, each as soon as it has arrived completely.

    At most one request waits, for the thread that parses it or for the batch that it is run in. If anything else
    happens on the connection first, such as a further request or its end, that request is run at once. So answers keep
    their order.
    """

    def __init__(self, state: ServerState, runner: Runner, sequences: SequenceRunner) -> None:
        super().__init__(state)
        self._runner, self._sequences = runner, sequences
        self._in_thread: _InThread | None = None
        self.unread = 0  # bytes of unread answers at the last count
        self.idle_since = self._now()

    # The transport's side

    def connection_made(self, transport: Any) -> None:
        """Register the connection."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=MAX_QUIET)
        if self._state.observers:
            self._client = http_client(transport)  # now, since a client that has disconnected has no address
        self._state.admit(self)

    def eof_received(self) -> bool:
        """Close after all answers are written, as the client sends no more. TLS can't wait for a deferred answer."""
        self._flush()
        is_deferred = self._phase is DEFERRED
        if not is_deferred:
            self._phase = CLOSING
        return is_deferred

    def connection_lost(self, _error: Exception | None) -> None:
        """Release everything that the lost connection holds."""
        self._phase = CLOSING
        self._state.dismiss(self)
        self._state.unread -= self.unread
        self.unread = 0
        self._release()
        # A parser and its connection refer to each other, and the connection to TLS buffers: break the cycle now.
        self._parser = _NO_PARSER

    def pause_writing(self) -> None:
        """Take no more requests until the client reads its answers."""
        self._paused = True
        self._transport.pause_reading()
        self.deadline = self._now() + self._state.options.timeout
        self.count_unread()
        self._state.bound_unread()

    def resume_writing(self) -> None:
        """Take requests again, now that the client has read its answers."""
        self._paused = False
        self.count_unread()
        if self._phase < PENDING:
            self._transport.resume_reading()
            self.deadline = self._now() + self._state.options.timeout

    def on_message_complete(self) -> None:
        """Answer the complete request, or pass it to a policy."""
        if self._phase >= LAST or self._is_offered:
            return
        if self._paused and self.unread > MAX_UNREAD:
            self.abort()
            return
        self._was_whole = perf_counter()
        keep = self._parser.should_keep_alive()
        if self._route is not None and self._route.select is not None:
            endpoint = self._route.select()
            if len(self._body) > LARGE or b"content-encoding" in self._head:
                self._parse_in_thread(endpoint, keep=keep)
            else:
                self._act(endpoint, endpoint.parse(self._head, self._body), keep=keep)
            return
        response = self._respond()
        if isinstance(response, asyncio.Future):
            self._answer_later(response)
        else:
            self._finish(response, keep=keep)

    def _parse_in_thread(self, endpoint: RestEndpoint, *, keep: bool) -> None:
        """Have the body parsed in a thread, and read nothing from the client until it is answered."""
        self.deadline, self._phase = math.inf, PENDING
        self._transport.pause_reading()
        parsing = self._state.decoder.submit(endpoint.parse, self._head, self._body)
        self._in_thread = _InThread(parsing, endpoint, keep)
        loop = asyncio.get_running_loop()

        def parsed(done: Future[Parsed]) -> None:
            with suppress(RuntimeError):  # the loop was closed meanwhile: the process ends
                loop.call_soon_threadsafe(self._on_parsed, done)

        parsing.add_done_callback(parsed)

    def _on_parsed(self, done: Future[Parsed]) -> None:
        if self._in_thread and self._in_thread.parsing is done:
            self._flush()

    def _flush(self) -> None:
        """Answer the pending request before anything else happens. This may block until a thread has parsed it."""
        in_thread, self._in_thread = self._in_thread, None
        if self._phase is not PENDING:
            return
        if in_thread is not None:
            self._act(in_thread.endpoint, in_thread.parsing.result(), keep=in_thread.keep)
        if self._phase is PENDING:
            self._runner.flush()
        self._read_on()

    def _act(self, endpoint: RestEndpoint, parsed: Parsed, *, keep: bool) -> None:
        """Have a policy answer the request."""
        try:
            if isinstance(parsed, HttpError):
                raise parsed
            if self._route is not None and self._route.is_retired:
                check_running(endpoint.model, parsed.sequence)
            if parsed.sequence is None:
                request = endpoint.admit(parsed)
                outputs = self._runner.run(endpoint.policy, request)
            else:
                step, start = self._step(parsed.sequence), self._route and self._route.start
                began_at = self._sequences.endpoint_of(step, endpoint, start)
                if began_at is not endpoint:  # of another version, whose inputs and outputs may differ
                    endpoint, parsed = began_at, _raised(began_at.parse(self._head, self._body))
                request = endpoint.admit(parsed)
                outputs = self._sequences.run(step, endpoint, request)
            if isinstance(outputs, Waiting):
                self._phase, outputs.done = PENDING, partial(self._on_outputs, endpoint, request, keep)
                return
            response = endpoint.render(request, outputs)
        except Exception as error:  # noqa: BLE001 (each has its answer)
            response = self._failed(endpoint.refusal(error))
        self._finish(response, keep=keep)

    def _step(self, named: SequenceStep) -> Step:
        return Step.of(self._route and self._route.place, self._state.key_of(self._head), named)

    def _on_outputs(
        self, endpoint: RestEndpoint, request: InferRequest, keep: bool, outputs: Outputs | Exception
    ) -> None:
        if self._phase is not PENDING:  # the connection ended meanwhile
            return
        try:
            if isinstance(outputs, Exception):
                raise outputs
            response = endpoint.render(request, outputs)
        except Exception as error:  # noqa: BLE001 (each has its answer, and others wait for theirs)
            response = self._failed(endpoint.refusal(error))
        self._finish(response, keep=keep)

    def _finish(self, response: Response, *, keep: bool) -> None:
        keep = keep and not self._state.stopping
        self._write(response, keep=keep)
        if self._paused:
            self.count_unread()
            self._state.bound_unread()
        self._release()
        if self._phase is CLOSING:  # it was dropped, for it leaves too much unread
            return
        self._await_request()
        self._is_timed = False
        if not keep:
            self._end()
        elif not self._paused:
            self.idle_since = self._now()
            self.deadline = self.idle_since + self._state.options.keep_alive

    def _respond(self) -> "Response | asyncio.Future[Response]":
        if self._route is None or self._route.answer is None:
            return self._refusal or _INTERNAL_ERROR
        try:
            return self._route.answer(self._head, self._body)
        except Exception as error:  # noqa: BLE001 (each has its answer)
            return self._failed(error)

    def _failed(self, error: Exception) -> Response:
        """Return the response to a request that raised `error`, and log a fault of the server."""
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
        """Write the response once it is there. Read no further request, which would be answered before this one."""
        self._phase = DEFERRED
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
        headers, series = response.headers, response.series
        request_id = b""
        if b"x-request-id" in self._head and (request_id := sane_id(self._head[b"x-request-id"])):
            headers += b"x-request-id: %b\r\n" % request_id
        if self._method != b"POST":  # a shared cache may keep what has no lifetime: health and metrics, for minutes
            headers += b"cache-control: no-store\r\n"
        if b"origin" in self._head:
            headers += self._state.cross_origin.headers(self._head[b"origin"])
        if not keep:
            headers += b"connection: close\r\n"
        elif b"connection" in self._head and self._parser.get_http_version() == "1.0":
            headers += b"connection: keep-alive\r\n"
        self._transport.write(wire_bytes(response, self._state.common, headers, is_head=self._method == b"HEAD"))
        if series is None:
            self._state.unrouted.answered(response.status, None, response.error)
        else:
            series.answered(response.status, perf_counter() - self._was_whole, response.error)
        if self._state.observers:
            self._observe(response, request_id)

    def _observe(self, response: Response, request_id: bytes) -> None:
        record = RequestRecord(
            self._method,
            self._target,
            self._head if self._method else {},
            self._route is not None,
            response.status,
            len(response.body),
            response.series,
            response.error,
            perf_counter() - self._began if self._began else 0.0,
            request_id,
            parse_traceparent(self._head.get(b"traceparent", b"")),
            self._client,
            self._state.key_of(self._head) or "",
        )
        for observer in self._state.observers:
            observer(record)

    # What is under way, and how it ends

    def expire(self) -> None:
        """End an overdue connection.

        An idle one is closed, an incomplete request refused, and a pending one run. A client that does not read its
        answers, or does not close its side in time, is cut off. What came while this process did not run is read first.
        """
        if self._phase <= RECEIVING and not self._paused and has_input(self.sock.fileno()):
            return
        if self._phase >= LAST or self._paused:
            self.abort()
        elif self._phase is PENDING:
            self._flush()
        elif self._phase is RECEIVING:
            self._refuse(HttpError(408, f"the request did not arrive within {self._state.options.timeout:g} s"))
        else:
            self._end()

    def stop(self) -> None:
        """Close the connection, unless a request is under way."""
        if self._phase is IDLE:
            self._end()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way: no request, and no answer."""
        return self._phase is IDLE and not (self._paused or self._transport.get_write_buffer_size())

    @property
    def is_under_way(self) -> bool:
        """Whether a request has begun that is not answered."""
        return IDLE < self._phase < CLOSING

    @property
    def sock(self) -> Any:
        """The transport's socket."""
        return self._transport.get_extra_info("socket")

    def count_unread(self) -> None:
        """Update the count of unread bytes, which is 0 while writing is not paused."""
        unread = self._transport.get_write_buffer_size() if self._paused and not self._transport.is_closing() else 0
        self._state.unread += unread - self.unread
        self.unread = unread

    def close(self) -> None:
        """Close the connection once everything is written, so that another can take its slot."""
        self._end()

    def abort(self) -> None:
        """Close the connection at once, without writing the answers that are left."""
        self._phase = CLOSING
        self._transport.abort()
        self.count_unread()

    def _refuse(self, error: HttpError) -> None:
        """Answer with the error, and read nothing more."""
        self._flush()
        if self._phase >= LAST:
            return
        response = error.response
        if self._phase is RECEIVING and self._parser.get_method() == b"HEAD":
            response = response._replace(body=b"")  # also if the head isn't whole
        self._write(response, keep=False)
        self._phase = CLOSING
        self._body = b""
        self._release()
        if self._transport.can_write_eof():
            self.deadline = self._now() + LINGER_SECONDS
            self._transport.write_eof()
        else:
            self._end()

    def _end(self) -> None:
        """Close the connection once everything is written."""
        self._flush()
        self._phase = CLOSING
        self.deadline = self._now() + self._state.options.timeout
        self._transport.close()


def _raised(parsed: Parsed) -> InferRequest:
    """Return a parsed request. Raises the refusal of one that can't be parsed."""
    if isinstance(parsed, HttpError):
        raise parsed
    return parsed


_INTERNAL_ERROR = HttpError(500, "internal error").response
