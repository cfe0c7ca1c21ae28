"""Shards: fixed groups of a run's environments, each with an actor and random streams of its own.

What a shard samples depends on its number and on what it is asked, not on the process that runs it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from trpo_tf.config.environment import Environment
from trpo_tf.envs.info_sums import Sums
from trpo_tf.envs.make import make_env
from trpo_tf.envs.vector.backends import make_vector_env
from trpo_tf.envs.vector.vector_env import make_sync_env, require_distinct
from trpo_tf.errors import EnvironmentFailure
from trpo_tf.policies.running_stats import Normalizer
from trpo_tf.sampling.actor import ActingGraph, Actor
from trpo_tf.sampling.batch import Batch, Episodes
from trpo_tf.sampling.single_path import SinglePath
from trpo_tf.sampling.vine.sampler import Branches, Vine, VinePlan
from trpo_tf.support.phase_timer import PhaseClock


@dataclass(frozen=True)
class ShardPlan:
    """Settings that all shards of a run share.

    Attributes:
        environment: the environment.
        backend: "gymnasium" or "envpool".
        limit_ends: whether an episode that reaches the time limit has terminated.
        graph: the policy's graph.
        length: steps of each environment in a segment.
        bounds: the first environment of each shard, then the number of all.
        vine: the vine, None for single paths.
    """

    environment: Environment
    backend: str
    limit_ends: bool
    graph: ActingGraph
    length: int
    bounds: tuple[int, ...]
    vine: VinePlan | None = None

    @property
    def shards(self) -> int:
        """Number of shards."""
        return len(self.bounds) - 1


class Task(NamedTuple):
    """Parameters with which every shard samples its next segment."""

    theta: NDArray[np.float32]  # [P]
    normalizer: Normalizer
    streams: Sequence[np.random.Generator]  # one for each shard
    noise_correlation: float
    progress: float  # the share of the run that is done


class Segment(NamedTuple):
    """Results of a shard: its columns of the batch, the episodes that ended, sums of their `info`, and rollouts."""

    batch: Batch
    episodes: Episodes
    info: Sums
    every_episode_ended: bool  # whether each of the environments has ended one since the restart
    branches: Branches | None  # from states of these columns; None for single paths


class Shards(Protocol):
    """The shards of a run, wherever they run."""

    def restart(self, seed: int, longest_first: int, progress: float) -> None:
        """Make new environments from `seed` for this `progress`; `longest_first` as in `SinglePath`."""

    def collect(self, task: Task, clock: PhaseClock) -> list[Segment]:
        """Sample the next segment of each shard, in their order."""

    def close(self) -> None:
        """Close the environments."""


class LocalShards:
    """Shards that this process runs, one after the other."""

    def __init__(
        self, plan: ShardPlan, numbers: range, *, halves: bool = True, visit: Callable[[], None] | None = None
    ) -> None:
        """Make the actors of the shards with these `numbers`; no environment is made before `restart`.

        MuJoCo's environments are stepped in two `halves`, on two threads. `visit` is called before each step.
        """
        self._plan, self._numbers, self._halves, self._visit = plan, numbers, halves, visit
        sizes = np.diff(plan.bounds).tolist()
        self._actors = [Actor(plan.graph, sizes[number]) for number in numbers]
        self._samplers: list[SinglePath | Vine] = []
        self._seed = 0

    def restart(self, seed: int, longest_first: int, progress: float) -> None:
        """Make new environments: environment i of the run has the seed `seed` + i, whichever shard it is in."""
        self.close()
        self._seed = seed
        for number, actor in zip(self._numbers, self._actors, strict=True):
            try:
                self._samplers.append(self._sampler(number, actor, longest_first, progress))
            except EnvironmentFailure as failure:
                raise self._located(failure, number) from failure.cause

    def collect(self, task: Task, clock: PhaseClock) -> list[Segment]:
        """Sample the next segment of each of these shards, in their order."""
        if not self._samplers:
            raise RuntimeError("call restart before collect")
        return [self._collect(place, task, clock) for place in range(len(self._samplers))]

    def close(self) -> None:
        """Close the environments."""
        while self._samplers:
            self._samplers.pop().close()

    def _sampler(self, number: int, actor: Actor, longest_first: int, progress: float) -> SinglePath | Vine:
        """Make the environments of a shard, and what samples them."""
        plan, (first, end) = self._plan, self._plan.bounds[number : number + 2]
        seed, made = self._seed + first, {"limit_ends": plan.limit_ends, "halves": self._halves}
        if plan.vine is None:
            envs = make_vector_env(plan.environment, end - first, plan.backend, **made)
            envs.set_progress(progress)
            return SinglePath(envs, actor, seed, longest_first)
        trunk = make_sync_env(plan.environment, end - first, **made)
        rollout_envs = [make_env(plan.environment, limit_ends=plan.limit_ends) for _ in range(first, end)]
        require_distinct([*trunk.envs, *rollout_envs])
        trunk.set_progress(progress)
        before, until = (plan.vine.states * bound // plan.bounds[-1] for bound in (first, end))
        return Vine(plan.vine, until - before, trunk, rollout_envs, actor, seed, longest_first)

    def _collect(self, place: int, task: Task, clock: PhaseClock) -> Segment:
        sampler, number, visit, branches = self._samplers[place], self._numbers[place], self._visit, None
        length, stream = self._plan.length, task.streams[number]
        self._actors[place].load(task.theta, task.normalizer)
        try:
            sampler.set_progress(task.progress)
            if isinstance(sampler, Vine):
                batch, episodes, branches = sampler.collect(length, stream, clock, visit)
            else:
                batch, episodes = sampler.collect(
                    length,
                    stream,
                    clock,
                    noise_correlation=task.noise_correlation,
                    visit=None if visit is None else lambda _t: visit(),
                )
        except EnvironmentFailure as failure:
            raise self._located(failure, number) from failure.cause
        return Segment(batch, episodes, sampler.take_info(), sampler.every_episode_ended, branches)

    def _located(self, failure: EnvironmentFailure, number: int) -> EnvironmentFailure:
        """Return the failure with the shard, if there are several, and the seeds of its environments."""
        if self._plan.shards == 1:
            return failure
        first, end = self._plan.bounds[number : number + 2]
        seeds = f"seed {self._seed + first}" if end - first == 1 else f"seeds from {self._seed + first}"
        return failure.at(f"shard {number + 1} of {self._plan.shards} ({seeds})")


def shard_bounds(num_envs: int, shards: int) -> tuple[int, ...]:
    """Return the first environment of each shard, then `num_envs`; sizes differ by one at most."""
    return tuple(number * num_envs // shards for number in range(shards + 1))


def streams(rng: np.random.Generator, shards: int) -> list[np.random.Generator]:
    """Return a random stream for each shard; a single shard has `rng` itself."""
    return [rng] if shards == 1 else rng.spawn(shards)
