"""Play an episode of the policy's mode in each of a group's environments, all at once."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trpo_tf.envs.checked import are_usable, unusable
from trpo_tf.envs.info_sums import Sums, added
from trpo_tf.envs.vector.backends import make_vector_env
from trpo_tf.envs.vector.vector_env import Step, VectorEnv
from trpo_tf.errors import ENVIRONMENT_ERRORS, EnvironmentFailure, environment_failure
from trpo_tf.policies.running_stats import Normalizer
from trpo_tf.sampling.actor import Actor
from trpo_tf.sampling.engines.worker import Worker
from trpo_tf.sampling.shard import ShardPlan
from trpo_tf.serving.runtime.observations import map_parts, observation_of, write


class Played(NamedTuple):
    """Undiscounted returns [N] of a group's episodes, steps taken, number of cut episodes, and sums of their `info`."""

    returns: NDArray[np.float64]
    steps: int
    cut: int
    info: Sums


class Players:
    """Groups of environments that episodes are played in; the plan's `length` is the most steps of an episode."""

    def __init__(self, plan: ShardPlan, numbers: range, *, halves: bool = True) -> None:
        """Make the environments of the groups with these `numbers`; see `LocalShards` for `halves`."""
        self._plan, self._numbers = plan, numbers
        self._groups = []
        for number in numbers:
            first, end = plan.bounds[number : number + 2]
            envs = make_vector_env(
                plan.environment, end - first, plan.backend, limit_ends=plan.limit_ends, halves=halves
            )
            self._groups.append((envs, Actor(plan.graph, end - first)))

    def play(
        self,
        theta: NDArray[np.float32],
        normalizer: Normalizer,
        seed: int,
        on_step: Callable[[int, int], None] = lambda *_: None,
    ) -> list[Played]:
        """Play one group after the other; episode i of the run has the seed `seed` + i, whichever group it is in.

        `on_step` is called after each step with the number of ended episodes and of steps so far; its exceptions pass
        through. Raises `EnvironmentFailure` if an environment raises, or returns a value that is not finite.
        """
        played: list[Played] = []
        for number, (envs, actor) in zip(self._numbers, self._groups, strict=True):
            actor.load(theta, normalizer)
            before = sum(len(part.returns) for part in played), sum(part.steps for part in played)
            shown = partial(_on_step_after, on_step, *before)
            played.append(_play(envs, actor, seed + self._plan.bounds[number], self._plan.length, shown))
        return played

    def close(self) -> None:
        """Close the environments."""
        for envs, _ in self._groups:
            envs.close()


@dataclass(frozen=True)
class PlayJob:
    """Job of a worker: the episodes of its groups. The plan is pickled, and the worker keeps its environments."""

    plan: bytes
    theta: NDArray[np.float32]
    normalizer: Normalizer
    seed: int

    def __call__(self, worker: Worker) -> list[Played]:
        """Play the episodes."""
        if self.plan not in worker.kept:
            plan: ShardPlan = pickle.loads(self.plan)
            numbers = range(*slice(worker.numbers.start, worker.numbers.stop).indices(plan.shards))
            worker.kept[self.plan] = Players(plan, numbers, halves=False)
        players: Players = worker.kept[self.plan]
        return players.play(self.theta, self.normalizer, self.seed, lambda *_: worker.step_taken())


def _on_step_after(on_step: Callable[[int, int], None], before: int, steps_before: int, ended: int, steps: int) -> None:
    on_step(before + ended, steps_before + steps)


def _play(envs: VectorEnv, actor: Actor, seed: int, longest: int, on_step: Callable[[int, int], None]) -> Played:
    count, steps = envs.num_envs, 0
    returns, running = np.zeros(count), np.ones(count, bool)
    observation = _reset(envs, seed)
    actor.reset[:] = True
    envs.take_info()  # what the last evaluation left
    info: list[Sums] = []
    for _ in range(longest):
        write(actor.observation, observation_of(observation))
        if not are_usable(actor.observation):
            raise unusable(map_parts(lambda part: part[np.newaxis], actor.observation), np.zeros((1, count)))
        actor.run()
        actor.advance()
        actor.reset[:] = False
        observation, reward, terminated, truncated, _ = _step(envs, actor)
        returns += np.where(running, reward, 0.0)
        steps += int(running.sum())
        ending = running & (terminated | truncated)
        if ending.any():  # what an environment reports after its first episode does not count
            info.append(envs.take_info(np.flatnonzero(ending).tolist()))
        running &= ~ending
        on_step(count - int(running.sum()), steps)
        if not running.any():
            break
    if not np.isfinite(returns).all():
        raise EnvironmentFailure("the environment gave a reward that is not finite", "a periodic evaluation")
    info.append(envs.take_info(np.flatnonzero(running).tolist()))
    return Played(returns, steps, int(running.sum()), added(info))


def _reset(envs: VectorEnv, seed: int) -> Any:
    try:
        return envs.reset(seed=seed)[0]
    except ENVIRONMENT_ERRORS as error:
        raise environment_failure("reset", error, "a periodic evaluation") from error


def _step(envs: VectorEnv, actor: Actor) -> Step:
    try:
        # A copy, since an environment may keep its action, and the buffer will be written again.
        return envs.step(actor.action.copy())
    except ENVIRONMENT_ERRORS as error:
        raise environment_failure("step", error, "a periodic evaluation") from error
