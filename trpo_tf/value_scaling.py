"""The scale of the critic's answers: rewards may be of any size, and a network learns numbers around 1."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trpo_tf.config import SamplingConfig
from trpo_tf.normalization import REWARD_CLIP, Moments, discounted_returns, scale_rewards
from trpo_tf.sampling.batch import Batch

Float64 = NDArray[np.float64]

_LEAST_DEVIATION = 1e-3
"""Of a mean value."""


class ValueScale(NamedTuple):
    """A value is mean + deviation x the critic's answer, in units of the rewards that advantages are made of."""

    mean: float = 0.0
    deviation: float = 1.0

    @classmethod
    def of(cls, scaling: str, moments: Moments) -> "ValueScale":
        """That of the critic's targets (van Hasselt et al. 2016, eq 2); 0 and 1 for another `scaling`."""
        if scaling != "targets" or moments.total == 0:
            return cls()
        mean, deviation = float(moments.mean), float(np.sqrt(moments.variance))
        # Values that are all but the same have no deviation worth dividing by.
        return cls(mean, max(deviation, _LEAST_DEVIATION * abs(mean)) or 1.0)

    def values(self, answers: NDArray[np.floating]) -> NDArray[np.floating]:
        """Values of the critic's answers."""
        return answers * self.deviation + self.mean

    def answers(self, values: NDArray[np.floating]) -> NDArray[np.floating]:
        """The critic's answers that stand for these values."""
        return (values - self.mean) / self.deviation


class ScaledRewards(NamedTuple):
    """Rewards that advantages are made of, and what is known of returns after them."""

    reward: Float64  # [T, M x N]
    moments: Moments  # of discounted sums of rewards
    carried: Float64  # [N], discounted sums so far in the running episodes
    clipped: float  # share of the new rewards


def rewards_in_units(
    sampling: SamplingConfig, memory: Batch, batch: Batch, moments: Moments, carried: Float64
) -> ScaledRewards:
    """Rewards of a batch [T, N] and of those remembered with it, over the deviation of the discounted return.

    Only where `value_scaling` is `rewards`: else they are as they were, and the moments too.
    """
    if sampling.value_scaling != "rewards":
        return ScaledRewards(memory.reward, moments, carried, 0.0)
    sums, carried = discounted_returns(carried, batch.reward, batch.ended, sampling.discount)
    moments = moments.updated(sums[batch.weight > 0])
    clipped = np.average(np.abs(batch.reward * moments.scale) > REWARD_CLIP, weights=batch.weight)
    return ScaledRewards(scale_rewards(memory.reward, moments), moments, carried, float(clipped))
