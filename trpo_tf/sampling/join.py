"""Join the samples of a run's shards to one batch."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from trpo_tf.sampling.batch import Batch, Episodes
from trpo_tf.sampling.vine.sampler import Branches


def side_by_side(batches: Sequence[Batch]) -> Batch:
    """Return batches [T, N] as one, along the environments; a single one is returned as it is."""
    if len(batches) == 1:
        return batches[0]
    return tf.nest.map_structure(lambda *parts: np.concatenate(parts, axis=1), *batches)  # type: ignore[no-any-return]


def in_chronological_order(episodes: Sequence[Episodes]) -> Episodes:
    """Return the episodes of all shards together, sorted by the step at which they ended, then by shard."""
    ends = [
        (step, shard, returned, length)
        for shard, part in enumerate(episodes)
        for returned, length, step in zip(*part, strict=True)
    ]
    ends.sort(key=lambda end: end[:2])
    return Episodes([end[2] for end in ends], [end[3] for end in ends], [end[0] for end in ends])


def one_after_the_other(branches: Sequence[Branches], bounds: Sequence[int]) -> Branches:
    """Return the rollouts of several shards as one, shard by shard; rows are then those of the batch side by side.

    `bounds` are the first environment of each shard, and the number of all.
    """
    if len(branches) == 1:
        return branches[0]
    rows = []
    for part, first, end in zip(branches, bounds[:-1], bounds[1:], strict=True):
        step, place = np.divmod(part.rows, end - first)
        rows.append(step * bounds[-1] + first + place)
    joined: Branches = tf.nest.map_structure(lambda *parts: np.concatenate(parts), *branches)
    return joined._replace(rows=np.concatenate(rows))
