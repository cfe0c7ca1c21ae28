"""The parent of several workers: it forks them, restarts those that die, and passes on requests to load a model.

Parent and workers exchange messages (`serving.workers.messages`):

- A worker sends `ready` or `failed` when it starts, and `reloaded` when it has new credentials.
- It sends `request` when a client wants a model loaded or unloaded, and `done` when it has done so itself.
- It sends `interfaces` with the interface of each model, which a worker that replaces it keeps to.
- The parent sends `change` to all workers, `answer` to the one that asked, `reload` after SIGHUP, and `stop`.
- Every second the parent sends `ping`. The worker's event loop answers `pong`; a worker that does not is replaced.

A worker whose socket closes has lost its parent, and stops.
"""

import itertools
import logging
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from trpo_tf.serving.errors import BundleError, reason_of
from trpo_tf.serving.listening.credentials import Credentials
from trpo_tf.serving.options import ServeError, ServeOptions
from trpo_tf.serving.support.logs import configure_worker, emit, flush
from trpo_tf.serving.support.signals import stop_requested
from trpo_tf.serving.workers.context import WorkerContext, announce
from trpo_tf.serving.workers.messages import MOST_TEXT, open_channel, receive, send

RESTART_SECONDS = 1.0
"""Least time between two starts of a worker."""

KILL_SECONDS = 5.0
"""How much longer than `drain` a worker may take to end before it is killed."""

PING_SECONDS = 1.0
"""How often a worker is pinged."""

MOST_PINGS = 5
"""Pings in a row that a worker may leave unanswered.

They are counted, not timed: a parent that was itself suspended reads the answers first, and then goes on counting.
"""

START_SECONDS, START_FACTOR = 60.0, 10.0
"""A worker that replaces another may take START_SECONDS plus START_FACTOR times the longest start so far."""

STOP_SECONDS = 2.0
"""How long a worker may take to end at once, before it is killed."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass
class _Worker:
    pid: int
    channel: socket.socket
    started: float
    is_ready: bool = False
    unanswered: int = 0
    is_killed: bool = False


@dataclass
class _ModelChange:
    """A load or unload under way.

    Attributes:
        index: worker that asked for it.
        number: number that this worker gave it.
        action: `load` or `unload`.
        name: name of the model.
        waiting: workers that have not done it yet.
        error: kind and message of the first error.
    """

    index: int
    number: int
    action: str
    name: str
    waiting: set[int]
    error: list[str] | None = None


@dataclass
class Supervisor:
    """Parent of the workers: it starts, watches and stops them, and passes on loads of models."""

    options: ServeOptions
    work: Callable[[WorkerContext], None]
    credentials: Credentials
    listeners: Sequence[socket.socket]
    urls: Sequence[str]
    workers: dict[int, _Worker] = field(default_factory=dict)
    due: dict[int, float] = field(default_factory=dict)  # when to replace a worker, by index
    changes: dict[int, _ModelChange] = field(default_factory=dict)
    unloaded: set[str] = field(default_factory=set)
    interfaces: dict[str, Any] = field(default_factory=dict)
    source: Any = None
    failure: str = ""
    is_announced: bool = False
    stop_signals: int = 0
    deadline: float = 0.0
    ping_due: float = 0.0
    slowest_start: float = 0.0

    def __post_init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.numbers = itertools.count()

    def run(self) -> None:
        """Run workers until SIGTERM or SIGINT, and until all have ended. Raises `ServeError` if the start fails."""
        with _signals() as wakeup, self.selector:
            self.selector.register(wakeup, selectors.EVENT_READ)
            if not stop_requested():
                self.start(0)  # alone, so that an error common to all is reported once
            while self.workers or (self.due and not self.stop_signals):
                for key, _ in self.selector.select(self.timeout()):
                    if key.fileobj is wakeup:
                        for number in wakeup.recv(64):
                            self.reload() if number == signal.SIGHUP else self.stop()
                    else:
                        self.receive(key.data)
                self.handle_due()
        if self.failure and not self.is_announced:
            raise ServeError(self.failure)

    def start(self, index: int) -> None:
        """Fork a worker. Raises `OSError` if the system has no process, or no files, for it."""
        ours, theirs = open_channel()
        context = WorkerContext(index, theirs, self.source, tuple(self.unloaded), self.interfaces)
        try:
            pid = os.fork()
        except OSError as error:
            ours.close()
            theirs.close()
            message = f"no process can be started ({error.strerror}); raise the limit of processes (ulimit -u)"
            raise ServeError(message) from None
        if pid == 0:
            # Another worker must see its channel close when the parent dies, so this one keeps none of them open.
            for channel in (ours, *(worker.channel for worker in self.workers.values())):
                channel.close()
            _run_worker(self.work, context)
        theirs.close()
        self.due.pop(index, None)
        self.workers[index] = _Worker(pid, ours, time.monotonic())
        self.selector.register(ours, selectors.EVENT_READ, index)

    def replace_worker(self, index: int, now: float) -> None:
        """Replace a worker; if the system has no process or file for it, try again later."""
        try:
            self.start(index)
        except OSError as error:
            self.due[index] = now + RESTART_SECONDS
            message = f"worker {index} can't be started, and is tried again: {error}"
            emit("worker", message, level=logging.WARNING, worker=index)

    def receive(self, index: int) -> None:
        """Handle a worker's message, or its end."""
        worker = self.workers[index]
        worker.unanswered = 0
        match receive(worker.channel):
            case None:
                self.reap(index)
            case {"ready": names, "count": count, "source": source}:
                worker.is_ready = True
                self.slowest_start = max(self.slowest_start, time.monotonic() - worker.started)
                self.source = source
                self.on_ready(names, count)
            case {"interfaces": changed}:
                self.interfaces = {
                    name: interface for name, interface in (self.interfaces | changed).items() if interface
                }
            case {"reloaded": True}:
                self.credentials.refresh()
            case {"failed": text}:
                self.failure = text
                if self.is_announced:
                    emit("worker", f"worker {index} can't start: {text}", level=logging.WARNING, worker=index)
            case {"request": number, "action": action, "name": name}:
                self.broadcast(_ModelChange(index, number, action, name, set(self.workers)))
            case {"done": number, "error": error}:
                self.on_done(number, index, error)

    def on_ready(self, names: list[str], count: int) -> None:
        """Start the other workers once the first is ready, and announce the server once all are."""
        if self.is_announced or self.stop_signals:
            return
        for index in range(self.options.workers):
            if index not in self.workers:
                self.start(index)
        if all(worker.is_ready for worker in self.workers.values()):
            self.is_announced = True
            announce(names, count, self.urls)

    def reap(self, index: int) -> None:
        """Collect a worker that has ended, and schedule its replacement.

        There is none if the server stops. Before the server was ready, the end of a worker stops it.
        """
        worker = self.workers.pop(index)
        self.selector.unregister(worker.channel)
        worker.channel.close()
        status = os.waitstatus_to_exitcode(os.waitpid(worker.pid, 0)[1])
        for number in list(self.changes):
            self.on_done(number, index, None)
        if self.stop_signals:
            return
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        if status == -signal.SIGKILL and not worker.is_killed:
            how += " (perhaps memory ran out)"
        if not self.is_announced:
            self.failure = self.failure or f"worker {index} {how} before it was ready"
            self.stop()
            return
        message = f"worker {index} (process {worker.pid}) {how}; another takes its place"
        emit("worker", message, level=logging.WARNING, worker=index, process=worker.pid)
        self.due[index] = worker.started + RESTART_SECONDS

    def broadcast(self, change: _ModelChange) -> None:
        """Have all workers load or unload a model; workers that start later leave out an unloaded one."""
        number = next(self.numbers)
        self.changes[number] = change
        (self.unloaded.add if change.action == "unload" else self.unloaded.discard)(change.name)
        for index in self.workers:
            self.send(index, {"change": number, "action": change.action, "name": change.name})

    def on_done(self, number: int, index: int, error: list[str] | None) -> None:
        """Record that a worker has done a load or unload, or has ended; after the last, answer the asking worker."""
        change = self.changes[number]
        change.waiting.discard(index)
        change.error = change.error or error
        if not change.waiting:
            del self.changes[number]
            if change.error and change.action == "unload":
                self.unloaded.discard(change.name)
            self.send(change.index, {"answer": change.number, "error": change.error})

    def send(self, index: int, message: dict[str, Any]) -> None:
        """Send a message to a worker; it is lost if the worker has ended or hangs."""
        if index in self.workers:
            send(self.workers[index].channel, message)

    def reload(self) -> None:
        """Have all workers read keys and certificates again."""
        for index in self.workers:
            self.send(index, {"reload": True})

    def stop(self) -> None:
        """Let the workers finish what is under way; called again, let them end at once."""
        if not self.stop_signals:
            self.deadline = time.monotonic() + self.options.drain + KILL_SECONDS
            for listener in self.listeners:
                listener.close()  # each worker has its own, and closes it when it has taken what waits there
        else:
            self.deadline = min(self.deadline, time.monotonic() + STOP_SECONDS)
        self.stop_signals += 1
        for index, worker in self.workers.items():
            self.send(index, {"stop": True})
            if not worker.is_ready:
                os.kill(worker.pid, signal.SIGTERM)  # it may be loading for long, and has no requests

    def timeout(self) -> float | None:
        """Return the seconds until something is due."""
        times = [self.deadline] if self.stop_signals else [self.ping_due, *self.due.values()]
        return max(0.0, min(times) - time.monotonic())

    def handle_due(self) -> None:
        """Replace and ping workers when that is due, and kill those that don't end in time."""
        now = time.monotonic()
        if self.stop_signals:
            if now > self.deadline:
                for worker in self.workers.values():
                    os.kill(worker.pid, signal.SIGKILL)
            return
        for index, when in list(self.due.items()):
            if now >= when:
                self.replace_worker(index, now)
        if now >= self.ping_due:
            self.ping_due = now + PING_SECONDS
            for index, worker in self.workers.items():
                self.ping(index, worker, now)

    def ping(self, index: int, worker: _Worker, now: float) -> None:
        """Ping a worker, or kill it if it has not answered for too long."""
        if worker.is_ready:
            is_hung, what = worker.unanswered >= MOST_PINGS, "does not answer"
        else:
            most = START_SECONDS + START_FACTOR * self.slowest_start
            is_hung, what = self.is_announced and now - worker.started > most, "takes too long to start"
        if is_hung and not worker.is_killed:
            worker.is_killed = True
            message = f"worker {index} (process {worker.pid}) {what}, and is killed"
            emit("worker", message, level=logging.WARNING, worker=index, process=worker.pid)
            os.kill(worker.pid, signal.SIGKILL)
        elif worker.is_ready:
            worker.unanswered += 1
            self.send(index, {"ping": True})


@contextmanager
def _signals() -> Iterator[socket.socket]:
    """Provide a socket that yields the number of each SIGTERM, SIGINT and SIGHUP as a byte."""
    wakeup, wakeup_writer = socket.socketpair()
    wakeup_writer.setblocking(False)
    with wakeup, wakeup_writer:
        handlers = {number: signal.signal(number, _ignore) for number in _SIGNALS}
        before = signal.set_wakeup_fd(wakeup_writer.fileno())
        try:
            yield wakeup
        finally:
            signal.set_wakeup_fd(before)
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _ignore(_number: int, _frame: object) -> None:
    """Do nothing: with a handler the signal is written to the socket, and does not end the process."""


def _run_worker(work: Callable[[WorkerContext], None], context: WorkerContext) -> None:
    """Run a worker in a forked process, and exit here, so that the parent's cleanup does not run twice."""
    status = 1
    try:
        configure_worker(context.worker_index)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the parent passes it on as a message
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to workers too: the parent decides
        work(context)
        status = 0
    except (BundleError, OSError, ImportError, MemoryError) as error:
        if context.channel is not None:
            send(context.channel, {"failed": reason_of(error)[:MOST_TEXT]})
        status = 2
    except Exception as error:  # noqa: BLE001 (it is logged)
        emit("fault", f"worker {context.worker_index} failed", level=logging.ERROR, fault=error)
    finally:
        flush()
        os._exit(status)


def supervise(
    options: ServeOptions,
    work: Callable[[WorkerContext], None],
    credentials: Credentials,
    listeners: Sequence[socket.socket],
    urls: Sequence[str],
) -> None:
    """Run `options.workers` processes of `work` until SIGTERM or SIGINT. Raises `ServeError`."""
    Supervisor(options, work, credentials, listeners, urls).run()
