"""What is observed: running mean and standard deviation, and how far they are from what the policy was trained on."""

import math
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving.manifest import MOST_STATISTICS, ArraySpec, Manifest, Statistics
from serving.observations import Array, Observation

Float64 = NDArray[np.float64]

WINDOW = 100_000
"""Rows that the statistics reach back: older ones fade out exponentially."""

_KEPT = 256
"""Requests whose observations are kept until they are added up; together they cost little more than one alone."""

_LARGE = 16 * 1024
"""Bytes of observations that are added up at once."""

_GREATEST = 1e100
"""Observations beyond it count as it: the square of a larger one would be infinite."""


class Moments(NamedTuple):
    """Mean [n], sum of squared deviations from it [n], and how many rows they are of."""

    mean: Float64
    deviations: Float64
    total: float

    @property
    def stddev(self) -> Float64:
        """Of each element."""
        return np.asarray(np.sqrt(self.deviations / max(self.total, 1.0)))


def empty(size: int) -> Moments:
    """Of no rows."""
    return Moments(np.zeros(size), np.zeros(size), 0.0)


def moments_of(rows: Array) -> Moments:
    """Of rows [rows, n], at least one."""
    values = rows.astype(np.float64)
    if rows.dtype == np.float64:
        np.clip(values, -_GREATEST, _GREATEST, out=values)
    mean = values.mean(axis=0)
    values -= mean
    return Moments(mean, np.einsum("ij,ij->j", values, values), float(len(values)))


def joined(old: Moments, new: Moments, window: float = math.inf) -> Moments:
    """Of the rows of both (Chan, Golub & LeVeque 1983), the old ones weighed down until all are `window` at most."""
    kept = min(old.total, max(window - new.total, 0.0))
    total = kept + new.total
    if total == 0:
        return new
    shift = new.mean - old.mean
    faded = old.deviations * (kept / old.total if old.total else 0.0)
    return Moments(
        old.mean + shift * (new.total / total),
        faded + new.deviations + shift**2 * (kept * new.total / total),
        total,
    )


def moments_to_json(moments: Moments) -> list[Any]:
    """Mean, deviations and total."""
    return [moments.mean.tolist(), moments.deviations.tolist(), moments.total]


def moments_from_json(document: list[Any]) -> Moments:
    """The inverse."""
    mean, deviations, total = document
    return Moments(np.array(mean), np.array(deviations), total)


def drift(observed: Moments, training: Statistics) -> float:
    """The largest distance of an element's mean from the training mean, in standard deviations of the training."""
    return float(np.max(np.abs(observed.mean - training.mean) / training.stddev))


class Input:
    """One input of a policy: what is observed there. To add a request's rows costs a copy of them."""

    def __init__(self, spec: ArraySpec) -> None:
        self.name = spec.name
        self._dtype, self._size = np.dtype(spec.dtype), math.prod(spec.shape)
        self._kept: list[bytes] = []
        self._moments = empty(self._size)
        self._lock = threading.Lock()

    def add(self, rows: Array) -> None:
        """Rows [batch, ...]; from any thread."""
        copy, kept = rows.tobytes(), self._kept
        kept.append(copy)
        if len(kept) >= _KEPT or len(copy) > _LARGE:
            self.moments()

    def moments(self) -> Moments:
        """Of all that was added."""
        with self._lock:
            # Other threads may append meanwhile, which needs no lock as long as only this takes away.
            taken = self._kept[:]
            del self._kept[: len(taken)]
            if taken:
                rows = np.frombuffer(b"".join(taken), self._dtype).reshape(-1, self._size)
                self._moments = joined(self._moments, moments_of(rows), WINDOW)
            return self._moments


class Watch:
    """The inputs of one version of a policy, but for images and others of more than `MOST_STATISTICS` elements."""

    def __init__(self, manifest: Manifest) -> None:
        self.inputs = [Input(spec) for spec in manifest.observation if math.prod(spec.shape) <= MOST_STATISTICS]
        only = self.inputs[0] if self.inputs and len(manifest.observation) == 1 else None
        self.asked: Callable[[Any], None] = only.add if only else self._add_parts
        """Add a request's observations [batch, ...], an array or one for each input; from any thread."""

    def _add_parts(self, observations: Observation) -> None:
        for watched in self.inputs:
            watched.add(observations[watched.name])
