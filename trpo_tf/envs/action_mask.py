"""Observe which actions are legal: a mask that the environment gives with its observation, in `info` or by a method.

Whichever way it comes, it becomes the part `action_mask` of a Dict observation, with a number for each option of a
Discrete space. The options of a MultiDiscrete space stand side by side. An observation that was no Dict becomes its
part `obs`.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Dict
from numpy.typing import NDArray

from trpo_tf.envs.spaces import ActionMask, action_spec, parts_of_dict
from trpo_tf.errors import EnvironmentFailure, UserError
from trpo_tf.serving.bundle.specs import option_counts
from trpo_tf.serving.runtime.action_masks import rows_without_action
from trpo_tf.support.shell import option

ACTION_MASK = "action_mask"
"""Key of the mask in a Dict observation and in `info`, and name of the policy's input."""

METHOD = "action_masks"
"""Name of the environment's method that returns the mask, as sb3-contrib calls it."""

OBSERVATION, INFO, METHOD_SOURCE = "observation", "info", "method"

INFO_DTYPE = np.dtype(np.int8)
"""Type of a mask that no space declares: `Space.sample` takes masks of this type."""


def mask_source(setting: str, env: gym.Env[Any, Any], *, masked: bool) -> str | None:
    """Return where the mask of `env` comes from: `observation`, `info`, `method`, or None if it has none.

    `setting` is `action_mask` of the settings. With `masked`, a policy needs a mask, and `auto` looks further than the
    observation.
    """
    if setting != "auto":
        return None if setting == "off" else setting
    if isinstance(env.observation_space, Dict) and ACTION_MASK in env.observation_space.spaces:
        return OBSERVATION
    if not masked:
        return None
    return METHOD_SOURCE if env.has_wrapper_attr(METHOD) else INFO


def warn_of_unused_mask(env: gym.Env[Any, Any], setting: str) -> None:
    """Warn if the environment gives a mask that `setting` passes over, so that illegal actions would be taken."""
    space = env.action_space
    if mask_source(setting, env, masked=False) or setting == "off" or isinstance(space, gym.spaces.Box):
        return
    source, shown = METHOD_SOURCE, f"method {METHOD}"
    if not env.has_wrapper_attr(METHOD):
        source, shown = INFO, f"info[{ACTION_MASK!r}]"
        try:
            info = env.reset(seed=0)[1]
        except EnvironmentFailure:
            return  # the sampler reports it
        if not isinstance(info, Mapping) or ACTION_MASK not in info:
            return
    warnings.warn(
        f"the environment tells which actions are legal ({shown}), and the policy does not see it: use "
        f"{option('action_mask', source)}, or off to leave it so",
        stacklevel=4,
    )


class LegalActions(gym.Wrapper[Any, Any, Any, Any]):
    """Wrapper that observes the mask of legal actions as the part `action_mask`, and checks it at each step."""

    def __init__(self, env: gym.Env[Any, Any], source: str) -> None:
        """Take the mask from `source`, as `mask_source` returns it.

        Raises `UserError` for actions without options, or a space that is not that of a mask.
        """
        super().__init__(env)
        self._source, space = source, env.action_space
        if not isinstance(space, gym.spaces.Discrete | gym.spaces.MultiDiscrete | gym.spaces.MultiBinary):
            raise UserError(f"action_mask must be off: actions of {space} have no options of which some are illegal")
        self._counts = option_counts(action_spec(space))
        self._size = int(self._counts.sum())
        parts, dtype = parts_of_dict(env.observation_space), INFO_DTYPE
        if source == OBSERVATION:
            dtype = self._declared(parts[ACTION_MASK])
        elif ACTION_MASK in parts:
            raise UserError(f"action_mask must be auto or off: the observation has {ACTION_MASK!r} itself")
        elif source != INFO and not env.has_wrapper_attr(METHOD):
            raise UserError(f"action_mask must be another than method: the environment has no method {METHOD}")
        self._space = ActionMask(self._size, dtype)
        self.observation_space = Dict({**parts, ACTION_MASK: self._space})
        if len(self.observation_space.spaces) == 1:
            raise UserError(f"the environment observes nothing but {ACTION_MASK!r}; add what the policy acts on")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment. Raises `EnvironmentFailure` for a mask that is wrong or allows no action."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._masked(observation, info, ended=False), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment. Raises `EnvironmentFailure` as `reset` does, but no action need be legal at an end."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        ended = bool(terminated) or bool(truncated)
        return self._masked(observation, info, ended=ended), reward, terminated, truncated, info

    def _masked(self, observation: Any, info: Mapping[str, Any], *, ended: bool) -> dict[str, Any]:
        parts = parts_of_dict(observation)
        mask = self._checked(self._given(parts, info, ended=ended))
        if not ended and rows_without_action(mask[np.newaxis], self._counts)[0]:
            each = "" if len(self._counts) == 1 else f" for one of its {len(self._counts)} choices"
            raise EnvironmentFailure(
                f"the environment gave an {ACTION_MASK!r} that allows no action{each}; it should end the episode before"
            )
        return {**parts, ACTION_MASK: mask}

    def _given(self, parts: Mapping[str, Any], info: Mapping[str, Any], *, ended: bool) -> Any:
        if self._source == METHOD_SOURCE:
            return self.env.get_wrapper_attr(METHOD)()
        given = (parts if self._source == OBSERVATION else info).get(ACTION_MASK)
        if given is None and ended:
            return np.ones(self._size, self._space.dtype)  # nothing is chosen there
        if given is None:
            where = "info" if self._source == INFO else "its observation"
            raise EnvironmentFailure(f"the environment gave no {ACTION_MASK!r} in {where}")
        return given

    def _checked(self, given: Any) -> NDArray[Any]:
        """Return a mask [options] of the declared type; several masks are put side by side."""
        try:
            several = isinstance(given, tuple | list)
            mask = np.concatenate([np.atleast_1d(part) for part in given]) if several else np.asarray(given)
        except ValueError:
            mask = np.zeros(0)
        if mask.shape != (self._size,) or mask.dtype.kind not in "biuf":
            raise EnvironmentFailure(
                f"the environment gave an {ACTION_MASK!r} of {mask.dtype}{list(mask.shape)}, not {self._size} numbers, "
                "one for each option"
            )
        if not ((mask == 0) | (mask == 1)).all():
            wrong = mask[(mask != 0) & (mask != 1)][0]
            raise EnvironmentFailure(
                f"the environment gave an {ACTION_MASK!r} with {wrong}; it must be 1 for what is legal and else 0"
            )
        return mask.astype(self._space.dtype)

    def _declared(self, space: gym.Space[Any]) -> np.dtype[Any]:
        """Return the type of the masks in a space, or of several side by side. Raises `UserError` for another space."""
        inner = list(space.spaces) if isinstance(space, gym.spaces.Tuple) else [space]
        shapes = [part.shape or () for part in inner]
        dtypes = [part.dtype for part in inner if part.dtype is not None and part.dtype.kind in "biuf"]
        if len(dtypes) != len(inner) or any(len(shape) != 1 for shape in shapes):
            raise UserError(self._unfit(space))
        if sum(shape[0] for shape in shapes) != self._size:
            raise UserError(self._unfit(space))
        return np.result_type(*dtypes)

    def _unfit(self, space: gym.Space[Any]) -> str:
        return (
            f"the observation {ACTION_MASK!r} is {space}, which is no mask of {self.env.action_space}: that has "
            f"{self._size} numbers in a row, one for each option; rename it, or set action_mask off to observe it"
        )
