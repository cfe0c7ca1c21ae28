"""Environments stepped together, by Gymnasium or by EnvPool.

Whoever steps them, an episode's end is followed by a row that only resets: its action is ignored, and it counts as no
step. An episode that EnvPool cuts at its time limit is followed by two.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from numpy.typing import NDArray

from trpo_tf.config.environment import Environment
from trpo_tf.envs.checked import FLAGS, INTEGERS, NUMBERS, conforming, integer_bounds, plain_flag, plain_reward
from trpo_tf.envs.info_means import InfoMeans
from trpo_tf.envs.make import make_env
from trpo_tf.envs.spaces import observation_spec
from trpo_tf.errors import environment_failure
from trpo_tf.serving.runtime.observations import ROOT, Observation, by_name, leaves_of, structured

Step = tuple[Any, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], Any]
"""observation, reward [N], terminated [N], truncated [N], info."""


class VectorEnv(Protocol):
    """What the sampler needs of environments stepped together.

    Attributes:
        num_envs: how many there are.
        can_end: whether `end` works.
    """

    num_envs: int
    can_end: bool

    def reset(self, *, seed: int | None = None) -> tuple[Any, Any]:
        """Start anew from `seed`: observations and info."""

    def step(self, actions: Any) -> Step:
        """Act in all of them."""

    def end(self, places: Sequence[int]) -> None:
        """End some environments' episodes: the next step resets them."""

    def take_info(self) -> dict[str, float]:
        """Means of the numbers that the environments told in `info` since the last call, as `InfoMeans` has them."""

    def close(self) -> None:
        """Free what they hold."""


_CHECKED_STEPS = 100
"""Observations of each environment that are looked at in full."""

_NOWHERE: tuple[Any, Any, Any, Any] = (None, None, None, None)


class Vectorized:
    """Gymnasium's environments that one array operation steps. An episode of theirs can't be ended from outside."""

    can_end = False

    def __init__(self, envs: gym.vector.VectorEnv[Any, Any, Any]) -> None:
        """It owns the environments."""
        self.num_envs, self.close = envs.num_envs, envs.close
        self.reset, self.step = envs.reset, envs.step

    def end(self, places: Sequence[int]) -> None:
        """Raises `NotImplementedError`."""
        raise NotImplementedError(f"the episodes of {places} can't be ended")

    def take_info(self) -> dict[str, float]:
        """Nothing: of these classic tasks none tells anything."""
        return {}


class SyncVectorEnv:
    """Gymnasium's environments one after the other, those of MuJoCo in two halves at once.

    As `gym.vector.SyncVectorEnv`, without gathering in arrays what environments tell beside the transition, which takes
    as long as a small environment's step. MuJoCo's physics lets other threads run meanwhile.
    """

    can_end = True

    def __init__(self, envs: Sequence[gym.Env[Any, Any]]) -> None:
        """It owns the environments, which must be alike."""
        self.envs, self.num_envs = envs, len(envs)
        self._specs = parts = observation_spec(envs[0].observation_space)
        self._observation = {part.name: np.zeros((self.num_envs, *part.shape), part.dtype) for part in parts}
        self._places = {
            part.name: (rows, rows.dtype, part.shape, integer_bounds(part))
            for part, rows in zip(parts, self._observation.values(), strict=True)
        }
        self._to_check = np.full(self.num_envs, _CHECKED_STEPS).tolist()
        self._info = [InfoMeans() for _ in envs]
        self._reward = np.zeros(self.num_envs)
        self._terminated, self._truncated = (np.zeros(self.num_envs, bool) for _ in range(2))
        middle = self.num_envs // 2 if isinstance(envs[0].unwrapped, MujocoEnv) else 0
        self._first, self._others = range(middle), range(middle, self.num_envs)
        self._beside = ThreadPoolExecutor(1)

    def reset(self, *, seed: int | None = None) -> tuple[Observation, Any]:
        """The environments' seeds are `seed` and those that follow it."""
        for i, env in enumerate(self.envs):
            try:
                self._observe(i, env.reset(seed=None if seed is None else seed + i)[0])
            except Exception as error:
                raise environment_failure("reset", error, f"environment {i + 1} of {self.num_envs}") from error
        self._terminated[:] = self._truncated[:] = False
        return self._copied(), {}

    def step(self, actions: NDArray[Any]) -> Step:
        """Act in all of them; one whose episode has ended is reset instead."""
        first = self._beside.submit(self._advance, self._first, actions) if self._first else None
        self._advance(self._others, actions)
        if first is not None:
            first.result()
        return self._copied(), self._reward.copy(), self._terminated.copy(), self._truncated.copy(), {}

    def end(self, places: Sequence[int]) -> None:
        """End these environments' episodes: the next step resets them."""
        self._truncated[list(places)] = True

    def take_info(self) -> dict[str, float]:
        """See `VectorEnv`."""
        return InfoMeans.taken(self._info)

    def close(self) -> None:
        """Close them."""
        self._beside.shutdown()
        for env in self.envs:
            env.close()

    def _advance(self, places: range, actions: NDArray[Any]) -> None:
        for i in places:
            try:
                if self._terminated[i] or self._truncated[i]:
                    observation, _ = self.envs[i].reset()
                    self._reward[i], self._terminated[i], self._truncated[i] = 0.0, False, False
                else:
                    observation, reward, terminated, truncated, info = self.envs[i].step(actions[i])
                    self._reward[i] = reward if type(reward) in NUMBERS else plain_reward(reward)
                    self._terminated[i] = (
                        terminated if type(terminated) in FLAGS else plain_flag(terminated, "terminated")
                    )
                    self._truncated[i] = truncated if type(truncated) in FLAGS else plain_flag(truncated, "truncated")
                    if info and isinstance(info, dict):
                        self._info[i].add(info, ended=bool(self._terminated[i] or self._truncated[i]))
                self._observe(i, observation)
            except Exception as error:
                raise environment_failure("step", error, f"environment {i + 1} of {self.num_envs}") from error

    def _observe(self, place: int, observation: Any) -> None:
        """Take in an observation: the first ones in full, then names, types and shapes; integers' range at first."""
        if self._to_check[place]:
            self._to_check[place] -= 1
            observation = conforming(observation, self._specs)
        count = 0
        for name, part in leaves_of(observation):
            rows, dtype, shape, bounds = self._places.get(name, _NOWHERE)
            if type(part) is np.ndarray:
                if part.dtype is not dtype or part.shape != shape:
                    break
            elif bounds is None or type(part) not in INTEGERS or not bounds[0] <= part <= bounds[1]:
                break
            rows[place] = part
            count += 1
        if count < len(self._specs):
            for name, part in by_name(conforming(observation, self._specs), ROOT).items():
                self._observation[name][place] = part

    def _copied(self) -> Observation:
        return structured({name: rows.copy() for name, rows in self._observation.items()})  # type: ignore[no-any-return]


def make_sync_env(environment: str | Environment, num_envs: int, *, time_feature: bool = False) -> SyncVectorEnv:
    """The environments of `make_env`, stepped in turn.

    Unchecked, since `SyncVectorEnv` looks at what they answer itself.
    """
    return SyncVectorEnv([make_env(environment, time_feature=time_feature, checked=False) for _ in range(num_envs)])
