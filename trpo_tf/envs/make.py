"""Make, seed and describe Gymnasium environments."""

import contextlib
import copy
import dataclasses
import functools
import importlib
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec, find_highest_version

from trpo_tf.config.environment import Environment
from trpo_tf.envs.action_mask import LegalActions, mask_source
from trpo_tf.envs.agents import Parallel
from trpo_tf.envs.atari import ATARI_ARGUMENTS, is_atari, preprocess_atari, register_atari
from trpo_tf.envs.checked import CheckedEnv
from trpo_tf.envs.curriculum import ResetOptions, set_progress
from trpo_tf.envs.remaining_time import LimitEnds, TimeFeature
from trpo_tf.envs.spaces import observation_spec
from trpo_tf.envs.unregistered import of_former_gym, why_not_registered
from trpo_tf.errors import ENVIRONMENT_ERRORS, UserError, described
from trpo_tf.serving.argument_checks import expect
from trpo_tf.support.shell import option

_RUNNING_STATISTICS = {
    "NormalizeObservation": ("normalize_observations", ", the default, whose statistics are a part of the policy"),
    "NormalizeReward": ("value_scaling", ": targets, the default, or rewards"),
}
"""Wrappers of Gymnasium that can't be used, and the setting that does the same."""


def make_env(
    environment: str | Environment,
    *,
    limit_ends: bool = False,
    time_feature: bool = False,
    masked: bool = False,
    checked: bool = True,
    **arguments: Any,
) -> gym.Env[Any, Any]:
    """Make one environment; further `arguments` go to its constructor.

    Ids in `ALE/` get Atari's standard preprocessing. With `limit_ends` an episode that reaches the time limit has
    terminated, and with `time_feature` the steps left are observed as well. `masked` is for a policy that needs a mask
    of legal actions, from `info` if no setting says otherwise. Unless `checked` is off, observations, rewards and flags
    are checked against the spaces. A curriculum is at its end until `set_progress`.

    Raises `UserError` for an id that Gymnasium can't make, and for an observation space that isn't supported. With
    `limit_ends` or `time_feature` it also does for an environment without a time limit.
    """
    made = Environment.of(environment)
    env_id = made.env_id
    with readable_errors(env_id):
        name = resolved_id(env_id)
        arguments = {"max_episode_steps": made.max_episode_steps or None} | made.arguments | arguments
        if is_atari(env_id):
            register_atari(env_id)
            arguments |= ATARI_ARGUMENTS
        entry_point = spec_of(env_id).entry_point
        if entry_point is None:
            raise UserError(
                f"environment {env_id!r} has a vector form alone, and exports and evaluations step a single one; "
                "register it with an entry_point too"
            )
        if isinstance(entry_point, Parallel):
            _refuse_wrappers_of_one_agent(made)
        if str(entry_point).startswith("gymnasium.envs.mujoco"):
            _redirect_mujoco_warnings()
        # Gymnasium's own checks warn, and look at the first step alone.
        env: gym.Env[Any, Any] = gym.make(name, disable_env_checker=True, **arguments)
        if is_atari(env_id):
            env = preprocess_atari(env)
        for module, wrapper, options in made.wrappers:
            env = _wrapped(env, module, wrapper, options)
        _refuse_running_statistics(env)
    _require_spaces(env, env_id)
    if options := made.options:
        env = ResetOptions(env, options)
    set_progress(env, 1.0)
    if source := mask_source(made.action_mask, env, masked=masked):
        env = LegalActions(env, source)
    if limit_ends or time_feature:
        env = (TimeFeature if time_feature else LimitEnds)(env)
    return CheckedEnv(env, observation_spec(env.observation_space), env_id) if checked else env


@functools.cache
def _redirect_mujoco_warnings() -> None:
    """Turn MuJoCo's warnings into Python's, instead of terminal output and a log file in the working directory.

    Warnings of a deprecated attribute are dropped: Gymnasium's own models have it, and users can't change them.
    """
    import mujoco

    def warn(message: str) -> None:
        if "deprecated" not in message:
            warnings.warn(f"MuJoCo: {message}", stacklevel=2)

    mujoco.set_mju_user_warning(warn)


def is_mujoco(env: gym.Env[Any, Any]) -> bool:
    """Return whether the environment is one of Gymnasium's MuJoCo classes, without importing MuJoCo."""
    module = sys.modules.get("gymnasium.envs.mujoco")
    return module is not None and isinstance(env.unwrapped, module.MujocoEnv)


def resolved_id(env_id: str) -> str:
    """Return the id with its environment's latest version added, unless it has a version.

    Raises `ModuleNotFoundError`, and `UserError` for another exception of importing its module.
    """
    module, _, name = env_id.rpartition(":")
    if module:
        _import_registering(module, env_id)
    if is_atari(env_id):
        register_atari(env_id)
    if name in gym.registry or re.search(r"-v\d+$", name):
        return env_id
    namespace, _, short = name.rpartition("/")
    version = find_highest_version(namespace or None, short)
    return env_id if version is None else f"{env_id}-v{version}"


def _import_registering(module: str, env_id: str) -> None:
    if "/" in module or module.endswith(".py"):
        named = f"{Path(module).stem}:{env_id.rpartition(':')[2]}"
        raise UserError(
            f"environment {env_id!r} can't be made: in front of the colon stands the name of a module, as in {named}, "
            "and no file; modules are looked for in the working directory and in PYTHONPATH"
        )
    try:
        importlib.import_module(module)
    except ModuleNotFoundError:
        raise
    except ENVIRONMENT_ERRORS as error:
        raise UserError(
            f"environment {env_id!r} can't be made: importing {module} raised {described(error)}"
        ) from error


def spec_of(environment: str | Environment) -> EnvSpec:
    """Import the id's module, and return the registered spec with the environment's own time limit.

    Raises what Gymnasium or the import raises.
    """
    made = Environment.of(environment)
    spec = gym.spec(resolved_id(made.env_id).rpartition(":")[2])
    if made.is_registered:
        return spec
    spec = copy.copy(spec)
    spec.max_episode_steps = made.max_episode_steps or spec.max_episode_steps
    spec.vector_entry_point = None  # it would ignore the settings
    return spec


def register_callable(env_id: str, make: Callable[..., gym.Env[Any, Any]]) -> None:
    """Register `make` as the constructor of environments with this id, in this process.

    Raises `UserError` for an id that is taken, and for anything that can't be called.
    """
    expect(make, Callable, "make_env must be a class or function that returns a new environment", UserError)
    known = gym.registry.get(env_id)
    if known is not None and not callable(known.entry_point):
        raise UserError(f"make_env needs an id of its own, and {env_id!r} is registered; for example 'My{env_id}'")
    gym.registry.pop(env_id, None)
    with readable_errors(env_id):
        gym.register(env_id, make)


def _wrapped(env: gym.Env[Any, Any], module: str, name: str, options: Mapping[str, Any]) -> gym.Env[Any, Any]:
    """Return the environment in a wrapper. Raises `UserError` if that can't be made."""
    try:
        return _wrapper(module, name)(env, **options)
    except UserError:
        raise
    except ENVIRONMENT_ERRORS as error:
        how = f"; arguments stand behind its name, as JSON: {module}:{name}{{...}}" if "argument" in str(error) else ""
        raise UserError(f"env_wrapper {module}:{name} can't be made: {described(error)}{how}") from error


def _wrapper(module: str, name: str) -> Callable[..., gym.Env[Any, Any]]:
    found: Any = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    # A bundle's manifest may name anything: only a wrapper may be called.
    if not (isinstance(found, type) and issubclass(found, gym.Wrapper)):
        raise UserError(f"env_wrapper {module}:{name} is no gymnasium.Wrapper")
    return found


def _refuse_wrappers_of_one_agent(environment: Environment) -> None:
    """Raise `UserError` if agents that share a policy would be wrapped one by one."""
    if not dataclasses.replace(environment, env_kwargs="").is_registered:
        raise UserError(
            "agents that share a policy take no max_episode_steps, env_wrapper, reset_options or action_mask; wrap the "
            "parallel environment where it is registered, with SuperSuit for example"
        )


def _require_spaces(env: gym.Env[Any, Any], env_id: str) -> None:
    """Raise `UserError` if the environment does not say what it observes, or how it acts."""
    for name in ("observation_space", "action_space"):
        space = getattr(env, name, None)
        if not isinstance(space, gym.Space):
            found = "none" if space is None else f"a {type(space).__module__}.{type(space).__name__}"
            raise UserError(
                f"environment {env_id!r} needs an {name} of gymnasium.spaces, set in its constructor; it has {found}"
            )


def _refuse_running_statistics(env: gym.Env[Any, Any]) -> None:
    """Raise `UserError` for a wrapper whose statistics grow by steps: each environment would have others."""
    while isinstance(env, gym.Wrapper):
        name = type(env).__name__
        if type(env).__module__.startswith("gymnasium.wrappers.") and name in _RUNNING_STATISTICS:
            setting, meaning = _RUNNING_STATISTICS[name]
            raise UserError(
                f"the wrapper {name} keeps statistics that a run does not save; leave it out and use "
                f"{option(setting)}{meaning}"
            )
        env = env.env


def environment_seed(seed: int, number: int) -> int:
    """Return the seed of the environments that are built at checkpoint `number` of a run with `seed`."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0] >> 1)


def _how_to_give(reason: str) -> str:
    """Return what to do about an argument that a constructor lacks or does not take."""
    if "unexpected keyword argument 'render_mode'" in reason:
        return "; to be drawn, an environment takes render_mode='rgb_array', and its render returns frames"
    return f"; arguments are given by {option('env_kwargs')}, as JSON"


@contextlib.contextmanager
def readable_errors(env_id: str) -> Iterator[None]:
    """Turn any error of looking up an id, or making its environment, into a `UserError` of one line."""
    try:
        yield
    except UserError:
        raise
    except ENVIRONMENT_ERRORS as error:
        reason = " ".join(str(error).split())
        if isinstance(error, gym.error.UnregisteredEnv):
            reason = of_former_gym(env_id) or why_not_registered(env_id, error)
        elif not isinstance(error, gym.error.Error | ModuleNotFoundError):
            reason = f"its constructor raised {described(error)}{_newer(env_id) if type(error) is ImportError else ''}"
        elif isinstance(error, ModuleNotFoundError) and error.name == env_id.partition(":")[0]:
            reason += f"; run the command in the folder of {error.name}.py, or install the package"
        if isinstance(error, TypeError) and "argument" in reason:
            reason += _how_to_give(reason)
        raise UserError(f"environment {env_id!r} can't be made: {reason}") from error


def _newer(env_id: str) -> str:
    """Return the latest version of an environment, as the advice of an error; empty if it is this one."""
    latest = resolved_id(re.sub(r"-v\d+$", "", env_id))
    return f"; take {latest}" if latest != env_id else ""
