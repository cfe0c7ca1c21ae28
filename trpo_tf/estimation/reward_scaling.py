"""Scale rewards and value targets to around 1, the size of numbers that a network learns."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trpo_tf.config.settings import SamplingConfig
from trpo_tf.policies.running_stats import Moments
from trpo_tf.sampling.batch import Batch

Float64 = NDArray[np.float64]

REWARD_CLIP = 10.0

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


def discounted_returns(
    carried: Float64, rewards: Float64, ended: NDArray[np.bool_], discount: float
) -> tuple[Float64, Float64]:
    """Discounted sums of past rewards [T, N] within each episode, and the last, to carry on with.

    `carried` [N] comes from the steps before; `ended` [T, N] marks the last step of an episode, after which the
    sum starts anew.
    """
    sums, kept = rewards.copy(), discount * ~ended
    following = carried * discount
    for row, factor in zip(sums, kept, strict=True):
        row += following
        following = row * factor
    return sums, np.where(ended[-1], 0.0, sums[-1])


def scale_rewards(rewards: Float64, return_moments: Moments) -> Float64:
    """Rewards over the deviation of the discounted return, clipped to +-10 (Engstrom et al. 2020)."""
    return np.clip(rewards * return_moments.scale, -REWARD_CLIP, REWARD_CLIP)
