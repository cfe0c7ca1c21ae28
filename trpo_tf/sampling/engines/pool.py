"""Call workers, and replace one that ends or hangs.

A worker is sent one call at a time and answers once. The calls that its state depends on are kept. A worker that takes
another's place repeats them, so that it comes to the same state.
"""

import itertools
import pickle
import warnings
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from trpo_tf.config.environment import Environment
from trpo_tf.errors import EnvironmentFailure, UserError
from trpo_tf.sampling.engines.engine import Engine, RemoteWorker, WorkerLost
from trpo_tf.sampling.engines.worker import Answer, Call, Failure, Job
from trpo_tf.sampling.shard import shard_bounds
from trpo_tf.sampling.workers import Workers, registration

_MOST_FAULTS = 3
"""Faults of one worker in one call, after which the run ends: the environment itself ends its process, say."""
_SECONDS_TO_MAKE = 60.0
"""Time beyond `step_timeout` to import the environment's packages, and to make the environments."""
_CALLS_BEFORE_SAMPLING = 2
"""`prepare` and `restart`."""
_SECONDS_BETWEEN_LOOKS = 0.5


@dataclass
class _Place:
    """Parts of the work, the worker that does them at present, and its latest answer.

    `digests` are those of the first answers to the calls; `faults` counts those in the present call.
    """

    parts: range
    worker: RemoteWorker
    answered: int
    answer: Answer
    digests: list[int]
    faults: int = 0


class WorkerPool:
    """Workers, each of which does a fixed range of some parts of the work: shards, or episodes."""

    def __init__(self, workers: Workers, engine: Engine, environment: Environment, parts: int, called: str) -> None:
        """Start the workers; messages call a part `called`. `close` also closes the engine."""
        self._step_timeout, self._engine, self._count, self._called = workers.step_timeout, engine, parts, called
        # Each worker is sent these one after the other.
        self._messages = [engine.message(pickle.dumps(Call("prepare", (registration(environment),))))]
        bounds = itertools.pairwise(shard_bounds(parts, workers.count))
        self._places = [
            _Place(numbers, self._started(numbers), 0, Answer(), []) for numbers in itertools.starmap(range, bounds)
        ]

    def forget(self, count: int) -> None:
        """Forget the calls after the first `count`: a new worker need not repeat them."""
        del self._messages[count:]
        for place in self._places:
            place.answered = min(place.answered, count)
            del place.digests[count:]

    def call(self, call: Call) -> list[Answer]:
        """Send a call to every worker, and return the answers; workers that end or hang are replaced meanwhile."""
        idle = [place for place in self._places if place.answered == len(self._messages)]
        self._messages.append(self._engine.message(pickle.dumps(call)))
        for place in idle:
            place.worker.send(self._messages[-1])
        while pending := [place for place in self._places if place.answered < len(self._messages)]:
            ready = self._engine.wait([place.worker for place in pending], _SECONDS_BETWEEN_LOOKS)
            for place in pending:
                if place.worker in ready:
                    self._receive(place)
                elif self._step_timeout:
                    self._check_time(place)
        for place in self._places:
            place.faults = 0
        return [place.answer for place in self._places]

    def run(self, job: Job) -> list[Any]:
        """Return what a job gives for each part, in their order. The workers' own state must not depend on it."""
        answers = self.call(Call("run", (pickle.dumps(job),)))
        self.forget(len(self._messages) - 1)
        return [result for answer in answers for result in answer.results]

    def close(self) -> None:
        """Close the environments, and end the workers."""
        self._engine.close([place.worker for place in self._places])
        self._places = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _receive(self, place: _Place) -> None:
        """Note an answer, compare it with the first one to the same call, and send the next call."""
        try:
            answer = place.worker.receive()
        except WorkerLost as lost:
            self._replace(place, str(lost))
            return
        if answer.failure is not None:
            raise _error(answer.failure)
        if place.answered == len(place.digests):
            place.digests.append(answer.digest)
        elif answer.digest != place.digests[place.answered]:
            place.digests[place.answered] = answer.digest
            warnings.warn(
                f"{self._named(place)}: the environment is not deterministic. From the same seed and policy it gave "
                "other rewards or observations than before; the run goes on, but is not the same as without the fault",
                stacklevel=2,
            )
        place.answer, place.answered = answer, place.answered + 1
        if place.answered < len(self._messages):
            place.worker.send(self._messages[place.answered])

    def _check_time(self, place: _Place) -> None:
        allowed = self._step_timeout + (_SECONDS_TO_MAKE if place.answered < _CALLS_BEFORE_SAMPLING else 0.0)
        if place.worker.seconds_in_step() > allowed:
            self._replace(place, f"did not finish a step in {allowed:g} s")

    def _replace(self, place: _Place, what: str) -> None:
        """Start a worker in place of one that `what` happened to; it repeats the calls that are kept."""
        place.faults += 1
        if place.faults == _MOST_FAULTS:
            raise EnvironmentFailure(f"the worker {what}, {_MOST_FAULTS} times in one segment", self._named(place))
        place.worker.kill()
        segments = max(0, len(self._messages) - _CALLS_BEFORE_SAMPLING)
        repeats = f"repeats the {segments} segments since the latest checkpoint" if segments else "does its work"
        named = f"{self._named(place)}: the worker, {place.worker.name}"
        warnings.warn(f"{named}, {what}; a new one {repeats}", stacklevel=2)
        place.worker, place.answered = self._started(place.parts), 0

    def _started(self, parts: range) -> RemoteWorker:
        worker = self._engine.start(parts)
        worker.send(self._messages[0])
        return worker

    def _named(self, place: _Place) -> str:
        first, last = place.parts.start + 1, place.parts.stop
        named = f"{self._called} {first}" if first == last else f"{self._called}s {first} to {last}"
        return f"{named} of {self._count}"


def _error(failure: Failure) -> Exception:
    """Return the exception to raise for a failure in a worker; its cause has the worker's traceback as a note."""
    if failure.kind == "user":
        return UserError(failure.reason)
    if failure.kind == "worker":
        return _noted(RuntimeError(f"a rollout worker failed: {failure.reason}"), failure)
    error = EnvironmentFailure(failure.reason, *failure.where)
    if failure.cause is not None:
        error.__cause__ = _noted(pickle.loads(failure.cause), failure)
    return error


def _noted(error: Exception, failure: Failure) -> Exception:
    error.add_note(f"In the worker:\n{failure.traceback}")
    return error
