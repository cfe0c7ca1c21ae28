"""Make the observations and noise that targets are compared on, from the declared space and from recorded
observations.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trpo_tf.serving import ArraySpec, NoiseSpec
from trpo_tf.serving.runtime.observations import Array, Observation, batch_size, list_parts, map_parts, structured

_ABSENT = 1e18
"""A bound beyond this is no bound: some environments state the largest float, whose square no float32 holds."""

_NEAR = 10.0
"""Random numbers lie this close to 0, or twice as far from the only bound, where a space has no end."""

_SMALLEST, _LARGEST, _LARGEST_INTEGER = 1e-3, 1e6, 2.0**40
"""Magnitudes tried where there is no bound. Integers go beyond 32 bits, which a target may have narrowed them to."""

_MOST_VALUES, _MOST_ELEMENTS = 512, 64
"""An input of at most as many elements, each of at most as many values, takes each of them."""

_TAILS = {"normal": (-6.0, 6.0), "gumbel": (-3.0, 20.0), "logistic": (-20.0, 20.0)}
"""Draws that are rarer than one in 100 million, by law."""
_TAIL_PERIOD = 8


def observation_cases(
    specs: Sequence[ArraySpec], recorded: Observation | None, rng: np.random.Generator, count: int = 64
) -> Observation:
    """Make observations [case, ...] in the specs' dtypes: random ones, and up to `count` of those recorded.

    The random ones are `count` points of the declared space, and half as many with magnitudes over all powers of ten.
    Corners of the space are added, and every value of inputs that have few. Recorded observations [n, ...] add their
    extremes, and points well beyond these, where a normaliser clips.
    """
    named = structured({spec.name: spec for spec in specs})
    rows = max([0, *map(_values, specs)])
    if recorded is None or batch_size(recorded) == 0:
        return map_parts(lambda spec: _made_up(spec, rng, count, rows), named)
    chosen = rng.choice(batch_size(recorded), min(count, batch_size(recorded)), replace=False)
    return map_parts(
        lambda spec, values: np.concatenate([_made_up(spec, rng, count, rows), _visited(spec, values, chosen)]),
        named,
        recorded,
    )


def far_rows(
    specs: Sequence[ArraySpec], observations: Observation, recorded: Observation | None = None
) -> NDArray[np.bool_]:
    """Mark the observations [n] that lie beyond all random and recorded ones, in an input without bounds."""
    far = np.zeros(batch_size(observations), bool)
    visited = list_parts(recorded) if recorded is not None and batch_size(recorded) else [None] * len(specs)
    for spec, part, seen in zip(specs, list_parts(observations), visited, strict=True):
        (low, high), (smallest, largest) = _bounds(spec), _near_bounds(spec)
        if seen is not None:
            smallest, largest = np.minimum(smallest, seen.min(axis=0)), np.maximum(largest, seen.max(axis=0))
        beyond = (np.isinf(low) & (part < smallest)) | (np.isinf(high) & (part > largest))
        far |= beyond.reshape(len(far), -1).any(axis=1)
    return far


def with_tails(spec: NoiseSpec, noise: Array, rng: np.random.Generator) -> Array:
    """Replace every eighth row of noise [n, k] by draws from both tails of its law, which few samples reach."""
    rare = noise.copy()
    rare[::_TAIL_PERIOD] = rng.choice(_TAILS[spec.law], rare[::_TAIL_PERIOD].shape)
    return rare


def _made_up(spec: ArraySpec, rng: np.random.Generator, count: int, rows: int) -> Array:
    low, high = _near_bounds(spec)
    drawn = rng.uniform(low, high, (count + rows, *spec.shape))
    if _values(spec):
        drawn[count:] = _every_value(spec, rng, rows)
    corners = np.where(rng.random((max(count // 8, 1), *spec.shape)) < 0.5, low, high)
    ends = np.stack([low, high, np.clip(0.0, low, high)])
    return _cast(np.concatenate([drawn, _magnitudes(spec, rng, count // 2), corners, ends]), spec)


def _magnitudes(spec: ArraySpec, rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Draw distances from a bound, or from 0, of every order of magnitude.

    In the first half of the rows all numbers have one magnitude, in the second half each has its own.
    """
    low, high = _bounds(spec)
    open_low, open_high = np.isinf(low), np.isinf(high)
    integers = np.dtype(spec.dtype).kind in "iu"
    unbounded = min(_LARGEST_INTEGER if integers else _LARGEST, _largest_of(spec.dtype))
    from_zero = open_low | ((low < 0) & (high > 0))
    start = np.where(from_zero, np.where(open_low & ~open_high & (high < 0), high, 0.0), low)
    reach = np.maximum(np.where(open_high, unbounded, high) - start, start - np.where(open_low, -unbounded, low))
    smallest = 1.0 if integers else np.minimum(_SMALLEST, reach)
    place = rng.random((count, *spec.shape))
    whole = count // 2
    place[:whole] = np.linspace(0, 1, whole).reshape(-1, *[1] * len(spec.shape))
    with np.errstate(divide="ignore", invalid="ignore"):
        size = np.where(reach > 0, smallest * (np.maximum(reach, smallest) / smallest) ** place, 0.0)
    sign = np.where(rng.random(size.shape) < 0.5, -1.0, 1.0)
    return np.asarray(np.clip(start + sign * size, low, high))


def _every_value(spec: ArraySpec, rng: np.random.Generator, rows: int) -> NDArray[np.float64]:
    """Return rows in which each element takes every value, in an order of its own."""
    low, high = _ends(spec)
    turns = rng.permuted(np.tile(np.arange(rows).reshape(-1, *[1] * len(spec.shape)), (1, *spec.shape)), axis=0)
    return np.asarray(low + turns % (high - low + 1))


def _values(spec: ArraySpec) -> int:
    """Count the values that an element can have; 0 if there are many."""
    if np.dtype(spec.dtype).kind not in "iub" or math.prod(spec.shape) > _MOST_ELEMENTS:
        return 0
    low, high = _ends(spec)
    most = float((high - low).max(initial=0.0)) + 1
    return int(most) if most <= _MOST_VALUES else 0


def _ends(spec: ArraySpec) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the bounds of integers and truth values, within what their type holds."""
    low, high = spec.bounds()
    if spec.dtype == "bool":
        return np.maximum(low, 0), np.minimum(high, 1)
    info = np.iinfo(spec.dtype)
    return np.ceil(np.maximum(low, info.min)), np.floor(np.minimum(high, info.max))


def _visited(spec: ArraySpec, recorded: Array, chosen: NDArray[np.int64]) -> Array:
    smallest = recorded.min(axis=0, keepdims=True).astype(np.float64)
    largest = recorded.max(axis=0, keepdims=True).astype(np.float64)
    margin = 20.0 * (largest - smallest)
    beyond = np.clip(np.concatenate([smallest - margin, largest + margin]), *spec.bounds())
    return np.concatenate([recorded[chosen], _cast(np.concatenate([smallest, largest, beyond]), spec)])


def _cast(cases: NDArray[np.float64], spec: ArraySpec) -> Array:
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        return np.clip(cases, -_largest_of(spec.dtype), _largest_of(spec.dtype)).astype(dtype)
    low, high = _ends(spec)
    # The largest integer of 64 bits is no float64: the next one below it is.
    return np.clip(np.rint(cases), low, np.minimum(high, np.nextafter(_largest_of(spec.dtype), 0))).astype(dtype)


def _largest_of(dtype: str) -> float:
    kind = np.dtype(dtype)
    if kind.kind == "b":
        return 2.0
    return float(np.finfo(kind).max) if kind.kind == "f" else float(np.iinfo(kind).max) + 1


def _bounds(spec: ArraySpec) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the bounds, infinite where a space states the largest float or the limits of 32 bits or more."""
    low, high = spec.bounds()
    dtype = np.dtype(spec.dtype)
    most = _ABSENT
    if dtype.kind in "iu" and dtype.itemsize >= 4:
        most = min(_ABSENT, float(np.iinfo(dtype).max))
    return np.where(low <= -most, -np.inf, low), np.where(high >= most, np.inf, high)


def _near_bounds(spec: ArraySpec) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the bounds. A missing bound is replaced by one at a distance of 20 from the other, two missing ones by
    +-10.
    """
    low, high = _bounds(spec)
    no_low, no_high = np.isinf(low), np.isinf(high)
    return (
        np.where(no_low, np.where(no_high, -_NEAR, high - 2 * _NEAR), low),
        np.where(no_high, np.where(no_low, _NEAR, low + 2 * _NEAR), high),
    )
