"""Check observations, rewards and flags of an environment against its spaces, and convert them to plain types."""

import decimal
import functools
import numbers
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from trpo_tf.errors import ENVIRONMENT_ERRORS, EnvironmentFailure, environment_failure
from trpo_tf.serving import ArraySpec
from trpo_tf.serving.runtime.conversion import as_observations
from trpo_tf.serving.runtime.observations import (
    ROOT,
    Array,
    Observation,
    all_finite,
    by_name,
    list_parts,
    parts_of,
    structured,
)
from trpo_tf.support.shell import option

NUMBERS = frozenset((float, int, np.float64, np.float32))
FLAGS = frozenset((bool, np.bool_))
INTEGERS = frozenset((int, np.int64, np.int32))
"""Types of rewards, flags and integers that need no conversion."""

LARGEST_REWARD = 1e100
"""Largest magnitude of a reward; sums of squares of larger ones may overflow."""

_LAST_OBSERVATIONS = ("final_observation", "final_obs", "terminal_observation")
"""Names that an episode's last observation has in `info` if `step` returns the first one of the next episode."""

_LARGEST_NUMBER = float(np.finfo(np.float32).max)


def conforming(observation: Any, specs: Sequence[ArraySpec]) -> Observation:
    """Return an observation as arrays of exactly these names, types and shapes.

    Python's numbers and sequences are converted if that changes no value. Raises `EnvironmentFailure`.
    """
    parts = parts_of(_as_declared(observation, specs), [spec.name for spec in specs])
    return structured({spec.name: _conforming_part(parts, spec) for spec in specs})


def integer_bounds(spec: ArraySpec) -> tuple[int, int] | None:
    """Return the bounds of a single integer, None for any other spec."""
    if spec.shape or np.dtype(spec.dtype).kind not in "iu":
        return None
    low, high = spec.bounds()
    return int(low), int(high)


def plain_reward(reward: Any) -> float:
    """Return a reward, a number or an array of one, as a float. Raises `EnvironmentFailure` for anything else."""
    try:
        if isinstance(reward, numbers.Real | decimal.Decimal):
            return float(reward)
        array = np.asarray(reward)
        if array.size == 1 and array.dtype.kind in "fiub":
            return float(array.item())
    except (ValueError, OverflowError):
        pass  # a ragged sequence, or an integer beyond all floats
    has_parts = isinstance(reward, np.ndarray) and reward.size > 1
    several = "; weigh its parts by a wrapper of your own, that env_wrapper names" if has_parts else ""
    raise EnvironmentFailure(f"the environment gave a reward that is no number{_shown(reward)}{several}")


def plain_flag(flag: Any, name: str) -> bool:
    """Return `terminated` or `truncated` as a bool. Raises `EnvironmentFailure` unless it is true, false, 0 or 1."""
    array = np.asarray(flag) if isinstance(flag, bool | int) or hasattr(flag, "__array__") else np.zeros(0)
    if array.size == 1 and (array.dtype.kind == "b" or (array.dtype.kind in "iu" and array.item() in (0, 1))):
        return bool(array.item())
    raise EnvironmentFailure(f"the environment gave {name!r} that is neither true nor false{_shown(flag)}")


class CheckedEnv(gym.Wrapper[Any, Any, Any, Any]):
    """Environment with `conforming` observations; its failures name the step at which they happened.

    An observation of several parts is a flat dict of arrays by input name, even if the space nests them.
    """

    def __init__(self, env: gym.Env[Any, Any], specs: Sequence[ArraySpec], name: str) -> None:
        """`specs` are the observation's parts; `name` stands for the environment in failures' messages."""
        super().__init__(env)
        self._specs, self._name, self._steps = specs, name, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment. Raises `EnvironmentFailure`."""
        self._steps = 0
        try:
            answer = self.env.reset(seed=seed, options=options)
            return conforming(reset_observation(answer), self._specs), answer[1]
        except ENVIRONMENT_ERRORS as error:
            raise environment_failure("reset", error, self._name, "reset") from error

    def close(self) -> None:
        """Close the environment; an exception becomes a warning."""
        close_safely(self.env)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step the environment. Raises `EnvironmentFailure`."""
        self._steps += 1
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
            return (
                conforming(observation, self._specs),
                usable_reward(plain_reward(reward)),
                plain_flag(terminated, "terminated"),
                plain_flag(truncated, "truncated"),
                info,
            )
        except ENVIRONMENT_ERRORS as error:
            raise environment_failure("step", error, self._name, f"step {self._steps} of the episode") from error


def are_usable(observations: Observation, rewards: Array | float = 0.0) -> bool:
    """Return whether rewards are at most `LARGEST_REWARD` in magnitude, and observations finite in float32."""
    return bool((np.abs(rewards) <= LARGEST_REWARD).all()) and all(map(_fit, list_parts(observations)))


def unusable(observations: Observation, rewards: Array) -> EnvironmentFailure:
    """Return the error for the first reward [T, N] that `are_usable` refuses, or else for the first such observation.

    Observations are [T + 1, N, ...]. Raises `ValueError` if all values are usable.
    """
    count = rewards.shape[1]
    for step, place in np.argwhere(~(np.abs(rewards) <= LARGEST_REWARD)):
        reason = f"the environment gave a reward that is {_fault(rewards[step, place])}"
        return EnvironmentFailure(reason, f"step {step + 1} of the iteration", f"environment {place + 1} of {count}")
    for name, part in by_name(observations, ROOT).items():
        for step, place, *element in np.argwhere(~_fitting(part)):
            shown = name + (str([int(n) for n in element]) if element else "")
            value = part[step, place, *element]
            fault = f"not finite: {shown} is {value}" if not np.isfinite(value) else _too_large(shown, value)
            reason = f"the environment gave an observation that is {fault}"
            return EnvironmentFailure(reason, f"step {step} of the iteration", f"environment {place + 1} of {count}")
    raise ValueError("all values are usable")


def usable_reward(reward: float) -> float:
    """Return the reward. Raises `EnvironmentFailure` if it is NaN, or above `LARGEST_REWARD` in magnitude."""
    if not abs(reward) <= LARGEST_REWARD:
        raise EnvironmentFailure(f"the environment gave a reward that is {_fault(reward)}")
    return reward


def reset_observation(answer: Any) -> Any:
    """Return the observation of what `reset` returned. Raises `EnvironmentFailure` unless that is a pair with `info`.

    An observation alone, as the former gym's `reset` returned it, may have two elements as well.
    """
    is_pair = isinstance(answer, tuple | list) and len(answer) == 2
    if is_pair and not isinstance(answer[1], np.ndarray | numbers.Number):
        return answer[0]
    raise EnvironmentFailure(f"the environment's reset did not return a pair of observation and info{_shown(answer)}")


def warn_if_reset(info: Any) -> None:
    """Warn if an episode's last `info` tells that the environment has reset itself, as vector environments do."""
    if isinstance(info, Mapping) and (name := next((name for name in _LAST_OBSERVATIONS if name in info), None)):
        warnings.warn(
            f"the environment seems to reset itself at an episode's end, since its info has {name!r}: what it then "
            "observes belongs to the next episode; let step return its last one, and leave resets to the trainer",
            stacklevel=2,
        )


def close_safely(env: Any) -> None:
    """Close an environment; an exception of it becomes a warning, since nothing of a run depends on it."""
    try:
        env.close()
    except ENVIRONMENT_ERRORS as error:  # whatever closing raises, the run has its results
        warnings.warn(f"the environment's close raised {type(error).__name__}: {error}", stacklevel=2)


def _as_declared(observation: Any, specs: Sequence[ArraySpec]) -> Any:
    """Return a tuple as a list if the space is no Tuple, and a list as a tuple if it has several parts."""
    if [spec.name for spec in specs] == [ROOT]:
        return list(observation) if isinstance(observation, tuple) else observation
    return tuple(observation) if type(observation) is list else observation


def _fitting(array: Array) -> Any:
    return np.abs(array) <= _LARGEST_NUMBER if array.dtype.kind == "f" else np.ones(array.shape, bool)


def _fit(array: Array) -> bool:
    """Return whether all numbers are finite in float32, in which the policy computes."""
    wide = array.dtype.kind == "f" and array.dtype.itemsize > 4
    return bool(_fitting(array).all()) if wide else all_finite(array)


def _fault(reward: float) -> str:
    if np.isfinite(reward):
        return f"too large to compute with, {reward:g}; the largest is {LARGEST_REWARD:g}"
    return f"not finite, {reward}"


def _too_large(name: str, value: Any) -> str:
    return f"too large for float32, in which policies compute: {name} is {np.max(np.abs(value)):g}"


def _conforming_part(parts: Mapping[str, Any], spec: ArraySpec) -> Array:
    if spec.name not in parts:
        raise EnvironmentFailure(f"the environment gave an observation without {spec.name!r}, which its space has")
    part = parts[spec.name]
    # Single integers of any type are allowed: as Python's, they have no type that could differ from the spec's.
    is_integer = isinstance(part, np.integer | np.bool_ | np.ndarray) and not part.shape and part.dtype.kind in "iub"
    value = part.item() if is_integer else part
    try:
        array: Array = list_parts(as_observations({spec.name: value}, [spec], batched=False))[0][0]
    except ValueError as error:
        reason = str(error).partition(", the policy takes")[0].removeprefix("observation ")
        raise EnvironmentFailure(
            f"the environment gave an observation that is not in its space: {reason}, "
            f"not {spec.dtype}{list(spec.shape)}{_shown(part)}{_how_to_convert(part, spec)}"
        ) from error
    if not _fit(array):
        raise EnvironmentFailure(f"the environment gave an observation that is {_too_large(spec.name, array)}")
    if (bounds := _choices(spec)) and not ((bounds[0] <= array) & (array <= bounds[1])).all():
        raise EnvironmentFailure(
            f"the environment gave an observation that is not in its space: {spec.name!r} lies beyond "
            f"{bounds[0].min():g} or {bounds[1].max():g}{_shown(part)}"
        )
    return array


def _how_to_convert(part: Any, spec: ArraySpec) -> str:
    """Return what to do about an array of floats of another precision; nothing for anything else."""
    is_float = isinstance(part, np.ndarray) and part.dtype.kind == np.dtype(spec.dtype).kind == "f"
    if not is_float or part.shape != spec.shape or part.dtype == spec.dtype:
        return ""
    if spec.name != ROOT:
        return f"; convert it where it is made: .astype({spec.dtype!r})"
    wrapper = f'gymnasium.wrappers:DtypeObservation{{"dtype": "{spec.dtype}"}}'
    return f"; convert it where it is made, or by {option('env_wrapper', wrapper)}"


@functools.lru_cache(maxsize=256)
def _choices(spec: ArraySpec) -> tuple[Array, Array] | None:
    """Return the bounds of an integer part; None for floats, or if every value of the type is allowed.

    Bounded integers may be choices, and there are none beyond the bounds.
    """
    if np.dtype(spec.dtype).kind not in "iu":
        return None
    low, high = spec.bounds()
    info = np.iinfo(spec.dtype)
    return None if (low <= info.min).all() and (high >= info.max).all() else (low, high)


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return f" ({text if len(text) <= 60 else f'{text[:57]}...'})"
