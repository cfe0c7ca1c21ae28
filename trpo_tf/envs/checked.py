"""Check observations, rewards and flags of an environment against its spaces, and convert them to plain types."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from trpo_tf.errors import EnvironmentFailure, environment_failure
from trpo_tf.serving import ArraySpec
from trpo_tf.serving.runtime.conversion import as_observations
from trpo_tf.serving.runtime.observations import ROOT, Array, Observation, by_name, list_parts, parts_of, structured

NUMBERS = frozenset((float, int, np.float64, np.float32))
FLAGS = frozenset((bool, np.bool_))
INTEGERS = frozenset((int, np.int64, np.int32))
"""Types of rewards, flags and integers that need no conversion."""


def conforming(observation: Any, specs: Sequence[ArraySpec]) -> Observation:
    """Return an observation as arrays of exactly these names, types and shapes.

    Python's numbers and sequences are converted if that changes no value. Raises `EnvironmentFailure`.
    """
    parts = parts_of(observation, [spec.name for spec in specs])
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
        array = np.asarray(reward)
        if array.size == 1 and array.dtype.kind in "fiub":
            return float(array.item())
    except ValueError:
        pass  # a ragged sequence
    raise EnvironmentFailure(f"the environment gave a reward that is no number{_shown(reward)}")


def plain_flag(flag: Any, name: str) -> bool:
    """Return `terminated` or `truncated` as a bool. Raises `EnvironmentFailure` unless it is true, false, 0 or 1."""
    array = np.asarray(flag) if isinstance(flag, bool | int | np.generic | np.ndarray) else np.zeros(0)
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
            observation, info = self.env.reset(seed=seed, options=options)
            return conforming(observation, self._specs), info
        except Exception as error:
            raise environment_failure("reset", error, self._name, "reset") from error

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step the environment. Raises `EnvironmentFailure`."""
        self._steps += 1
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
            return (
                conforming(observation, self._specs),
                finite_reward(plain_reward(reward)),
                plain_flag(terminated, "terminated"),
                plain_flag(truncated, "truncated"),
                info,
            )
        except Exception as error:
            raise environment_failure("step", error, self._name, f"step {self._steps} of the episode") from error


def not_finite(observations: Observation, rewards: Array) -> EnvironmentFailure:
    """Return the error for the first reward [T, N] that is not finite, or else for the first such observation.

    Observations are [T + 1, N, ...]. Raises `ValueError` if all values are finite.
    """
    count = rewards.shape[1]
    for step, place in np.argwhere(~np.isfinite(rewards)):
        reason = f"the environment gave a reward that is not finite, {rewards[step, place]}"
        return EnvironmentFailure(reason, f"step {step + 1} of the iteration", f"environment {place + 1} of {count}")
    for name, part in by_name(observations, ROOT).items():
        for step, place, *element in np.argwhere(~np.isfinite(part)):
            value = part[step, place, *element]
            shown = name + (str([int(n) for n in element]) if element else "")
            reason = f"the environment gave an observation that is not finite: {shown} is {value}"
            return EnvironmentFailure(reason, f"step {step} of the iteration", f"environment {place + 1} of {count}")
    raise ValueError("all values are finite")


def finite_reward(reward: float) -> float:
    """Return the reward. Raises `EnvironmentFailure` if it is NaN or infinite."""
    if not np.isfinite(reward):
        raise EnvironmentFailure(f"the environment gave a reward that is not finite, {reward}")
    return reward


def _conforming_part(parts: Mapping[str, Any], spec: ArraySpec) -> Array:
    if spec.name not in parts:
        raise EnvironmentFailure(f"the environment gave an observation without {spec.name!r}, which its space has")
    part = parts[spec.name]
    # NumPy's integers of any type are allowed: as Python's, they have no type that could differ from the spec's.
    value = part.item() if isinstance(part, np.integer | np.bool_) else part
    try:
        array: Array = list_parts(as_observations({spec.name: value}, [spec], batched=False))[0][0]
    except ValueError as error:
        reason = str(error).partition(", the policy takes")[0].removeprefix("observation ")
        raise EnvironmentFailure(
            f"the environment gave an observation that is not in its space: {reason}, "
            f"not {spec.dtype}{list(spec.shape)}{_shown(part)}"
        ) from error
    if (bounds := _choices(spec)) and not ((bounds[0] <= array) & (array <= bounds[1])).all():
        raise EnvironmentFailure(
            f"the environment gave an observation that is not in its space: {spec.name!r} lies beyond "
            f"{bounds[0].min():g} or {bounds[1].max():g}{_shown(part)}"
        )
    return array


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
