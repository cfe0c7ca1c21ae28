"""Rollout workers as Ray's actors, on any number of machines; what they sample comes through Ray's object store."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from trpo_tf.errors import UserError
from trpo_tf.sampling.engine import WorkerLost
from trpo_tf.sampling.worker import Answer, Worker

LOCAL = "local"
"""The address that starts Ray on this machine."""
_INLINE = 100_000
"""Bytes up to which a message goes to each actor by itself. A larger one goes once to each machine."""
_SECONDS_TO_CLOSE = 3.0
_SECONDS_TO_PLACE = 60.0
_SECONDS_TO_REACH = 10.0


class RolloutActor:
    """A worker in Ray's process. `steps` is answered while a call runs, since it has a thread of its own."""

    def __init__(self, first: int, end: int, path: list[str]) -> None:
        """Import from the learner's `path` too, where this machine has it."""
        sys.path.extend(folder for folder in path if folder not in sys.path)
        self._steps = 0
        self._worker = Worker(range(first, end), self._count_up)

    def answer(self, call: bytes) -> Answer:
        """Carry out a pickled `Call`."""
        return self._worker.answer(call)

    def steps(self) -> int:
        """Return the number of steps taken."""
        return self._steps

    def close(self) -> None:
        """Close the environments."""
        self._worker.close()

    def _count_up(self) -> None:
        self._steps += 1


class RayWorker:
    """An actor; see `RemoteWorker`."""

    def __init__(self, shards: range) -> None:
        import ray

        remote = ray.remote(num_cpus=1, max_restarts=0, concurrency_groups={"watch": 1})(RolloutActor)
        self.actor = remote.remote(shards.start, shards.stop, sys.path)
        self.name = f"Ray actor {self.actor._actor_id.hex()[:8]}"
        self._steps = self._ask_steps()
        self._count: int | None = None
        self._since = time.monotonic()
        self.answer: Any = None

    def send(self, message: Any) -> None:
        """Send a call, or the reference of one."""
        self._since = time.monotonic()
        self.answer = self.actor.answer.remote(message)

    def receive(self) -> Answer:
        """Return the answer; its arrays are views of the object store, and can't be written to."""
        import ray

        try:
            answer: Answer = ray.get(self.answer)
        except ray.exceptions.RayActorError as error:
            if error.actor_init_failed:
                raise UserError(f"a rollout worker can't start on a machine of the cluster: {_last(error)}") from None
            raise WorkerLost(f"was lost ({_last(error)})") from None
        except (ray.exceptions.ObjectLostError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError) as error:
            raise WorkerLost(f"was lost ({_last(error)})") from None
        return answer

    def seconds_in_step(self) -> float:
        """Return for how long the call has been running, or its latest step; 0 before the actor has been placed."""
        import ray

        if ray.wait([self._steps], timeout=0)[0]:
            with contextlib.suppress(ray.exceptions.RayError):  # of a lost actor, of which the answer tells
                count = ray.get(self._steps)
                if count != self._count:
                    self._count, self._since = count, time.monotonic()
            self._steps = self._ask_steps()
        return 0.0 if self._count is None else time.monotonic() - self._since

    def kill(self) -> None:
        """End the actor's process at once."""
        import ray

        ray.kill(self.actor)

    def _ask_steps(self) -> Any:
        return self.actor.steps.options(concurrency_group="watch").remote()


class RayEngine:
    """Starts actors; see `Engine`."""

    def __init__(self, address: str, workers: int) -> None:
        """Connect to the cluster at this address, or to the one that this process is connected to.

        Raises `UserError` if it can't be reached.
        """
        self._is_ours = _connect(address, workers)
        self._started, self._placed = time.monotonic(), False

    def start(self, shards: range) -> RayWorker:
        """Start an actor for these shards, on any machine with an idle core."""
        self._started, self._placed = time.monotonic(), False
        return RayWorker(shards)

    def message(self, call: bytes) -> Any:
        """Return the call, or where the object store has it."""
        import ray

        return call if len(call) <= _INLINE else ray.put(call)

    def wait(self, workers: Sequence[RayWorker], seconds: float) -> list[RayWorker]:
        """Return those whose answer has arrived, or failed to."""
        import ray

        answers = [worker.answer for worker in workers]
        first, _ = ray.wait(answers, num_returns=1, timeout=seconds)
        ready = set(ray.wait(answers, num_returns=len(answers), timeout=0)[0]) if first else set()
        if not first and not self._placed:
            self._check_placed(workers)
        return [worker for worker in workers if worker.answer in ready]

    def close(self, workers: Sequence[RayWorker]) -> None:
        """Close the environments, end the actors, and what was started of Ray."""
        import ray

        with contextlib.suppress(ray.exceptions.RayError):
            closed = [worker.actor.close.remote() for worker in workers]
            ray.wait(closed, num_returns=len(closed), timeout=_SECONDS_TO_CLOSE)
            for worker in workers:
                worker.kill()
        if self._is_ours:
            ray.shutdown()

    def _check_placed(self, workers: Sequence[RayWorker]) -> None:
        """Warn, once after each start, of actors that have not started: the cluster may have no idle core for them."""
        waiting = sum(worker.seconds_in_step() == 0 for worker in workers)
        if not waiting:
            self._placed = True
        elif time.monotonic() - self._started > _SECONDS_TO_PLACE:
            self._placed = True
            what = f"{waiting} workers have not started: does the Ray cluster have an idle core for each?"
            warnings.warn(what, stacklevel=2)


def check_installed() -> None:
    """Raise `UserError` if Ray is not installed."""
    from importlib.util import find_spec

    from trpo_tf.serving.errors import install

    if find_spec("ray") is None:
        raise UserError(f"Ray is not installed ({install('ray')})")


def _connect(address: str, workers: int) -> bool:
    """Connect this process to Ray unless it is connected, and return whether it was not."""
    # Read when Ray starts: nothing is reported to its makers.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    if ray.is_initialized():
        return False
    if address not in (LOCAL, "auto"):
        _check_reachable(address)
    # Alone on this machine, Ray has a core for each worker, and nobody else reaches it.
    alone = {"num_cpus": workers, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    with _signal_handlers_kept():
        try:
            ray.init(address, logging_level="WARNING", **(alone if address == LOCAL else {}))
        except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            raise UserError(_unreachable(address, error)) from error
    return True


def _check_reachable(address: str) -> None:
    """Raise `UserError` if nothing listens there; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), _SECONDS_TO_REACH).close()
    except (OSError, ValueError) as error:
        raise UserError(_unreachable(address, error)) from error


def _unreachable(address: str, error: Exception) -> str:
    reason = " ".join(str(error).split())
    return (
        f"no Ray cluster at {address} ({reason}); give HOST:PORT of its head, or {LOCAL} to start Ray on this machine"
    )


@contextlib.contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Restore the handlers of SIGINT and SIGTERM, which Ray replaces by its own."""
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _last(error: Exception) -> str:
    """Return the last line of an error's message, which says why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
