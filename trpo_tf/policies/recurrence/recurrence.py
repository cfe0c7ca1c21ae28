"""A policy's recurrent part: from encoded observations and a state to the network's features and the next state."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from trpo_tf.policies.recurrence.cells import Cell, CellState
from trpo_tf.policies.recurrence.linearized import Course, hidden_states, linearize_hidden_states
from trpo_tf.policies.recurrence.sequences import Sequences
from trpo_tf.solvers.fisher import Linearization


@dataclass(frozen=True)
class Recurrence:
    """A cell that takes encoded observations of `width` numbers.

    A row of inputs [width + state] is an encoded observation, and the state before it. Features [width + units] are the
    observation and the hidden state after it. The cell's initial weights are drawn with `seed`.
    """

    cell: Cell
    width: int
    seed: int = 0

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the cell's weights."""
        return self.cell.shapes(self.width)

    def initial_weights(self) -> list[NDArray[np.float32]]:
        """Return the cell's weights before training."""
        return self.cell.initial_weights(self.width, self.seed)

    @property
    def features_width(self) -> int:
        """Numbers of a row of features."""
        return self.width + self.cell.units

    def step(self, weights: Sequence[Any], observed: Any, before: CellState) -> tuple[Any, dict[str, Any]]:
        """Return features [batch, ...] of observations and states [batch, ...], and the states after them by name."""
        kernel, bias, recurrent = weights
        after = self.cell.gates(tf.matmul(observed, kernel) + bias, tf.matmul(before[0], recurrent), before)
        return tf.concat([observed, after[0]], axis=-1), dict(zip(self.cell.state, after, strict=True))

    def features(self, weights: Sequence[Any], inputs: Any) -> Any:
        """Return features [B, ...] of inputs [B, ...], or of sequences: of all their rows or of those that count."""
        if not isinstance(inputs, Sequences):
            return self.step(weights, *self._parted(inputs))[0]
        course = self._course(inputs)
        return self._taken(inputs, course, hidden_states(self.cell, weights, course))

    def linearize(self, weights: Sequence[Any], inputs: Sequences) -> Linearization:
        """Return the linearisation of `features` of sequences at the cell's weights."""
        course = self._course(inputs)
        linear = linearize_hidden_states(self.cell, weights, course)
        length, n = course.inputs.shape[:2]

        def forward(tangents: Sequence[Any]) -> Any:
            moved = linear.forward(tangents)
            return self._taken(inputs, course._replace(inputs=tf.zeros_like(course.inputs)), moved)

        def backward(cotangent: Any) -> list[Any]:
            of_hidden = cotangent[:, self.width :]
            if inputs.rows is not None:
                of_hidden = tf.math.unsorted_segment_sum(of_hidden, inputs.rows, length * n)
            gradient: list[Any] = linear.backward(tf.reshape(of_hidden, (length, n, self.cell.units)))
            return gradient

        return Linearization(self._taken(inputs, course, linear.value), forward, backward)

    def _taken(self, inputs: Sequences, course: Course, hidden: Any) -> Any:
        """Return the features [B, ...] of the rows that count."""
        rows = tf.reshape(tf.concat([course.inputs, hidden], axis=-1), (-1, self.features_width))
        return rows if inputs.rows is None else tf.gather(rows, inputs.rows)

    def _course(self, inputs: Sequences) -> Course:
        observed, before = self._parted(inputs.inputs)
        goes_on = tf.cast(inputs.goes_on, observed.dtype)[..., tf.newaxis]
        return Course(observed, goes_on, tuple(part[0] for part in before))

    def _parted(self, inputs: Any) -> tuple[Any, CellState]:
        """Split inputs [..., width + state] into observations and the arrays of the state."""
        units = self.cell.units
        places = range(self.width, self.width + self.cell.width, units)
        return inputs[..., : self.width], tuple(inputs[..., place : place + units] for place in places)
