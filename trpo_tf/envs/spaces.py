"""Describe Gymnasium's spaces as the policy's inputs and outputs."""

from typing import Any

import gymnasium as gym
from numpy.typing import NDArray

from trpo_tf.errors import UserError
from trpo_tf.serving import ArraySpec
from trpo_tf.serving.bundle.specs import Bound
from trpo_tf.serving.runtime.observations import leaves_of


def observation_parts(space: gym.Space[Any]) -> dict[str, gym.Space[Any]]:
    """Return the spaces of an observation's arrays by input name. Raises `UserError` if there are none."""
    parts = dict(leaves_of(_unpacked(space)))
    if not parts:
        raise UserError(f"observation space {space} is empty; there must be something to observe")
    return parts


def observation_spec(space: gym.Space[Any]) -> tuple[ArraySpec, ...]:
    """Return the policy's observation inputs. Raises `UserError` for a space that isn't supported."""
    return tuple(_spec(name, part, "observation") for name, part in observation_parts(space).items())


def action_spec(space: gym.Space[Any]) -> ArraySpec:
    """Return the policy's action output. Raises `UserError` for a space that isn't supported."""
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
    """Return the bound that all elements have in common, or else one for each."""
    each = values.ravel().tolist()
    return each[0] if len(set(each)) == 1 else tuple(each)


def _unpacked(space: gym.Space[Any]) -> Any:
    match space:
        case gym.spaces.Dict():
            return {key: _unpacked(part) for key, part in space.spaces.items()}
        case gym.spaces.Tuple():
            return tuple(_unpacked(part) for part in space.spaces)
    return space
