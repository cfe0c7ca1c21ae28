"""The Open Inference Protocol over gRPC, with gRPC's own health service, in the event loop that HTTP is served in.

Methods take their message as bytes, and as the first of a stream: so a key is asked for before a message is read, the
wait for it has an end, and bytes that are no message are the sender's error. On the wire it is the same.
"""

import asyncio
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from time import perf_counter
from typing import Any
from weakref import WeakKeyDictionary

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what its C library logs is for its own developers

import grpc

from trpo_tf.serving.codecs.grpc_messages import (
    HEALTH,
    HEALTH_CHECK,
    HEALTH_WATCH,
    INFERENCE,
    MODEL_INFER,
    MODEL_METADATA,
    MODEL_READY,
    SERVER_LIVE,
    SERVER_METADATA,
    SERVER_READY,
    Call,
)
from trpo_tf.serving.codecs.v2_grpc import Message, decode_infer, encode_infer, from_document, parse
from trpo_tf.serving.codecs.v2_json import RequestError, model_metadata, server_metadata
from trpo_tf.serving.errors import quoted
from trpo_tf.serving.grpc.limits import BusyError, Turns, Watchers, check_metadata
from trpo_tf.serving.grpc.listener import make_server, open_port
from trpo_tf.serving.inference.endpoint import InferenceEndpoint, failure_of
from trpo_tf.serving.inference.runners import DirectRunner, Outputs, Runner
from trpo_tf.serving.keys import KeyRing, refusal
from trpo_tf.serving.listening.sockets import GrpcPort
from trpo_tf.serving.listening.tls import Tls
from trpo_tf.serving.metrics.series import Metrics, Series
from trpo_tf.serving.options import ServeOptions
from trpo_tf.serving.repository.catalog import Catalog
from trpo_tf.serving.runtime.policy import Policy
from trpo_tf.serving.support.logs import emit
from trpo_tf.serving.tracing.records import NO_OBSERVERS, CallRecord, Observers, grpc_client, sane_id
from trpo_tf.serving.tracing.trace_context import parse_traceparent

WATCH_SECONDS = 0.5
"""How often a health service's watchers are told, if it has changed."""

WATCHES_A_CONNECTION = 8
"""How many watches of its health one connection may have. A client's channel has one for each service that it names."""

OPEN_MESSAGES = 4
"""Messages at a time of the methods that need no key; they are small."""

SMALL_ANSWER = 16 * 1024
"""Bytes of an answer that need not be counted while its client takes it."""

MOST_DETAILS = 300
"""Characters of a status's message. Clients take 8 KiB of metadata, and a byte that isn't ASCII becomes three."""

LEFT_SECONDS = 0.02
"""How long a call without a message may yet turn out to be one that its client has left."""

HOLD_SECONDS, MOST_HOLDS = 0.2, 5
"""How long the last answers are held back, and how often again while calls still come. A call is cancelled if it comes
after its client has been told of the end, and before it has heard; a client that waits for an answer makes none.
"""

_ALWAYS = {call.path for call in (SERVER_LIVE, SERVER_READY, HEALTH_CHECK)}
"""What is answered however much is under way."""

_OPEN = _ALWAYS | {HEALTH_WATCH.path}
"""What may be called without a key."""

_BUSY = "too many calls at a time; come again"

_KINDS = {
    grpc.StatusCode.INVALID_ARGUMENT: "bad_request",
    grpc.StatusCode.NOT_FOUND: "not_found",
    grpc.StatusCode.DEADLINE_EXCEEDED: "timeout",
    grpc.StatusCode.INTERNAL: "internal",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "busy",
    grpc.StatusCode.UNAUTHENTICATED: "unauthorized",
    grpc.StatusCode.UNIMPLEMENTED: "not_found",
}
"""What a status is called among the errors counted."""

Answer = Callable[[Message], Awaitable[Message]]
Handle = Callable[[object, Any], Awaitable[bytes]]


class CallError(Exception):
    """A call that ends with this status."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class GrpcServer:
    """The services, which answer from the catalog that is `current` when a call comes."""

    def __init__(
        self,
        current: Callable[[], Catalog],
        options: ServeOptions,
        metrics: Metrics,
        keys: KeyRing | None = None,
        runner: Runner | None = None,
        observers: Observers = NO_OBSERVERS,
        tls: Tls | None = None,
    ) -> None:
        """Nothing is listened on until `start`; to be made and used in the event loop."""
        self._current, self._options, self._metrics, self._tls = current, options, metrics, tls
        self._stopping, self._told = asyncio.Event(), asyncio.Event()
        self._come, self._under_way = 0, 0  # calls, ever and now
        self._untaken = 0  # bytes of answers that clients haven't taken
        most = options.max_connections
        # Half of it, for one message is still being freed when the next comes.
        self._turns = Turns(max(1, options.max_buffered // (2 * options.max_body)), most)
        self._open_turns = Turns(OPEN_MESSAGES, most)
        self._watchers = Watchers(2 * most, WATCHES_A_CONNECTION)
        self._runner, self._observers, self.keys = runner or DirectRunner(), observers.grpc, keys
        self._endpoints: WeakKeyDictionary[Policy, InferenceEndpoint] = WeakKeyDictionary()
        self._unrouted = metrics.series(None, "grpc")
        metrics.loads.append(lambda: (0, self._under_way))

    async def start(self, port: GrpcPort) -> None:
        """Listen, and answer. Raises `ServeError`."""
        self._server = make_server(
            self._options, self._methods(), self._locked("", self._no_method), is_shared=port.is_shared
        )
        open_port(self._server, port, self._tls)
        await self._server.start()

    async def stop(self, at_once: asyncio.Event) -> None:
        """Take no more calls; those under way are answered, unless that takes too long or they are to end at once."""
        self._stopping.set()
        for _ in range(MOST_HOLDS):
            come = self._come
            await asyncio.sleep(HOLD_SECONDS)
            if come == self._come:
                break
        draining = asyncio.ensure_future(self._server.stop(self._options.drain))
        await asyncio.sleep(HOLD_SECONDS)
        self._told.set()
        ending = asyncio.ensure_future(at_once.wait())
        await asyncio.wait((draining, ending), return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        if not draining.done():
            await self._server.stop(None)
        await draining

    def _methods(self) -> dict[str, grpc.RpcMethodHandler]:
        """What handles a call, by path."""
        unary: dict[Call, Answer | None] = {
            SERVER_LIVE: self._server_live,
            SERVER_READY: self._server_ready,
            MODEL_READY: self._model_ready,
            SERVER_METADATA: self._server_metadata,
            MODEL_METADATA: self._model_metadata,
            MODEL_INFER: None,
            HEALTH_CHECK: self._health_check,
        }
        handlers = {call.path: self._locked(call.path, self._unary(call, answer)) for call, answer in unary.items()}
        return handlers | {HEALTH_WATCH.path: grpc.stream_stream_rpc_method_handler(self._watch_counted)}

    def _locked(self, path: str, handle: Handle) -> grpc.RpcMethodHandler:
        """A method that asks for a key, if the server has any and it isn't an open one, before it reads a message."""
        keys = self.keys
        if keys is None or path in _OPEN:
            return grpc.stream_unary_rpc_method_handler(handle)

        async def unlock(messages: object, context: Any) -> bytes:
            given = _authorization(context.invocation_metadata())
            if keys.name_of(given) is None:
                await self._refuse(context, path, grpc.StatusCode.UNAUTHENTICATED, refusal(given))
            return await handle(messages, context)

        return grpc.stream_unary_rpc_method_handler(unlock)

    async def _no_method(self, _messages: object, context: Any) -> bytes:
        await self._refuse(context, "", grpc.StatusCode.UNIMPLEMENTED, "there is no such method")
        return b""

    async def _refuse(self, context: Any, method: str, code: grpc.StatusCode, message: str) -> None:
        """End a call before it is read; `method` is empty if there is none of its path."""
        self._count(context, method, code, _KINDS[code])
        await context.abort(code, message)

    def _unary(self, call: Call, answer: Answer | None) -> Handle:
        """A method with one message and one answer, whose exceptions are statuses; without `answer` a model's."""
        turns = self._open_turns if call.path in _ALWAYS else self._turns
        most = sys.maxsize if call.path in _ALWAYS else self._options.max_connections

        async def handle(_messages: object, context: Any) -> bytes:
            self._come += 1
            self._under_way += 1
            context.add_done_callback(self._done)  # not before its client has taken the answer
            answered, failed, endpoint, whole = b"", None, None, 0.0
            came = perf_counter()
            try:
                if self._under_way > most:
                    raise BusyError
                check_metadata(context)
                message = await self._read(call, context, turns)
                whole = perf_counter()
                if answer is None:
                    endpoint = self._endpoint(message)
                    reply = await self._infer(endpoint, message)
                else:
                    reply = await answer(message)
                answered = reply.SerializeToString()
                if len(answered) > SMALL_ANSWER:
                    self._hold(context, len(answered))
            except asyncio.CancelledError:
                self._count(context, call.path, _code_of_cancelled(context), "", endpoint, came, whole)
                raise
            except Exception as error:  # noqa: BLE001 (each has its status)
                failed = status_of(error)
                kind = "not_finite" if isinstance(error, FloatingPointError) else _KINDS[failed[0]]
                self._count(context, call.path, failed[0], kind, endpoint, came, whole)
            else:
                self._count(context, call.path, grpc.StatusCode.OK, "", endpoint, came, whole)
            if self._stopping.is_set():
                await self._told.wait()
            if failed is not None:
                message = None  # what abort raises keeps this frame, and the frame it, until cycles are collected
                await context.abort(*failed)
            return answered

        return handle

    def _done(self, _context: object) -> None:
        self._under_way -= 1

    def _hold(self, context: Any, size: int) -> None:
        """Count an answer until its client has taken it. Raises `BusyError` if too much is not taken."""
        if self._untaken + size > self._options.max_buffered and self._untaken:
            raise BusyError

        def release(_context: object) -> None:
            self._untaken -= size

        self._untaken += size
        context.add_done_callback(release)

    def _count(
        self,
        context: Any,
        method: str,
        code: grpc.StatusCode,
        kind: str,
        endpoint: InferenceEndpoint | None = None,
        came: float | None = None,
        whole: float = 0.0,
    ) -> None:
        """Count a call, and tell who observes; `whole` is when its message was there, and `came` when it began."""
        now = perf_counter()
        if endpoint is None:
            self._unrouted.answered(code.name, None, kind)
        else:
            endpoint.series.answered(code.name, now - whole, kind)
        if self._observers:
            self._tell(context, method, code, kind, endpoint.series if endpoint else None, now - (came or now))

    def _tell(
        self, context: Any, method: str, code: grpc.StatusCode, kind: str, series: Series | None, seconds: float
    ) -> None:
        """Tell who observes. Binary metadata is not for them."""
        given = {key: value.encode() for key, value in context.invocation_metadata() if isinstance(value, str)}
        record = CallRecord(
            method,
            code.name,
            code.value[0],
            kind,
            series,
            seconds,
            sane_id(given.get("x-request-id", b"")),
            parse_traceparent(given.get("traceparent", b"")),
            given.get("tracestate", b""),
            grpc_client(context.peer()),
            (self.keys and self.keys.name_of(given.get("authorization", b""))) or "",
        )
        for observe in self._observers:
            observe(record)

    async def _read(self, call: Call, context: Any, turns: Turns) -> Message:
        content = await turns.read(context, self._options.timeout)
        if content is grpc.aio.EOF:  # also of a call that its client has left, which is cancelled a moment later
            await asyncio.sleep(LEFT_SECONDS)
        return parse(call, content)

    def _endpoint(self, message: Message) -> InferenceEndpoint:
        """The endpoint of the model that is to answer. Raises `CallError`."""
        model = self._current().find(message.model_name, message.model_version or None)
        if model is None:
            raise _unknown(message.model_name, message.model_version)
        if model.policy not in self._endpoints:
            self._endpoints[model.policy] = InferenceEndpoint(model, self._options, self._metrics, "grpc")
        return self._endpoints[model.policy]

    def _is_ready(self) -> bool:
        return not self._stopping.is_set() and self._current().is_ready

    # The methods

    async def _infer(self, endpoint: InferenceEndpoint, message: Message) -> Message:
        policy = endpoint.policy
        request = endpoint.admit(decode_infer(message, policy.manifest, max_batch=self._options.max_batch))
        ran: asyncio.Future[Outputs | Exception] = asyncio.get_running_loop().create_future()
        self._runner.run(policy, request, lambda outputs: None if ran.done() else ran.set_result(outputs))
        if isinstance(outputs := await ran, Exception):
            raise outputs
        return encode_infer(outputs, request, message.id, endpoint.model)

    async def _server_live(self, _request: Message) -> Message:
        return SERVER_LIVE.response(live=True)

    async def _server_ready(self, _request: Message) -> Message:
        return SERVER_READY.response(ready=self._is_ready())

    async def _model_ready(self, request: Message) -> Message:
        release = self._current().releases.get(request.name)
        is_there = release is not None and (not request.version or request.version in release.versions)
        return MODEL_READY.response(ready=is_there and not self._stopping.is_set())

    async def _server_metadata(self, _request: Message) -> Message:
        return from_document(SERVER_METADATA.response, server_metadata(has_repository=self._options.repository_api))

    async def _model_metadata(self, request: Message) -> Message:
        release = self._current().releases.get(request.name)
        if release is None or (request.version and request.version not in release.versions):
            raise _unknown(request.name, request.version)
        names = list(release.versions)[::-1]  # newest first
        manifest = release.versions[request.version or names[0]].policy.manifest
        return from_document(MODEL_METADATA.response, model_metadata(manifest, *names))

    async def _health_check(self, request: Message) -> Message:
        if (status := self._health(request.service)) == "SERVICE_UNKNOWN":
            raise CallError(grpc.StatusCode.NOT_FOUND, f"there is no service {quoted(request.service)}")
        return HEALTH_CHECK.response(status=status)

    async def _watch_counted(self, messages: object, context: Any) -> None:
        """The health service's stream, unless there are too many."""
        peer = context.peer()
        try:
            check_metadata(context)
            self._watchers.add(peer)
        except (BusyError, RequestError) as error:
            await self._refuse(context, HEALTH_WATCH.path, *status_of(error))
        try:
            await self._watch(messages, context)
        finally:
            self._watchers.remove(peer)

    async def _watch(self, _messages: object, context: Any) -> None:
        """Tell how it is, and again whenever that has changed, until the server stops."""
        try:
            request = await self._read(HEALTH_WATCH, context, self._open_turns)
        except Exception as error:  # noqa: BLE001 (each has its status)
            await self._refuse(context, HEALTH_WATCH.path, *status_of(error))
        told = ""
        while True:
            is_last = self._stopping.is_set()  # asked before the write, during which the end may come
            if (status := self._health(request.service)) != told:
                await context.write(HEALTH_WATCH.response(status=status).SerializeToString())
                told = status
            if is_last:
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), WATCH_SECONDS)

    def _health(self, service: str) -> str:
        if service not in ("", INFERENCE, HEALTH):
            return "SERVICE_UNKNOWN"
        return "SERVING" if self._is_ready() else "NOT_SERVING"


def _unknown(name: str, version: str) -> CallError:
    shown = f"{quoted(name)}, version {quoted(version)}" if version else quoted(name)
    return CallError(grpc.StatusCode.NOT_FOUND, f"there is no model {shown}")


def status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """The status and the message that a call ends with, which has raised `error`."""
    code, message = _status_of(error)
    return code, message if len(message) <= MOST_DETAILS else f"{message[: MOST_DETAILS - 3]}..."


def _status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    match error:
        case CallError():
            return error.code, str(error)
        case BusyError():
            return grpc.StatusCode.RESOURCE_EXHAUSTED, _BUSY
        case TimeoutError():
            return grpc.StatusCode.DEADLINE_EXCEEDED, "the message did not arrive in time"
    failure = failure_of(error)
    if failure.fault is not None:
        emit("fault", "a call failed", level=logging.ERROR, fault=failure.fault)
    return grpc.StatusCode.INVALID_ARGUMENT if failure.is_clients else grpc.StatusCode.INTERNAL, failure.message


def _authorization(metadata: Any) -> bytes:
    given = dict(metadata).get("authorization", "")
    return given.encode() if isinstance(given, str) else b""


def _code_of_cancelled(context: Any) -> grpc.StatusCode:
    """Why the client has left: its deadline, if it gave one, or something else."""
    is_late = context.time_remaining() == 0
    return grpc.StatusCode.DEADLINE_EXCEEDED if is_late else grpc.StatusCode.CANCELLED
