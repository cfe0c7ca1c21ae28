"""Rollout workers as Ray's actors, on any number of machines; what they sample comes through Ray's object store."""

import contextlib
import platform
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Any

from trpo_tf.errors import UserError
from trpo_tf.sampling.engines.engine import WorkerLost
from trpo_tf.sampling.engines.worker import Answer, Worker
from trpo_tf.sampling.ray_connection import check_version, connect, is_late, last_line, what_it_waits_for
from trpo_tf.serving import __version__

_INLINE = 100_000
"""Bytes up to which a message goes to each actor by itself. A larger one goes once to each machine."""
_SECONDS_TO_CLOSE = 3.0


class RolloutActor:
    """A worker in Ray's process. `steps` is answered while a call runs, since it has a thread of its own."""

    def __init__(self, first: int, end: int, path: list[str], version: str) -> None:
        """Import from the learner's `path` too, where this machine has it. Raises `UserError` for another version."""
        check_version(version)
        sys.path.extend(folder for folder in path if folder not in sys.path)
        self._steps = 0
        self._worker = Worker(range(first, end), self._count_up)

    def answer(self, call: bytes) -> Answer:
        """Carry out a pickled `Call`. A `UserError` also names this machine, which may lack a module."""
        answer = self._worker.answer(call)
        if answer.failure is None or answer.failure.kind != "user":
            return answer
        reason = f"{answer.failure.reason} (on the machine {platform.node()})"
        return answer._replace(failure=answer.failure._replace(reason=reason))

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
        self.actor = remote.remote(shards.start, shards.stop, sys.path, __version__)
        self.name = f"Ray actor {self.actor._actor_id.hex()[:8]}"
        self._steps = self._ask_steps()
        self._count: int | None = None
        self._since = time.monotonic()
        self.answer: Any = None

    def send(self, message: Any) -> None:
        """Send a pickled call, or Ray's reference to one in the object store."""
        self._since = time.monotonic()
        self.answer = self.actor.answer.remote(message)

    def receive(self) -> Answer:
        """Return the answer; its arrays are views of the object store, and can't be written to."""
        import ray

        try:
            answer: Answer = ray.get(self.answer)
        except ray.exceptions.RayActorError as error:
            if error.actor_init_failed:
                raise UserError(
                    f"a rollout worker can't start on a machine of the cluster: {last_line(error)}"
                ) from None
            raise WorkerLost(f"was lost ({last_line(error)})") from None
        except (ray.exceptions.ObjectLostError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError) as error:
            raise WorkerLost(f"was lost ({last_line(error)})") from None
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
        self._is_ours = connect(address, workers)
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
        """Return the workers whose answer has arrived or is lost."""
        import ray

        answers = [worker.answer for worker in workers]
        first, _ = ray.wait(answers, num_returns=1, timeout=seconds)
        ready = set(ray.wait(answers, num_returns=len(answers), timeout=0)[0]) if first else set()
        if not first and not self._placed:
            self._check_placed(workers)
        return [worker for worker in workers if worker.answer in ready]

    def close(self, workers: Sequence[RayWorker]) -> None:
        """Close the environments, end the actors, and stop Ray if this process started it."""
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
        elif is_late(self._started):
            self._placed = True
            warnings.warn(what_it_waits_for(f"{waiting} workers have not started"), stacklevel=2)
