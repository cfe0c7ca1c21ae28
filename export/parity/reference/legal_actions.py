"""Make cases with masks of legal actions, and check that no answer is an action that its mask forbids."""

import numpy as np
from numpy.typing import NDArray

from trpo_tf.export.errors import ExportError
from trpo_tf.export.parity.reference.case_inputs import observation_cases
from trpo_tf.export.policy.spec import PolicySpec
from trpo_tf.serving import ArraySpec
from trpo_tf.serving.bundle.specs import option_counts
from trpo_tf.serving.runtime.action_masks import legal_rows, rows_without_action
from trpo_tf.serving.runtime.observations import Array, Observation, by_name


def policy_cases(
    spec: PolicySpec, recorded: Observation | None, rng: np.random.Generator, count: int = 64
) -> Observation:
    """Make observations as `observation_cases` does, in which each mask allows an action, and many allow few.

    Every second row gets a mask of its own, in which a choice has often one or two legal options. The other masks stay
    as they are if they allow an action.
    """
    observations = observation_cases(spec.observation, recorded, rng, count)
    if spec.mask is None:
        return observations
    named, counts = by_name(observations, spec.mask), option_counts(spec.action)
    given = np.asarray(named[spec.mask] != 0)
    kept = ~rows_without_action(given, counts) & (np.arange(len(given)) % 2 == 0)
    masks = np.where(kept[:, np.newaxis], given, _few_legal(counts, len(given), rng))
    return {**named, spec.mask: masks.astype(named[spec.mask].dtype)}


def check_legal(actions: Array, inputs: Observation, mask: str | None, action: ArraySpec, whose: str = "") -> None:
    """Raise `ExportError` if an action [n, ...] is one that the `mask` among its inputs [n, ...] forbids."""
    if mask is None:
        return
    legal = legal_rows(actions, by_name(inputs, mask), mask, action)
    if not legal.all():
        raise ExportError(
            f"{whose} answers actions that their {mask!r} forbids, in {(~legal).sum()} of {len(legal)} cases; lower "
            "the scores of such actions after the noise is added".lstrip()
        )


def _few_legal(counts: NDArray[np.int64], rows: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Draw masks [rows, n]: of each choice one option is legal, or two, or any number of them."""
    masks = []
    for count in counts.tolist():
        rank = rng.permuted(np.tile(np.arange(count), (rows, 1)), axis=1)
        legal = rng.choice(np.array([1, min(2, count), rng.integers(1, count + 1)]), (rows, 1))
        masks.append(rank < legal)
    return np.concatenate(masks, axis=1)
