"""Observations to compare formats on: drawn at random, at the bounds, and recorded in the environment."""

import numpy as np
from numpy.typing import NDArray

from serving import ArraySpec
from serving.policy import Array

_WIDE = 1e3
"""A bound beyond this is treated as absent: some environments state the largest float."""


def observation_cases(spec: ArraySpec, recorded: Array | None, rng: np.random.Generator, count: int = 64) -> Array:
    """Observations [case, ...] in the spec's dtype: `count` random, the bounds, and up to `count` recorded.

    Of recorded observations [n, ...] their extremes are added too, and points well beyond those: where a
    normaliser clips.
    """
    low, high = _finite_bounds(spec)
    parts = [rng.uniform(low, high, (count, *spec.shape)), low[np.newaxis], high[np.newaxis]]
    if recorded is not None and len(recorded):
        values = recorded.astype(np.float64)
        chosen = values[rng.choice(len(values), min(count, len(values)), replace=False)]
        smallest, largest = values.min(axis=0, keepdims=True), values.max(axis=0, keepdims=True)
        margin = 20.0 * (largest - smallest)
        beyond = np.concatenate([smallest - margin, largest + margin])
        parts += [chosen, smallest, largest, np.clip(beyond, *spec.bounds())]
    cases = np.concatenate(parts)
    dtype = np.dtype(spec.dtype)
    if dtype.kind in "iu":
        cases = np.rint(cases)
    return cases.astype(dtype)


def _finite_bounds(spec: ArraySpec) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The bounds; where one is absent, 20 from the other; where both are, +-10."""
    low, high = spec.bounds()
    no_low, no_high = low < -_WIDE, high > _WIDE
    return (
        np.where(no_low, np.where(no_high, -10.0, high - 20.0), low),
        np.where(no_high, np.where(no_low, 10.0, low + 20.0), high),
    )
