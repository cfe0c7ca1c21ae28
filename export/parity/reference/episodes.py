"""Play episodes: the reference's own, and those of a target by itself."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from trpo_tf.export.parity.reference.answers import BATCH_SIZES, Answered, Reference
from trpo_tf.export.parity.reference.recurrent import Recurrent, observed
from trpo_tf.export.policy.functions import Actor
from trpo_tf.serving.runtime.observations import (
    Array,
    Observation,
    by_name,
    list_parts,
    map_parts,
    observation_of,
    take,
)

Episode = list[tuple[Observation, float]]

_LONGEST_EPISODE = 2_000


class Environment(Protocol):
    """The methods of Gymnasium's `Env` that playing an episode needs."""

    def reset(self, *, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode, and return observation and info."""

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Act, and return observation, reward, terminated, truncated and info."""


def episode_batches(reference: Reference, episodes: Mapping[int, Episode], zero_noise: Array) -> Iterator[Answered]:
    """Iterate over the observations of the reference's own episodes with the reference's answers; `zero_noise` is zeros
    [1, k].
    """
    for episode in episodes.values():
        for start in range(0, len(episode), BATCH_SIZES[-1]):
            seen = [observation for observation, _ in episode[start : start + BATCH_SIZES[-1]]]
            observations = map_parts(lambda *parts: np.stack(parts), *seen)
            yield reference.answered(observations, np.repeat(zero_noise, len(seen), axis=0))


def repeats(reference: Reference, environment: Environment, episodes: Mapping[int, Episode], zero_noise: Array) -> bool:
    """Return whether the reference plays each of its episodes again, to the bit, from the same seed."""
    return all(
        _same(list(play(reference.player, environment, seed, zero_noise, names_of(reference, episode))), episode)
        for seed, episode in episodes.items()
    )


def play(
    actor: Actor | Recurrent, environment: Environment, seed: int, noise: Array, names: Sequence[str] = ()
) -> Iterator[tuple[Observation, float]]:
    """Play one episode of at most 2,000 steps; yield the inputs of each step and the reward that followed.

    `names` are those of the observation's parts, where there are several.
    """
    observation, _ = environment.reset(seed=seed)
    carried = actor.first() if isinstance(actor, Recurrent) else {}
    for _ in range(_LONGEST_EPISODE):
        seen: Observation = map_parts(np.copy, observation_of(observation, names))
        if isinstance(actor, Recurrent):
            seen = by_name(seen, actor.spec.observation[0].name) | carried
            actions, carried = actor.step(take(seen, np.newaxis), noise)
        else:
            actions = actor(take(seen, np.newaxis), noise)
        observation, reward, terminated, truncated, _ = environment.step(actions[0])
        yield seen, float(reward)
        if terminated or truncated:
            return


def total_return(episode: Episode) -> float:
    """Return the undiscounted return of an episode."""
    return math.fsum(reward for _, reward in episode)


def names_of(reference: Reference, episode: Episode) -> Sequence[str]:
    """Return the names of the observation's parts in an episode; none if there is one part."""
    observation = observed_by(reference, episode[0][0])
    return list(observation) if isinstance(observation, dict) else ()


def observed_by(reference: Reference, inputs: Observation) -> Observation:
    """Return the observation among the inputs of a step: all but the state that the policy carries."""
    return inputs if reference.recurrent is None else observed(inputs, reference.recurrent.spec)


def _same(one: Episode, other: Episode) -> bool:
    return len(one) == len(other) and all(
        reward == expected_reward and all(map(np.array_equal, list_parts(seen), list_parts(expected)))
        for (seen, reward), (expected, expected_reward) in zip(one, other, strict=True)
    )
