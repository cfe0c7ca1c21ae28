"""Run shards in worker processes on this machine, and replace a worker that ends or hangs.

A worker is sent one call an iteration and answers once; its columns of the batch come through shared memory. All calls
since the environments were last made are kept. A worker that takes another's place repeats them, so its shards come to
the same state: an environment follows from its seed and its actions.
"""

import contextlib
import itertools
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

import gymnasium as gym

from trpo_tf.config.environment import Environment
from trpo_tf.config.settings import Config
from trpo_tf.envs.make import resolved_id
from trpo_tf.errors import EnvironmentFailure, UserError
from trpo_tf.sampling.shard import Segment, ShardPlan, Task, shard_bounds
from trpo_tf.sampling.shared_block import SharedBlock
from trpo_tf.sampling.worker import Call, Failure, Reply
from trpo_tf.serving.arguments import expect_count
from trpo_tf.support.phase_timer import PhaseClock

_MOST_FAULTS = 3
"""Faults of one worker in one segment, after which the run ends: the environment itself ends its process, say."""
_SECONDS_TO_MAKE = 60.0
"""Time beyond `step_timeout` to import the environment's packages, and to make the environments."""
_CALLS_BEFORE_SAMPLING = 2
"""`prepare` and `restart`."""
_SECONDS_TO_CLOSE = 3.0
_SECONDS_BETWEEN_LOOKS = 0.5
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from trpo_tf.sampling.worker import main; "
    "main(*map(int, sys.argv[2:]))"
)


@dataclass(frozen=True)
class Workers:
    """How many processes run the shards, and how long one of their steps may take.

    Attributes:
        count: number of worker processes; 0 runs the shards in the learner's process.
        step_timeout: seconds after which a worker whose environments have not finished a step is replaced; 0: never.
    """

    count: int = 0
    step_timeout: float = 0.0

    @classmethod
    def of(cls, workers: "Workers | int", config: Config) -> "Workers":
        """Return workers, given as such or as their number. Raises `UserError` if a run of `config` can't have them."""
        found = workers if isinstance(workers, cls) else cls(workers)  # type: ignore[arg-type]
        found._check(config)
        return found

    def _check(self, config: Config) -> None:
        expect_count(self.count, "workers", 0, UserError)
        if not self.step_timeout >= 0:
            raise UserError("step_timeout must be at least 0 seconds")
        if self.count == 0:
            if self.step_timeout:
                raise UserError("step_timeout needs workers, which are replaced when they hang; give --workers")
            return
        if config.sampler_is_vine:
            raise UserError("workers must be 0, for the vine")
        if config.sampling.env_backend == "envpool":
            raise UserError("workers must be 0 for envpool, which has its own threads; or give --env-backend gymnasium")
        shards = config.sampling.shards
        if self.count > shards:
            raise UserError(
                f"workers must be at most the run's shards, {shards}; start a run with --shards {self.count} (what it "
                "learns depends on the shards, not on the workers)"
            )
        registration(config.made_environment)


def registration(environment: Environment) -> bytes:
    """Return the environment's registration as a worker can load it: the pickled spec, or None if its module has it.

    Raises `UserError` if another process can't import it.
    """
    env_id = resolved_id(environment.env_id)
    spec = None if ":" in env_id else gym.registry.get(env_id)
    importable = "define it in a module that can be imported, and name it module:Name-v0, or give make_env from there"
    try:
        pickled = pickle.dumps(spec)
    except Exception as error:
        raise UserError(f"workers can't make {env_id}, since it can't be pickled ({error}); {importable}") from error
    if b"__main__" in pickled or "__main__" in repr(environment):
        raise UserError(f"workers can't make {env_id}, since __main__, the script itself, defines it; {importable}")
    return pickled


class _Process:
    """A worker's process, and how many of the calls it has answered."""

    def __init__(self, shards: range) -> None:
        self.shards, self.answered, self.reply = shards, 0, Reply()
        self.block = SharedBlock.create()
        ours, theirs = socket.socketpair()
        self.connection = Connection(ours.detach())
        with theirs:
            arguments = theirs.fileno(), self.block.descriptor, shards.start, shards.stop
            self.process = subprocess.Popen(
                [sys.executable, "-c", _START, json.dumps(sys.path), *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                pass_fds=arguments[:2],
                # Ctrl-C in a terminal then reaches the learner alone, which ends its iteration.
                process_group=0,
            )
        self._count, self._since = 0, time.monotonic()

    def send(self, call: bytes) -> None:
        """Send a pickled call."""
        self._since = time.monotonic()
        with contextlib.suppress(OSError):  # of a process that has ended, which the next look shows
            self.connection.send_bytes(call)

    def seconds_in_step(self) -> float:
        """Return for how long the call has been running, or its latest step."""
        if self.block.count != self._count:
            self._count, self._since = self.block.count, time.monotonic()
        return time.monotonic() - self._since

    def how_it_ended(self) -> str:
        """Wait for the end of a process that has closed its channel, and return what ended it."""
        try:
            status = self.process.wait(_SECONDS_TO_CLOSE)
        except subprocess.TimeoutExpired:
            return "closed its channel"
        return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"

    def kill(self) -> None:
        """End the process at once, and those that its environments have started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.connection.close()
        self.block.close()


class WorkerShards:
    """Shards in worker processes, each of which runs a fixed range of them."""

    def __init__(self, plan: ShardPlan, workers: Workers) -> None:
        """Start the processes; `restart` reports what they can't import or make."""
        self._step_timeout = workers.step_timeout
        prepare = Call("prepare", (pickle.dumps(plan), registration(plan.environment)))
        # Each worker is sent these one after the other. The first two are `prepare` and the latest `restart`.
        self._calls = [pickle.dumps(prepare)]
        self._digests: list[list[int]] = [[] for _ in range(workers.count)]  # of the first answers to the calls
        self._faults = [0] * workers.count
        self._shards = plan.shards
        bounds = itertools.pairwise(shard_bounds(plan.shards, workers.count))
        self._workers = [self._started(range(first, end)) for first, end in bounds]

    def restart(self, seed: int, longest_first: int, progress: float) -> None:
        """Make new environments from `seed`; a new worker need not repeat what was sampled before."""
        del self._calls[1:]
        for worker, digests in zip(self._workers, self._digests, strict=True):
            worker.answered = min(worker.answered, 1)
            del digests[1:]
        self._call(Call("restart", (seed, longest_first, progress)))

    def collect(self, task: Task, clock: PhaseClock) -> list[Segment]:
        """Sample the next segment of each shard; the whole time counts as physics."""
        clock.enter("physics")
        self._call(Call("collect", (task,)))
        clock.enter("rest")
        return [segment for worker in self._workers for segment in worker.block.read(worker.reply.packed)]

    def close(self) -> None:
        """End the processes; those that do not close their environments in time are killed."""
        for worker in self._workers:
            worker.connection.close()
        deadline = time.monotonic() + _SECONDS_TO_CLOSE
        for worker in self._workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.0, deadline - time.monotonic()))
            worker.kill()
        self._workers = []

    def _call(self, call: Call) -> None:
        """Send a call to every worker, and wait for the replies; workers that end or hang are replaced meanwhile."""
        waiting = [worker for worker in self._workers if worker.answered == len(self._calls)]
        self._calls.append(pickle.dumps(call))
        for worker in waiting:
            worker.send(self._calls[-1])
        while pending := [i for i, worker in enumerate(self._workers) if worker.answered < len(self._calls)]:
            ready = wait([self._workers[i].connection for i in pending], _SECONDS_BETWEEN_LOOKS)
            for i in pending:
                self._look(i, is_ready=self._workers[i].connection in ready)
        self._faults = [0] * len(self._workers)

    def _look(self, index: int, *, is_ready: bool) -> None:
        """Take a worker's reply if there is one, and replace the worker if it has ended or hangs."""
        worker = self._workers[index]
        allowed = self._step_timeout + (_SECONDS_TO_MAKE if worker.answered < _CALLS_BEFORE_SAMPLING else 0.0)
        if is_ready:
            try:
                reply = worker.connection.recv()
            except (EOFError, OSError):
                self._replace(index, worker.how_it_ended())
            else:
                self._take(index, reply)
        elif worker.process.poll() is not None:
            self._replace(index, worker.how_it_ended())
        elif self._step_timeout and worker.seconds_in_step() > allowed:
            self._replace(index, f"did not finish a step in {allowed:g} s")

    def _take(self, index: int, reply: Reply) -> None:
        """Note a reply, compare it with the first one to the same call, and send the next call."""
        worker, digests = self._workers[index], self._digests[index]
        if reply.failure is not None:
            raise _error(reply.failure)
        if worker.answered == len(digests):
            digests.append(reply.digest)
        elif reply.digest != digests[worker.answered]:
            digests[worker.answered] = reply.digest
            warnings.warn(
                f"{self._named(worker)}: the environment is not deterministic. From the same seed and policy it gave "
                "other rewards or observations than before; the run goes on, but is not the same as without the fault",
                stacklevel=2,
            )
        worker.reply, worker.answered = reply, worker.answered + 1
        if worker.answered < len(self._calls):
            worker.send(self._calls[worker.answered])

    def _replace(self, index: int, what: str) -> None:
        """Start a worker in place of one that `what` happened to; it repeats the calls since the latest restart."""
        worker = self._workers[index]
        self._faults[index] += 1
        if self._faults[index] == _MOST_FAULTS:
            raise EnvironmentFailure(f"the worker {what}, {_MOST_FAULTS} times in one segment", self._named(worker))
        worker.kill()
        segments = max(0, len(self._calls) - _CALLS_BEFORE_SAMPLING)
        warnings.warn(
            f"{self._named(worker)}: the worker, process {worker.process.pid}, {what}; a new one repeats the "
            f"{segments} segments since the latest checkpoint",
            stacklevel=2,
        )
        self._workers[index] = self._started(worker.shards)

    def _started(self, shards: range) -> _Process:
        worker = _Process(shards)
        worker.send(self._calls[0])
        return worker

    def _named(self, worker: _Process) -> str:
        first, last = worker.shards.start + 1, worker.shards.stop
        return f"shard {first} of {self._shards}" if first == last else f"shards {first} to {last} of {self._shards}"


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
