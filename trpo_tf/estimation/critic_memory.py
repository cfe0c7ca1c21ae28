"""Batches of earlier iterations that the critic still learns from."""

import numpy as np
import tensorflow as tf

from trpo_tf.sampling.batch import Batch


def remembered(batch: Batch, earlier: Batch | None, memory: int) -> Batch:
    """Append the batch [T, N] to `earlier`, the previous M - 1 batches, along the environments: [T, M x N].

    Batches that are missing, at a run's start, are zeros; M is `memory`.

    The critic then learns from M times the returns. They come from older policies, which biases it a little: the trust
    region bounds how far a policy moves in an iteration.
    """
    before = memory - 1
    if before == 0:
        return batch
    earlier = earlier or tf.nest.map_structure(
        lambda part: np.zeros((len(part), before * part.shape[1], *part.shape[2:]), part.dtype), batch
    )
    return tf.nest.map_structure(lambda *parts: np.concatenate(parts, axis=1), earlier, batch)  # type: ignore[no-any-return]


def columns(batch: Batch, chosen: slice) -> Batch:
    """Return the columns `chosen` of a batch, each the steps of one environment."""
    return tf.nest.map_structure(lambda part: part[:, chosen], batch)  # type: ignore[no-any-return]
