"""Adapt EnvPool's environments to the interface `VectorEnv`, with Gymnasium's time limits."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trpo_tf.envs.info_sums import Sums
from trpo_tf.envs.make import spec_of
from trpo_tf.envs.vector.vector_env import Step
from trpo_tf.export.support.heavy_imports import executed_when_used

_STATE = ("obs", "reward", "done", "trunc", "elapsed_step")
"""Fields of a step's result, by EnvPool's names."""


def import_envpool() -> Any:
    """Import the package `envpool`, and Matplotlib only if EnvPool draws."""
    with executed_when_used("matplotlib.pyplot"):
        import envpool
    return envpool


class EnvPool:
    """Environments of EnvPool whose episodes end as Gymnasium's do."""

    can_end = True

    def __init__(self, env_id: str, num_envs: int) -> None:
        """Store the settings; the pool is not built before `reset`."""
        self._env_id, self.num_envs = env_id, num_envs
        self._limit = spec_of(env_id).max_episode_steps
        self._ids = np.arange(num_envs, dtype=np.int32)

    def reset(self, *, seed: int | None = None) -> tuple[Any, Any]:
        """Build the pool, and reset it. EnvPool takes a seed only when it is built."""
        envpool = import_envpool()
        options = {} if seed is None else {"seed": seed % 2**31}
        if self._limit is not None:
            # One more, since at its own limit EnvPool does not tell whether the episode has terminated too.
            options["max_episode_steps"] = self._limit + 1
        with warnings.catch_warnings():
            # Gymnasium warns about the precision of bounds in EnvPool's spaces; only the actions' type is used here.
            warnings.simplefilter("ignore", UserWarning)
            self._pool = envpool.make(self._env_id, env_type="gymnasium", num_envs=self.num_envs, **options)
            self._dtype = self._pool.action_space.dtype
            observation, info = self._pool.reset()
        self._places = [self._pool._state_keys.index(name) for name in _STATE]
        self._ended: list[int] = []
        return observation, info

    def step(self, actions: Any) -> Step:
        """Step all environments. An episode is truncated at Gymnasium's limit, and again at EnvPool's, a step later."""
        actions = actions.astype(self._dtype, order="C", copy=False)
        if self._ended:
            state = self._reset_some(actions)
        else:
            # The pool's own `step` adds Python work to these two calls, a fifth of a step of 8 HalfCheetahs.
            self._pool._send([self._ids, self._ids, actions])
            state = self._pool._recv()
        observation, reward, done, truncated, elapsed = (state[place] for place in self._places)
        terminated = done & ~truncated
        if self._limit is not None:
            truncated = truncated | ((elapsed >= self._limit) & ~terminated)
        return observation, reward, terminated, truncated, {}

    def end(self, places: Sequence[int]) -> None:
        """End these environments' episodes: the next step resets them."""
        self._ended += places

    def _reset_some(self, actions: NDArray[Any]) -> list[Any]:
        """Reset the environments whose episodes were ended, and step the others."""
        ended, self._ended = np.array(self._ended, np.int32), []
        others = np.setdiff1d(self._ids, ended)
        self._pool._reset(ended)
        states = [self._pool._recv()]
        if others.size:
            self._pool._send([others, others, actions[others]])
            states.append(self._pool._recv())
        # Each call is answered in the order of its environments.
        order = np.argsort(np.concatenate([ended, others]))
        return [np.concatenate(parts)[order] for parts in zip(*states, strict=True)]

    def take_info(self, places: Sequence[int] | None = None) -> Sums:  # noqa: ARG002
        """Return no sums: EnvPool's `info` has other names than Gymnasium's, and is not read."""
        return {}

    def set_progress(self, progress: float) -> None:
        """Do nothing: EnvPool's environments do not change over a run."""

    def close(self) -> None:
        """Free the pool's threads."""
        self._pool.close()
