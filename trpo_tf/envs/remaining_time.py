"""Treat the time limit as the end of the task, and count the steps left until then.

A policy that observes the time counts the steps in its state: see `trpo_tf.policies.memory`. Those of earlier releases
take it as an input, which `TimeFeature` gives them.

A task with a time limit has a best policy that depends on the time left. A policy that can't observe the time is only
right if the limit counts as an interruption. Advantages then add the value of the state that would have followed (Pardo
et al. 2018).
"""

from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict
from gymnasium.wrappers import TimeLimit
from numpy.typing import NDArray

from trpo_tf.envs.info_sums import Sums
from trpo_tf.envs.spaces import parts_of_dict
from trpo_tf.errors import UserError
from trpo_tf.serving import ArraySpec

LOG_STEPS_LEFT = "log_steps_left"
"""Name of the policy's input: ln(1 + steps left) of each observation. A logarithm tells the last steps apart."""

_NO_LIMIT = "time_feature must be off: the environment has no time limit (max_episode_steps)"


class LimitEnds(gym.Wrapper[Any, Any, Any, Any]):
    """Wrapper that treats the time limit as the end of the task: an episode that reaches it has terminated."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        """Raise `UserError` if `env` has no time limit."""
        super().__init__(env)
        self._clock, self._taken = _time_limit(env), 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment."""
        self._taken = 0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment. Raises `UserError` if a wrapper takes other than one of the limit's steps at a time."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._taken += 1
        if self._clock._elapsed_steps != self._taken:
            raise UserError(
                "time_feature must be off: a wrapper repeats actions, so the policy can't count the time limit's steps"
            )
        at_limit = truncated and self._taken == _limit(self._clock)
        return observation, reward, terminated or at_limit, truncated and not at_limit, info


class TimeFeature(gym.Wrapper[Any, Any, Any, Any]):
    """Wrapper that adds `log_steps_left` to the observation, for policies of releases without state.

    The observation becomes a Dict; one that was not becomes its part `obs`.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        """Raise `UserError` if `env` has no time limit, or an observation of the feature's name."""
        super().__init__(env)
        self._clock = _time_limit(env)
        parts = parts_of_dict(env.observation_space)
        if LOG_STEPS_LEFT in parts:
            raise UserError(f"the environment has an observation {LOG_STEPS_LEFT!r} itself, which the policy needs")
        self.observation_space = Dict(_joined(parts, Box(0.0, np.log1p(_limit(self._clock)), (1,), np.float32)))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._with_time(observation), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._with_time(observation), reward, terminated, truncated, info

    def _with_time(self, observation: Any) -> dict[str, Any]:
        left = _limit(self._clock) - int(self._clock._elapsed_steps or 0)
        return _joined(parts_of_dict(observation), np.log1p([left], dtype=np.float32))


class VectorLimitEnds:
    """`LimitEnds` for environments stepped together, whose resets take a step of their own."""

    def __init__(self, envs: Any, limit: int | None) -> None:
        """Take over `envs`, whose episodes have `limit` steps. Raises `UserError` if there is no limit."""
        if limit is None:
            raise UserError(_NO_LIMIT)
        self._envs, self._limit, self.num_envs, self.can_end = envs, limit, envs.num_envs, envs.can_end

    def reset(self, *, seed: int | None = None) -> tuple[Any, Any]:
        """Reset all environments, with `seed`."""
        self._left = np.full(self.num_envs, self._limit)
        self._ended = np.zeros(self.num_envs, bool)
        return self._envs.reset(seed=seed)  # type: ignore[no-any-return]

    def step(self, actions: Any) -> tuple[Any, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], Any]:
        """Step all environments; an episode at the time limit has terminated."""
        observation, reward, terminated, truncated, info = self._envs.step(actions)
        self._left = np.where(self._ended, self._limit, self._left - 1)
        self._ended = terminated | truncated
        at_limit = truncated & (self._left == 0)
        return observation, reward, terminated | at_limit, truncated & ~at_limit, info

    def end(self, places: Sequence[int]) -> None:
        """End these environments' episodes: the next step resets them."""
        self._envs.end(places)
        self._ended[list(places)] = True

    def take_info(self, places: Sequence[int] | None = None) -> Sums:
        """Return sums of the numbers in `info`; see `VectorEnv`."""
        return self._envs.take_info(places)  # type: ignore[no-any-return]

    def set_progress(self, progress: float) -> None:
        """Tell the environments the share of the run that is done."""
        self._envs.set_progress(progress)

    def close(self) -> None:
        """Close the environments."""
        self._envs.close()


def observes_time(observation: Iterable[ArraySpec]) -> bool:
    """Return whether a policy with these inputs, of an earlier release, is given the steps left."""
    return any(spec.name == LOG_STEPS_LEFT for spec in observation)


def _time_limit(env: gym.Env[Any, Any]) -> Any:
    while isinstance(env, gym.Wrapper):
        if isinstance(env, TimeLimit):
            return env
        env = env.env
    raise UserError(_NO_LIMIT)


def _limit(clock: Any) -> int:
    return int(clock._max_episode_steps)


def _joined(parts: dict[str, Any], time: Any) -> dict[str, Any]:
    """Return the parts and the time in the order of `Dict`'s keys."""
    return dict(sorted({**parts, LOG_STEPS_LEFT: time}.items()))
