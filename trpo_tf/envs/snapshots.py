"""Save and restore an environment's state, as the vine needs.

A state is everything that later steps depend on, except the random generator, which `restore` is given. Environments of
your own are supported if they have `save_state() -> state` and `restore_state(state)`.
"""

import copy
import sys
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
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation, StickyAction, TimeLimit

from trpo_tf.envs.make import is_mujoco
from trpo_tf.envs.remaining_time import LimitEnds
from trpo_tf.errors import UserError

_CLASSIC_CONTROL = (AcrobotEnv, CartPoleEnv, Continuous_MountainCarEnv, MountainCarEnv, PendulumEnv)
_WRAPPER_FIELDS: dict[type[gym.Wrapper[Any, Any, Any, Any]], tuple[str, ...]] = {
    TimeLimit: ("_elapsed_steps",),
    LimitEnds: ("_taken",),
    StickyAction: ("last_action", "is_sticky_actions", "num_repeats", "repeats_taken"),
    AtariPreprocessing: ("lives", "game_over", "obs_buffer"),
    FrameStackObservation: ("obs_queue",),
}
_PLAIN = (np.ndarray, np.generic, int, float, str, tuple, list, dict, type(None))


class Snapshot(NamedTuple):
    """State of an environment: its plain fields, the simulator's data if there is any, and fields of each wrapper."""

    fields: dict[str, Any]
    data: Any
    wrappers: list[dict[str, Any]]


def check_restorable(env: gym.Env[Any, Any]) -> None:
    """Raise `UserError` unless the state of `env` can be saved and restored."""
    inner = env.unwrapped
    known = isinstance(inner, _CLASSIC_CONTROL) or is_mujoco(env) or _is_exact_atari(inner)
    if not (known or _has_own(inner)):
        raise UserError(
            f"the state of {type(inner).__name__} can't be restored, which the vine needs: that is known for classic "
            "control, MuJoCo and Atari's ALE/ ids, and for environments that have save_state() and "
            "restore_state(state); use --sampler single-path"
        )


def save(env: gym.Env[Any, Any]) -> Snapshot:
    """Return a copy of the state of `env`, which later steps do not change."""
    inner: Any = env.unwrapped
    wrappers = [{name: copy.deepcopy(getattr(w, name)) for name in names} for w, names in _stateful_wrappers(env)]
    if _has_own(inner):
        return Snapshot({}, copy.deepcopy(inner.save_state()), wrappers)
    if _is_atari(inner):
        return Snapshot({}, inner.clone_state(), wrappers)
    fields = {name: copy.deepcopy(v) for name, v in vars(inner).items() if isinstance(v, _PLAIN)}
    data = None
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
    for (wrapper, _), fields in zip(_stateful_wrappers(env), snapshot.wrappers, strict=True):
        _set_fields(wrapper, fields)
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


def _stateful_wrappers(env: gym.Env[Any, Any]) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """Yield the wrappers that hold part of an episode's state, outermost first, with those fields' names."""
    while isinstance(env, gym.Wrapper):
        for kind, names in _WRAPPER_FIELDS.items():
            if isinstance(env, kind):
                yield env, names
        env = env.env
