"""Running mean and variance, by which a policy standardises observations."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trpo_tf.serving.support.moments import combined

Float64 = NDArray[np.float64]

OBSERVATION_CLIP = 10.0
"""Standardised observations are clipped to this many deviations."""
_EPSILON = 1e-8


class Moments(NamedTuple):
    """Mean and sum of squared deviations of `total` samples, element by element."""

    mean: Float64  # [...]
    deviations: Float64  # [...]
    total: Float64  # []

    @classmethod
    def empty(cls, shape: tuple[int, ...]) -> "Moments":
        """Return the moments of no samples."""
        return cls(np.zeros(shape), np.zeros(shape), np.zeros(()))

    def faded(self, most: float) -> "Moments":
        """Return the same mean and variance, with a weight of at most `most` samples."""
        if self.total <= most:
            return self
        return Moments(self.mean, self.deviations * (most / self.total), np.asarray(float(most)))

    def widened(self, least_deviation: float) -> "Moments":
        """Return the moments with `least_deviation` squared added to the variance; without samples nothing changes."""
        return self._replace(deviations=self.deviations + least_deviation**2 * self.total)

    def updated(self, samples: NDArray[np.generic], window: int = 0) -> "Moments":
        """Return the moments with samples [n, ...] added.

        No samples change nothing. With a `window`, older samples are weighted down to count as at most max(`window` -
        n, 0).
        """
        added = len(samples)
        if added == 0:
            return self
        if window:
            return self.faded(max(window - added, 0)).updated(samples)
        values = samples.astype(np.float64)
        mean = values.mean(axis=0)
        new = Moments(mean, ((values - mean) ** 2).sum(axis=0), np.asarray(float(added)))
        return Moments(*map(np.asarray, combined(self, new)))

    @property
    def variance(self) -> Float64:
        """Variance of the samples; 1 before there are two."""
        return self.deviations / self.total if self.total > 1 else np.ones_like(self.deviations)

    @property
    def scale(self) -> Float64:
        """1 / standard deviation, finite also for equal samples."""
        return np.asarray(1.0 / np.sqrt(self.variance + _EPSILON))

    @property
    def has_varied(self) -> NDArray[np.bool_]:
        """Whether the variance is above the constant that keeps `scale` finite."""
        return np.asarray(self.variance > _EPSILON)


class Normalizer(NamedTuple):
    """Frozen statistics by which the policy standardises an observation: (observation - mean) * scale."""

    mean: NDArray[np.float32]  # [obs]
    scale: NDArray[np.float32]  # [obs]

    @classmethod
    def of(cls, moments: Moments) -> "Normalizer":
        """Return the mean and scale of `moments`, as float32 for the graph."""
        return cls(moments.mean.astype(np.float32), moments.scale.astype(np.float32))
