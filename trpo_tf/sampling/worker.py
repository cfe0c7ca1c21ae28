"""A rollout worker: a process without TensorFlow that runs shards, whole segments at a time.

The learner sends calls, and gets a reply to each. The first call, `prepare`, says what to run.
"""

import contextlib
import pickle
import traceback
import zlib
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from trpo_tf.errors import EnvironmentFailure, UserError
from trpo_tf.sampling.shard import LocalShards, Segment, ShardPlan, Task
from trpo_tf.sampling.shared_block import Packed, SharedBlock
from trpo_tf.support.child_process import end_with_parent
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


class Reply(NamedTuple):
    """The answer to a call: segments in the shared block with their digest, or nothing, or a failure."""

    packed: Packed = Packed(b"", ())
    digest: int = 0
    failure: Failure | None = None


class Worker:
    """The shards with these `numbers`; their segments go through the block."""

    def __init__(self, numbers: range, block: SharedBlock) -> None:
        """Keep the arguments; `prepare` makes the shards."""
        self._numbers, self._block = numbers, block
        self._shards: LocalShards | None = None

    def prepare(self, plan: bytes, spec: bytes) -> Reply:
        """Make the shards' actors. `spec` registers the environment, if it is no longer registered by its module."""
        registered: gym.envs.registration.EnvSpec | None = unpickled(spec)
        if registered is not None:
            gym.registry.setdefault(registered.id, registered)
        prepared: ShardPlan = pickle.loads(plan)
        # One thread: the other cores are other workers'.
        self._shards = LocalShards(prepared, self._numbers, halves=False, visit=self._block.count_up)
        return Reply()

    def restart(self, seed: int, longest_first: int, progress: float) -> Reply:
        """Make new environments."""
        assert self._shards is not None
        self._shards.restart(seed, longest_first, progress)
        self._block.count_up()
        return Reply()

    def collect(self, task: Task) -> Reply:
        """Sample the next segments."""
        assert self._shards is not None
        segments = self._shards.collect(task, PhaseClock())
        return Reply(self._block.write(segments), digest(segments))

    def close(self) -> None:
        """Close the environments."""
        if self._shards is not None:
            self._shards.close()


def digest(segments: list[Segment]) -> int:
    """Return a checksum of the segments' rewards and ends, and of the last observations."""
    found = 0
    for segment in segments:
        batch = segment.batch
        parts = batch.observation.values() if isinstance(batch.observation, dict) else [batch.observation]
        for array in (batch.reward, batch.terminated, batch.truncated, *(part[-1] for part in parts)):
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


def main(channel: int, block: int, first: int, end: int) -> None:
    """Answer calls until the learner closes the channel or ends; the two are inherited file descriptors."""
    end_with_parent()
    connection, worker = Connection(channel), Worker(range(first, end), SharedBlock(block))
    try:
        while True:
            connection.send(_answer(worker, connection.recv()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the learner closed the channel, or has ended
    finally:
        worker.close()


def _answer(worker: Worker, call: Call) -> Reply:
    try:
        reply: Reply = getattr(worker, call.method)(*call.arguments)
    except Exception as error:  # noqa: BLE001  # the learner raises it
        return Reply(failure=_failure(error))
    return reply


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
