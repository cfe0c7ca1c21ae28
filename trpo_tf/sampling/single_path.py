"""Single path sampling: the policy acts, and its trajectories are the batch (Schulman et al. 2015, section 5.1)."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.observations import is_finite, map_parts, observation_of, take, write
from serving.policy import draw_noise
from trpo_tf.errors import EnvironmentFailure, environment_failure
from trpo_tf.sampling.actor import Actor
from trpo_tf.sampling.batch import Batch, Episodes
from trpo_tf.vector_envs import VectorEnv


class SinglePath:
    """Steps a vector environment, which it owns, and keeps between batches where its episodes stand."""

    def __init__(self, envs: VectorEnv, actor: Actor, seed: int) -> None:
        """Resets the environments with `seed`. Raises `EnvironmentFailure` if one of them fails."""
        self._envs, self._actor = envs, actor
        try:
            first, _ = envs.reset(seed=seed)
        except Exception as error:
            raise environment_failure("reset", error) from error
        self._observation = observation_of(first)
        self._resetting = np.zeros(envs.num_envs, bool)
        self._returns = np.zeros(envs.num_envs)
        self._lengths = np.zeros(envs.num_envs, np.int64)

    def collect(
        self, length: int, rng: np.random.Generator, visit: Callable[[int], None] | None = None
    ) -> tuple[Batch, Episodes]:
        """Take `length` vector steps, with noise from `rng`; before step t call `visit(t)`.

        Raises `EnvironmentFailure` if an environment raises, or gives a value that is not finite.
        """
        actor, n = self._actor, self._envs.num_envs
        observations = map_parts(lambda buffer: np.empty((length + 1, *buffer.shape), buffer.dtype), actor.observation)
        samples: NDArray[Any] = np.empty((length, *actor.sample.shape), actor.sample.dtype)
        rewards = np.zeros((length, n))
        terminated, truncated, resetting = (np.zeros((length, n), bool) for _ in range(3))
        noise = draw_noise(actor.noise_spec, length * n, rng).reshape(length, *actor.noise.shape)
        episodes = Episodes([], [])

        write(take(observations, 0), self._observation)
        for t in range(length):
            write(actor.observation, take(observations, t))
            actor.noise[...] = noise[t]
            actor.run()
            samples[t] = actor.sample
            resetting[t] = self._resetting
            if visit is not None:
                visit(t)
            following, rewards[t], terminated[t], truncated[t] = self._step()
            write(take(observations, t + 1), observation_of(following))
            self._count(rewards[t], terminated[t] | truncated[t], episodes)
        self._observation = take(observations, -1)
        if not (np.isfinite(rewards).all() and is_finite(observations)):
            raise EnvironmentFailure("the environment gave an observation or reward that is not finite")
        return Batch(observations, samples, rewards, terminated, truncated, 1.0 - resetting), episodes

    def close(self) -> None:
        """Close the environments."""
        self._envs.close()

    def _step(self) -> tuple[Any, ...]:
        try:
            # A copy, since an environment may keep its action, and the buffer will be written again.
            return self._envs.step(self._actor.action.copy())[:4]
        except Exception as error:
            raise environment_failure("step", error) from error

    def _count(self, reward: NDArray[np.float64], ended: NDArray[np.bool_], episodes: Episodes) -> None:
        self._returns += reward
        self._lengths += ~self._resetting
        if ended.any():
            finished = ended & ~self._resetting
            episodes.returns.extend(self._returns[finished].tolist())
            episodes.lengths.extend(self._lengths[finished].tolist())
            self._returns[ended] = 0.0
            self._lengths[ended] = 0
        self._resetting = ended
