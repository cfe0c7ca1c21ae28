"""Drift of observations: their running mean and standard deviation, compared with those of training."""

import math
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trpo_tf.serving.bundle.manifest import Manifest
from trpo_tf.serving.bundle.specs import MOST_STATISTICS, ArraySpec, Statistics
from trpo_tf.serving.runtime.observations import Array, Observation
from trpo_tf.serving.support.moments import combined

Float64 = NDArray[np.float64]

WINDOW = 100_000
"""Rows that the statistics cover; the weight of older rows decays exponentially."""

_KEPT = 256
"""Requests that are buffered before the statistics are updated: one update for many costs little more than for one."""

_LARGE = 16 * 1024
"""Size in bytes of a request's observations beyond which the statistics are updated immediately."""

_LARGEST = 512 * 1024
"""Most bytes of observations that are copied at a time."""

MOST_DEVIATIONS = 30.0
"""Distance from the training mean to which elements are clipped, in standard deviations of training.

It is ten times the threshold of the alert. So one absurd observation is soon outweighed, but many still raise the
drift.
"""

_GREATEST = 1e100
"""Absolute value to which all elements are clipped, so that their squares are finite."""

Range = tuple[Float64, Float64]
"""Lower and upper limits [n] to which the elements of an input are clipped."""


class Moments(NamedTuple):
    """Mean [n] and sum of squared deviations [n] of rows, with their total number and how many were clipped."""

    mean: Float64
    deviations: Float64
    total: float
    outliers: float = 0.0

    @property
    def stddev(self) -> Float64:
        """Standard deviation of each element [n]."""
        return np.asarray(np.sqrt(self.deviations / max(self.total, 1.0)))


def empty(size: int) -> Moments:
    """Return the moments of no rows."""
    return Moments(np.zeros(size), np.zeros(size), 0.0)


def range_of(spec: ArraySpec, training: Statistics | None) -> Range:
    """Return the limits to which an input is clipped: `MOST_DEVIATIONS` from its training mean.

    Without training statistics they are one width of the space beyond its bounds. Where it has no bounds, only the
    limit that keeps squares finite remains.
    """
    with np.errstate(over="ignore"):
        if training is not None:
            middle, reach = np.array(training.mean, np.float64), MOST_DEVIATIONS * np.array(training.stddev, np.float64)
        else:
            below, above = (bound.reshape(-1) for bound in spec.bounds())
            is_bounded = np.isfinite(below) & np.isfinite(above)
            middle = np.where(is_bounded, below, 0.0) / 2 + np.where(is_bounded, above, 0.0) / 2
            reach = np.where(is_bounded, 3 * (above / 2 - below / 2), np.inf)
        low, high = middle - reach, middle + reach
    return np.clip(low, -_GREATEST, _GREATEST), np.clip(high, -_GREATEST, _GREATEST)


def moments_of(rows: Array, counted: Range | None = None) -> Moments:
    """Return the moments of rows [rows, n], at least one, after clipping to the range `counted`."""
    values = rows.astype(np.float64)
    low, high = counted or (-_GREATEST, _GREATEST)
    clipped = np.clip(values, low, high)
    outliers = float((clipped != values).any(axis=1).sum())
    mean = clipped.mean(axis=0)
    clipped -= mean
    return Moments(mean, np.einsum("ij,ij->j", clipped, clipped), float(len(clipped)), outliers)


def joined(old: Moments, new: Moments, window: float = math.inf) -> Moments:
    """Combine the moments of two sets of rows; old rows are weighted down so that the total is at most `window`."""
    kept = min(old.total, max(window - new.total, 0.0))
    if kept == 0:
        return new
    share = kept / old.total
    faded = Moments(old.mean, old.deviations * share, kept, old.outliers * share)
    return Moments(*combined(faded, new), faded.outliers + new.outliers)


def moments_to_json(moments: Moments) -> list[Any]:
    """Return mean, deviations, total and outliers as a list for JSON."""
    return [moments.mean.tolist(), moments.deviations.tolist(), moments.total, moments.outliers]


def moments_from_json(document: list[Any]) -> Moments:
    """Return the moments that `moments_to_json` has written."""
    mean, deviations, total, outliers = document
    return Moments(np.array(mean), np.array(deviations), total, outliers)


def drift(observed: Moments, training: Statistics) -> float:
    """Return the largest distance of an element's mean from its training mean, in standard deviations of training."""
    with np.errstate(over="ignore"):
        return float(np.max(np.abs(observed.mean - training.mean) / training.stddev))


class Input:
    """Statistics of the observations of one input of a policy. Adding a request's rows costs a copy of them."""

    def __init__(self, spec: ArraySpec, training: Statistics | None = None) -> None:
        self.name, self._counted = spec.name, range_of(spec, training)
        self._dtype, self._size = np.dtype(spec.dtype), math.prod(spec.shape)
        self._kept: list[bytes] = []
        self._moments = empty(self._size)
        self._lock = threading.Lock()

    def add(self, rows: Array) -> None:
        """Add rows [batch, ...]. May be called from any thread."""
        if rows.nbytes > _LARGEST and len(rows) > 1:  # in parts: as float64 they would take many times their size
            middle = len(rows) // 2
            self.add(rows[:middle])
            self.add(rows[middle:])
            return
        copy, kept = rows.tobytes(), self._kept
        kept.append(copy)
        if len(kept) >= _KEPT or len(copy) > _LARGE:
            self.moments()

    def moments(self) -> Moments:
        """Return the moments of all rows that were added, within the window."""
        with self._lock:
            # Other threads may append meanwhile. That needs no lock, since only this method removes entries.
            taken = self._kept[:]
            del self._kept[: len(taken)]
            if taken:
                rows = np.frombuffer(b"".join(taken), self._dtype).reshape(-1, self._size)
                self._moments = joined(self._moments, moments_of(rows, self._counted), WINDOW)
            return self._moments


class Watch:
    """Statistics of the inputs of one model version, except those of more than `MOST_STATISTICS` elements (images)."""

    def __init__(self, manifest: Manifest) -> None:
        self.inputs = [
            Input(spec, manifest.statistics.get(spec.name))
            for spec in manifest.observation
            if math.prod(spec.shape) <= MOST_STATISTICS
        ]
        only = self.inputs[0] if self.inputs and len(manifest.step_inputs) == 1 else None
        self.asked: Callable[[Any], None] = only.add if only else self._add_parts
        """Adds a request's observations [batch, ...], an array or one per input. May be called from any thread."""

    def _add_parts(self, observations: Observation) -> None:
        for watched in self.inputs:
            watched.add(observations[watched.name])
