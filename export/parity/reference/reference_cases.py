"""The cases and episodes that targets are compared on, with the policy's own answers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from trpo_tf.export.parity.reference.answers import Answered, Reference
from trpo_tf.export.parity.reference.episodes import (
    Environment,
    Episode,
    episode_batches,
    names_of,
    play,
    total_return,
)
from trpo_tf.export.parity.reference.rounding import along_sequences
from trpo_tf.serving import ArraySpec
from trpo_tf.serving.bundle.golden import STEPS
from trpo_tf.serving.runtime.observations import Array, Observation, batch_size, take

_MOST_VISITED = 512


@dataclass(frozen=True)
class ReferenceCases:
    """The cases and episodes that targets are compared on, with the policy's own answers.

    Attributes:
        reference: the policy as it was trained.
        observations: golden cases [case, ...].
        noise: of the golden cases [case, k].
        visited: observations [n, ...] that the policy visits, where known. Inputs of a policy with state stand in
            sequences of `STEPS` steps.
        environment: where episodes are played.
        episodes: the reference's own, by seed.
        untrained_return: mean return before training, where known.
        repeatable: whether the environment plays the same episode again from the same seed. If not, returns can't be
            compared, and a target is compared on cases alone.
        action: what actions are declared to be.
        outputs: what further outputs are declared to be.
        far: which golden cases lie outside the range of 8-bit targets [case].
        noisy_observations: of a policy with state, the golden cases with noise: they have another state.
        mask: the input that tells which actions are legal, if one does.
    """

    reference: Reference
    observations: Observation
    noise: Array
    visited: Observation | None
    environment: Environment | None
    episodes: Mapping[int, Episode]
    untrained_return: float | None
    repeatable: bool = True
    action: ArraySpec | None = None
    outputs: tuple[ArraySpec, ...] = ()
    far: NDArray[np.bool_] | None = None
    noisy_observations: Observation | None = None
    mask: str | None = None

    @cached_property
    def zero_noise(self) -> Array:
        """Zeros as the noise of every case, which give the deterministic actions."""
        return np.zeros_like(self.noise)

    @cached_property
    def golden(self) -> Answered:
        """Golden cases without noise, each answered in a batch of its own; computed once for all targets."""
        return self.reference.answered(self.observations, self.zero_noise, 1).with_margins()

    @cached_property
    def noisy_golden(self) -> Answered:
        """Golden cases with noise, each answered in a batch of its own."""
        observations = self.observations if self.noisy_observations is None else self.noisy_observations
        return self.reference.answered(observations, self.noise, 1).with_margins()

    @cached_property
    def rounding_of_returns(self) -> float:
        """Mean |change| of an episode's return if the policy's actions are moved by one unit in the last place.

        A target that rounds differently may change returns by as much, by chance. It is 0 without an environment.
        """
        if self.environment is None:
            return 0.0
        moved, noise = self.reference.moved_by_rounding(), self.zero_noise[:1]
        changes = [
            total_return(list(play(moved, self.environment, seed, noise, names_of(self.reference, episode))))
            - total_return(episode)
            for seed, episode in self.episodes.items()
        ]
        return float(np.abs(changes).mean())

    @property
    def episode_batches(self) -> Iterator[Answered]:
        """Every observation of the reference's own episodes; answered at each access, since they may be large."""
        return episode_batches(self.reference, self.episodes, self.zero_noise[:1])

    @cached_property
    def visits(self) -> Answered:
        """Observations that the policy visits; if none are known, the golden cases that are not far."""
        if self.visited is None:
            return self.golden if self.far is None else self.golden.take(~self.far)
        rows = np.unique(np.linspace(0, batch_size(self.visited) - 1, _MOST_VISITED).astype(int))
        return self.reference.answered(take(self.visited, rows), np.repeat(self.zero_noise[:1], len(rows), axis=0))

    @cached_property
    def visited_sequences(self) -> Answered | None:
        """Sequences of steps that a policy with state visits; None if none are known."""
        if self.visited is None:
            return None
        starts = np.arange(0, batch_size(self.visited), STEPS)
        chosen = starts[np.unique(np.linspace(0, len(starts) - 1, _MOST_VISITED // STEPS).astype(int))]
        rows = (chosen[:, np.newaxis] + np.arange(STEPS)).ravel()
        return self.reference.answered(take(self.visited, rows), np.repeat(self.zero_noise[:1], len(rows), axis=0))

    def cases(self, *, exact: bool, noise: bool) -> Answered:
        """Return golden cases; unless `exact`, without those outside the range of 8-bit targets."""
        golden = self.noisy_golden if noise else self.golden
        return golden if exact or self.far is None else golden.take(~self.far)

    def sequences(self, *, exact: bool, noise: bool) -> Answered:
        """Return the golden sequences of a policy with state, with what rounding may change along them."""
        golden = along_sequences(self.noisy_golden if noise else self.golden)
        if exact or self.far is None:
            return golden
        return golden.take(np.repeat(~self.far.reshape(-1, STEPS).any(axis=1), STEPS))
