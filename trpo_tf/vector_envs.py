"""Environments stepped together, by Gymnasium or by EnvPool.

Whoever steps them, an episode's end is followed by a row that only resets: its action is ignored, and it counts as no
step. An episode that EnvPool cuts at its time limit is followed by two.
"""

import importlib.util
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from trpo_tf.checked_env import FLAGS, INTEGERS, NUMBERS, conforming, integer_bounds, plain_flag, plain_reward
from trpo_tf.environment import Environment
from trpo_tf.envs import is_atari, make_env, observation_spec, readable_errors, resolved_id, spec_of
from trpo_tf.errors import UserError, environment_failure
from trpo_tf.info_means import InfoMeans
from trpo_tf.serving.errors import install
from trpo_tf.serving.observations import ROOT, Observation, by_name, leaves_of, structured
from trpo_tf.time_feature import VectorTimeFeature

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


def choose_backend(backend: str, environment: str | Environment) -> str:
    """The backend's name; "auto" is the fastest one installed that has the environment.

    Gymnasium's own vectorised environments come first, then EnvPool, then Gymnasium's environments in turn. Raises
    `UserError` if EnvPool is asked for and can't make the environment.
    """
    if backend == "gymnasium":
        return backend
    if backend == "auto" and _is_vectorized(environment):
        return "gymnasium"
    reason = _why_not_envpool(Environment.of(environment))
    if backend == "auto":
        return "gymnasium" if reason else "envpool"
    if reason:
        raise UserError(f"env_backend can't be envpool: {reason}; use gymnasium")
    return backend


def make_vector_env(
    environment: str | Environment, num_envs: int, backend: str = "gymnasium", *, time_feature: bool = False
) -> VectorEnv:
    """`num_envs` environments of backend "gymnasium" or "envpool", whose steps left `time_feature` has observed.

    Raises `UserError` for an id it can't make.
    """
    envs: VectorEnv
    if backend == "envpool":
        envs = EnvPool(str(environment), num_envs)
    else:
        env_id = str(environment)
        with readable_errors(env_id):
            if is_atari(env_id) or spec_of(environment).vector_entry_point is None:
                return make_sync_env(environment, num_envs, time_feature=time_feature)
            vectorized = gym.make_vec(resolved_id(env_id), num_envs=num_envs)
        if vectorized.metadata.get("autoreset_mode") != AutoresetMode.NEXT_STEP:
            raise UserError(f"{env_id} has a vector form that does not reset in the next step; register it without")
        envs = Vectorized(vectorized)
    return VectorTimeFeature(envs, spec_of(environment).max_episode_steps) if time_feature else envs


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


class InTurn:
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


def make_sync_env(environment: str | Environment, num_envs: int, *, time_feature: bool = False) -> InTurn:
    """The environments of `make_env`, stepped in turn.

    Unchecked, since `InTurn` looks at what they answer itself.
    """
    return InTurn([make_env(environment, time_feature=time_feature, checked=False) for _ in range(num_envs)])


_STATE = ("obs", "reward", "done", "trunc", "elapsed_step")
"""What a step answers, by EnvPool's names."""


class EnvPool:
    """EnvPool's environments, with episodes and types as Gymnasium's have them."""

    can_end = True

    def __init__(self, env_id: str, num_envs: int) -> None:
        """Nothing is built before `reset`."""
        self._env_id, self.num_envs = env_id, num_envs
        self._limit = spec_of(env_id).max_episode_steps
        self._ids = np.arange(num_envs, dtype=np.int32)

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
        self._places = [self._pool._state_keys.index(name) for name in _STATE]
        self._ended: list[int] = []
        return observation, info

    def step(self, actions: Any) -> Step:
        """Act; an episode is truncated at Gymnasium's limit, and once more when EnvPool gets to its own."""
        actions = actions.astype(self._dtype, order="C", copy=False)
        if self._ended:
            state = self._reset_some(actions)
        else:
            # What the pool's own `step` adds to these two, in Python, is a fifth of 8 HalfCheetahs' step.
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

    def take_info(self) -> dict[str, float]:
        """Nothing: EnvPool's `info` has other names than Gymnasium's, and is not read."""
        return {}

    def close(self) -> None:
        """Free the pool's threads."""
        self._pool.close()


def _is_vectorized(environment: str | Environment) -> bool:
    """Whether Gymnasium steps many at once; False of an environment that it doesn't know, which is not told here."""
    try:
        return spec_of(environment).vector_entry_point is not None
    except (gym.error.Error, ImportError):
        return False


def _why_not_envpool(environment: Environment) -> str | None:
    env_id = environment.env_id
    if not environment.is_registered:
        return "it takes no env_kwargs, max_episode_steps or env_wrapper"
    if importlib.util.find_spec("envpool") is None:
        return f"it is not installed ({install('envpool')})"
    import envpool

    if env_id not in envpool.list_all_envs():
        return f"it has no {env_id}"
    try:
        spec = spec_of(env_id)
    except (gym.error.Error, ImportError):
        return f"Gymnasium, which says what its spaces are, has no {env_id}"
    if not str(spec.entry_point).startswith("gymnasium.envs.") or spec.kwargs or spec.additional_wrappers:
        return f"its {env_id} is not the one that is registered here"
    return None
