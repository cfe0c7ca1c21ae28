"""A recurrent cell before the policy's network."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from trpo_tf.policies.core import Core, CoreState
from trpo_tf.policies.encoders import Encoder
from trpo_tf.policies.networks import PureNetwork
from trpo_tf.policies.recurrence.cells import Cell
from trpo_tf.policies.recurrence.linearized import hidden_states, linearize_hidden_states
from trpo_tf.policies.recurrence.sequences import Sequences, counted, course_of, parted, spread
from trpo_tf.solvers.fisher_product import Linearization


@dataclass(frozen=True)
class Recurrence(Core):
    """A cell that takes encoded observations of `width` numbers, before the network.

    A row of inputs [width + state] is an encoded observation, and the state before it. The network takes features
    [width + units], the observation and the hidden state after it. The cell's initial weights are drawn with `seed`.
    """

    cell: Cell
    width: int
    seed: int = 0

    is_recurrent: ClassVar = True

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the cell's weights."""
        return self.cell.shapes(self.width)

    def initial_weights(self) -> list[NDArray[np.float32]]:
        """Return the cell's weights before training."""
        return self.cell.initial_weights(self.width, self.seed)

    @property
    def features_width(self) -> int:
        """Width of a row of features: the observation and the hidden state."""
        return self.width + self.cell.units

    def network_inputs(self, _encoder: Encoder) -> Sequence[Any]:
        """Return the `tf.TensorSpec` of the features."""
        return [tf.TensorSpec((None, self.features_width), tf.float32)]

    def step(
        self, network: PureNetwork, weights: Sequence[Any], observed: Any, before: CoreState
    ) -> tuple[Any, CoreState]:
        """Return the output [batch, k] for observations and states [batch, ...], and the states after them."""
        kernel, bias, recurrent = self._of_cell(weights)
        after = self.cell.gates(tf.matmul(observed, kernel) + bias, tf.matmul(before[0], recurrent), before)
        return network.apply(weights, tf.concat([observed, after[0]], axis=-1))[0], after

    def output(self, network: PureNetwork, weights: Sequence[Any], inputs: Any) -> Any:
        """Return the output [B, k] for rows [B, width + state], or for the rows of `Sequences` that count."""
        if not isinstance(inputs, Sequences):
            return self.step(network, weights, *parted(inputs, self.width, self._state))[0]
        course = course_of(inputs, self.width, self._state)
        hidden = hidden_states(self.cell, self._of_cell(weights), course)
        return network.apply(weights, counted(inputs, tf.concat([course.inputs, hidden], axis=-1)))[0]

    def linearize(self, network: PureNetwork, weights: Sequence[Any], inputs: Sequences) -> Linearization:
        """Return the linearisation of `output` of sequences in the weights of network and cell."""
        course, layers = course_of(inputs, self.width, self._state), len(weights) - len(self.shapes)
        cell = linearize_hidden_states(self.cell, self._of_cell(weights), course)

        def features(observed: Any, hidden: Any) -> Any:
            rows = counted(inputs, tf.concat([observed, hidden], axis=-1))
            return tf.ensure_shape(rows, (None, self.features_width))

        rest = network.linearize_with_inputs(weights[:layers], features(course.inputs, cell.value))

        def forward(tangents: Sequence[Any]) -> Any:
            moved = features(tf.zeros_like(course.inputs), cell.forward(tangents[layers:]))
            return rest.forward([*tangents[:layers], moved])

        def backward(cotangent: Any) -> list[Any]:
            *gradients, of_features = rest.backward(cotangent)
            return [*gradients, *cell.backward(spread(inputs, of_features[:, self.width :]))]

        return Linearization(rest.value, forward, backward)

    @property
    def _state(self) -> list[tuple[int, ...]]:
        return [(self.cell.units,) for _ in self.cell.state]

    def _of_cell(self, weights: Sequence[Any]) -> Sequence[Any]:
        return weights[len(weights) - len(self.shapes) :]
