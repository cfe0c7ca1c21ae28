"""Whether an exported policy acts like the function it came from: on cases, and along whole episodes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from export.onnx_graph import ExportError
from serving.policy import Array
from serving.verify import agree, difference

Actor = Callable[[Array, Array], Array]
"""observations [batch, ...], noise [batch, k] -> actions [batch, ...], on NumPy arrays."""

BATCH_SIZES = (1, 2, 7, 64)
TIE = 1e-5
"""Two best scores closer than this are a tie, which rounding may break either way."""

_LONGEST_EPISODE = 10_000


class Environment(Protocol):
    """The part of Gymnasium's `Env` that playing an episode needs."""

    def reset(self, *, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode: observation and info."""

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Act: observation, reward, terminated, truncated, info."""


@dataclass(frozen=True)
class Reference:
    """The policy as it was trained.

    `scores` gives, for a policy of discrete actions, what its action maximises: noisy logits [batch, n].
    """

    act: Actor
    scores: Actor | None = None

    def decisive(self, observations: Array, noise: Array) -> NDArray[np.bool_]:
        """Which rows have one best action, by a margin of `TIE`."""
        if self.scores is None:
            return np.ones(len(observations), bool)
        best = np.partition(self.scores(observations, noise), -2, axis=-1)[:, -2:]
        return best[:, 1] - best[:, 0] > TIE  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Parity:
    """Agreement of one format with the reference: largest |difference| of an action, and rows compared."""

    max_difference: float
    compared: int

    def __add__(self, other: "Parity") -> "Parity":
        return Parity(max(self.max_difference, other.max_difference), self.compared + other.compared)


def compare_cases(name: str, actor: Actor, reference: Reference, observations: Array, noise: Array) -> Parity:
    """Compare on observations [case, ...] with noise [case, k] and with none, at several batch sizes.

    Raises `ExportError` at the first action outside the tolerance.
    """
    parity = Parity(0.0, 0)
    for noise_fed in (np.zeros_like(noise), noise):
        for size in BATCH_SIZES:
            for start in range(0, len(observations), size):
                rows = slice(start, start + size)
                parity += _compare(name, actor, reference, observations[rows], noise_fed[rows])
    return parity


def compare_episodes(
    name: str,
    actor: Actor,
    reference: Reference,
    environment: Environment,
    seeds: range,
    noise_shape: tuple[int, ...],
) -> Parity:
    """Compare along episodes that the reference plays, one for each seed.

    A policy of discrete actions must also, playing by itself, make the very same episodes.
    Raises `ExportError` otherwise.
    """
    noise = np.zeros((1, *noise_shape), np.float32)
    parity = Parity(0.0, 0)
    for seed in seeds:
        episode = list(play(reference.act, environment, seed, noise))
        for observation, _ in episode:
            parity += _compare(name, actor, reference, observation[np.newaxis], noise)
        if reference.scores is not None:
            again = list(play(actor, environment, seed, noise))
            if len(again) != len(episode) or any(
                not np.array_equal(a, b) for (a, _), (b, _) in zip(again, episode, strict=True)
            ):
                raise ExportError(f"{name} plays another episode than the trained policy at seed {seed}")
    return parity


def play(actor: Actor, environment: Environment, seed: int, noise: Array) -> Iterator[tuple[Array, float]]:
    """Play one episode: each observation acted on, with the reward that followed."""
    observation, _ = environment.reset(seed=seed)
    for _ in range(_LONGEST_EPISODE):
        seen = np.asarray(observation)
        action = actor(seen[np.newaxis], noise)[0]
        observation, reward, terminated, truncated, _ = environment.step(action)
        yield seen.copy(), float(reward)
        if terminated or truncated:
            return


def _compare(name: str, actor: Actor, reference: Reference, observations: Array, noise: Array) -> Parity:
    decisive = reference.decisive(observations, noise)
    expected = reference.act(observations, noise)[decisive]
    actual = actor(observations, noise)[decisive]
    if not agree(actual, expected):
        raise ExportError(
            f"{name} differs from the trained policy by {difference(actual, expected):.3g}; "
            "look for an operation in the network that the format computes otherwise"
        )
    return Parity(difference(actual, expected), len(expected))
