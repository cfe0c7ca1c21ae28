"""How an exported policy compares with the function it came from: on cases, and along whole episodes."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from export.onnx_graph import ExportError
from serving.observations import Array, Observation, list_parts, map_parts, observation_of, take
from serving.verify import ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE, difference

Actor = Callable[[Observation, Array], Array]
"""observations [batch, ...], noise [batch, k] -> actions [batch, ...], on NumPy arrays."""

Episode = list[tuple[Observation, float]]

BATCH_SIZES = (1, 2, 7, 64)
TIE = 1e-5
"""Two best scores closer than this are a tie, which rounding may break either way."""

_LONGEST_EPISODE = 2_000


class Environment(Protocol):
    """The part of Gymnasium's `Env` that playing an episode needs."""

    def reset(self, *, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode: observation and info."""

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Act: observation, reward, terminated, truncated, info."""


class Answered(NamedTuple):
    """A batch of cases, what the policy as it was trained answers, and which rows have one best action."""

    observations: Observation
    noise: Array
    actions: Array
    decisive: NDArray[np.bool_]


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

    def answered(self, observations: Observation, noise: Array) -> Answered:
        """The batch with its answers."""
        return Answered(observations, noise, self.act(observations, noise), self.decisive(observations, noise))


@dataclass(frozen=True)
class Agreement:
    """Of one target with the reference: largest |difference| of an action, rows compared, and how many were equal.

    Equal are continuous actions up to 1e-5 + 1e-5 |action|.
    """

    max_difference: float = 0.0
    equal: int = 0
    compared: int = 0

    @property
    def complete(self) -> bool:
        """Whether every row was equal."""
        return self.equal == self.compared

    def __add__(self, other: "Agreement") -> "Agreement":
        largest = max(self.max_difference, other.max_difference)
        return Agreement(largest, self.equal + other.equal, self.compared + other.compared)


@dataclass(frozen=True)
class Returns:
    """Of free-running episodes, by seed: a target's and the reference's, and the seeds at which they part.

    At those the target's episode is another one, though no action on the way was a tie.
    """

    target: tuple[float, ...]
    reference: tuple[float, ...]
    parted: tuple[int, ...]

    def gain(self) -> tuple[float, float, float]:
        """Mean of the paired differences, target less reference, and its 95% interval by Student's t."""
        differences = np.array(self.target) - np.array(self.reference)
        mean, count = float(np.mean(differences)), len(differences)
        if count < 2:
            return mean, -math.inf, math.inf
        error = float(np.std(differences, ddof=1)) / math.sqrt(count)
        margin = student_t(count - 1) * error
        return mean, mean - margin, mean + margin


def student_t(freedom: int) -> float:
    """The 97.5% quantile by Cornish and Fisher's expansion: to 3% at two degrees of freedom, 1e-4 from ten on."""
    z = NormalDist().inv_cdf(0.975)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return math.fsum(term / freedom**power for power, term in enumerate(terms))


def in_batches(reference: Reference, observations: Observation, noise: Array) -> list[Answered]:
    """Cases [case, ...] once at each of `BATCH_SIZES`."""
    return [
        reference.answered(take(observations, slice(start, start + size)), noise[start : start + size])
        for size in BATCH_SIZES
        for start in range(0, len(noise), size)
    ]


def compare_cases(actor: Actor, cases: Iterable[Answered]) -> Agreement:
    """Compare on every batch.

    Raises `ExportError` for actions of another shape or type, or that are not finite.
    """
    return sum((_compare(actor, batch) for batch in cases), Agreement())


def compare_along(actor: Actor, reference: Reference, episodes: Mapping[int, Episode], still: Array) -> Agreement:
    """Compare on every observation of the reference's own episodes, without noise: `still` is zeros [1, k].

    Errors as in `compare_cases`.
    """
    agreement = Agreement()
    for episode in episodes.values():
        for start in range(0, len(episode), BATCH_SIZES[-1]):
            seen = [observation for observation, _ in episode[start : start + BATCH_SIZES[-1]]]
            observations = map_parts(lambda *parts: np.stack(parts), *seen)
            agreement += _compare(actor, reference.answered(observations, np.repeat(still, len(seen), axis=0)))
    return agreement


def compare_returns(
    actor: Actor, reference: Reference, environment: Environment, episodes: Mapping[int, Episode], still: Array
) -> Returns:
    """Let the actor play by itself from each seed of the reference's episodes."""
    returns, parted = [], []
    for seed, episode in episodes.items():
        free = list(play(actor, environment, seed, still, _names(episode)))
        returns.append(math.fsum(reward for _, reward in free))
        if _parts(free, episode, reference, still):
            parted.append(seed)
    expected = [math.fsum(reward for _, reward in episode) for episode in episodes.values()]
    return Returns(tuple(returns), tuple(expected), tuple(parted))


def repeats(reference: Reference, environment: Environment, episodes: Mapping[int, Episode], still: Array) -> bool:
    """Whether the reference plays each of its episodes again, to the bit, from the same seed."""
    return all(
        _same(list(play(reference.act, environment, seed, still, _names(episode))), episode)
        for seed, episode in episodes.items()
    )


def play(
    actor: Actor, environment: Environment, seed: int, noise: Array, names: Sequence[str] = ()
) -> Iterator[tuple[Observation, float]]:
    """Play one episode, of 2,000 steps at most: each observation acted on, with the reward that followed.

    `names` are the inputs', where there are several.
    """
    observation, _ = environment.reset(seed=seed)
    for _ in range(_LONGEST_EPISODE):
        seen = map_parts(np.copy, observation_of(observation, names))
        action = actor(take(seen, np.newaxis), noise)[0]
        observation, reward, terminated, truncated, _ = environment.step(action)
        yield seen, float(reward)
        if terminated or truncated:
            return


def _names(episode: Episode) -> Sequence[str]:
    observation = episode[0][0]
    return list(observation) if isinstance(observation, dict) else ()


def agreement(actual: Array, expected: Array) -> Agreement:
    """Of two arrays of actions [n, ...]; integers must be the same."""
    if expected.dtype.kind == "f":
        close = np.isclose(actual, expected, rtol=RELATIVE_TOLERANCE, atol=ABSOLUTE_TOLERANCE)
    else:
        close = actual == expected
    equal = close.all(axis=tuple(range(1, close.ndim)))
    return Agreement(difference(actual, expected), int(equal.sum()), len(expected))


def _compare(actor: Actor, batch: Answered) -> Agreement:
    expected, actual = batch.actions, actor(batch.observations, batch.noise)
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        described = " not ".join(f"{array.dtype} actions of shape {list(array.shape)}," for array in (actual, expected))
        raise ExportError(f"answers {described.removesuffix(',')}")
    if not np.isfinite(actual).all():
        raise ExportError("answers an action that is not finite; look for an overflow in the network")
    return agreement(actual[batch.decisive], expected[batch.decisive])


def _same(one: Episode, other: Episode) -> bool:
    return len(one) == len(other) and all(
        reward == expected_reward and all(map(np.array_equal, list_parts(seen), list_parts(expected)))
        for (seen, reward), (expected, expected_reward) in zip(one, other, strict=True)
    )


def _parts(free: Episode, episode: Episode, reference: Reference, still: Array) -> bool:
    """Whether two episodes from one seed part, but for a tie that rounding broke the other way."""
    for step, ((seen, reward), (expected, expected_reward)) in enumerate(zip(free, episode, strict=False)):
        same = all(map(np.array_equal, list_parts(seen), list_parts(expected)))
        if same and reward == expected_reward:
            continue
        last = free[step if same else step - 1][0]
        return bool(reference.decisive(take(last, np.newaxis), still).all())
    return len(free) != len(episode)
