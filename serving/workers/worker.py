"""One worker process: its models, which follow the repository, its connections, and its shutdown."""

import asyncio
import itertools
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop

from trpo_tf.serving.bundle.interface import from_json, to_json
from trpo_tf.serving.errors import BundleError, install
from trpo_tf.serving.inference.kept_state import SequenceRunner
from trpo_tf.serving.inference.runners import DirectRunner, Runner
from trpo_tf.serving.listening.credential_reloading import Reloader
from trpo_tf.serving.listening.credentials import Credentials
from trpo_tf.serving.listening.open_files import FileWatch
from trpo_tf.serving.listening.sockets import BACKLOG, GrpcPlace, accept_waiting, refuse_new
from trpo_tf.serving.metrics.series import Metrics
from trpo_tf.serving.metrics.shared_counters import SharedCounters
from trpo_tf.serving.options import ServeError, ServeOptions
from trpo_tf.serving.repository.catalog import Release
from trpo_tf.serving.repository.discovery import Source, resolve_source
from trpo_tf.serving.repository.repository import Repository
from trpo_tf.serving.repository.scan_thread import ScanThread
from trpo_tf.serving.rest.connection import SWEEP_SECONDS, Connection
from trpo_tf.serving.rest.routes import ReleaseRoutes, Route, make_routes, without_readiness
from trpo_tf.serving.rest.server_state import ServerState
from trpo_tf.serving.support.allocation import return_large_blocks
from trpo_tf.serving.support.logs import emit
from trpo_tf.serving.support.signals import stop_requested
from trpo_tf.serving.tracing.observers import observers_of
from trpo_tf.serving.tracing.records import Observers
from trpo_tf.serving.workers.context import MOST_NAMES, WorkerContext, announce
from trpo_tf.serving.workers.messages import MOST_TEXT, receive, send

if TYPE_CHECKING:
    from trpo_tf.serving.grpc.server import GrpcServer
    from trpo_tf.serving.listening.accepting import TlsAcceptor

SWITCH_SECONDS = 0.0005
"""Interpreter's switch interval: a thread that loads a model may block the event loop for a tenth of the default."""

LEAVE_SECONDS = 0.5
"""How long after SIGTERM connections are still accepted, so that clients can see that the server is not ready."""

ACCEPT_SECONDS, ACCEPT_TURNS = 0.1, 10
"""After the listener stops taking new connections, keep accepting queued ones for this long, in so many turns.

With a single turn, a process that was descheduled would see the timeout before the connections.
"""

REQUEST_SECONDS = 1.0
"""How long open connections may then take to send a last request, which is answered before they are closed."""

NAMES_AT_ONCE = 32
"""Models whose interfaces one message has."""

CONTROL_SECONDS = 30.0
"""How long to wait until all workers have loaded or unloaded a model."""

_ERRORS: dict[str, type[Exception]] = {"unknown": LookupError, "refused": BundleError}


def work(
    path: Path,
    options: ServeOptions,
    credentials: Credentials,
    listeners: list[socket.socket],
    urls: list[str],
    grpc: Sequence[GrpcPlace],
    context: WorkerContext,
    counters: SharedCounters,
) -> None:
    """Load the models, answer until the stop, and finish. Raises `BundleError` and `ServeError`."""
    return_large_blocks()
    source = resolve_source(path) if context.source is None else Source.from_json(context.source)
    metrics = Metrics(counters, context.worker_index)
    # Every worker sees the same folder, so only the first counts loads and failures.
    repository = Repository(source, options, metrics.reloaded if context.worker_index == 0 else None)
    try:
        repository.start(
            context.unloaded,
            {name: (version, from_json(interface)) for name, (version, interface) in context.interfaces.items()},
        )
    except BundleError:
        if context.source is None:
            raise
        # Not the first worker: one that is not ready is better than none.
    sys.setswitchinterval(SWITCH_SECONDS)
    with observers_of(options) as observers:
        loop = uvloop.new_event_loop()
        try:
            loop.run_until_complete(
                Worker(repository, options, credentials, context, metrics, observers).run(listeners, urls, grpc)
            )
        finally:
            loop.close()


class Worker:
    """The server's state in one process, which follows the repository; `context.worker_index` identifies the worker.

    Attributes:
        catalog: models that answer now. It changes together with the state's routes, in the event loop.
    """

    def __init__(
        self,
        repository: Repository,
        options: ServeOptions,
        credentials: Credentials,
        context: WorkerContext,
        metrics: Metrics,
        observers: Observers,
    ) -> None:
        self._repository, self._options, self._context, self._metrics = repository, options, context, metrics
        self._tls = credentials.tls
        self._acceptor: TlsAcceptor | None = None
        self._change_lock, self._scan_thread = asyncio.Lock(), ScanThread()
        self._stopping, self._stop_now, self._is_stop_requested = asyncio.Event(), asyncio.Event(), False
        self._numbers = itertools.count()
        self._requested: dict[int, asyncio.Future[list[str] | None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._observers = observers
        self.catalog = repository.catalog
        self._release_routes: ReleaseRoutes = {}
        self.state = ServerState(self._routes(), options, metrics, credentials.keys, observers)
        self._reloader = Reloader(credentials.followed(), self._report_reloaded, logs=context.worker_index == 0)
        self._runner = _make_runner(options)
        self._sequences = SequenceRunner(options, self._runner)
        metrics.sequences = self._sequences.sequences
        self._connect = partial(Connection, self.state, self._runner, self._sequences)
        metrics.show(self.catalog)
        if options.poll:
            metrics.looked()

    async def run(self, listeners: list[socket.socket], urls: list[str], grpc: Sequence[GrpcPlace]) -> None:
        """Answer until the stop; then report that nothing is ready, accept queued connections, and finish."""
        self._listen_to_signals()
        if stop_requested():
            self._stop()
        grpc_server = self._grpc_server() if grpc else None
        if grpc_server:
            await grpc_server.start(grpc)
        servers = await self._listen(listeners)
        sweeping, following = asyncio.ensure_future(self._sweep()), asyncio.ensure_future(self._follow())
        self._reloader.start()
        self._report_ready(urls)
        await self._stopping.wait()
        following.cancel()
        self.state.routes = without_readiness(self.state.routes)
        ending = asyncio.ensure_future(grpc_server.stop(self._stop_now)) if grpc_server else None
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stop_now.wait(), LEAVE_SECONDS)
        for listener in listeners:
            refuse_new(listener)
        for _ in range(ACCEPT_TURNS):
            await asyncio.sleep(ACCEPT_SECONDS / ACCEPT_TURNS)
        await self._close(servers, listeners)
        # Not earlier: a client whose connection is closed opens another. Where `refuse_new` has no effect, in a
        # container for example, a connection that arrives while the listener closes is lost.
        self.state.stopping = True
        with suppress(TimeoutError):
            await asyncio.wait_for(self._until_empty(), REQUEST_SECONDS)
        if self._acceptor:
            self._acceptor.abort()
        self.state.stop()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._until_empty(), self._options.drain)
        if ending:
            await ending
        sweeping.cancel()
        for connection in list(self.state.connections):
            connection.abort()
        await asyncio.sleep(0)
        if not self._stop_now.is_set():
            self._scan_thread.finish()

    async def _listen(self, listeners: list[socket.socket]) -> "list[asyncio.Server | TlsAcceptor]":
        """Accept connections from now on, and return the servers that do."""
        if self._tls is None:
            loop = asyncio.get_running_loop()
            return [await loop.create_server(self._connect, sock=listener, backlog=BACKLOG) for listener in listeners]
        from trpo_tf.serving.listening.accepting import TlsAcceptor

        most, connections = self._options.max_connections, self.state.connections

        def evicted() -> None:
            self._metrics.evictions += 1

        def room() -> int:
            return most - len(connections)

        acceptor = TlsAcceptor(self._connect, listeners, self._tls, self._options.timeout, room, evicted)
        self._metrics.loads.append(lambda: (acceptor.pending, 0))
        self._acceptor = acceptor
        return [acceptor]

    async def _close(self, servers: "list[asyncio.Server | TlsAcceptor]", listeners: list[socket.socket]) -> None:
        """Stop accepting connections, and serve those that wait to be accepted."""
        waiting = [] if self._acceptor else [each for listener in listeners for each in accept_waiting(listener)]
        for server in servers:
            server.close()
        for connection in waiting:
            with suppress(OSError):  # its client has left
                await asyncio.get_running_loop().connect_accepted_socket(self._connect, connection)

    def _grpc_server(self) -> "GrpcServer":
        """Return the gRPC server. Raises `ServeError` if gRPC is not installed."""
        try:
            from trpo_tf.serving.grpc.server import GrpcServer
        except ImportError as error:
            option = "--grpc-port" if self._options.grpc_port >= 0 else "--grpc-uds"
            raise ServeError(f"{option} needs {error.name}; {install('grpc')}") from None
        return GrpcServer(
            lambda: self.catalog,
            self._options,
            self._metrics,
            self.state.keys,
            self._runner,
            self._sequences,
            self._observers,
            self._tls,
        )

    # The models

    def _routes(self) -> dict[str, Route]:
        catalog = self._repository.catalog
        routes = make_routes(catalog, self._options, self._metrics, self._release_routes)
        if self._options.repository_api:
            from trpo_tf.serving.rest.model_repository import control_routes

            routes |= control_routes(
                catalog, self._change if self._context.channel is None else self._change_everywhere
            )
        return routes

    async def _follow(self) -> None:
        """Refresh the repository every `poll` seconds. A fault that lasts is logged once."""
        fault = ""
        while self._options.poll:
            await asyncio.sleep(self._options.poll)
            before, fault = fault, ""
            try:
                await self._apply(self._repository.refresh)
                if self._repository.is_readable:
                    self._metrics.looked()
            except Exception as error:  # noqa: BLE001 (it is logged)
                if (fault := repr(error)) != before:
                    message = "the repository can't be followed; it is scanned again"
                    emit("fault", message, level=logging.ERROR, fault=error)

    async def _change(self, action: str, name: str) -> None:
        """Load or unload a model in this worker. Raises `LookupError` and `BundleError`."""
        await self._apply(partial({"load": self._repository.load, "unload": self._repository.unload}[action], name))

    async def _apply(self, change: Callable[[], None]) -> None:
        """Change the catalog, and replace the routes by those of the new catalog.

        A thread does all but the last step. The event loop replaces the routes between two requests, so each request
        is answered from the routes that it found.
        """
        async with self._change_lock:
            try:
                await self._scan_thread.run(change)
            finally:
                if self._repository.catalog != self.catalog:
                    routes = await self._scan_thread.run(self._routes)
                    self._report_interfaces(self.catalog.releases)
                    if self.catalog.releases.keys() - self._repository.catalog.releases:
                        self._sequences.sequences.keep_models(self._repository.catalog.releases)
                    self.catalog = self._repository.catalog
                    self._metrics.show(self.catalog)
                    if not self._stopping.is_set():
                        self.state.replace_routes(routes, self._sequences.sequences.places())

    # The other workers

    async def _change_everywhere(self, action: str, name: str) -> None:
        """Load or unload a model in every worker. Raises `LookupError`, `BundleError` and `TimeoutError`."""
        number = next(self._numbers)
        self._requested[number] = asyncio.get_running_loop().create_future()
        self._send({"request": number, "action": action, "name": name})
        try:
            error = await asyncio.wait_for(self._requested[number], CONTROL_SECONDS)
        finally:
            del self._requested[number]
        if error:
            raise _ERRORS[error[0]](error[1])

    async def _change_and_report(self, number: int, action: str, name: str) -> None:
        error = None
        try:
            await self._change(action, name)
        except LookupError as unknown:
            error = ["unknown", str(unknown.args[0])[:MOST_TEXT]]
        except BundleError as refused:
            error = ["refused", str(refused)[:MOST_TEXT]]
        self._send({"done": number, "error": error})

    def _receive(self, channel: socket.socket) -> None:
        match receive(channel):
            case {"change": number, "action": action, "name": name}:
                task = asyncio.ensure_future(self._change_and_report(number, action, name))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case {"answer": number, "error": error} if number in self._requested:
                self._requested[number].set_result(error)
            case {"ping": True}:
                self._send({"pong": True})
            case {"reload": True}:
                self._reloader.request_reload()
            case {"stop": True}:
                self._stop()
            case None:
                asyncio.get_running_loop().remove_reader(channel)
                self._stop()

    def _send(self, message: dict[str, Any]) -> None:
        if self._context.channel is not None:
            send(self._context.channel, message)

    def _report_ready(self, urls: list[str]) -> None:
        names = list(self.catalog.releases)
        shown, count = names[:MOST_NAMES], len(names)
        if self._context.channel is None:
            announce(shown, count, urls)
        self._send({"ready": shown, "count": count, "source": self._repository.source.to_json()})
        self._report_interfaces({})

    def _report_interfaces(self, before: Mapping[str, Release]) -> None:
        """Send the parent the interface of each changed model, some models at a time: packets must be small."""
        after, changed = self._repository.catalog.releases, {}
        for name in before.keys() | after.keys():
            if before.get(name) is not after.get(name):
                acting = self._repository.acting(name)
                changed[name] = acting and [acting[0], to_json(acting[1])]
        names = list(changed)
        for first in range(0, len(names), NAMES_AT_ONCE):
            self._send({"interfaces": {name: changed[name] for name in names[first : first + NAMES_AT_ONCE]}})

    def _report_reloaded(self) -> None:
        """Have the parent read keys and certificates again, so that workers that it starts later have them."""
        if self._context.worker_index == 0:
            self._send({"reloaded": True})

    # The end

    def _listen_to_signals(self) -> None:
        loop, channel = asyncio.get_running_loop(), self._context.channel
        if channel is None:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._stop)
            loop.add_signal_handler(signal.SIGHUP, self._reloader.request_reload)
            return
        # The parent's messages say when to stop, and when at once. Service managers also signal every process of the
        # server: all such signals count as one.
        loop.add_signal_handler(signal.SIGTERM, self._stopping.set)
        loop.add_reader(channel, self._receive, channel)

    def _stop(self) -> None:
        if self._is_stop_requested:
            self._stop_now.set()
        self._is_stop_requested = True
        self._stopping.set()

    async def _sweep(self) -> None:
        files = FileWatch(self._options)
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self.state.sweep(asyncio.get_running_loop().time())
            self._sequences.sequences.expire(time.monotonic())
            if self.state.retired:
                self.state.replace_routes(self.state.routes, self._sequences.sequences.places())
            files.look(len(self.state.connections) + (self._acceptor.pending if self._acceptor else 0))

    async def _until_empty(self) -> None:
        """Wait until no connection is left, or the worker has to end at once."""
        while (self.state.connections or self._is_in_handshake()) and not self._stop_now.is_set():
            await asyncio.sleep(0.01)

    def _is_in_handshake(self) -> bool:
        """Return whether a TLS handshake is under way, whose client has had no chance to ask yet."""
        return self._acceptor is not None and self._acceptor.pending > 0


def _make_runner(options: ServeOptions) -> Runner:
    if not options.batching:
        return DirectRunner()
    # Imported only if it is asked for, so that a server without it starts faster.
    from trpo_tf.serving.inference.batching import Batcher

    return Batcher(options.max_batch)
