"""Scale rewards and value targets to a magnitude of about 1, which a network can learn."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trpo_tf.config.settings import SamplingConfig
from trpo_tf.policies.running_stats import Moments
from trpo_tf.sampling.batch import Batch

Float64 = NDArray[np.float64]

REWARD_CLIP = 10.0

_LEAST_DEVIATION = 1e-3
"""Smallest deviation that values are divided by, relative to the magnitude of their mean."""


class ValueScale(NamedTuple):
    """Affine map from the critic's outputs to values: value = mean + deviation x output.

    Values are in the units of the rewards that advantages are computed from.
    """

    mean: float = 0.0
    deviation: float = 1.0

    @classmethod
    def of(cls, scaling: str, moments: Moments) -> "ValueScale":
        """Return the map that standardises the critic's targets (van Hasselt et al. 2016, eq 2).

        It is the identity for a `scaling` other than `targets`, and before the first batch; see `of_first`.
        """
        if scaling != "targets" or moments.total == 0:
            return cls()
        mean, deviation = float(moments.mean), float(np.sqrt(moments.variance))
        # Values that hardly differ have no deviation worth dividing by.
        return cls(mean, max(deviation, _LEAST_DEVIATION * abs(mean)) or 1.0)

    @classmethod
    def of_first(cls, sampling: SamplingConfig, batch: Batch) -> "ValueScale":
        """Return the map for a run's first batch [T, N]: an untrained critic's values are no larger than its returns.

        Small rewards would be lost among them, and in the statistics of targets for the whole run.
        """
        returns, _ = discounted_returns(np.zeros(batch.reward.shape[1]), batch.reward, batch.ended, sampling.discount)
        return cls(0.0, min(float(returns[batch.weight > 0].std()), 1.0) or 1.0)

    def values(self, answers: NDArray[np.floating]) -> NDArray[np.floating]:
        """Convert the critic's outputs to values."""
        return answers * self.deviation + self.mean

    def answers(self, values: NDArray[np.floating]) -> NDArray[np.floating]:
        """Convert values to the critic's outputs."""
        return (values - self.mean) / self.deviation


class ScaledRewards(NamedTuple):
    """Rewards that advantages are computed from, and the statistics of returns that include them."""

    reward: Float64  # [T, M x N]
    moments: Moments  # of discounted sums of rewards
    carried: Float64  # [N], discounted sums so far in the running episodes
    clipped: float  # share of the new rewards that was clipped


def rewards_in_units(
    sampling: SamplingConfig, memory: Batch, batch: Batch, moments: Moments, carried: Float64
) -> ScaledRewards:
    """Scale the rewards of `memory` [T, M x N], which ends with `batch` [T, N], by the deviation of returns.

    For another `value_scaling` than `rewards`, the rewards and the moments stay the same.
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
    """Return the discounted sums of past rewards within each episode [T, N], and those that the next batch continues.

    `carried` [N] are the sums at the end of the previous batch. `ended` [T, N] marks the last step of an episode, after
    which the sum restarts at 0.
    """
    sums, kept = rewards.copy(), discount * ~ended
    following = carried * discount
    for row, factor in zip(sums, kept, strict=True):
        row += following
        following = row * factor
    return sums, np.where(ended[-1], 0.0, sums[-1])


def scale_rewards(rewards: Float64, return_moments: Moments) -> Float64:
    """Divide rewards by the deviation of the discounted return, and clip them to +-10 (Engstrom et al. 2020)."""
    return np.clip(rewards * return_moments.scale, -REWARD_CLIP, REWARD_CLIP)
