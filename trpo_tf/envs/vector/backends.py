"""Choose the backend that steps environments together, Gymnasium or EnvPool, and make its environments."""

import dataclasses
import importlib.util
import math
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode

from trpo_tf.config.environment import Environment
from trpo_tf.config.settings import Config
from trpo_tf.envs.agents import AgentRows, Parallel
from trpo_tf.envs.atari import is_atari
from trpo_tf.envs.make import make_env, readable_errors, resolved_id, spec_of
from trpo_tf.envs.remaining_time import VectorLimitEnds
from trpo_tf.envs.vector.envpool import EnvPool, import_envpool
from trpo_tf.envs.vector.vector_env import VectorEnv, Vectorized, make_sync_env
from trpo_tf.errors import UserError
from trpo_tf.serving.errors import install


def choose_backend(backend: str, environment: str | Environment) -> str:
    """Return the backend's name; "auto" is the fastest one installed that has the environment.

    Gymnasium's own vectorised environments come first, then EnvPool, then Gymnasium's environments one after the other.
    Raises `UserError` if EnvPool is asked for and can't make the environment.
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


def with_env_backend(config: Config) -> Config:
    """Return the config with the backend "auto" replaced by the one to use here. Raises `UserError`."""
    backend = "gymnasium"
    if not config.sampler_is_vine and config.sampling.shards == 1:
        backend = choose_backend(config.sampling.env_backend, config.made_environment)
    return dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, env_backend=backend))


def make_vector_env(
    environment: str | Environment,
    num_envs: int,
    backend: str = "gymnasium",
    *,
    limit_ends: bool = False,
    halves: bool = True,
) -> VectorEnv:
    """Make `num_envs` environments of backend "gymnasium" or "envpool".

    With `limit_ends` an episode that reaches the time limit has terminated. With `halves` MuJoCo's are stepped in two
    halves, on two threads. Raises `UserError` for an id that can't be
    made.
    """
    envs: VectorEnv
    if backend == "envpool":
        envs = EnvPool(str(environment), num_envs)
    else:
        env_id = str(environment)
        with readable_errors(env_id):
            if isinstance(spec_of(environment).entry_point, Parallel):
                return _agent_rows(Environment.of(environment), num_envs, limit_ends=limit_ends)
            vectorized = _vector_form(environment, num_envs)
        if vectorized is None:
            return make_sync_env(environment, num_envs, limit_ends=limit_ends, halves=halves)
        envs = Vectorized(vectorized)
    return VectorLimitEnds(envs, spec_of(environment).max_episode_steps) if limit_ends else envs


def _vector_form(environment: str | Environment, num_envs: int) -> gym.vector.VectorEnv[Any, Any, Any] | None:
    """Return Gymnasium's vector form of the environment, None if it has none that resets in the next step."""
    spec = spec_of(environment)
    if is_atari(str(environment)) or spec.vector_entry_point is None or spec.additional_wrappers:
        return None
    made = gym.make_vec(resolved_id(str(environment)), num_envs=num_envs)
    if made.metadata.get("autoreset_mode") == AutoresetMode.NEXT_STEP:
        return made
    made.close()
    return None


def _agent_rows(environment: Environment, num_envs: int, *, limit_ends: bool) -> AgentRows:
    make_env(environment, limit_ends=limit_ends).close()  # for its checks
    spec = spec_of(environment)
    assert isinstance(spec.entry_point, Parallel)
    rows = spec.entry_point.rows(num_envs, **spec.kwargs | environment.arguments)
    rows.set_progress(1.0)
    return rows


def whole_worlds(environment: str | Environment, episodes: int) -> int:
    """Return `episodes`, or the next larger number that is a multiple of the agents of a world."""
    with readable_errors(str(environment)):
        spec = spec_of(environment)
        if not isinstance(spec.entry_point, Parallel):
            return episodes
        agents = spec.entry_point.agents(**spec.kwargs | Environment.of(environment).arguments)
    return math.ceil(episodes / agents) * agents


def _is_vectorized(environment: str | Environment) -> bool:
    """Return whether Gymnasium has a vectorised form of the environment.

    An environment that Gymnasium doesn't know has none; making it reports the error.
    """
    try:
        return spec_of(environment).vector_entry_point is not None
    except (gym.error.Error, ImportError):
        return False


def _why_not_envpool(environment: Environment) -> str | None:
    env_id = environment.env_id
    if not environment.is_registered:
        return "it takes no env_kwargs, max_episode_steps, env_wrapper or reset_options"
    if importlib.util.find_spec("envpool") is None:
        return f"it is not installed ({install('envpool')})"
    try:
        spec = spec_of(env_id)
    except (gym.error.Error, ImportError):
        return f"Gymnasium, which says what its spaces are, has no {env_id}"
    # Before EnvPool's import, which takes longer than all other imports of an environment.
    if not str(spec.entry_point).startswith("gymnasium.envs.") or spec.kwargs or spec.additional_wrappers:
        return f"it has only environments that Gymnasium registers, as it registers them, and {env_id} is none"
    if env_id not in import_envpool().list_all_envs():
        return f"it has no {env_id}"
    return None
