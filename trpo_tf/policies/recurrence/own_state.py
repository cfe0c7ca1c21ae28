"""A network of the user's own that has a state: Keras computes one step of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import tensorflow as tf

from trpo_tf.policies.core import Core, CoreState
from trpo_tf.policies.encoders import Encoder
from trpo_tf.policies.networks import PureNetwork
from trpo_tf.policies.recurrence.sequences import Sequences, counted, course_of, parted, spread
from trpo_tf.policies.recurrence.through_time import Step, linearize_outputs, outputs
from trpo_tf.serving import StateSpec
from trpo_tf.solvers.fisher_product import Linearization


@dataclass(frozen=True)
class OwnState(Core):
    """A network that takes observations of `width` numbers and its state's arrays, and gives output and next state.

    Both are lists in the order of `state`.
    """

    width: int
    state: tuple[StateSpec, ...]

    is_recurrent: ClassVar = True

    def network_inputs(self, _encoder: Encoder) -> Sequence[Any]:
        """Return `tf.TensorSpec`s of the observation and of each array of the state."""
        return [tf.TensorSpec((None, *shape), tf.float32) for shape in ((self.width,), *self._shapes)]

    def step(
        self, network: PureNetwork, weights: Sequence[Any], observed: Any, before: CoreState
    ) -> tuple[Any, CoreState]:
        """Return the output [batch, k] for observations and states [batch, ...], and the states after them."""
        (output, *after), _ = network.apply(weights, (observed, *before))
        return output, tuple(after)

    def output(self, network: PureNetwork, weights: Sequence[Any], inputs: Any) -> Any:
        """Return the output [B, k] for rows [B, width + state], or for the rows of `Sequences` that count."""
        if not isinstance(inputs, Sequences):
            return self.step(network, weights, *parted(inputs, self.width, self._shapes))[0]
        course = course_of(inputs, self.width, self._shapes)
        return counted(inputs, outputs(self._step_of(network), weights, course, self._initial(course)))

    def linearize(self, network: PureNetwork, weights: Sequence[Any], inputs: Sequences) -> Linearization:
        """Return the linearisation of `output` of sequences in the network's weights."""
        course = course_of(inputs, self.width, self._shapes)
        linear = linearize_outputs(self._step_of(network), weights, course, self._initial(course))
        return Linearization(
            counted(inputs, linear.value),
            lambda tangents: counted(inputs, linear.forward(tangents)),
            lambda cotangent: linear.backward(spread(inputs, cotangent)),
        )

    @property
    def _shapes(self) -> list[tuple[int, ...]]:
        return [spec.shape for spec in self.state]

    def _initial(self, course: Any) -> CoreState:
        return tuple(tf.constant(spec.initial_rows(1)[0], course.inputs.dtype) for spec in self.state)

    def _step_of(self, network: PureNetwork) -> Step:
        return lambda weights, observed, before: self.step(network, weights, observed, before)
