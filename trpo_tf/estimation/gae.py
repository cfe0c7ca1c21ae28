"""Advantages from rewards and values: how much better an action was than the policy's average."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


def generalized_advantages(reward: Floats, discount: Floats, trace: Floats, value: Floats) -> Floats:
    """Compute generalised advantage estimates (Schulman et al. 2016, eq 16) of a batch of trajectories.

    A_t = delta_t + discount_{t+1} trace_{t+1} A_{t+1}, delta_t = r_{t+1} + discount_{t+1} V(s_{t+1}) - V(s_t).

    Args:
        reward: r_{t+1}, [T, N].
        discount: discount_{t+1}, [T, N]: 0 where the step terminated its episode.
        trace: lambda_{t+1}, [T, N]: 0 where the step terminated or truncated its episode, so that nothing of the next
            episode leaks in. A truncated episode still counts V of its final observation.
        value: V(s_0) to V(s_T), [T + 1, N]; after an episode's last step, V of its final observation.

    Returns:
        A_0 to A_{T-1}, [T, N]; A_t + V(s_t) is the lambda-return, which the critic is fitted to.
    """
    delta = td_errors(reward, discount, value)
    decay = discount * trace
    advantages = np.empty_like(delta)
    following = np.zeros_like(delta[0])
    for t in range(len(delta) - 1, -1, -1):
        following = delta[t] + decay[t] * following
        advantages[t] = following
    return advantages


def td_errors(reward: Floats, discount: Floats, value: Floats) -> Floats:
    """Return the TD errors r_{t+1} + discount_{t+1} V(s_{t+1}) - V(s_t), [T, N].

    Arguments as in `generalized_advantages`.
    """
    return np.asarray(reward + discount * value[1:] - value[:-1])


def participation_ratio(numbers: Floats) -> float:
    """Return the share of the numbers that make up their sum of squares.

    It is (sum x^2)^2 / (n sum x^4), the reciprocal of the kurtosis about 0. If all have the same magnitude, or are 0,
    it is 1; if only one is not 0, it is 1 / n.
    """
    largest = float(np.abs(numbers).max(initial=0.0))
    if largest == 0:
        return 1.0
    squares = np.square(numbers / largest)
    return float(squares.sum() ** 2 / (squares.size * np.square(squares).sum()))


def standardized(advantage: Floats, weight: Floats) -> Floats:
    """Shift and scale advantages to weighted mean 0 and variance 1; rows of weight 0 become 0."""
    total = weight.sum()
    mean = (weight * advantage).sum() / total
    deviation = np.sqrt((weight * (advantage - mean) ** 2).sum() / total)
    return np.where(weight > 0, (advantage - mean) / (deviation + 1e-8), 0.0)
