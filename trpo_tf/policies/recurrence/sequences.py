"""Rows of a batch in the order of time, which a recurrent policy is trained on, and parts of them.

Each row holds the state that the policy had before it. So any part of a batch that is consecutive in time can be taken
by itself: its sequences start from the stored states, and derivatives end there.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from trpo_tf.policies.encoders import MaskedInputs

CHUNK = 32
"""Most steps of the sequences that minibatches and a part of the Fisher products' rows are made of."""


class Sequences(NamedTuple):
    """Encoded observations of N environments at T steps; flat rows [T x N] are in the order of time."""

    inputs: Any  # [T, N, width + state], each with the state before the step
    goes_on: Any  # [T, N], whether a step continues an episode that is in the sequence already, or its first row
    rows: Any = None  # indices of flat rows, int32 [B], if only those count; all of them lead to them


class Course(NamedTuple):
    """Inputs of a cell's step, at T steps of N sequences."""

    inputs: Any  # [T, N, width]
    goes_on: Any  # [T, N, 1], 1 where a step continues the sequence, 0 where its state before is the initial one
    state: tuple[Any, ...]  # of [N, ...], before the first step


def as_sequences(inputs: Any, weight: NDArray[np.float64]) -> Any:
    """Return a batch's encoded rows [T x N, ...] as sequences; `weight` [T, N] is 0 at rows that only reset.

    A mask of legal actions stays beside them, in flat rows.
    """
    if isinstance(inputs, MaskedInputs):
        return inputs._replace(inputs=as_sequences(inputs.inputs, weight))
    length, n = weight.shape
    # An episode starts after the row that reset it. The first row's state is stored as it begins.
    goes_on = np.concatenate([np.ones((1, n), bool), weight[:-1] > 0])
    return Sequences(tf.reshape(inputs, (length, n, inputs.shape[-1])), goes_on)


def selected(inputs: Any, indices: Any) -> Any:
    """Return the encoded rows with these indices, int32 [M], or those of sequences with indices [L, M].

    Rows [M] of sequences are taken from their whole course. Indices [L, M] are M sequences of L consecutive steps each.
    """
    if isinstance(inputs, MaskedInputs):
        return MaskedInputs(selected(inputs.inputs, indices), tf.gather(inputs.legal, tf.reshape(indices, [-1])))
    if not isinstance(inputs, Sequences):
        return tf.nest.map_structure(lambda array: tf.gather(array, indices), inputs)
    if indices.shape.rank == 1:
        return inputs._replace(rows=indices if inputs.rows is None else tf.gather(inputs.rows, indices))
    flat = (tf.reshape(array, (-1, *array.shape[2:])) for array in (inputs.inputs, inputs.goes_on))
    rows, goes_on = (tf.gather(array, indices) for array in flat)
    first = tf.ones_like(goes_on[:1])
    return Sequences(rows, tf.concat([first, goes_on[1:]], axis=0))


def parted(inputs: Any, width: int, state: Sequence[tuple[int, ...]]) -> tuple[Any, tuple[Any, ...]]:
    """Split inputs [..., width + state] into observations [..., width] and the state's arrays, of shapes `state`."""
    arrays, place = [], width
    leading = [-1 if size is None else size for size in inputs.shape[:-1]]
    for shape in state:
        size = math.prod(shape)
        arrays.append(tf.reshape(inputs[..., place : place + size], (*leading, *shape)))
        place += size
    return inputs[..., :width], tuple(arrays)


def course_of(inputs: Sequences, width: int, state: Sequence[tuple[int, ...]]) -> Course:
    """Return what a cell runs through: observations [T, N, width], steps that continue, and the first state."""
    observed, _ = parted(inputs.inputs, width, state)
    _, first = parted(inputs.inputs[0], width, state)
    return Course(observed, tf.cast(inputs.goes_on, observed.dtype)[..., tf.newaxis], first)


def counted(inputs: Sequences, values: Any) -> Any:
    """Return the values [B, k] of those rows that count, of values [T, N, k] at all rows."""
    rows = tf.reshape(values, (-1, values.shape[-1]))
    return rows if inputs.rows is None else tf.gather(rows, inputs.rows)


def spread(inputs: Sequences, values: Any) -> Any:
    """Return values [B, k] of the rows that count as [T, N, k], with 0 at the others: the transpose of `counted`."""
    length, n = inputs.goes_on.shape
    if inputs.rows is not None:
        values = tf.math.unsorted_segment_sum(values, inputs.rows, length * n)
    return tf.reshape(values, (length, n, values.shape[-1]))


def chunks(length: int, n: int, longest: int = CHUNK, offset: int = 0) -> NDArray[np.int32]:
    """Return indices [L, C] of the flat rows [T x N] of C sequences of at most `longest` consecutive steps.

    The first starts at step `offset` of each environment. Steps after the last whole sequence are left out.
    """
    size = min(longest, length)
    first = offset + size * np.arange((length - offset) // size)
    heads = (first[:, np.newaxis] * n + np.arange(n)).ravel()
    return (np.arange(size)[:, np.newaxis] * n + heads).astype(np.int32)


def sequence_minibatches(rng: np.random.Generator, length: int, n: int, size: int, epochs: int) -> NDArray[np.int32]:
    """Return minibatches of about `size` rows, int32 [steps, L, M]: M sequences of L consecutive steps.

    Each epoch is a new permutation of all sequences. They start at a random step, so that no row is always left out.
    """
    long = min(CHUNK, length, size)
    found = []
    for _ in range(epochs):
        each = chunks(length, n, long, int(rng.integers(length % long + 1)))
        count = min(max(size // long, 1), each.shape[1])
        each = each[:, rng.permutation(each.shape[1])[: each.shape[1] - each.shape[1] % count]]
        found.append(each.reshape(long, -1, count).swapaxes(0, 1))
    return np.concatenate(found)
