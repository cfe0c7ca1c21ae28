"""Describe Gymnasium's spaces as the policy's inputs and outputs."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
from numpy.typing import NDArray

from trpo_tf.errors import UserError
from trpo_tf.serving import ArraySpec
from trpo_tf.serving.bundle.manifest_fields import bound_to_json
from trpo_tf.serving.bundle.specs import Bound
from trpo_tf.serving.runtime.observations import ROOT, leaves_of
from trpo_tf.support.shell import option


class ActionMask(gym.spaces.Box):
    """Space of a mask of legal actions: 1 or true for each legal option; options of several choices stand in a row."""

    def __init__(self, size: int, dtype: Any) -> None:
        """Make the space of arrays [size] of this dtype."""
        super().__init__(0, 1, (size,), dtype)


MASK = ActionMask.__name__
"""The kind of the part of an observation that is a mask, in `Spaces.kinds`."""

_MOST_CHOICES = 1_000_000
"""Most values of a Discrete space, or of all dimensions of a MultiDiscrete one: a network has weights for each."""

_KINDS = (ActionMask, gym.spaces.Box, gym.spaces.Discrete, gym.spaces.MultiDiscrete, gym.spaces.MultiBinary)


@dataclass(frozen=True)
class Spaces:
    """Observations, actions and episodes of an environment: all that a policy has to know of it.

    Attributes:
        observation: the observation's arrays.
        kinds: name of the space of each: `Box`, `Discrete`, `MultiDiscrete`, `MultiBinary` or `ActionMask`.
        action: the action's array.
        limit: the time limit of an episode in steps, 0 if there is none.
    """

    observation: tuple[ArraySpec, ...]
    kinds: tuple[str, ...]
    action: ArraySpec
    limit: int = 0

    @classmethod
    def of(cls, env: gym.Env[Any, Any]) -> "Spaces":
        """Return an environment's spaces. Raises `UserError` for a space that isn't supported."""
        observation = env.observation_space
        return cls(
            observation_spec(observation),
            observation_kinds(observation),
            action_spec(env.action_space),
            (env.spec.max_episode_steps if env.spec else None) or 0,
        )

    @property
    def mask(self) -> str | None:
        """Name of the observation's array that tells which actions are legal, None if none does."""
        return next((spec.name for spec, kind in zip(self.observation, self.kinds, strict=True) if kind == MASK), None)

    def to_json(self) -> str:
        """Return the spaces as JSON text; an infinite bound is written as null."""
        document = dataclasses.asdict(self)
        for spec in (*document["observation"], document["action"]):
            spec["low"], spec["high"] = bound_to_json(spec["low"]), bound_to_json(spec["high"])
        return json.dumps(document, indent=2)

    @classmethod
    def from_json(cls, text: str) -> "Spaces":
        """Return the spaces that `to_json` has written. Raises `ValueError`, `TypeError` or `KeyError` for others."""
        document = json.loads(text)
        observation = tuple(ArraySpec(**spec) for spec in document["observation"])
        return cls(observation, tuple(document["kinds"]), ArraySpec(**document["action"]), int(document["limit"]))


def observation_parts(space: gym.Space[Any]) -> dict[str, gym.Space[Any]]:
    """Return the spaces of an observation's arrays by input name. Raises `UserError` if there are none."""
    parts = dict(leaves_of(_unpacked(space)))
    if not parts:
        raise UserError(f"observation space {space} is empty; there must be something to observe")
    return parts


def observation_spec(space: gym.Space[Any]) -> tuple[ArraySpec, ...]:
    """Return the policy's observation inputs. Raises `UserError` for a space that isn't supported."""
    return tuple(_spec(name, part, "observation") for name, part in observation_parts(space).items())


def observation_kinds(space: gym.Space[Any]) -> tuple[str, ...]:
    """Return the name of the Gymnasium space of each of an observation's arrays, which must be supported."""
    return tuple(
        next(kind.__name__ for kind in _KINDS if isinstance(part, kind)) for part in observation_parts(space).values()
    )


def action_spec(space: gym.Space[Any]) -> ArraySpec:
    """Return the policy's action output. Raises `UserError` for a space that isn't supported."""
    if isinstance(space, gym.spaces.Box) and space.dtype.kind != "f":
        raise UserError(
            f"action space {space} isn't supported; a Box of actions must be of floats. For integers take MultiDiscrete"
        )
    return _spec("action", space, "action")


def parts_of_dict(observation: Any) -> dict[str, Any]:
    """Return the parts of a Dict observation, or of its space, by key; anything else is the part `obs`."""
    return dict(observation.items()) if isinstance(observation, Mapping) else {ROOT: observation}


def _spec(name: str, space: gym.Space[Any], what: str) -> ArraySpec:
    match space:
        case gym.spaces.Discrete() if space.n <= _MOST_CHOICES:
            return ArraySpec(name, space.dtype.name, (), int(space.start), int(space.start + space.n - 1))
        case gym.spaces.MultiDiscrete() if space.nvec.sum() <= _MOST_CHOICES:
            first, last = space.start, space.start + space.nvec - 1
            return ArraySpec(name, space.dtype.name, space.shape, _bound(first), _bound(last))
        case gym.spaces.MultiBinary() | ActionMask():
            return ArraySpec(name, space.dtype.name, space.shape, 0, 1)
        case gym.spaces.Box() if 0 not in space.shape:
            low, high = (0, 1) if space.dtype.kind == "b" else (_bound(space.low), _bound(space.high))
            return ArraySpec(name, space.dtype.name, space.shape, low, high)
    is_part = what == "observation" and name != ROOT
    named = f"{what} space {space} of {name!r}" if is_part else f"{what} space {space}"
    message = f"{named} isn't supported; {_wanted(space, what)}"
    if is_part:
        wrapper = 'gymnasium.wrappers:FilterObservation{"filter_keys": [...]}'
        message += f". To leave it out, name the others: {option('env_wrapper', wrapper)}"
    raise UserError(message)


def _wanted(space: gym.Space[Any], what: str) -> str:
    if isinstance(space, gym.spaces.Box):
        return "it has no elements"
    if isinstance(space, gym.spaces.Discrete | gym.spaces.MultiDiscrete):
        return (
            f"it has more than {_MOST_CHOICES:,} choices, and a network has weights for each; make it a Box of numbers"
        )
    allowed = "it must be Box, Discrete, MultiDiscrete or MultiBinary"
    return f"{allowed}, or a Dict or Tuple of these" if what == "observation" else allowed


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
