"""Step several environments together, by Gymnasium or by EnvPool.

With every backend, the step after an episode's end only resets the environment. Its action is ignored, and it does not
count as a step. After an episode that EnvPool cuts at its time limit there are two such steps.
"""

import weakref
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from trpo_tf.config.environment import Environment
from trpo_tf.envs.checked import (
    FLAGS,
    INTEGERS,
    NUMBERS,
    close_safely,
    conforming,
    integer_bounds,
    plain_flag,
    plain_reward,
    reset_observation,
    warn_if_reset,
)
from trpo_tf.envs.curriculum import set_progress
from trpo_tf.envs.info_sums import InfoSums, Sums, added
from trpo_tf.envs.make import is_mujoco, make_env
from trpo_tf.envs.spaces import action_spec, observation_spec
from trpo_tf.errors import ENVIRONMENT_ERRORS, UserError, environment_failure
from trpo_tf.serving import ArraySpec
from trpo_tf.serving.runtime.observations import Array, Observation, by_name, leaves_of, structured

Step = tuple[Any, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], Any]
"""Observation, reward [N], terminated [N], truncated [N], info."""


class VectorEnv(Protocol):
    """Interface of environments stepped together, as the sampler needs it.

    Attributes:
        num_envs: number of environments.
        can_end: whether `end` is supported.
    """

    num_envs: int
    can_end: bool

    def reset(self, *, seed: int | None = None) -> tuple[Any, Any]:
        """Reset all environments with `seed`, and return observations and info."""

    def step(self, actions: Any) -> Step:
        """Step all environments."""

    def end(self, places: Sequence[int]) -> None:
        """End some environments' episodes: the next step resets them."""

    def take_info(self, places: Sequence[int] | None = None) -> Sums:
        """Return sums of the numbers in `info` since the last call, as `InfoSums` computes them.

        `places` are indices of the environments to sum over, by default all of them.
        """

    def set_progress(self, progress: float) -> None:
        """Tell the environments the share of the run that is done; see `trpo_tf.envs.curriculum`."""

    def close(self) -> None:
        """Close the environments."""


_CHECKED_STEPS = 100
"""Number of each environment's first observations that are checked in full."""

_NOWHERE: tuple[Any, Any, Any, Any] = (None, None, None, None)


class Vectorized:
    """Environments that Gymnasium steps by array operations. Their episodes can't be ended from outside."""

    can_end = False

    def __init__(self, envs: gym.vector.VectorEnv[Any, Any, Any]) -> None:
        """Take over `envs`: `close` closes them."""
        self._envs = envs
        self.num_envs = envs.num_envs
        self.reset, self.step = envs.reset, envs.step
        self.set_progress(1.0)

    def end(self, places: Sequence[int]) -> None:
        """Raise `NotImplementedError`."""
        raise NotImplementedError(f"the episodes of {places} can't be ended")

    def take_info(self, places: Sequence[int] | None = None) -> Sums:  # noqa: ARG002
        """Return no sums: these classic tasks report nothing in `info`."""
        return {}

    def set_progress(self, progress: float) -> None:
        """Call the vector environment's `set_options`, if it has one."""
        set_progress(self._envs.unwrapped, progress)

    def close(self) -> None:
        """Close the environments; an exception becomes a warning."""
        close_safely(self._envs)


_OPEN: "weakref.WeakSet[SyncVectorEnv]" = weakref.WeakSet()
"""Those that are not closed, of all shards and evaluations of this process."""


class SyncVectorEnv:
    """Gymnasium's environments stepped one after the other; MuJoCo's in two halves, on two threads.

    Unlike `gym.vector.SyncVectorEnv`, it does not gather `info` in arrays, which takes as long as a small environment's
    step. MuJoCo's physics lets other threads run meanwhile, so the halves run in parallel, unless `halves` is off.
    """

    can_end = True

    def __init__(self, envs: Sequence[gym.Env[Any, Any]], *, halves: bool = True) -> None:
        """Take over `envs`, which must have the same spaces: `close` closes them.

        Raises `UserError` if two of them have other action spaces or are the same object, or if another
        `SyncVectorEnv` steps one of them.
        """
        self.envs, self.num_envs = envs, len(envs)
        require_distinct([env for vector in (self, *_OPEN) for env in vector.envs])
        _OPEN.add(self)
        require_alike(envs)
        self._specs = parts = observation_spec(envs[0].observation_space)
        self._observation = {part.name: np.zeros((self.num_envs, *part.shape), part.dtype) for part in parts}
        self._places = {
            part.name: (rows, rows.dtype, part.shape, integer_bounds(part))
            for part, rows in zip(parts, self._observation.values(), strict=True)
        }
        self._to_check = np.full(self.num_envs, _CHECKED_STEPS).tolist()
        self._info = [InfoSums() for _ in envs]
        self._reward = np.zeros(self.num_envs)
        self._terminated, self._truncated = (np.zeros(self.num_envs, bool) for _ in range(2))
        middle = self.num_envs // 2 if halves and is_mujoco(envs[0]) else 0
        self._first, self._others = range(middle), range(middle, self.num_envs)
        self._beside = ThreadPoolExecutor(1)

    def reset(self, *, seed: int | None = None) -> tuple[Observation, Any]:
        """Reset all environments; environment i has the seed `seed` + i."""
        for i, env in enumerate(self.envs):
            try:
                self._observe(i, reset_observation(env.reset(seed=None if seed is None else seed + i)))
            except ENVIRONMENT_ERRORS as error:
                raise environment_failure("reset", error, f"environment {i + 1} of {self.num_envs}") from error
        self._terminated[:] = self._truncated[:] = False
        return self._copied(), {}

    def step(self, actions: NDArray[Any]) -> Step:
        """Step all environments; one whose episode has ended is reset instead."""
        first = self._beside.submit(self._advance, self._first, actions) if self._first else None
        self._advance(self._others, actions)
        if first is not None:
            first.result()
        return self._copied(), self._reward.copy(), self._terminated.copy(), self._truncated.copy(), {}

    def end(self, places: Sequence[int]) -> None:
        """End these environments' episodes: the next step resets them."""
        self._truncated[list(places)] = True

    def take_info(self, places: Sequence[int] | None = None) -> Sums:
        """Return sums of the numbers in `info` since the last call; see `VectorEnv`."""
        return added(self._info[i].take() for i in (range(self.num_envs) if places is None else places))

    def set_progress(self, progress: float) -> None:
        """Tell each environment the share of the run that is done."""
        for env in self.envs:
            set_progress(env, progress)

    def close(self) -> None:
        """Close the environments."""
        _OPEN.discard(self)
        self._beside.shutdown()
        for env in self.envs:
            close_safely(env)

    def _advance(self, places: range, actions: NDArray[Any]) -> None:
        for i in places:
            try:
                if self._terminated[i] or self._truncated[i]:
                    observation = reset_observation(self.envs[i].reset())
                    self._reward[i], self._terminated[i], self._truncated[i] = 0.0, False, False
                else:
                    observation, reward, terminated, truncated, info = self.envs[i].step(actions[i])
                    self._reward[i] = reward if type(reward) in NUMBERS else plain_reward(reward)
                    self._terminated[i] = (
                        terminated if type(terminated) in FLAGS else plain_flag(terminated, "terminated")
                    )
                    self._truncated[i] = truncated if type(truncated) in FLAGS else plain_flag(truncated, "truncated")
                    if info:
                        ended = bool(self._terminated[i] or self._truncated[i])
                        self._info[i].add(info, ended=ended)
                        if ended:
                            warn_if_reset(info)
                self._observe(i, observation)
            except ENVIRONMENT_ERRORS as error:
                raise environment_failure("step", error, f"environment {i + 1} of {self.num_envs}") from error

    def _observe(self, place: int, observation: Any) -> None:
        """Store an observation.

        An environment's first observations are checked in full, the later ones by name, type and shape. Arrays of
        integers are thus held to their bounds only at first.
        """
        checked = self._to_check[place] > 0
        if checked:
            self._to_check[place] -= 1
        count = 0
        for name, part in self._conforming(observation) if checked else leaves_of(observation):
            rows, dtype, shape, bounds = self._places.get(name, _NOWHERE)
            if type(part) is np.ndarray:
                if part.dtype is not dtype or part.shape != shape:
                    break
            elif bounds is None or type(part) not in INTEGERS or not bounds[0] <= part <= bounds[1]:
                break
            rows[place] = part
            count += 1
        if count < len(self._specs):
            for name, part in self._conforming(observation):
                self._observation[name][place] = part

    def _conforming(self, observation: Any) -> Iterable[tuple[str, Array]]:
        return by_name(conforming(observation, self._specs), self._specs[0].name).items()

    def _copied(self) -> Observation:
        return structured({name: rows.copy() for name, rows in self._observation.items()})


def require_distinct(envs: Sequence[gym.Env[Any, Any]]) -> None:
    """Raise `UserError` if two of the environments are the same object, so that stepping one steps the other."""
    if len({id(env.unwrapped) for env in envs}) < len(envs):
        raise UserError(
            "the environment's constructor returned an object that it had returned before; several environments are "
            "stepped side by side, so let each call make a new one: make_env=MyEnv, or num_envs=1 without "
            "eval_interval"
        )


def require_alike(envs: Sequence[gym.Env[Any, Any]]) -> None:
    """Raise `UserError` if two environments act in different spaces: one policy can't serve both."""
    first, *others = (action_spec(env.action_space) for env in envs)
    if other := next((spec for spec in others if spec != first), None):
        raise UserError(
            f"the environment's constructor gave environments with different action spaces ({_range(first)}, and "
            f"{_range(other)}); all of them must have the same"
        )


def _range(spec: ArraySpec) -> str:
    return f"{spec.dtype}{[*spec.shape]} from {spec.low} to {spec.high}"


def make_sync_env(
    environment: str | Environment, num_envs: int, *, limit_ends: bool = False, halves: bool = True
) -> SyncVectorEnv:
    """Make the environments of `make_env`, stepped one after the other, or MuJoCo's in two `halves`.

    They are made unchecked, since `SyncVectorEnv` checks what they return.
    """
    envs = [make_env(environment, limit_ends=limit_ends, checked=False) for _ in range(num_envs)]
    return SyncVectorEnv(envs, halves=halves)
