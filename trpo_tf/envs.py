"""Gymnasium environments: how they are made, seeded, and described."""

import contextlib
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from serving import ArraySpec
from trpo_tf.errors import UserError


def make_env(env_id: str) -> gym.Env[Any, Any]:
    """One environment. Raises `UserError` for an id that Gymnasium can't make."""
    with _readable_errors(env_id):
        return gym.make(env_id)


def make_vector_env(env_id: str, num_envs: int) -> VectorEnv[Any, Any, Any]:
    """`num_envs` environments stepped together, each reset in the step after its episode's end.

    Raises `UserError` for an id that Gymnasium can't make.
    """
    with _readable_errors(env_id):
        envs = gym.make_vec(env_id, num_envs=num_envs)
    if envs.metadata.get("autoreset_mode") != AutoresetMode.NEXT_STEP:
        raise UserError(f"{env_id} has a vector form that does not reset in the next step; register it without")
    return envs


def environment_seed(seed: int, number: int) -> int:
    """The seed of environments rebuilt at checkpoint `number` of a run with `seed`."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0] >> 1)


def observation_spec(space: gym.Space[Any]) -> ArraySpec:
    """The policy's observation input. Raises `UserError` for a space that isn't supported."""
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1 or space.dtype.kind not in "iuf":
        raise UserError(f"observation space {space} isn't supported; it must be a Box of one dimension")
    return ArraySpec("obs", space.dtype.name, space.shape, *_bounds(space))


def action_spec(space: gym.Space[Any]) -> ArraySpec:
    """The policy's action output. Raises `UserError` for a space that isn't supported."""
    if isinstance(space, gym.spaces.Discrete):
        return ArraySpec("action", space.dtype.name, (), int(space.start), int(space.start + space.n - 1))
    if isinstance(space, gym.spaces.Box) and space.dtype.kind == "f":
        return ArraySpec("action", space.dtype.name, space.shape, *_bounds(space))
    raise UserError(f"action space {space} isn't supported; it must be Discrete, or a Box of floats")


def _bounds(space: gym.spaces.Box) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(map(float, space.low.ravel())), tuple(map(float, space.high.ravel()))


@contextlib.contextmanager
def _readable_errors(env_id: str) -> Iterator[None]:
    try:
        yield
    except (gym.error.Error, ModuleNotFoundError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"environment {env_id!r} can't be made: {reason}") from error
