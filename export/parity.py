"""Whether an exported policy acts like the function it came from: on cases, and along whole episodes."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from export.onnx_graph import ExportError
from serving.observations import Array, Observation, list_parts, map_parts, observation_of, take
from serving.verify import agree, difference

Actor = Callable[[Observation, Array], Array]
"""observations [batch, ...], noise [batch, k] -> actions [batch, ...], on NumPy arrays."""

Episode = list[tuple[Observation, float]]

BATCH_SIZES = (1, 2, 7, 64)
TIE = 1e-5
"""Two best scores closer than this are a tie, which rounding may break either way."""

_LONGEST_EPISODE = 2_000
_RETURN_TOLERANCE = 1e-3
_STUDENT_T = 4.303
"""97.5% quantile at two degrees of freedom: three episodes. With more episodes the interval is wider than need be."""


class Environment(Protocol):
    """The part of Gymnasium's `Env` that playing an episode needs."""

    def reset(self, *, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode: observation and info."""

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Act: observation, reward, terminated, truncated, info."""


@dataclass(frozen=True)
class Reference:
    """The policy as it was trained.

    `scores` gives, for a policy of discrete actions, what each of its choices maximises: [batch, ..., n].
    """

    act: Actor
    scores: Actor | None = None

    def decisive(self, observations: Observation, noise: Array) -> NDArray[np.bool_]:
        """Which rows have one best action, every choice by a margin of `TIE`."""
        if self.scores is None:
            return np.ones(len(noise), bool)
        scores = self.scores(observations, noise)
        if scores.shape[-1] == 1:
            return np.ones(len(noise), bool)
        best = np.partition(scores, -2, axis=-1)[..., -2:]
        margins = (best[..., 1] - best[..., 0]).reshape(len(noise), -1)
        return margins.min(axis=1) > TIE  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Parity:
    """Agreement of one format with the reference: largest |difference| of an action, and rows compared."""

    max_difference: float
    compared: int

    def __add__(self, other: "Parity") -> "Parity":
        return Parity(max(self.max_difference, other.max_difference), self.compared + other.compared)


NOTHING = Parity(0.0, 0)
"""Of no rows."""


def compare_cases(name: str, actor: Actor, reference: Reference, observations: Observation, noise: Array) -> Parity:
    """Compare on observations [case, ...] with noise [case, k] and with none, at several batch sizes.

    Raises `ExportError` at the first action outside the tolerance.
    """
    parity = NOTHING
    for noise_fed in (np.zeros_like(noise), noise):
        for size in BATCH_SIZES:
            for start in range(0, len(noise), size):
                rows = slice(start, start + size)
                parity += _compare(name, actor, reference, take(observations, rows), noise_fed[rows])
    return parity


def compare_episodes(
    name: str,
    actor: Actor,
    reference: Reference,
    environment: Environment,
    episodes: Mapping[int, Episode],
    noise: Array,
) -> Parity:
    """Compare along the reference's own episodes, by seed, then along those that the actor plays.

    Playing by itself, a policy of discrete actions must make the very same episodes. In one of continuous actions a
    difference of rounding may grow from step to step, so there the returns must differ by nothing on average: zero
    must lie in the interval of the paired differences. `noise` is zeros [1, k]. Raises `ExportError` otherwise.
    """
    parity = NOTHING
    expected, actual = [], []
    for seed, episode in episodes.items():
        for start in range(0, len(episode), BATCH_SIZES[-1]):
            seen = [observation for observation, _ in episode[start : start + BATCH_SIZES[-1]]]
            observations = map_parts(lambda *parts: np.stack(parts), *seen)
            parity += _compare(name, actor, reference, observations, np.repeat(noise, len(seen), axis=0))
        free = list(play(actor, environment, seed, noise))
        if reference.scores is not None and not _same(free, episode):
            raise ExportError(f"{name} plays another episode than the trained policy at seed {seed}")
        expected.append(math.fsum(reward for _, reward in episode))
        actual.append(math.fsum(reward for _, reward in free))
    _compare_returns(name, np.array(actual), np.array(expected))
    return parity


def play(actor: Actor, environment: Environment, seed: int, noise: Array) -> Iterator[tuple[Observation, float]]:
    """Play one episode, of 2,000 steps at most: each observation acted on, with the reward that followed."""
    observation, _ = environment.reset(seed=seed)
    for _ in range(_LONGEST_EPISODE):
        seen = map_parts(np.copy, observation_of(observation))
        action = actor(take(seen, np.newaxis), noise)[0]
        observation, reward, terminated, truncated, _ = environment.step(action)
        yield seen, float(reward)
        if terminated or truncated:
            return


def _compare(name: str, actor: Actor, reference: Reference, observations: Observation, noise: Array) -> Parity:
    decisive = reference.decisive(observations, noise)
    expected, actual = reference.act(observations, noise), actor(observations, noise)
    if actual.shape != expected.shape:
        raise ExportError(f"{name} answers actions of shape {list(actual.shape)}, not {list(expected.shape)}")
    expected, actual = expected[decisive], actual[decisive]
    if not agree(actual, expected):
        raise ExportError(
            f"{name} differs from the trained policy by {difference(actual, expected):.3g}; "
            "look for an operation in the network that the format computes otherwise"
        )
    return Parity(difference(actual, expected), len(expected))


def _same(one: Episode, other: Episode) -> bool:
    return len(one) == len(other) and all(
        reward_a == reward_b and all(map(np.array_equal, list_parts(a), list_parts(b)))
        for (a, reward_a), (b, reward_b) in zip(one, other, strict=True)
    )


def _compare_returns(name: str, actual: NDArray[np.float64], expected: NDArray[np.float64]) -> None:
    differences = actual - expected
    error = float(np.std(differences, ddof=1)) / math.sqrt(len(differences)) if len(differences) > 1 else 0.0
    tolerance = _RETURN_TOLERANCE * (1.0 + float(np.mean(np.abs(expected))))
    if abs(float(np.mean(differences))) > tolerance + _STUDENT_T * error:
        raise ExportError(
            f"{name} reaches another return than the trained policy: {np.mean(actual):.6g} against "
            f"{np.mean(expected):.6g} over {len(actual)} episodes"
        )
