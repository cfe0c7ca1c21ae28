"""Single path sampling: the policy acts, and its trajectories are the batch (Schulman et al. 2015, section 5.1)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from trpo_tf.envs.checked import are_usable, unusable
from trpo_tf.envs.info_sums import Sums
from trpo_tf.envs.vector.vector_env import VectorEnv
from trpo_tf.errors import ENVIRONMENT_ERRORS, environment_failure
from trpo_tf.sampling.actor import Actor
from trpo_tf.sampling.batch import Batch, Episodes
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
class _Steps:
    """Buffers that T steps of N environments are written to."""

    observation: Observation  # [T + 1, N, ...], as the environments gave it
    seen: Observation  # [T + 1, N, ...], as the policy's network sees it; without memory the same arrays
    sample: NDArray[Any]  # [T, N, ...]
    reward: NDArray[np.float64]  # [T, N]
    terminated: NDArray[np.bool_]  # [T, N]
    truncated: NDArray[np.bool_]  # [T, N], by the environment
    cut: NDArray[np.bool_]  # [T, N], by the sampler

    @classmethod
    def empty(cls, length: int, actor: Actor) -> Self:
        """Return buffers of `length` steps."""

        def rows(buffer: Array) -> Array:
            return np.empty((length + 1, *buffer.shape), buffer.dtype)

        shape = length, len(actor.sample)
        observation = map_parts(rows, actor.observation)
        return cls(
            observation=observation,
            seen=map_parts(rows, actor.seen) if actor.state else observation,
            sample=np.empty((length, *actor.sample.shape), actor.sample.dtype),
            reward=np.zeros(shape),
            terminated=np.zeros(shape, bool),
            truncated=np.zeros(shape, bool),
            cut=np.zeros(shape, bool),
        )

    def ended(self, t: int | slice = slice(None)) -> NDArray[np.bool_]:
        """Return which episodes ended in these steps, for whatever reason [..., N]."""
        return self.terminated[t] | self.truncated[t] | self.cut[t]


class SinglePath:
    """Sampler that steps a vector environment, which it owns, and continues its episodes from batch to batch."""

    def __init__(self, envs: VectorEnv, actor: Actor, seed: int, longest_first: int = 0) -> None:
        """Reset the environments with `seed`.

        With `longest_first`, each environment's first episode is cut at a random step up to that, unless it ended
        before. Environments of one episode length otherwise stay in lockstep, and each batch shows the same part of
        episodes.

        Raises `EnvironmentFailure` if one of them fails.
        """
        self._envs, self._actor = envs, actor
        self._last_noise: NDArray[np.float32] | None = None
        try:
            first, _ = envs.reset(seed=seed)
        except ENVIRONMENT_ERRORS as error:
            raise environment_failure("reset", error, "reset") from error
        self._observation = observation_of(first)
        self._resetting = np.zeros(envs.num_envs, bool)
        # The policy's memory between batches, which the vine's rollouts overwrite in the actor.
        self._state = {name: rows.copy() for name, rows in actor.state.items()}
        self._reset = np.ones(envs.num_envs, bool)
        self._returns = np.zeros(envs.num_envs)
        self._lengths = np.zeros(envs.num_envs, np.int64)
        self._taken = 0
        self._has_ended = np.zeros(envs.num_envs, bool)
        self._cuts = first_cuts(envs.num_envs, longest_first, seed) if envs.can_end and longest_first else {}

    @property
    def every_episode_ended(self) -> bool:
        """Whether each environment has ended an episode, other than by a cut."""
        return bool(self._has_ended.all())

    def collect(
        self,
        length: int,
        rng: np.random.Generator,
        clock: PhaseClock,
        *,
        noise_correlation: float = 0.0,
        visit: Callable[[int], None] | None = None,
    ) -> tuple[Batch, Episodes]:
        """Take `length` vector steps, with noise from `rng`; before step t call `visit(t)`.

        The noise of consecutive steps has correlation `noise_correlation`. Each step's noise by itself keeps the
        distribution of `actor`, which must be normal if the correlation is not 0. `clock` measures physics and acting.

        Raises `EnvironmentFailure` if an environment raises, or gives a value that is not finite.
        """
        actor, steps = self._actor, _Steps.empty(length, self._actor)
        noise = draw_noise(actor.noise_spec, length * len(actor.noise), rng).reshape(length, *actor.noise.shape)
        if noise_correlation:
            self._correlate(noise, np.float32(noise_correlation))
        write(take(steps.observation, 0), self._observation)
        self._load_memory()
        stored, bound = list_parts(steps.observation), list_parts(actor.observation)
        resets = self._resetting
        for t in range(length):
            clock.enter("acting")
            for buffer, rows in zip(bound, stored, strict=True):
                buffer[...] = rows[t]
            actor.noise[...] = noise[t]
            actor.run()
            steps.sample[t] = actor.sample
            if visit is not None:
                clock.enter("rest")
                visit(t)
            if actor.state:
                write(take(steps.seen, t), actor.seen)
                actor.advance()
                # A step that resets gives an episode's first observation.
                actor.reset[...] = resets
            clock.enter("physics")
            following, steps.reward[t], steps.terminated[t], steps.truncated[t] = self._step(t)
            clock.enter("rest")
            self._cut(steps, t)
            resets = steps.ended(t)
            for rows, part in zip(stored, list_parts(observation_of(following)), strict=True):
                rows[t + 1] = part
        return self._finished(steps)

    def set_progress(self, progress: float) -> None:
        """Tell the environments the share of the run that is done."""
        self._envs.set_progress(progress)

    def take_info(self) -> Sums:
        """Return sums of the numbers in the environments' `info` since the last call."""
        return self._envs.take_info()

    def close(self) -> None:
        """Close the environments."""
        self._envs.close()

    def _cut(self, steps: "_Steps", t: int) -> None:
        """End the first episodes that are due to be cut after step t and have not ended."""
        self._taken += 1
        if (due := self._cuts.pop(self._taken, None)) is None:
            return
        ended = self._has_ended | (steps.terminated[: t + 1] | steps.truncated[: t + 1]).any(axis=0)
        steps.cut[t, due] = ~ended[due]
        self._envs.end(np.flatnonzero(steps.cut[t]).tolist())

    def _finished(self, steps: "_Steps") -> tuple[Batch, Episodes]:
        """Return the batch of these steps and its episodes, and keep what the next batch continues from."""
        self._observation = take(steps.observation, -1)
        if not are_usable(steps.observation, steps.reward):
            raise unusable(steps.observation, steps.reward)
        if self._actor.state:
            self._save_memory()
            write(self._actor.observation, self._observation)
            self._actor.run()
            write(take(steps.seen, -1), self._actor.seen)
        self._has_ended |= (steps.terminated | steps.truncated).any(axis=0)
        truncated, ended = steps.truncated | steps.cut, steps.ended()
        resetting = np.concatenate([self._resetting[np.newaxis], ended[:-1]])
        episodes = self._episodes(steps.reward, ended, steps.cut, resetting)
        return Batch(steps.seen, steps.sample, steps.reward, steps.terminated, truncated, 1.0 - resetting), episodes

    def _load_memory(self) -> None:
        write(self._actor.state, self._state)
        self._actor.reset[...] = self._reset

    def _save_memory(self) -> None:
        write(self._state, self._actor.state)
        self._reset = self._actor.reset.copy()

    def _correlate(self, noise: NDArray[np.float32], correlation: np.float32) -> None:
        """Turn independent noise [T, N, k] into first-order autoregressive noise of variance 1, in place."""
        last, fresh = self._last_noise, np.sqrt(1 - correlation**2)
        for row in noise:
            if last is not None:
                row *= fresh
                row += correlation * last
            last = row
        self._last_noise = last

    def _step(self, t: int) -> tuple[Any, ...]:
        try:
            # A copy, since an environment may keep its action, and the buffer will be written again.
            return self._envs.step(self._actor.action.copy())[:4]
        except ENVIRONMENT_ERRORS as error:
            raise environment_failure("step", error, f"step {t + 1} of the iteration") from error

    def _episodes(
        self,
        reward: NDArray[np.float64],
        ended: NDArray[np.bool_],
        cut: NDArray[np.bool_],
        resetting: NDArray[np.bool_],
    ) -> Episodes:
        """Return the episodes that ended in these rows [T, N] without a cut, and keep the sums of unfinished ones."""
        returns = self._returns + np.cumsum(np.where(resetting, 0.0, reward), axis=0)
        lengths = self._lengths + np.cumsum(~resetting, axis=0)
        episodes = Episodes([], [], [])
        for t, i in np.argwhere(ended & ~resetting):
            if not cut[t, i]:
                episodes.returns.append(float(returns[t, i]))
                episodes.lengths.append(int(lengths[t, i]))
                episodes.steps.append(int(t))
            returns[t + 1 :, i] -= returns[t, i]
            lengths[t + 1 :, i] -= lengths[t, i]
        self._returns, self._lengths = (np.where(ended[-1], 0, sums[-1]) for sums in (returns, lengths))
        self._resetting = ended[-1]
        return episodes


def first_cuts(num_envs: int, longest: int, seed: int) -> dict[int, list[int]]:
    """Return the environments to cut, by step.

    Each of `num_envs` equal parts of `longest` gives one random step; the environments take these in random order.
    """
    rng = np.random.default_rng(seed)
    steps = (rng.permutation(num_envs) + rng.random(num_envs)) * longest / num_envs
    cuts: dict[int, list[int]] = {}
    for place, step in enumerate(steps.astype(int).tolist()):
        cuts.setdefault(step, []).append(place)
    return cuts
