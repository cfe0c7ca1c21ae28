"""Results of sampling: a batch of fixed shape, and the episodes that ended in it."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trpo_tf.serving.runtime.observations import Observation, map_parts


class Batch(NamedTuple):
    """T steps of N environments.

    `observation[t + 1]` is the observation after step t, also if step t ended its episode. Step t + 1 is then the
    reset: it is not a transition, and has weight 0.
    """

    observation: Observation  # [T + 1, N, ...], as the policy's network sees it
    sample: NDArray[Any]  # [T, N, ...], of the policy's distribution
    reward: NDArray[np.float64]  # [T, N]
    terminated: NDArray[np.bool_]  # [T, N]
    truncated: NDArray[np.bool_]  # [T, N]
    weight: NDArray[np.float64]  # [T, N]

    def rows(self) -> Observation:
        """Return the observations that were acted on, [T x N, ...]."""
        return map_parts(lambda part: part[:-1].reshape(-1, *part.shape[2:]), self.observation)

    @property
    def steps(self) -> int:
        """Number of environment steps: the rows that are transitions."""
        return int(self.weight.sum())

    @property
    def ended(self) -> NDArray[np.bool_]:
        """Whether each row is the last of its episode."""
        return self.terminated | self.truncated


class Episodes(NamedTuple):
    """Undiscounted returns and lengths of the episodes that ended, in chronological order, and their last steps t."""

    returns: list[float]
    lengths: list[int]
    steps: list[int]
