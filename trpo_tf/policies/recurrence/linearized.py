"""A recurrent cell over time: its states, and products with the Jacobian of its states in its weights.

TensorFlow's forward-mode differentiation does not go through a loop, and its reverse mode runs the loop again for each
product. Here the loop is linearised once. What depends on the point alone is computed for all steps together, and each
product is one loop of a single matrix product a step. See docs/explanation/recurrence.md.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from trpo_tf.policies.recurrence.cells import Cell, CellState
from trpo_tf.policies.recurrence.sequences import Course
from trpo_tf.solvers.fisher import Linearization


def states(cell: Cell, weights: Sequence[Any], course: Course) -> CellState:
    """Return the state after each step, arrays [T, N, units], for the cell's weights W, b and U."""
    kernel, bias, recurrent = weights
    driven = tf.matmul(course.inputs, kernel) + bias
    length = driven.shape[0]

    def body(t: Any, state: CellState, kept: tuple[Any, ...]) -> tuple[Any, CellState, tuple[Any, ...]]:
        before = tuple(course.goes_on[t] * part for part in state)
        state = cell.gates(driven[t], tf.matmul(before[0], recurrent), before)
        return t + 1, state, tuple(array.write(t, part) for array, part in zip(kept, state, strict=True))

    arrays = tuple(_array(length, part) for part in course.state)
    _, _, kept = tf.while_loop(
        lambda t, *_: t < length, body, (tf.constant(0), course.state, arrays), maximum_iterations=length
    )
    return tuple(tf.ensure_shape(array.stack(), (length, *course.state[0].shape)) for array in kept)


def hidden_states(cell: Cell, weights: Sequence[Any], course: Course) -> Any:
    """Return the hidden state after each step, [T, N, units], differentiable in the weights by reverse mode."""

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def run(*parts: Any) -> tuple[Any, Callable[[Any], list[Any]]]:
        after = states(cell, parts, course)
        return after[0], lambda upstream: _linearized(cell, parts, course, after).backward(upstream)

    return run(*weights)


def linearize_hidden_states(cell: Cell, weights: Sequence[Any], course: Course) -> Linearization:
    """Return the linearisation of `hidden_states` at `weights`."""
    return _linearized(cell, weights, course, states(cell, weights, course))


class _Slopes(NamedTuple):
    """Derivatives of one array of the next state, elementwise, in all that `gates` takes."""

    driven: Any  # [T, N, blocks, units]
    recurrent: Any  # [T, N, blocks, units]
    state: tuple[Any, ...]  # of [T, N, units]


def _linearized(cell: Cell, weights: Sequence[Any], course: Course, after: CellState) -> Linearization:
    kernel, bias, recurrent = weights
    inputs, goes_on = course.inputs, course.goes_on
    length, sequences = inputs.shape[:2]
    before = tuple(
        goes_on * tf.concat([first[tf.newaxis], part[:-1]], axis=0)
        for first, part in zip(course.state, after, strict=True)
    )
    slopes = _slopes(cell, tf.matmul(inputs, kernel) + bias, tf.matmul(before[0], recurrent), before, goes_on)
    transposed = tf.transpose(recurrent)

    def by_block(values: Any) -> Any:
        return tf.reshape(values, (*values.shape[:-1], cell.blocks, cell.units))

    def forward(tangents: Sequence[Any]) -> Any:
        d_kernel, d_bias, d_recurrent = tangents
        by_inputs = by_block(tf.matmul(inputs, d_kernel) + d_bias)
        by_state = by_block(tf.matmul(before[0], d_recurrent))
        forcing = [tf.reduce_sum(slope.driven * by_inputs + slope.recurrent * by_state, axis=-2) for slope in slopes]

        def body(t: Any, moved: CellState, kept: Any) -> tuple[Any, CellState, Any]:
            product = by_block(tf.matmul(moved[0], recurrent))
            moved = tuple(
                force[t]
                + tf.reduce_sum(slope.recurrent[t] * product, axis=-2)
                + sum(factor[t] * part for factor, part in zip(slope.state, moved, strict=True))
                for force, slope in zip(forcing, slopes, strict=True)
            )
            return t + 1, moved, kept.write(t, moved[0])

        start = tuple(tf.zeros_like(part) for part in course.state)
        _, _, kept = tf.while_loop(
            lambda t, *_: t < length,
            body,
            (tf.constant(0), start, _array(length, start[0])),
            maximum_iterations=length,
        )
        return tf.ensure_shape(kept.stack(), (length, sequences, cell.units))

    def backward(cotangent: Any) -> list[Any]:
        def body(t: Any, carried: CellState, kept: Any) -> tuple[Any, CellState, Any]:
            adjoint = (cotangent[t] + carried[0], *carried[1:])
            product = sum(part[:, tf.newaxis] * slope.recurrent[t] for part, slope in zip(adjoint, slopes, strict=True))
            carried = tuple(
                sum(part * slope.state[place][t] for part, slope in zip(adjoint, slopes, strict=True))
                for place in range(len(carried))
            )
            through = tf.matmul(tf.reshape(product, (sequences, -1)), transposed)
            kept = tuple(array.write(t, part) for array, part in zip(kept, adjoint, strict=True))
            return t - 1, (carried[0] + through, *carried[1:]), kept

        end = tuple(tf.zeros_like(part) for part in course.state)
        arrays = tuple(_array(length, part) for part in end)
        _, _, kept = tf.while_loop(
            lambda t, *_: t >= 0, body, (tf.constant(length - 1), end, arrays), maximum_iterations=length
        )
        adjoints = [tf.ensure_shape(array.stack(), (length, sequences, cell.units)) for array in kept]

        def summed(kind: str) -> Any:
            products = (
                part[:, :, tf.newaxis] * getattr(slope, kind) for part, slope in zip(adjoints, slopes, strict=True)
            )
            return tf.reshape(sum(products), (length * sequences, -1))

        by_driven, by_recurrent = summed("driven"), summed("recurrent")
        return [
            tf.matmul(_rows(inputs), by_driven, transpose_a=True),
            tf.reduce_sum(by_driven, axis=0),
            tf.matmul(_rows(before[0]), by_recurrent, transpose_a=True),
        ]

    return Linearization(after[0], forward, backward)


def _slopes(cell: Cell, driven: Any, recurrent: Any, before: CellState, goes_on: Any) -> list[_Slopes]:
    """Return the derivatives of each array of the next state, zero in a state before it that does not go on.

    `gates` is elementwise, so the gradient of an array's sum holds the derivatives of all its elements.
    """
    with tf.GradientTape(persistent=True) as tape:
        tape.watch((driven, recurrent, before))
        after = cell.gates(driven, recurrent, before)
    blocks = (*driven.shape[:-1], cell.blocks, cell.units)
    found = []
    for part in after:
        by_driven, by_recurrent, by_state = tape.gradient(
            part, (driven, recurrent, before), unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        found.append(
            _Slopes(
                tf.reshape(by_driven, blocks),
                tf.reshape(goes_on * by_recurrent, blocks),
                tuple(goes_on * each for each in by_state),
            )
        )
    return found


def _array(length: int, element: Any) -> Any:
    return tf.TensorArray(element.dtype, length, element_shape=element.shape)


def _rows(values: Any) -> Any:
    """Return values [T, N, k] as [T x N, k]."""
    return tf.reshape(values, (-1, values.shape[-1]))
