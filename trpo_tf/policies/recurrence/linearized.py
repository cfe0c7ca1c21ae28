"""A recurrent cell over time: its states, and products with the Jacobian of its states in its weights.

TensorFlow's forward-mode differentiation does not go through a loop, and its reverse mode runs the loop again for each
product. Here the loop is linearised once. What depends on the point alone is computed for all steps together, and each
product is one loop of a single matrix product a step. See docs/explanation/recurrence.md.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from trpo_tf.policies.recurrence.cells import Cell, CellState
from trpo_tf.policies.recurrence.sequences import Course
from trpo_tf.solvers.fisher_product import Linearization


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


class _LinearLoop(NamedTuple):
    """The loop linearised at a point: products with the Jacobian of its hidden states in the cell's weights."""

    cell: Cell
    inputs: Any  # [T, N, width]
    recurrent: Any  # the weights U, [units, blocks x units]
    transposed: Any  # U'
    before: CellState  # the state before each step, of [T, N, units]
    slopes: list[_Slopes]

    def forward(self, tangents: Sequence[Any]) -> Any:
        """Return how the hidden states [T, N, units] move with the weights."""
        d_kernel, d_bias, d_recurrent = tangents
        by_inputs = self._by_block(tf.matmul(self.inputs, d_kernel) + d_bias)
        by_state = self._by_block(tf.matmul(self.before[0], d_recurrent))
        slopes = self.slopes
        forcing = [tf.reduce_sum(slope.driven * by_inputs + slope.recurrent * by_state, axis=-2) for slope in slopes]

        def body(t: Any, moved: CellState, kept: Any) -> tuple[Any, CellState, Any]:
            product = self._by_block(tf.matmul(moved[0], self.recurrent))
            moved = tuple(
                force[t]
                + tf.reduce_sum(slope.recurrent[t] * product, axis=-2)
                + sum(factor[t] * part for factor, part in zip(slope.state, moved, strict=True))
                for force, slope in zip(forcing, slopes, strict=True)
            )
            return t + 1, moved, kept.write(t, moved[0])

        length, start = self._length, self._zeros()
        _, _, kept = tf.while_loop(
            lambda t, *_: t < length,
            body,
            (tf.constant(0), start, _array(length, start[0])),
            maximum_iterations=length,
        )
        return tf.ensure_shape(kept.stack(), self.before[0].shape)

    def backward(self, cotangent: Any) -> list[Any]:
        """Return the weights' gradient of the hidden states' product with `cotangent` [T, N, units]."""
        adjoints = self._adjoints(cotangent)
        by_driven = self._summed(adjoints, [slope.driven for slope in self.slopes])
        by_recurrent = self._summed(adjoints, [slope.recurrent for slope in self.slopes])
        return [
            tf.matmul(_rows(self.inputs), by_driven, transpose_a=True),
            tf.reduce_sum(by_driven, axis=0),
            tf.matmul(_rows(self.before[0]), by_recurrent, transpose_a=True),
        ]

    def _adjoints(self, cotangent: Any) -> list[Any]:
        """Return the derivatives [T, N, units] by each array of the state after each step, from the last step back."""
        slopes, length = self.slopes, self._length

        def body(t: Any, carried: CellState, kept: Any) -> tuple[Any, CellState, Any]:
            adjoint = (cotangent[t] + carried[0], *carried[1:])
            product = sum(part[:, tf.newaxis] * slope.recurrent[t] for part, slope in zip(adjoint, slopes, strict=True))
            carried = tuple(
                sum(part * slope.state[place][t] for part, slope in zip(adjoint, slopes, strict=True))
                for place in range(len(carried))
            )
            through = tf.matmul(tf.reshape(product, (adjoint[0].shape[0], -1)), self.transposed)
            kept = tuple(array.write(t, part) for array, part in zip(kept, adjoint, strict=True))
            return t - 1, (carried[0] + through, *carried[1:]), kept

        end = self._zeros()
        arrays = tuple(_array(length, part) for part in end)
        _, _, kept = tf.while_loop(
            lambda t, *_: t >= 0, body, (tf.constant(length - 1), end, arrays), maximum_iterations=length
        )
        return [tf.ensure_shape(array.stack(), self.before[0].shape) for array in kept]

    def _summed(self, adjoints: Sequence[Any], slopes: Sequence[Any]) -> Any:
        """Return the derivatives [T x N, blocks x units] by the products that the slopes are of."""
        products = (part[:, :, tf.newaxis] * slope for part, slope in zip(adjoints, slopes, strict=True))
        return tf.reshape(sum(products), (math.prod(self.before[0].shape[:2]), -1))

    @property
    def _length(self) -> int:
        return int(self.inputs.shape[0])

    def _zeros(self) -> CellState:
        return tuple(tf.zeros_like(part[0]) for part in self.before)

    def _by_block(self, values: Any) -> Any:
        return tf.reshape(values, (*values.shape[:-1], self.cell.blocks, self.cell.units))


def _linearized(cell: Cell, weights: Sequence[Any], course: Course, after: CellState) -> Linearization:
    kernel, bias, recurrent = weights
    before = tuple(
        course.goes_on * tf.concat([first[tf.newaxis], part[:-1]], axis=0)
        for first, part in zip(course.state, after, strict=True)
    )
    driven = tf.matmul(course.inputs, kernel) + bias
    slopes = _slopes(cell, driven, tf.matmul(before[0], recurrent), before, course.goes_on)
    loop = _LinearLoop(cell, course.inputs, recurrent, tf.transpose(recurrent), before, slopes)
    return Linearization(after[0], loop.forward, loop.backward)


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
