"""The Open Inference Protocol over gRPC, with gRPC's own health service, in the event loop that HTTP is served in.

Methods take their message as bytes, and as the first of a stream. So the key is checked before a message is read, and
the wait for a message has a timeout. Bytes that are no message are the client's error. On the wire nothing differs.
"""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from time import perf_counter
from typing import Any

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what its C library logs is for its own developers

import grpc

from trpo_tf.serving.codecs.grpc_messages import (
    HEALTH_CHECK,
    HEALTH_WATCH,
    MODEL_INFER,
    MODEL_METADATA,
    MODEL_READY,
    SERVER_LIVE,
    SERVER_METADATA,
    SERVER_READY,
    Call,
)
from trpo_tf.serving.codecs.request_validation import InferRequest
from trpo_tf.serving.codecs.v2_grpc import Message, decode_infer, encode_infer, parse
from trpo_tf.serving.errors import RequestError
from trpo_tf.serving.grpc.information import Information
from trpo_tf.serving.grpc.limits import BusyError, Turns, Watchers, check_metadata
from trpo_tf.serving.grpc.listener import make_server, open_port
from trpo_tf.serving.grpc.statuses import KINDS, code_of_cancelled, status_of, unknown_model
from trpo_tf.serving.inference.endpoint import InferenceEndpoint
from trpo_tf.serving.inference.kept_state import SequenceRunner
from trpo_tf.serving.inference.runners import Outputs, Runner, Waiting
from trpo_tf.serving.inference.sequences import Step
from trpo_tf.serving.keys import KeyRing, refusal
from trpo_tf.serving.listening.sockets import GrpcPort
from trpo_tf.serving.listening.tls import Tls
from trpo_tf.serving.metrics.series import Metrics, Series
from trpo_tf.serving.options import ServeOptions
from trpo_tf.serving.repository.catalog import Catalog, Model
from trpo_tf.serving.runtime.policy import Policy
from trpo_tf.serving.tracing.records import NO_OBSERVERS, CallRecord, Observers, grpc_client, sane_id
from trpo_tf.serving.tracing.trace_context import parse_traceparent

WATCH_SECONDS = 0.5
"""How often the health is checked, and sent to watchers if it has changed."""

WATCHES_A_CONNECTION = 8
"""Health watches that one connection may have. A client's channel opens one for each service that it names."""

OPEN_MESSAGES = 4
"""Messages that arrive at a time for methods without a key; they are small."""

SMALL_ANSWER = 16 * 1024
"""Bytes up to which an answer is not counted while its client takes it."""

LEFT_SECONDS = 0.02
"""How long to wait, on a call without a message, for the cancellation by its client."""

HOLD_SECONDS, MOST_HOLDS = 0.2, 5
"""How long the last answers are held back when the server stops, and how often again while calls still arrive.

A call is cancelled if it arrives after the server has announced its stop, but was sent before the client learned of it.
A client that waits for an answer sends no call meanwhile.
"""

_ALWAYS = {call.path for call in (SERVER_LIVE, SERVER_READY, HEALTH_CHECK)}
"""Methods that are answered however many calls are under way."""

_OPEN = _ALWAYS | {HEALTH_WATCH.path}
"""Methods that need no key."""

Answer = Callable[[Message], Awaitable[Message]]
Handle = Callable[[object, Any], Awaitable[bytes]]


class GrpcServer:
    """The inference and health services. Each call is answered from the catalog that `current` returns then."""

    def __init__(
        self,
        current: Callable[[], Catalog],
        options: ServeOptions,
        metrics: Metrics,
        keys: KeyRing | None,
        runner: Runner,
        sequences: SequenceRunner,
        observers: Observers = NO_OBSERVERS,
        tls: Tls | None = None,
    ) -> None:
        """Prepare the services, in the event loop; `start` begins to listen."""
        self._current, self._options, self._metrics, self._tls = current, options, metrics, tls
        self._stopping, self._told = asyncio.Event(), asyncio.Event()
        self._information = Information(current, options, self._stopping)
        self._come, self._under_way = 0, 0  # calls so far, and calls under way
        self._untaken = 0  # bytes of answers that clients haven't taken
        most = options.max_connections
        # Half of the buffer, since one message is still being freed when the next arrives.
        self._turns = Turns(max(1, options.max_buffered // (2 * options.max_body)), most)
        self._open_turns = Turns(OPEN_MESSAGES, most)
        self._watchers = Watchers(2 * most, WATCHES_A_CONNECTION)
        self._runner, self._sequences, self._observers, self.keys = runner, sequences, observers.grpc, keys
        self._endpoints: dict[Policy, InferenceEndpoint] = {}  # of the catalog's policies
        self._catalog = Catalog()
        self._unrouted = metrics.series(None, "grpc")
        metrics.loads.append(lambda: (0, self._under_way))

    async def start(self, port: GrpcPort) -> None:
        """Listen on the port, and answer calls. Raises `ServeError`."""
        self._server = make_server(
            self._options, self._methods(), self._locked("", self._no_method), is_shared=port.is_shared
        )
        open_port(self._server, port, self._tls)
        await self._server.start()

    async def stop(self, at_once: asyncio.Event) -> None:
        """Take no more calls, and wait for those under way, until `drain` is over or `at_once` is set."""
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
        """Return the handler of each method, by path."""
        information = self._information
        unary: dict[Call, Answer | None] = {
            SERVER_LIVE: information.server_live,
            SERVER_READY: information.server_ready,
            MODEL_READY: information.model_ready,
            SERVER_METADATA: information.server_metadata,
            MODEL_METADATA: information.model_metadata,
            MODEL_INFER: None,
            HEALTH_CHECK: information.health_check,
        }
        handlers = {call.path: self._locked(call.path, self._unary(call, answer)) for call, answer in unary.items()}
        return handlers | {HEALTH_WATCH.path: grpc.stream_stream_rpc_method_handler(self._watch_counted)}

    def _locked(self, path: str, handle: Handle) -> grpc.RpcMethodHandler:
        """Return a method that checks the key before it reads a message. Open methods need none."""
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
        """End a call before its message is read; `method` is empty if the path is unknown."""
        self._count(context, method, code, KINDS[code])
        await context.abort(code, message)

    def _unary(self, call: Call, answer: Answer | None) -> Handle:
        """Return a method with one message and one answer; exceptions become statuses. With no `answer` it infers."""
        turns = self._open_turns if call.path in _ALWAYS else self._turns
        most = sys.maxsize if call.path in _ALWAYS else self._options.max_connections

        async def handle(_messages: object, context: Any) -> bytes:
            self._come += 1
            self._under_way += 1
            context.add_done_callback(self._done)  # called once the client has taken the answer
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
                    request = decode_infer(message, endpoint.policy.manifest, max_batch=self._options.max_batch)
                    step = self._step(context, message, request)
                    if step is not None:
                        endpoint, request = self._where_it_began(step, endpoint, message, request)
                    outputs = await self._infer(endpoint, request, step)
                    reply = encode_infer(outputs, request, message.id, endpoint.model)
                else:
                    reply = await answer(message)
                answered = reply.SerializeToString()
                if len(answered) > SMALL_ANSWER:
                    self._hold(context, len(answered))
            except asyncio.CancelledError:
                self._count(context, call.path, code_of_cancelled(context), "", endpoint, came, whole)
                raise
            except Exception as error:  # noqa: BLE001 (each has its status)
                failed = status_of(error)
                kind = "not_finite" if isinstance(error, FloatingPointError) else KINDS[failed[0]]
                self._count(context, call.path, failed[0], kind, endpoint, came, whole)
            else:
                self._count(context, call.path, grpc.StatusCode.OK, "", endpoint, came, whole)
            if self._stopping.is_set():
                await self._told.wait()
            if failed is not None:
                message = None  # abort's exception and this frame refer to each other, until cycles are collected
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
        """Count a call, and pass it to observers. `came` is when it began, `whole` when its message had arrived."""
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
        """Pass a call to the observers, without its binary metadata."""
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
        if content is grpc.aio.EOF:  # also if the client has left: then it is cancelled a moment later
            await asyncio.sleep(LEFT_SECONDS)
        return parse(call, content)

    def _endpoint(self, message: Message) -> InferenceEndpoint:
        """Return the endpoint of the requested model. Raises `CallError`."""
        catalog = self._current()
        if catalog is not self._catalog:
            self._forget_endpoints(catalog)
        model = catalog.find(message.model_name, message.model_version or None)
        if model is None:
            raise unknown_model(message.model_name, message.model_version)
        return self._endpoint_of(model)

    def _forget_endpoints(self, catalog: Catalog) -> None:
        """Drop the endpoints of policies that a new catalog does not have, so that their memory is freed."""
        loaded = {model.policy for release in catalog.releases.values() for model in release.versions.values()}
        self._endpoints = {policy: endpoint for policy, endpoint in self._endpoints.items() if policy in loaded}
        self._catalog = catalog

    def _endpoint_of(self, model: Model) -> InferenceEndpoint:
        endpoint = self._endpoints.get(model.policy)
        if endpoint is None:
            endpoint = self._endpoints[model.policy] = InferenceEndpoint(model, self._options, self._metrics, "grpc")
        return endpoint

    def _step(self, context: Any, message: Message, request: InferRequest) -> Step | None:
        """Return the step of a sequence that a request is, if it is one."""
        if request.sequence is None:
            return None
        owner = self.keys.name_of(_authorization(context.invocation_metadata())) if self.keys else None
        return Step.of(("grpc", message.model_name, message.model_version), owner, request.sequence)

    def _where_it_began(
        self, step: Step, endpoint: InferenceEndpoint, message: Message, request: InferRequest
    ) -> tuple[InferenceEndpoint, InferRequest]:
        """Return the endpoint of a step's sequence, and the request as that version reads it.

        Raises `RequestError` and `NoSequenceError`.
        """

        def start() -> InferenceEndpoint:
            if message.model_version:
                return endpoint
            return self._endpoint_of(self._current().releases[message.model_name].choose_for_sequence())

        began_at = self._sequences.endpoint_of(step, endpoint, start)
        if began_at is not endpoint:
            request = decode_infer(message, began_at.policy.manifest, max_batch=self._options.max_batch)
        return began_at, request

    # The methods

    async def _infer(self, endpoint: InferenceEndpoint, request: InferRequest, step: Step | None) -> Outputs:
        """Return the outputs of a request, which may be a step of a sequence."""
        admitted = endpoint.admit(request)
        if step is None:
            outputs = self._runner.run(endpoint.policy, admitted)
        else:
            outputs = self._sequences.run(step, endpoint, admitted)
        return await _outputs_of(outputs) if isinstance(outputs, Waiting) else outputs

    async def _watch_counted(self, messages: object, context: Any) -> None:
        """Serve the health service's stream, unless too many are open."""
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
        """Send the health, and send it again whenever it changes, until the server stops."""
        try:
            request = await self._read(HEALTH_WATCH, context, self._open_turns)
        except Exception as error:  # noqa: BLE001 (each has its status)
            await self._refuse(context, HEALTH_WATCH.path, *status_of(error))
        told = ""
        while True:
            is_last = self._stopping.is_set()  # read before the write, during which the stop may begin
            if (status := self._information.health(request.service)) != told:
                await context.write(HEALTH_WATCH.response(status=status).SerializeToString())
                told = status
            if is_last:
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), WATCH_SECONDS)


async def _outputs_of(waiting: Waiting) -> Outputs:
    ran: asyncio.Future[Outputs | Exception] = asyncio.get_running_loop().create_future()
    waiting.done = lambda outputs: None if ran.done() else ran.set_result(outputs)
    if isinstance(outputs := await ran, Exception):
        raise outputs
    return outputs


def _authorization(metadata: Any) -> bytes:
    given = dict(metadata).get("authorization", "")
    return given.encode() if isinstance(given, str) else b""
