"""Gymnasium environments: how they are made, seeded, and described."""

import contextlib
import copy
import functools
import importlib
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec, find_highest_version
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation, StickyAction
from numpy.typing import NDArray

from trpo_tf.checked_env import CheckedEnv
from trpo_tf.environment import Environment
from trpo_tf.errors import UserError
from trpo_tf.serving import ArraySpec
from trpo_tf.serving.errors import install
from trpo_tf.serving.manifest import Bound
from trpo_tf.serving.observations import leaves_of
from trpo_tf.time_feature import TimeFeature

# Gymnasium's sticky actions stand in for ALE's own: the same process, frame by frame, but it draws from the
# environment's generator, and its last action can be saved and restored, which ALE leaves out of the emulator's state.
ATARI_ARGUMENTS: dict[str, Any] = {"frameskip": 1, "repeat_action_probability": 0.0}
_STICKINESS = 0.25


def make_env(
    environment: str | Environment, *, time_feature: bool = False, checked: bool = True, **arguments: Any
) -> gym.Env[Any, Any]:
    """One environment, of these arguments as well; of Atari's namespace `ALE/`, with the standard preprocessing.

    With `time_feature` the steps left are observed. Unless `checked` is off, what the environment answers is held to
    its spaces. Raises `UserError` for an id that Gymnasium can't make, an observation space that isn't supported, or
    with `time_feature` for an environment without a time limit.
    """
    made = Environment.of(environment)
    env_id = made.env_id
    with readable_errors(env_id):
        name = resolved_id(env_id)
        arguments = {"max_episode_steps": made.max_episode_steps or None} | made.arguments | arguments
        if is_atari(env_id):
            register_atari(env_id)
            arguments |= ATARI_ARGUMENTS
        if str(spec_of(env_id).entry_point).startswith("gymnasium.envs.mujoco"):
            _hear_mujoco()
        # Gymnasium's own checks warn, and look at the first step alone.
        env: gym.Env[Any, Any] = gym.make(name, disable_env_checker=True, **arguments)
        if is_atari(env_id):
            env = preprocess_atari(env)
        for module, wrapper, options in made.wrappers:
            env = _wrapper(module, wrapper)(env, **options)
    if time_feature:
        env = TimeFeature(env)
    return CheckedEnv(env, observation_spec(env.observation_space), env_id) if checked else env


@functools.cache
def _hear_mujoco() -> None:
    """Have MuJoCo's warnings as Python's, rather than on the terminal and in a file where the command is run.

    That Gymnasium's own models have a deprecated attribute is left out: nobody who trains can change them.
    """
    import mujoco

    def warn(message: str) -> None:
        if "deprecated" not in message:
            warnings.warn(f"MuJoCo: {message}", stacklevel=2)

    mujoco.set_mju_user_warning(warn)


def resolved_id(env_id: str) -> str:
    """The id with the latest version of its environment, where it has none; otherwise the id.

    Raises what the import of its module does.
    """
    module, _, name = env_id.rpartition(":")
    if module:
        importlib.import_module(module)
    if is_atari(env_id):
        register_atari(env_id)
    if name in gym.registry or re.search(r"-v\d+$", name):
        return env_id
    namespace, _, short = name.rpartition("/")
    version = find_highest_version(namespace or None, short)
    return env_id if version is None else f"{env_id}-v{version}"


def spec_of(environment: str | Environment) -> EnvSpec:
    """What an id was registered with, after its module is imported, and the environment's own time limit.

    Raises what Gymnasium or the import does.
    """
    made = Environment.of(environment)
    spec = gym.spec(resolved_id(made.env_id).rpartition(":")[2])
    if made.is_registered:
        return spec
    spec = copy.copy(spec)
    spec.max_episode_steps = made.max_episode_steps or spec.max_episode_steps
    spec.vector_entry_point = None  # which would be another environment
    return spec


def register_callable(env_id: str, make: Callable[..., gym.Env[Any, Any]]) -> None:
    """Have `make` called for environments of this id, in this process. Raises `UserError` for an id that is taken."""
    known = gym.registry.get(env_id)
    if known is not None and not callable(known.entry_point):
        raise UserError(f"make_env needs an id of its own, and {env_id!r} is registered; for example 'My{env_id}'")
    gym.registry.pop(env_id, None)
    with readable_errors(env_id):
        gym.register(env_id, make)


def _wrapper(module: str, name: str) -> Callable[..., gym.Env[Any, Any]]:
    found: Any = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    # What a bundle's manifest names is not called unless it is a wrapper.
    if not (isinstance(found, type) and issubclass(found, gym.Wrapper)):
        raise UserError(f"env_wrapper {module}:{name} is no gymnasium.Wrapper")
    return found


def environment_seed(seed: int, number: int) -> int:
    """The seed of environments rebuilt at checkpoint `number` of a run with `seed`."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0] >> 1)


def observation_parts(space: gym.Space[Any]) -> dict[str, gym.Space[Any]]:
    """The spaces of an observation's arrays, by input name. Raises `UserError` if there are none."""
    parts = dict(leaves_of(_unpacked(space)))
    if not parts:
        raise UserError(f"observation space {space} is empty; there must be something to observe")
    return parts


def observation_spec(space: gym.Space[Any]) -> tuple[ArraySpec, ...]:
    """The policy's observation inputs. Raises `UserError` for a space that isn't supported."""
    return tuple(_spec(name, part, "observation") for name, part in observation_parts(space).items())


def action_spec(space: gym.Space[Any]) -> ArraySpec:
    """The policy's action output. Raises `UserError` for a space that isn't supported."""
    if isinstance(space, gym.spaces.Box) and space.dtype.kind != "f":
        raise UserError(f"action space {space} isn't supported; a Box of actions must be of floats")
    return _spec("action", space, "action")


def _spec(name: str, space: gym.Space[Any], what: str) -> ArraySpec:
    match space:
        case gym.spaces.Discrete():
            return ArraySpec(name, space.dtype.name, (), int(space.start), int(space.start + space.n - 1))
        case gym.spaces.MultiDiscrete():
            first, last = space.start, space.start + space.nvec - 1
            return ArraySpec(name, space.dtype.name, space.shape, _bound(first), _bound(last))
        case gym.spaces.MultiBinary():
            return ArraySpec(name, space.dtype.name, space.shape, 0, 1)
        case gym.spaces.Box() if space.dtype.kind in "iuf" and 0 not in space.shape:
            return ArraySpec(name, space.dtype.name, space.shape, _bound(space.low), _bound(space.high))
    allowed = "Box, Discrete, MultiDiscrete or MultiBinary"
    if what == "observation":
        allowed += ", or a Dict or Tuple of these"
    raise UserError(f"{what} space {space} isn't supported; it must be {allowed}")


def _bound(values: NDArray[Any]) -> Bound:
    """A bound for each element, or the one that all have."""
    each = values.ravel().tolist()
    return each[0] if len(set(each)) == 1 else tuple(each)


def _unpacked(space: gym.Space[Any]) -> Any:
    match space:
        case gym.spaces.Dict():
            return {key: _unpacked(part) for key, part in space.spaces.items()}
        case gym.spaces.Tuple():
            return tuple(_unpacked(part) for part in space.spaces)
    return space


def is_atari(env_id: str) -> bool:
    """Whether an id is of Atari's namespace."""
    return env_id.removeprefix("ale_py:").startswith("ALE/")


def register_atari(env_id: str) -> None:
    """Make Atari's ids known to Gymnasium. Raises `UserError` if ALE is not installed."""
    try:
        import ale_py
        import cv2  # noqa: F401 (AtariPreprocessing imports it when it is made)
    except ImportError as error:
        raise UserError(f"environment {env_id!r} can't be made: {install('atari')}") from error
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    gym.register_envs(ale_py)


def preprocess_atari(env: gym.Env[Any, Any]) -> FrameStackObservation[Any, Any, Any]:
    """Observations uint8 [4, 84, 84], an action for four frames (Machado et al. 2018)."""
    inner: Any = env.unwrapped
    if inner.get_action_meanings()[0] != "NOOP":
        raise UserError(f"{inner.spec.id} isn't supported: it has no NOOP action, with which Atari's episodes start")
    env = StickyAction(env, _STICKINESS)
    env = AtariPreprocessing(env, noop_max=30, frame_skip=4, screen_size=84, grayscale_obs=True, scale_obs=False)
    return FrameStackObservation(env, 4)


@contextlib.contextmanager
def readable_errors(env_id: str) -> Iterator[None]:
    """What is raised where an id is looked up, or its environment made, as a `UserError` of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        if not isinstance(error, gym.error.Error | ModuleNotFoundError):
            reason = f"its constructor raised {type(error).__name__}: {reason}"
        if isinstance(error, TypeError):
            reason += "; arguments are given by --env-kwargs, as JSON"
        raise UserError(f"environment {env_id!r} can't be made: {reason}") from error
