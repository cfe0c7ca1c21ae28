"""The Open Inference Protocol over gRPC, with gRPC's health and reflection, in the event loop that HTTP is served in.

Methods take their message as bytes, and as the first of a stream. So the key is checked before a message is read, and
the wait for a message has a timeout. Bytes that are no message are the client's error. On the wire nothing differs.
"""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from time import perf_counter
from typing import Any

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what its C library logs is for its own developers

import grpc

from trpo_tf.serving.codecs.grpc_messages import (
    FORMER_REFLECTION_INFO,
    HEALTH_CHECK,
    HEALTH_WATCH,
    INFERENCE,
    MODEL_INFER,
    MODEL_METADATA,
    MODEL_READY,
    MODEL_STREAM_INFER,
    REFLECTION_INFO,
    SERVER_LIVE,
    SERVER_METADATA,
    SERVER_READY,
    Call,
)
from trpo_tf.serving.codecs.not_offered import METHODS as NOT_OFFERED
from trpo_tf.serving.codecs.v2_grpc import Message, parse
from trpo_tf.serving.errors import RequestError
from trpo_tf.serving.grpc.call_counter import CallCounter, Progress, authorization_of
from trpo_tf.serving.grpc.health_and_metadata import Information
from trpo_tf.serving.grpc.inference import Inference
from trpo_tf.serving.grpc.limits import (
    BusyError,
    OpenStreams,
    StoppingError,
    StreamReader,
    Turns,
    UntakenAnswers,
    check_metadata,
)
from trpo_tf.serving.grpc.listener import CALLS_A_CONNECTION, make_server, open_place
from trpo_tf.serving.grpc.reflection import describe
from trpo_tf.serving.grpc.statuses import KINDS, CallError, code_of_cancelled, status_of
from trpo_tf.serving.inference.kept_state import SequenceRunner
from trpo_tf.serving.inference.runners import Runner
from trpo_tf.serving.keys import KeyRing, refusal
from trpo_tf.serving.listening.sockets import GrpcPlace
from trpo_tf.serving.listening.tls import Tls
from trpo_tf.serving.metrics.series import Metrics
from trpo_tf.serving.options import ServeOptions
from trpo_tf.serving.repository.catalog import Catalog
from trpo_tf.serving.tracing.records import NO_OBSERVERS, Observers

WATCH_SECONDS = 0.5
"""How often the health is checked, and sent to watchers if it has changed."""

WATCHES_A_CONNECTION = 8
"""Health watches that one connection may have. A client's channel opens one for each service that it names."""

OPEN_MESSAGES = 4
"""Messages that arrive at a time for methods without a key; they are small."""

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
Handle = Callable[[object, Any], Awaitable[Any]]


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
        self._options, self._tls = options, tls
        self._stopping, self._told = asyncio.Event(), asyncio.Event()
        self._information = Information(current, options, self._stopping)
        self._come, self._under_way = 0, 0  # calls so far; calls, and requests of streams, under way
        most = options.max_connections
        # Half of the buffer, since one message is still being freed when the next arrives.
        self._turns = Turns(max(1, options.max_buffered // (2 * options.max_body)), most)
        self._open_turns = Turns(OPEN_MESSAGES, most)
        self._stream_reader = StreamReader(options.max_buffered // options.max_body, options.max_buffered)
        self._watches = OpenStreams(2 * most, WATCHES_A_CONNECTION)
        self._streams = OpenStreams(most, CALLS_A_CONNECTION)
        self._untaken = UntakenAnswers(options.max_buffered)
        self._calls, self._keys = CallCounter(metrics, observers, keys), keys
        self._inference = Inference(current, options, metrics, runner, sequences, self._calls)
        metrics.loads.append(lambda: (0, self._under_way))

    async def start(self, places: Sequence[GrpcPlace]) -> None:
        """Listen on the port and the Unix socket, and answer calls. Raises `ServeError`."""
        is_shared = any(place.is_shared for place in places)
        unknown = self._no_method("there is no such method")
        self._server = make_server(self._options, self._methods(), unknown, is_shared=is_shared)
        for place in places:
            open_place(self._server, place, self._tls)
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
        self._stream_reader.close()
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
        streams = {
            HEALTH_WATCH: self._counted(HEALTH_WATCH, self._watches, self._watch),
            MODEL_STREAM_INFER: self._stream(MODEL_STREAM_INFER, self._answer_next),
            REFLECTION_INFO: self._stream(REFLECTION_INFO, self._describe_next),
            FORMER_REFLECTION_INFO: self._stream(FORMER_REFLECTION_INFO, self._describe_next),
        }
        without = {
            f"/{INFERENCE}/{name}": self._no_method(f"there is no method {name}: {instead}")
            for name, instead in NOT_OFFERED.items()
        }
        return (
            {
                call.path: grpc.stream_unary_rpc_method_handler(self._locked(call.path, self._unary(call, answer)))
                for call, answer in unary.items()
            }
            | {
                call.path: grpc.stream_stream_rpc_method_handler(self._locked(call.path, handle))
                for call, handle in streams.items()
            }
            | without
        )

    def _locked(self, path: str, handle: Handle) -> Handle:
        """Return a method that checks the key before it reads a message. Open methods need none."""
        if self._keys is None or path in _OPEN:
            return handle

        async def unlock(messages: object, context: Any) -> Any:
            try:
                self._check_key(context)
            except CallError as error:
                await self._refuse(context, path, *status_of(error))
            return await handle(messages, context)

        return unlock

    def _check_key(self, context: Any) -> None:
        """Raise `CallError` if a key is needed and the call has none that is valid."""
        if self._keys is not None and not self._calls.key_of(context):
            raise CallError(grpc.StatusCode.UNAUTHENTICATED, refusal(authorization_of(context)))

    def _no_method(self, message: str) -> grpc.RpcMethodHandler:
        """Return the handler that refuses calls of a method that there is not."""

        async def handle(_messages: object, context: Any) -> bytes:
            await self._refuse(context, "", grpc.StatusCode.UNIMPLEMENTED, message)
            return b""

        return grpc.stream_unary_rpc_method_handler(self._locked("", handle))

    async def _refuse(self, context: Any, method: str, code: grpc.StatusCode, message: str) -> None:
        """End a call before its message is read; `method` is empty if the path is unknown."""
        self._calls.count(context, method, code, KINDS[code])
        await context.abort(code, message)

    def _unary(self, call: Call, answer: Answer | None) -> Handle:
        """Return a method with one message and one answer; exceptions become statuses. With no `answer` it infers."""
        turns = self._open_turns if call.path in _ALWAYS else self._turns
        most = sys.maxsize if call.path in _ALWAYS else self._options.max_connections

        async def handle(_messages: object, context: Any) -> bytes:
            self._come += 1
            self._under_way += 1
            context.add_done_callback(self._done)  # called once the client has taken the answer
            progress = Progress()

            async def answered() -> bytes:
                if self._under_way > most:
                    raise BusyError
                check_metadata(context)
                message = await self._read(call, context, turns)
                progress.arrived = perf_counter()
                if answer is None:
                    reply = await self._inference.answer(message, context, progress)
                else:
                    reply = await answer(message)
                content: bytes = reply.SerializeToString()
                if size := self._untaken.add(len(content)):
                    context.add_done_callback(lambda _context: self._untaken.remove(size))
                return content

            content, failed = await self._outcome(call, context, progress, answered)
            if self._stopping.is_set():
                await self._told.wait()
            if failed is not None:
                await context.abort(*failed)
            return content

        return handle

    async def _outcome(
        self, call: Call, context: Any, progress: Progress, answered: Callable[[], Awaitable[bytes]]
    ) -> tuple[bytes, tuple[grpc.StatusCode, str] | None]:
        """Return what `answered` returns, and the status of its exception if it raises one; count it in both cases."""
        content, failed, code, kind = b"", None, grpc.StatusCode.OK, ""
        try:
            content = await answered()
        except asyncio.CancelledError:
            self._calls.count(context, call.path, code_of_cancelled(context), "", progress)
            raise
        except Exception as error:  # noqa: BLE001 (each has its status)
            code, _ = failed = status_of(error)
            kind = "not_finite" if isinstance(error, FloatingPointError) else KINDS[code]
        self._calls.count(context, call.path, code, kind, progress)
        return content, failed

    def _done(self, _context: object) -> None:
        self._under_way -= 1

    async def _read(self, call: Call, context: Any, turns: Turns) -> Message:
        content = await turns.read(context, self._options.timeout)
        if content is grpc.aio.EOF:  # also if the client has left: then it is cancelled a moment later
            await asyncio.sleep(LEFT_SECONDS)
        return parse(call, content)

    # Streams

    def _counted(self, call: Call, streams: OpenStreams, serve: Callable[[Any], Awaitable[None]]) -> Handle:
        """Return a method that serves a stream, unless too many are open."""

        async def handle(_messages: object, context: Any) -> None:
            self._come += 1
            peer = context.peer()
            try:
                check_metadata(context)
                streams.add(peer)
            except (BusyError, RequestError) as error:
                await self._refuse(context, call.path, *status_of(error))
            try:
                await serve(context)
            finally:
                streams.remove(peer)

        return handle

    def _stream(self, call: Call, answer_next: Callable[[Call, Any], Awaitable[bool]]) -> Handle:
        """Return a method that answers requests one after another, until the client has no more or the server stops."""

        async def serve(context: Any) -> None:
            try:
                while await answer_next(call, context):
                    pass
            except StoppingError as error:
                await context.abort(*status_of(error))
            except (BusyError, CallError, RequestError) as error:
                await self._refuse(context, call.path, *status_of(error))

        return self._counted(call, self._streams, serve)

    async def _describe_next(self, call: Call, context: Any) -> bool:
        """Answer a stream's next question about the services; return whether there was one.

        Raises as `_answer_next` does, and `RequestError` if it is no such question.
        """
        content = await self._stream_reader.read(context)
        if content is grpc.aio.EOF:
            return False
        self._check_key(context)
        progress = Progress(perf_counter())
        answer = describe(content)
        self._calls.count(context, call.path, grpc.StatusCode.OK, "", progress)
        await context.write(answer)
        return True

    async def _answer_next(self, call: Call, context: Any) -> bool:
        """Answer a stream's next inference request, with an error in words if it fails; return whether there was one.

        Raises as `StreamReader.read` does, and `CallError` if the key is not valid any more.
        """
        # A list, which frees the message before its answer is written: clients may be slow to take that.
        contents = [await self._stream_reader.read(context)]
        if contents[0] is grpc.aio.EOF:
            return False
        self._check_key(context)
        request_id, size = "", 0
        progress = Progress(perf_counter())

        async def answered() -> bytes:
            nonlocal request_id, size
            if self._under_way > self._options.max_connections:
                raise BusyError
            message = parse(MODEL_INFER, contents.pop())
            request_id = message.id
            reply = await self._inference.answer(message, context, progress)
            reply.parameters["triton_final_response"].bool_param = True
            answer: bytes = call.response(infer_response=reply).SerializeToString()
            size = self._untaken.add(len(answer))
            return answer

        self._under_way += 1
        try:
            answer, failed = await self._outcome(call, context, progress, answered)
            if failed is not None:
                response = call.response(error_message=failed[1], infer_response={"id": request_id})
                answer = response.SerializeToString()
            await context.write(answer)
        finally:
            self._under_way -= 1
            self._untaken.remove(size)
        return True

    async def _watch(self, context: Any) -> None:
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
