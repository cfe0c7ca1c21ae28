"""Save and restore an environment's state, as the vine needs.

A state is everything that later steps depend on, except the random generator, which `restore` is given. Environments of
your own are supported if they have `save_state() -> state` and `restore_state(state)`. A wrapper's plain attributes are
saved, such as numbers, arrays and lists of them, or what its own `save_state` returns.
"""

import copy
import sys
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control import (
    AcrobotEnv,
    CartPoleEnv,
    Continuous_MountainCarEnv,
    MountainCarEnv,
    PendulumEnv,
)

from trpo_tf.envs.checked import CheckedEnv
from trpo_tf.envs.make import is_mujoco
from trpo_tf.errors import UserError
from trpo_tf.support.shell import option

_CLASSIC_CONTROL = (AcrobotEnv, CartPoleEnv, Continuous_MountainCarEnv, MountainCarEnv, PendulumEnv)
_PLAIN = (np.ndarray, np.generic, int, float, str, tuple, list, dict, set, deque, type(None))
_OF_EVERY_WRAPPER = frozenset(vars(gym.Wrapper(gym.Env())))
"""Attributes of `gym.Wrapper` itself, which no step changes."""


class Snapshot(NamedTuple):
    """State of an environment: its plain fields, the simulator's data if there is any, and each wrapper's state."""

    fields: dict[str, Any]
    data: Any
    wrappers: list[Any]


def check_restorable(env: gym.Env[Any, Any]) -> None:
    """Raise `UserError` unless the state of `env` and of its wrappers can be saved and restored."""
    inner = env.unwrapped
    known = isinstance(inner, _CLASSIC_CONTROL) or is_mujoco(env) or _is_exact_atari(inner)
    if not (known or _has_own(inner)):
        raise UserError(
            f"the state of {type(inner).__name__} can't be restored, which the vine needs: that is known for classic "
            "control, MuJoCo and Atari's ALE/ ids, and for environments that have save_state() and "
            f"restore_state(state); use {option('sampler', 'single-path')}"
        )
    for wrapper in _wrappers(env):
        if not type(wrapper).__module__.startswith(("gymnasium.", "trpo_tf.")) and (lost := _not_saved(wrapper)):
            raise UserError(
                f"the wrapper {type(wrapper).__name__} keeps {lost!r}, which is no plain value, so the vine can't "
                "restore it; give the wrapper save_state() and restore_state(state), or use "
                f"{option('sampler', 'single-path')}"
            )


def save(env: gym.Env[Any, Any]) -> Snapshot:
    """Return a copy of the state of `env`, which later steps do not change."""
    inner: Any = env.unwrapped
    wrappers = [copy.deepcopy(w.save_state() if _has_own(w) else _plain_fields(w)) for w in _wrappers(env)]
    if _has_own(inner):
        return Snapshot({}, copy.deepcopy(inner.save_state()), wrappers)
    if _is_atari(inner):
        return Snapshot({}, inner.clone_state(), wrappers)
    fields, data = copy.deepcopy(_plain_fields(inner)), None
    if is_mujoco(env):
        import mujoco

        # All of MjData is copied: positions and velocities alone would leave out contact forces and body positions.
        data = mujoco.MjData(inner.model)
        mujoco.mj_copyData(data, inner.model, inner.data)
    return Snapshot(fields, data, wrappers)


def restore(env: gym.Env[Any, Any], snapshot: Snapshot, rng: np.random.Generator) -> None:
    """Set `env`, of the same kind as the one saved, to this state. From then on it draws from `rng`."""
    inner: Any = env.unwrapped
    inner.np_random = rng
    for wrapper, state in zip(_wrappers(env), snapshot.wrappers, strict=True):
        if _has_own(wrapper):
            wrapper.restore_state(copy.deepcopy(state))
        else:
            _set_fields(wrapper, state)
    if _has_own(inner):
        inner.restore_state(copy.deepcopy(snapshot.data))
        return
    if _is_atari(inner):
        inner.restore_state(snapshot.data)
        return
    _set_fields(inner, snapshot.fields)
    if snapshot.data is not None:
        import mujoco

        mujoco.mj_copyData(inner.data, inner.model, snapshot.data)


def _has_own(inner: Any) -> bool:
    return callable(getattr(inner, "save_state", None)) and callable(getattr(inner, "restore_state", None))


def _is_atari(inner: Any) -> bool:
    """Return whether this is ALE's environment, without importing ALE, which is optional."""
    ale_py = sys.modules.get("ale_py")
    return ale_py is not None and isinstance(inner, ale_py.AtariEnv)


def _is_exact_atari(inner: Any) -> bool:
    """Return whether this is an Atari environment whose emulator holds the whole state.

    It does not if ALE itself repeats actions, since ALE does not save the last action.
    """
    return _is_atari(inner) and inner.ale.getFloat("repeat_action_probability") == 0.0


def _set_fields(target: Any, fields: dict[str, Any]) -> None:
    for name, value in fields.items():
        setattr(target, name, copy.deepcopy(value))


def _plain_fields(owner: Any) -> dict[str, Any]:
    """Return the attributes of an environment or a wrapper that are plain values."""
    return {name: value for name, value in vars(owner).items() if isinstance(value, _PLAIN)}


def _not_saved(wrapper: Any) -> str | None:
    """Return the name of an attribute that may change and is not saved, None if there is none."""
    if _has_own(wrapper):
        return None
    attributes: dict[str, Any] = vars(wrapper)
    for name, value in attributes.items():
        if not (isinstance(value, (*_PLAIN, gym.Space, gym.Env)) or callable(value) or name in _OF_EVERY_WRAPPER):
            return name
    return None


def _wrappers(env: gym.Env[Any, Any]) -> Iterator[Any]:
    """Yield the wrappers that may hold part of an episode's state, outermost first."""
    while isinstance(env, gym.Wrapper):
        if not isinstance(env, CheckedEnv):  # the environments of the trunk have none
            yield env
        env = env.env
