"""The vine: short rollouts of several actions from states along trajectories (Schulman et al. 2015, section 5.2)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from trpo_tf.envs.curriculum import set_progress
from trpo_tf.envs.info_sums import Sums
from trpo_tf.envs.snapshots import Snapshot, check_restorable, restore, save
from trpo_tf.envs.vector.vector_env import SyncVectorEnv
from trpo_tf.errors import ENVIRONMENT_ERRORS, environment_failure
from trpo_tf.sampling.actor import Actor, in_parts
from trpo_tf.sampling.batch import Batch, Episodes
from trpo_tf.sampling.single_path import SinglePath
from trpo_tf.sampling.vine.first_actions import FirstActions, FirstStep
from trpo_tf.serving.runtime.noise import draw_noise
from trpo_tf.serving.runtime.observations import (
    Array,
    Observation,
    list_parts,
    map_parts,
    observation_of,
    take,
    write,
)
from trpo_tf.support.phase_timer import PhaseClock


@dataclass(frozen=True)
class VinePlan:
    """Settings of a vine that all its shards share.

    Attributes:
        states: number of states that rollouts start from in an iteration, over all shards.
        length: most steps of a rollout.
        first: the first actions of rollouts.
    """

    states: int
    length: int
    first: FirstActions


class Branches(NamedTuple):
    """K rollouts from each of N states. Weight 0 marks a row that only reset: no rollouts start there."""

    observation: Observation  # [N, ...]
    sample: NDArray[Any]  # [N, K, ...], first actions as the policy's distribution has them
    reward: NDArray[np.float64]  # [N, K, L], 0 after a rollout's end
    final_observation: Observation  # [N, K, ...]
    length: NDArray[np.int64]  # [N, K], steps taken
    terminated: NDArray[np.bool_]  # [N, K]
    weight: NDArray[np.float64]  # [N]
    rows: NDArray[np.int64]  # [N], indices of the states into the batch's T x N rows

    @property
    def steps(self) -> int:
        """Number of simulator steps taken."""
        return int(self.length.sum())


class _Starts(NamedTuple):
    """States from which rollouts start: N rows of a batch."""

    rows: NDArray[np.int64]  # [N], indices into T x N
    snapshots: list[Snapshot]  # of the environments
    inputs: dict[str, Array]  # [N, ...], of the actor, by its names


class Vine:
    """Sampler of a trunk of single paths and of rollouts from its states; it owns the environments of both."""

    def __init__(
        self,
        plan: VinePlan,
        states: int,
        envs: SyncVectorEnv,
        rollout_envs: Sequence[gym.Env[Any, Any]],
        actor: Actor,
        seed: int,
        longest_first: int = 0,
    ) -> None:
        """Reset the environments; `rollout_envs`, for the rollouts, are as many as `envs` has.

        Rollouts start from `states` states of a batch. Raises `UserError` if the environments' state can't be restored.
        """
        check_restorable(rollout_envs[0])
        for index, env in enumerate(rollout_envs):
            env.reset(seed=seed + index)
        self._trunk = SinglePath(envs, actor, seed, longest_first)
        self._states, self._longest, self._first = states, plan.length, FirstStep(plan.first, actor)
        self._envs, self._rollout_envs, self._actor = envs, rollout_envs, actor

    @property
    def every_episode_ended(self) -> bool:
        """Whether each of the trunk's environments has ended an episode, other than by a cut."""
        return self._trunk.every_episode_ended

    def collect(
        self,
        length: int,
        rng: np.random.Generator,
        clock: PhaseClock,
        visit: Callable[[], None] | None = None,
    ) -> tuple[Batch, Episodes, Branches]:
        """Return the trunk as a batch of `length` vector steps, its episodes, and rollouts from random states of it.

        `visit` is called before each step of the trunk's and of the rollouts' environments.
        """
        visit = visit or (lambda: None)
        batch, episodes, starts = self._collect_trunk(length, rng, clock, visit)
        return batch, episodes, self._branch(batch, starts, rng, clock, visit)

    def set_progress(self, progress: float) -> None:
        """Tell the environments of trunk and rollouts the share of the run that is done."""
        self._trunk.set_progress(progress)
        for env in self._rollout_envs:
            set_progress(env, progress)

    def take_info(self) -> Sums:
        """Return sums of the numbers in the `info` of the trunk's environments since the last call."""
        return self._trunk.take_info()

    def close(self) -> None:
        """Close the environments."""
        self._trunk.close()
        for env in self._rollout_envs:
            env.close()

    def _collect_trunk(
        self, length: int, rng: np.random.Generator, clock: PhaseClock, visit: Callable[[], None]
    ) -> tuple[Batch, Episodes, _Starts]:
        n = self._envs.num_envs
        rows = np.sort(rng.choice(length * n, self._states, replace=False))
        wanted = set(rows.tolist())
        snapshots: list[Snapshot] = []
        inputs: dict[str, list[Array]] = {name: [] for name in self._actor.inputs}

        def keep(t: int) -> None:
            visit()
            for i in range(n):
                if t * n + i in wanted:
                    snapshots.append(save(self._envs.envs[i]))
                    for name, buffer in self._actor.inputs.items():
                        inputs[name].append(buffer[i].copy())

        batch, episodes = self._trunk.collect(length, rng, clock, visit=keep)
        return batch, episodes, _Starts(rows, snapshots, {name: np.stack(saved) for name, saved in inputs.items()})

    def _branch(
        self, batch: Batch, starts: _Starts, rng: np.random.Generator, clock: PhaseClock, visit: Callable[[], None]
    ) -> Branches:
        """Return rollouts from states of the batch; those of one state share their random numbers."""
        observations = take(batch.rows(), starts.rows)
        clock.enter("acting")
        samples = self._first.samples(starts.inputs, rng)
        clock.enter("rest")
        n, k = samples.shape[:2]
        noise = draw_noise(self._actor.noise_spec, n * self._longest, rng)
        noise = noise.reshape(n, self._longest, *self._actor.noise.shape[1:])
        seeds: NDArray[np.int64] = rng.integers(2**63, size=(n,))
        finals = map_parts(lambda part: np.zeros((n * k, *part.shape[1:]), part.dtype), observations)
        reward = np.zeros((n * k, self._longest))
        length, terminated = np.zeros(n * k, np.int64), np.zeros(n * k, bool)
        weight = batch.weight.reshape(-1)[starts.rows]
        flat = samples.reshape(n * k, *samples.shape[2:])
        actions, memory = self._first.take(flat, starts.inputs, np.repeat(np.arange(n), k))
        for part in in_parts(np.flatnonzero(np.repeat(weight, k)), len(self._rollout_envs)):
            states = part // k
            for env, state in zip(self._rollout_envs, states, strict=False):
                restore(env, starts.snapshots[int(state)], np.random.default_rng(seeds[int(state)]))
            write(take(self._actor.state, slice(len(part))), take(memory, part))
            last, reward[part], length[part], terminated[part] = self._roll(actions[part], noise[states], clock, visit)
            for into, values in zip(list_parts(finals), list_parts(last), strict=True):
                into[part] = values
        shape = (n, k)
        return Branches(
            observations,
            samples,
            reward.reshape(*shape, -1),
            map_parts(lambda part: part.reshape(*shape, *part.shape[1:]), finals),
            length.reshape(shape),
            terminated.reshape(shape),
            weight,
            starts.rows,
        )

    def _roll(
        self, first: NDArray[Any], noise: NDArray[np.float32], clock: PhaseClock, visit: Callable[[], None]
    ) -> tuple[Any, Any, Any, Any]:
        """Run M rollouts, and return last observations, rewards [M, L], lengths [M] and whether they terminated [M].

        The first actions are given, [M, ...]; later ones are the policy's, with noise [M, L, ...]. The actor's state is
        that after the first actions.
        """
        count, longest = len(first), noise.shape[1]
        actor = self._actor
        reward, length, terminated = np.zeros((count, longest)), np.zeros(count, np.int64), np.zeros(count, bool)
        running = np.ones(count, bool)
        actor.reset[:] = False
        for step in range(longest):
            if step:
                clock.enter("acting")
                actor.noise[:count] = noise[:, step]
                actor.run()
                actor.advance(np.flatnonzero(running))
            clock.enter("physics")
            visit()
            for m in np.flatnonzero(running):
                action = (first if step == 0 else actor.action)[m]
                observation, reward[m, step], terminated[m], truncated = self._step(int(m), action)
                write(take(actor.observation, slice(m, m + 1)), observation)
                length[m] += 1
                running[m] = not (terminated[m] or truncated)
            if not running.any():
                break
        if actor.state:
            clock.enter("acting")
            actor.run()  # for what the network sees of the last observations
        clock.enter("rest")
        return map_parts(lambda part: part[:count].copy(), actor.seen), reward, length, terminated

    def _step(self, index: int, action: Any) -> tuple[Observation, float, bool, bool]:
        try:
            observation, reward, terminated, truncated, _ = self._rollout_envs[index].step(action.copy())
        except ENVIRONMENT_ERRORS as error:
            raise environment_failure("step", error, "a rollout of the vine") from error
        return observation_of(observation), float(reward), terminated, truncated
