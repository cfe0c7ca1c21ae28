"""The part of a policy between encoder and head: encoded observations and a state in, the head's input out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from trpo_tf.policies.encoders import Encoder
from trpo_tf.policies.networks import PureNetwork
from trpo_tf.solvers.fisher_product import Linearization

CoreState = tuple[Any, ...]
"""Arrays [batch, ...] of the state that a core computes."""


@dataclass(frozen=True)
class Core:
    """A network alone, without a state; others are in `trpo_tf.policies.recurrence`.

    Arguments named `weights` are those of the network, followed by those of `shapes`.
    """

    is_recurrent: ClassVar = False
    """Whether the core computes a state, so that derivatives go through time."""

    @property
    def shapes(self) -> Sequence[tuple[int, ...]]:
        """Shapes of weights that no layer of the network holds."""
        return ()

    def initial_weights(self) -> list[NDArray[np.float32]]:
        """Return the weights of `shapes` before training."""
        return []

    def network_inputs(self, encoder: Encoder) -> Sequence[Any]:
        """Return the `tf.TensorSpec`s of the network's inputs."""
        return encoder.inputs

    def step(
        self, network: PureNetwork, weights: Sequence[Any], observed: Any, _before: CoreState
    ) -> tuple[Any, CoreState]:
        """Return the output [batch, k] for encoded observations and the state before them, and the state after them."""
        return network.apply(weights, observed)[0], ()

    def output(self, network: PureNetwork, weights: Sequence[Any], inputs: Any) -> Any:
        """Return the output [B, k] for the encoder's rows [B, ...], or for those of `Sequences` that count."""
        return network.apply(weights, inputs)[0]

    def linearize(self, network: PureNetwork, weights: Sequence[Any], inputs: Any) -> Linearization:
        """Return the linearisation at `weights` of `output`, which for a recurrent core is that of `Sequences`."""
        return network.linearize(weights, inputs)


NETWORK_ALONE = Core()
