"""Observations to compare formats on: drawn at random, at the bounds, and recorded in the environment."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from serving import ArraySpec
from serving.observations import Array, Observation, batch_size, map_parts, structured

_WIDE = 1e3
"""A bound beyond this is treated as absent: some environments state the largest float."""


def observation_cases(
    specs: Sequence[ArraySpec], recorded: Observation | None, rng: np.random.Generator, count: int = 64
) -> Observation:
    """Observations [case, ...] in the specs' dtypes: `count` random, the bounds, and up to `count` recorded.

    Of recorded observations [n, ...] their extremes are added too, and points well beyond those: where a
    normaliser clips.
    """
    named = structured({spec.name: spec for spec in specs})
    if recorded is None or batch_size(recorded) == 0:
        return map_parts(lambda spec: _made_up(spec, rng, count), named)  # type: ignore[no-any-return]
    available = batch_size(recorded)
    chosen = rng.choice(available, min(count, available), replace=False)
    return map_parts(  # type: ignore[no-any-return]
        lambda spec, values: np.concatenate([_made_up(spec, rng, count), _visited(spec, values, chosen)]),
        named,
        recorded,
    )


def _made_up(spec: ArraySpec, rng: np.random.Generator, count: int) -> Array:
    low, high = _finite_bounds(spec)
    drawn = rng.uniform(low, high, (count, *spec.shape))
    return _cast(np.concatenate([drawn, low[np.newaxis], high[np.newaxis]]), spec)


def _visited(spec: ArraySpec, recorded: Array, chosen: NDArray[np.int64]) -> Array:
    smallest = recorded.min(axis=0, keepdims=True).astype(np.float64)
    largest = recorded.max(axis=0, keepdims=True).astype(np.float64)
    margin = 20.0 * (largest - smallest)
    beyond = np.clip(np.concatenate([smallest - margin, largest + margin]), *spec.bounds())
    return _cast(np.concatenate([recorded[chosen].astype(np.float64), smallest, largest, beyond]), spec)


def _cast(cases: NDArray[np.float64], spec: ArraySpec) -> Array:
    dtype = np.dtype(spec.dtype)
    return (np.rint(cases) if dtype.kind in "iu" else cases).astype(dtype)


def _finite_bounds(spec: ArraySpec) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The bounds; where one is absent, 20 from the other; where both are, +-10."""
    low, high = spec.bounds()
    no_low, no_high = low < -_WIDE, high > _WIDE
    return (
        np.where(no_low, np.where(no_high, -10.0, high - 20.0), low),
        np.where(no_high, np.where(no_low, 10.0, low + 20.0), high),
    )
