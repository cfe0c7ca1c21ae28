"""Batches of earlier iterations that the critic still learns from."""

import numpy as np
import tensorflow as tf

from trpo_tf.sampling.batch import Batch


def remembered(batch: Batch, earlier: Batch | None, memory: int) -> Batch:
    """Append the batch [T, N] to `earlier`, the previous M - 1 batches, along the environments: [T, M x N].

    Batches that are missing, at a run's start, are zeros; M is `memory`.

    Policies M steps apart are near each other, each step being small, so their returns tell a critic more than those
    of one batch, for a bias that the trust region bounds.
    """
    before = memory - 1
    if before == 0:
        return batch
    earlier = earlier or tf.nest.map_structure(
        lambda part: np.zeros((len(part), before * part.shape[1], *part.shape[2:]), part.dtype), batch
    )
    return tf.nest.map_structure(lambda *parts: np.concatenate(parts, axis=1), earlier, batch)  # type: ignore[no-any-return]


def columns(batch: Batch, chosen: slice) -> Batch:
    """Some environments' part of a batch."""
    return tf.nest.map_structure(lambda part: part[:, chosen], batch)  # type: ignore[no-any-return]
