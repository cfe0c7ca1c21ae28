"""The Open Inference Protocol over gRPC, with gRPC's own health service, in the event loop that HTTP is served in.

Methods take their message as bytes, and as the first of a stream: so a key is asked for before a message is read, the
wait for it has an end, and bytes that are no message are the sender's error. On the wire it is the same.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what its C library logs is for its own developers

import grpc

from serving.admission import Admission, admission
from serving.batching import Gatherer
from serving.catalog import Catalog, Model
from serving.codec import InferRequest, RequestError, model_metadata, server_metadata
from serving.events import emit
from serving.exchange import NOBODY, GrpcExchange, Observers, grpc_client, sane_id
from serving.grpc_codec import Message, decode_infer, encode_infer, from_document, parse
from serving.grpc_messages import (
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
from serving.keys import KeyRing, refusal
from serving.metrics import Metrics, Series
from serving.not_finite import NotFiniteError
from serving.observations import Array
from serving.options import ServeError, ServeOptions
from serving.policy import Policy
from serving.sockets import grpc_url
from serving.traceparent import parse_traceparent

WATCH_SECONDS = 0.5
"""How often a health service's watchers are told, if it has changed."""

HOLD_SECONDS, MOST_HOLDS = 0.2, 5
"""How long the last answers are held back, and how often again while calls still come. A call is cancelled if it comes
after its client has been told of the end, and before it has heard; a client that waits for an answer makes none.
"""

_OPEN = {call.path for call in (SERVER_LIVE, SERVER_READY, HEALTH_CHECK, HEALTH_WATCH)}
"""What may be called without a key."""

_KINDS = {
    grpc.StatusCode.INVALID_ARGUMENT: "bad_request",
    grpc.StatusCode.NOT_FOUND: "not_found",
    grpc.StatusCode.DEADLINE_EXCEEDED: "timeout",
    grpc.StatusCode.INTERNAL: "internal",
}
"""What a status is called among the errors counted."""

Answer = Callable[[Message], Awaitable[Message]]


class CallError(Exception):
    """A call that ends with this status."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class _Desk(NamedTuple):
    """Where requests of one model are admitted and counted."""

    model: Model
    admit: Admission
    series: Series


class GrpcServer:
    """The services, which answer from the catalog that is `current` when a call comes."""

    def __init__(
        self,
        current: Callable[[], Catalog],
        options: ServeOptions,
        metrics: Metrics,
        keys: KeyRing | None = None,
        gatherer: Gatherer | None = None,
        observers: Observers = NOBODY,
    ) -> None:
        """Nothing is listened on until `start`; to be made and used in the event loop."""
        self._current, self._options, self._metrics = current, options, metrics
        self._stopping, self._told = asyncio.Event(), asyncio.Event()
        self._come, self._under_way = 0, 0  # calls, ever and now
        self._gatherer, self._observers, self._keys = gatherer, observers.grpc, keys
        self._desks: WeakKeyDictionary[Policy, _Desk] = WeakKeyDictionary()
        self._unrouted = metrics.series(None, "grpc")
        metrics.loads.append(lambda: (0, self._under_way))
        self._server = grpc.aio.server(
            handlers=[_Methods(self._methods(), keys, self._refusing)],
            options=_channel_options(options),
            maximum_concurrent_rpcs=options.max_connections,
        )

    async def start(self) -> str:
        """Listen, and answer; its URL. Raises `ServeError`."""
        host = f"[{self._options.host}]" if ":" in self._options.host else self._options.host
        address = f"{host}:{self._options.grpc_port}"
        credentials = _credentials(self._options)
        try:
            if credentials is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, credentials)
        except RuntimeError:
            raise ServeError(f"can't listen on {address}; choose another --grpc-port (0: a free one)") from None
        await self._server.start()
        return grpc_url(self._options, port)

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
        unary: dict[Call, Answer] = {
            SERVER_LIVE: self._server_live,
            SERVER_READY: self._server_ready,
            MODEL_READY: self._model_ready,
            SERVER_METADATA: self._server_metadata,
            MODEL_METADATA: self._model_metadata,
            HEALTH_CHECK: self._health_check,
        }
        handlers = {call.path: self._unary(call, answer) for call, answer in unary.items()}
        handlers[MODEL_INFER.path] = self._unary(MODEL_INFER, None)
        methods = {path: grpc.stream_unary_rpc_method_handler(handler) for path, handler in handlers.items()}
        watch = grpc.stream_stream_rpc_method_handler(self._watch)
        return methods | {HEALTH_WATCH.path: watch}

    def _unary(self, call: Call, answer: Answer | None) -> Callable[..., Awaitable[bytes]]:
        """A method with one message and one answer, whose exceptions are statuses; without `answer` a model's."""

        async def handle(_messages: object, context: Any) -> bytes:
            self._come += 1
            self._under_way += 1
            answered, failed, desk, whole, kind = b"", None, None, 0.0, ""
            came = perf_counter()
            try:
                message = await self._read(call, context)
                whole = perf_counter()
                if answer is None:
                    desk = self._desk(message)
                    reply = await self._infer(desk, message)
                else:
                    reply = await answer(message)
                answered = reply.SerializeToString()
            except Exception as error:  # noqa: BLE001 (each has its status)
                failed = status_of(error)
                kind = "not_finite" if isinstance(error, FloatingPointError) else _KINDS[failed[0]]
            self._under_way -= 1
            code = failed[0] if failed else grpc.StatusCode.OK
            if desk is None:
                self._unrouted.answered(code.name, None, kind)
            else:
                desk.series.answered(code.name, perf_counter() - whole, kind)
            if self._observers:
                self._tell(context, call.path, code, kind, desk and desk.series, perf_counter() - came)
            if self._stopping.is_set():
                await self._told.wait()
            if failed is not None:
                await context.abort(*failed)
            return answered

        return handle

    def _refusing(self, method: str) -> grpc.RpcMethodHandler:
        """What a method is without its key; `method` is empty if there is none of that path."""

        async def refuse(_messages: object, context: Any) -> None:
            code = grpc.StatusCode.UNAUTHENTICATED
            self._unrouted.answered(code.name, None, "unauthorized")
            if self._observers:
                self._tell(context, method, code, "unauthorized", None, 0.0)
            given = dict(context.invocation_metadata()).get("authorization", "")
            await context.abort(code, refusal(given.encode()))

        return grpc.stream_unary_rpc_method_handler(refuse)

    def _tell(
        self, context: Any, method: str, code: grpc.StatusCode, kind: str, series: Series | None, seconds: float
    ) -> None:
        """Tell who observes. Binary metadata is not for them."""
        given = {key: value.encode() for key, value in context.invocation_metadata() if isinstance(value, str)}
        exchange = GrpcExchange(
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
            (self._keys and self._keys.name_of(given.get("authorization", b""))) or "",
        )
        for observe in self._observers:
            observe(exchange)

    async def _read(self, call: Call, context: Any) -> Message:
        async with asyncio.timeout(self._options.timeout):
            content = await context.read()
        return parse(call, content)

    def _desk(self, message: Message) -> "_Desk":
        """Of the model that is to answer. Raises `CallError`."""
        model = self._current().find(message.model_name, message.model_version or None)
        if model is None:
            raise _unknown(message.model_name, message.model_version)
        if model.policy not in self._desks:
            admit = admission(model, self._options, self._metrics, "grpc")
            self._desks[model.policy] = _Desk(model, admit, self._metrics.series(model, "grpc"))
        return self._desks[model.policy]

    def _is_ready(self) -> bool:
        return not self._stopping.is_set() and self._current().is_ready

    # The methods

    async def _infer(self, desk: "_Desk", request: Message) -> Message:
        model, admit, _ = desk
        asked = admit(decode_infer(request, model.policy.manifest, max_batch=self._options.max_batch))
        return encode_infer(await self._act(model.policy, asked), asked, request.id, model)

    async def _act(self, policy: Policy, asked: InferRequest) -> dict[str, Array]:
        if self._gatherer is None:
            return policy.infer(asked.observations, asked.noise, [*asked.outputs])
        answered: asyncio.Future[dict[str, Array] | Exception] = asyncio.get_running_loop().create_future()
        self._gatherer.add(policy, asked, lambda answers: None if answered.done() else answered.set_result(answers))
        if isinstance(answers := await answered, Exception):
            raise answers
        return answers

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
            raise CallError(grpc.StatusCode.NOT_FOUND, f"there is no service {request.service!r}")
        return HEALTH_CHECK.response(status=status)

    async def _watch(self, _messages: object, context: Any) -> None:
        """The health service's stream: how it is, and again whenever that has changed, until the server stops."""
        try:
            request = await self._read(HEALTH_WATCH, context)
        except Exception as error:  # noqa: BLE001 (each has its status)
            await context.abort(*status_of(error))
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


class _Methods(grpc.GenericRpcHandler):  # type: ignore[misc]
    """The methods by path. One that needs a key is another without it."""

    def __init__(
        self,
        methods: dict[str, grpc.RpcMethodHandler],
        keys: KeyRing | None,
        refusing: Callable[[str], grpc.RpcMethodHandler],
    ) -> None:
        self._methods, self._keys, self._refusing = methods, keys, refusing

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """What handles a call, or None if there is no such method."""
        if self._keys is not None and call.method not in _OPEN:
            given = dict(call.invocation_metadata).get("authorization", "")
            if self._keys.name_of(given.encode()) is None:
                return self._refusing(call.method if call.method in self._methods else "")
        return self._methods.get(call.method)


def _unknown(name: str, version: str) -> CallError:
    shown = f"{name!r}, version {version!r}" if version else repr(name)
    return CallError(grpc.StatusCode.NOT_FOUND, f"there is no model {shown}")


def status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """The status and the message that a call ends with, which has raised `error`."""
    match error:
        case CallError():
            return error.code, str(error)
        case RequestError():
            return grpc.StatusCode.INVALID_ARGUMENT, str(error)
        case NotFiniteError(is_absurd=True):
            return grpc.StatusCode.INVALID_ARGUMENT, str(error)
        case FloatingPointError():
            return grpc.StatusCode.INTERNAL, str(error)
        case TimeoutError():
            return grpc.StatusCode.DEADLINE_EXCEEDED, "the message did not arrive in time"
        case _:
            emit("fault", "a call failed", level=logging.ERROR, fault=error)
            return grpc.StatusCode.INTERNAL, "internal error"


def _channel_options(options: ServeOptions) -> list[tuple[str, int]]:
    return [
        # Only workers share a port: a second server would take half of the calls.
        ("grpc.so_reuseport", int(options.workers > 1)),
        ("grpc.max_receive_message_length", options.max_body),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_connection_idle_ms", int(1000 * options.keep_alive)),
        ("grpc.server_handshake_timeout_ms", int(1000 * options.timeout)),
    ]


def _credentials(options: ServeOptions) -> grpc.ServerCredentials | None:
    if not (options.tls_cert and options.tls_key):
        return None
    pair = Path(options.tls_key).read_bytes(), Path(options.tls_cert).read_bytes()
    authority = Path(options.tls_client_ca).read_bytes() if options.tls_client_ca else None
    return grpc.ssl_server_credentials([pair], authority, require_client_auth=authority is not None)
