"""A rollout worker: shards in another process, without TensorFlow, whole segments at a time.

The learner sends calls, and gets an answer to each. The first call, `prepare`, says what to run.
"""

import contextlib
import pickle
import traceback
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from trpo_tf.errors import EnvironmentFailure, UserError
from trpo_tf.sampling.shard import LocalShards, Segment, Task
from trpo_tf.serving.runtime.observations import list_parts
from trpo_tf.support.phase_timer import PhaseClock


class Call(NamedTuple):
    """A call of one of the worker's methods; arguments that may need a user's module are pickled by themselves."""

    method: str
    arguments: tuple[Any, ...] = ()


class Failure(NamedTuple):
    """An exception that a call raised. `cause` is the pickled exception of the environment, if there is one."""

    kind: str  # "user", "environment" or "worker"
    reason: str
    where: tuple[str, ...]
    cause: bytes | None
    traceback: str


class Answer(NamedTuple):
    """The answer to a call: results, such as segments with a digest and the seconds they took, or a failure."""

    results: Sequence[Any] = ()
    digest: int = 0
    physics: float = 0.0
    acting: float = 0.0
    failure: Failure | None = None


class Worker:
    """Worker that does some parts of the work.

    Attributes:
        numbers: the parts' numbers.
        step_taken: called after each step of an environment.
        kept: what jobs keep until the next one, such as environments; each has a `close`.
    """

    def __init__(self, numbers: range, step_taken: Callable[[], None]) -> None:
        """Keep the arguments; `restart` makes the shards."""
        self.numbers, self.step_taken = numbers, step_taken
        self.kept: dict[bytes, Any] = {}
        self._shards: LocalShards | None = None

    def answer(self, call: bytes) -> Answer:
        """Carry out a pickled `Call`, and return what it gave, or the failure."""
        try:
            asked: Call = pickle.loads(call)
            answer: Answer = getattr(self, f"_{asked.method}")(*asked.arguments)
        except Exception as error:  # noqa: BLE001  # the learner raises it
            return Answer(failure=_failure(error))
        return answer

    def close(self) -> None:
        """Close the environments."""
        if self._shards is not None:
            self._shards.close()
        for kept in self.kept.values():
            kept.close()

    def _prepare(self, spec: bytes) -> Answer:
        """Register the environment, if it is no longer registered by its module."""
        registered: gym.envs.registration.EnvSpec | None = unpickled(spec)
        if registered is not None:
            gym.registry.setdefault(registered.id, registered)
        return Answer()

    def _restart(self, plan: bytes, seed: int, longest_first: int, progress: float) -> Answer:
        """Make new environments, and at first the shards' actors."""
        if self._shards is None:
            # One thread: the other cores are other workers'.
            self._shards = LocalShards(pickle.loads(plan), self.numbers, halves=False, visit=self.step_taken)
        self._shards.restart(seed, longest_first, progress)
        self.step_taken()
        return Answer()

    def _collect(self, task: Task) -> Answer:
        """Sample the next segments."""
        assert self._shards is not None
        clock = PhaseClock()
        segments = self._shards.collect(task, clock)
        spent = clock.stop()
        return Answer(segments, digest(segments), spent["physics"], spent["acting"])

    def _run(self, job: bytes) -> Answer:
        """Return what a job gives for each of the parts."""
        loaded: Job = pickle.loads(job)
        return Answer(loaded(self))


Job = Callable[[Worker], Sequence[Any]]
"""Gives a result for each of the worker's parts; it is pickled."""


def digest(segments: Sequence[Segment]) -> int:
    """Return a checksum of the segments' rewards and ends, and of the last observations."""
    found = 0
    for segment in segments:
        batch, branches = segment.batch, segment.branches
        arrays = [batch.reward, batch.terminated, batch.truncated]
        arrays += [part[-1] for part in list_parts(batch.observation)]
        if branches is not None:
            arrays += [branches.reward, branches.terminated, *list_parts(branches.final_observation)]
        for array in arrays:
            found = zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data, found)
    return found


def unpickled(spec: bytes) -> Any:
    """Return the pickled registration of an environment. Raises `UserError` if its module can't be imported here."""
    try:
        return pickle.loads(spec)
    except Exception as error:
        raise UserError(
            f"the environment can't be made in a worker: {type(error).__name__}: {error}; define it in a module that "
            "can be imported"
        ) from error


def _failure(error: Exception) -> Failure:
    told = traceback.format_exc()
    match error:
        case EnvironmentFailure():
            return Failure("environment", error.reason, error.where, _pickled(error.cause), told)
        case UserError():
            return Failure("user", str(error), (), None, told)
    return Failure("worker", f"{type(error).__name__}: {error}", (), None, told)


def _pickled(error: BaseException | None) -> bytes | None:
    """Return the environment's exception, pickled, or one that says the same if it does not come back as it is."""
    if error is None:
        return None
    with contextlib.suppress(Exception):  # an exception class may do anything when it is pickled or made
        pickled = pickle.dumps(error)
        if type(pickle.loads(pickled)) is type(error):
            return pickled
    return pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
