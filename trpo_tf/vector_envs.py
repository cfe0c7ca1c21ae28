"""Environments stepped together, by Gymnasium or by EnvPool.

Whoever steps them, an episode's end is followed by a row that only resets: its action is ignored, and it counts as no
step. An episode that EnvPool cuts at its time limit is followed by two.
"""

import importlib
import importlib.util
import warnings
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from trpo_tf.envs import ATARI_ARGUMENTS, is_atari, preprocess_atari, readable_errors, register_atari
from trpo_tf.errors import UserError

Step = tuple[Any, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], Any]
"""observation, reward [N], terminated [N], truncated [N], info."""


class VectorEnv(Protocol):
    """What the sampler needs of environments stepped together."""

    num_envs: int

    def reset(self, *, seed: int | None = None) -> tuple[Any, Any]:
        """Start anew from `seed`: observations and info."""

    def step(self, actions: Any) -> Step:
        """Act in all of them."""

    def close(self) -> None:
        """Free what they hold."""


def choose_backend(backend: str, env_id: str) -> str:
    """The backend's name; "auto" is the fastest one installed that has the environment.

    Gymnasium's own vectorised environments come first, then EnvPool, then Gymnasium's environments in turn. Raises
    `UserError` if EnvPool is asked for and can't make the environment.
    """
    if backend == "gymnasium":
        return backend
    reason = _why_not_envpool(env_id)
    if backend == "auto":
        return "gymnasium" if reason or _spec(env_id).vector_entry_point else "envpool"
    if reason:
        raise UserError(f"env_backend can't be envpool: {reason}; use gymnasium")
    return backend


def make_vector_env(env_id: str, num_envs: int, backend: str = "gymnasium") -> VectorEnv:
    """`num_envs` environments of backend "gymnasium" or "envpool". Raises `UserError` for an id it can't make."""
    if backend == "envpool":
        return EnvPool(env_id, num_envs)
    with readable_errors(env_id):
        if is_atari(env_id) or _spec(env_id).vector_entry_point is None:
            return make_sync_env(env_id, num_envs)
        envs = gym.make_vec(env_id, num_envs=num_envs)
    if envs.metadata.get("autoreset_mode") != AutoresetMode.NEXT_STEP:
        raise UserError(f"{env_id} has a vector form that does not reset in the next step; register it without")
    return envs


def make_sync_env(env_id: str, num_envs: int) -> gym.vector.SyncVectorEnv[Any, Any]:
    """Gymnasium's environments, stepped in turn; Atari's as `make_env` makes them.

    Without Gymnasium's checks of each step, which `make_env` has: every run begins with one of those.
    """
    with readable_errors(env_id):
        options: dict[str, Any] = {"num_envs": num_envs, "vectorization_mode": "sync", "disable_env_checker": True}
        if is_atari(env_id):
            register_atari(env_id)
            options |= {"wrappers": [preprocess_atari], **ATARI_ARGUMENTS}
        return gym.make_vec(env_id, **options)  # type: ignore[return-value]


class EnvPool:
    """EnvPool's environments, with episodes and types as Gymnasium's have them."""

    def __init__(self, env_id: str, num_envs: int) -> None:
        """Nothing is built before `reset`."""
        self._env_id, self.num_envs = env_id, num_envs
        self._limit = _spec(env_id).max_episode_steps

    def reset(self, *, seed: int | None = None) -> tuple[Any, Any]:
        """Build the pool, since EnvPool takes a seed only then."""
        import envpool

        options = {} if seed is None else {"seed": seed % 2**31}
        if self._limit is not None:
            # At its own limit EnvPool does not tell whether the episode has terminated too.
            options["max_episode_steps"] = self._limit + 1
        with warnings.catch_warnings():
            # Gymnasium complains of the precision of bounds in EnvPool's spaces, of which only a type is used here.
            warnings.simplefilter("ignore", UserWarning)
            self._pool = envpool.make(self._env_id, env_type="gymnasium", num_envs=self.num_envs, **options)
            self._dtype = self._pool.action_space.dtype
            observation, info = self._pool.reset()
        return observation, info

    def step(self, actions: Any) -> Step:
        """Act; an episode is truncated at Gymnasium's limit, and once more when EnvPool gets to its own."""
        observation, reward, terminated, truncated, info = self._pool.step(actions.astype(self._dtype, copy=False))
        if self._limit is not None:
            elapsed = info["elapsed_step"]
            truncated = truncated | ((elapsed >= self._limit) & ~terminated)
        return observation, reward, terminated, truncated, info

    def close(self) -> None:
        """Free the pool's threads."""
        self._pool.close()


def _spec(env_id: str) -> EnvSpec:
    module, _, name = env_id.rpartition(":")
    if module:
        importlib.import_module(module)
    return gym.spec(name)


def _why_not_envpool(env_id: str) -> str | None:
    if importlib.util.find_spec("envpool") is None:
        return "it is not installed (pip install trpo-tf[envpool])"
    import envpool

    if env_id not in envpool.list_all_envs():
        return f"it has no {env_id}"
    spec = _spec(env_id)
    if not str(spec.entry_point).startswith("gymnasium.envs.") or spec.kwargs or spec.additional_wrappers:
        return f"its {env_id} is not the one that is registered here"
    return None
