"""Batches of earlier iterations that the critic still learns from.

The critic then learns from M times the returns. They come from older policies, which biases it a little: the trust
region bounds how far a policy moves in an iteration.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from trpo_tf.sampling.batch import Batch
from trpo_tf.sampling.join import side_by_side


def with_memory(earlier: Sequence[Batch], batch: Batch, memory: int) -> Batch:
    """Return the last `memory` batches [T, N] as one [T, M x N], the oldest first.

    Batches that are missing, at a run's start, are zeros: compiled functions then see one shape.
    """
    if memory == 1:
        return batch
    missing = [tf.nest.map_structure(np.zeros_like, batch)] * (memory - 1 - len(earlier))
    return side_by_side([*missing, *earlier, batch])


def remembered(earlier: Sequence[Batch], batch: Batch, memory: int) -> tuple[Batch, ...]:
    """Return the batches to keep for the next iteration: the last `memory` - 1, the oldest first."""
    batches = (*earlier, batch)
    return batches[max(0, len(batches) - (memory - 1)) :]


def apart(batches: Batch, num_envs: int) -> tuple[Batch, ...]:
    """Split what `side_by_side` joined: return the batches, of `num_envs` environments each."""
    width = batches.weight.shape[1]
    return tuple(
        tf.nest.map_structure(lambda part, first=first: part[:, first : first + num_envs], batches)
        for first in range(0, width, num_envs)
    )
