"""Saving and restoring an environment's state, which the vine needs.

A state is all that an environment's later steps depend on, but the random generator: who restores it says which one to
draw from. An environment of one's own takes part by having `save_state() -> state` and `restore_state(state)`.
"""

import copy
from typing import Any, NamedTuple

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium.envs.classic_control import (
    AcrobotEnv,
    CartPoleEnv,
    Continuous_MountainCarEnv,
    MountainCarEnv,
    PendulumEnv,
)
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.wrappers import TimeLimit

from trpo_tf.errors import UserError

_CLASSIC_CONTROL = (AcrobotEnv, CartPoleEnv, Continuous_MountainCarEnv, MountainCarEnv, PendulumEnv)
_PLAIN = (np.ndarray, np.generic, int, float, str, tuple, list, dict, type(None))


class Snapshot(NamedTuple):
    """Plain fields of the environment, the simulator's own data if it has any, and steps taken in the episode."""

    fields: dict[str, Any]
    data: Any
    elapsed_steps: int | None


def check_restorable(env: gym.Env[Any, Any]) -> None:
    """Raise `UserError` unless the state of `env` can be saved and restored."""
    inner = env.unwrapped
    if not isinstance(inner, (*_CLASSIC_CONTROL, MujocoEnv)) and not _has_own(inner):
        raise UserError(
            f"the state of {type(inner).__name__} can't be restored, which the vine needs: that is known for classic "
            "control and MuJoCo, and for environments that have save_state() and restore_state(state); "
            "use --sampler single-path"
        )


def save(env: gym.Env[Any, Any]) -> Snapshot:
    """The state of `env`, which later steps leave as it is."""
    inner: Any = env.unwrapped
    limit: Any = _time_limit(env)
    elapsed = None if limit is None else limit._elapsed_steps
    if _has_own(inner):
        return Snapshot({}, copy.deepcopy(inner.save_state()), elapsed)
    fields = {name: copy.deepcopy(v) for name, v in vars(inner).items() if isinstance(v, _PLAIN)}
    data = None
    if isinstance(inner, MujocoEnv):
        # All of MjData: positions and velocities alone leave contact forces and body positions behind.
        data = mujoco.MjData(inner.model)
        mujoco.mj_copyData(data, inner.model, inner.data)
    return Snapshot(fields, data, elapsed)


def restore(env: gym.Env[Any, Any], snapshot: Snapshot, rng: np.random.Generator) -> None:
    """Put `env`, of the same kind as the one saved, into that state; it draws from `rng` from then on."""
    inner: Any = env.unwrapped
    limit: Any = _time_limit(env)
    inner.np_random = rng
    if limit is not None:
        limit._elapsed_steps = snapshot.elapsed_steps
    if _has_own(inner):
        inner.restore_state(copy.deepcopy(snapshot.data))
        return
    for name, value in snapshot.fields.items():
        setattr(inner, name, copy.deepcopy(value))
    if snapshot.data is not None:
        mujoco.mj_copyData(inner.data, inner.model, snapshot.data)


def _has_own(inner: Any) -> bool:
    return callable(getattr(inner, "save_state", None)) and callable(getattr(inner, "restore_state", None))


def _time_limit(env: gym.Env[Any, Any]) -> TimeLimit[Any, Any] | None:
    while isinstance(env, gym.Wrapper):
        if isinstance(env, TimeLimit):
            return env
        env = env.env
    return None
