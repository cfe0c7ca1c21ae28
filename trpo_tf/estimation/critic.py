"""The critic: a value network, and its fit to returns by Adam in one compiled loop."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from trpo_tf.policies.encoders import without_mask
from trpo_tf.policies.networks import PureNetwork
from trpo_tf.serving.runtime.observations import Observation
from trpo_tf.solvers.adam import AdamState, adam


@dataclass(frozen=True)
class FrozenNetworks:
    """Policy and critic with their weights at one point of a run, as functions of observations.

    Attributes:
        encode: observations [B, ...] -> the networks' inputs.
        values: inputs -> the critic's outputs [B].
        log_prob: inputs, samples [B, ...] -> log-probability of each sample under the policy [B].
        is_discrete: whether the actions are discrete.
        is_recurrent: whether the policy is trained on sequences of rows.
    """

    encode: Callable[[Observation], Any]
    values: Callable[[Any], NDArray[np.float32]]
    log_prob: Callable[[Any, NDArray[Any]], NDArray[np.float32]]
    is_discrete: bool
    is_recurrent: bool = False


class ValueFunction:
    """The critic: predicts and fits state values, as compiled functions of its flat parameters."""

    def __init__(self, network: keras.Model, *, xla: bool) -> None:
        """Wrap `network`, which must be built and map encoded observations to [batch, 1]."""
        self.network = PureNetwork(network)
        self.values = tf.function(self._values, autograph=False, jit_compile=xla)
        self.fit = tf.function(self._fit, autograph=False, jit_compile=xla)

    def initial_theta(self) -> NDArray[np.float32]:
        """Return the network's present weights as one vector [P]."""
        return self.network.flat()

    def _values(self, theta: Any, inputs: Any) -> Any:
        output, _ = self.network.apply(self.network.split(theta), without_mask(inputs))
        return output[:, 0]

    def _fit(
        self, theta: Any, state: AdamState, inputs: Any, targets: Any, weights: Any, rows: Any, learning_rate: Any
    ) -> tuple[Any, AdamState, Any]:
        """Minimise the weighted mean of (V - target)^2, with one step of Adam for each minibatch.

        Args:
            theta: parameters [P].
            state: moments of Adam.
            inputs: encoded observations [B, ...].
            targets: returns [B].
            weights: weight of each row [B], 0 for a row to leave out.
            rows: minibatches as indices into B, int32 [steps, minibatch].
            learning_rate: step size of Adam, a scalar tensor.

        Returns:
            Parameters, Adam's state, and the mean loss over the steps.
        """
        steps = rows.shape[0]

        def body(i: Any, theta: Any, state: AdamState, total: Any) -> tuple[Any, Any, AdamState, Any]:
            x, y, w = tf.nest.map_structure(lambda array: tf.gather(array, rows[i]), (inputs, targets, weights))
            with tf.GradientTape() as tape:
                tape.watch(theta)
                loss = tf.reduce_sum(w * (self._values(theta, x) - y) ** 2) / tf.maximum(tf.reduce_sum(w), 1.0)
            theta, state = adam(theta, state, tape.gradient(loss, theta), learning_rate)
            return i + 1, theta, state, total + loss

        _, theta, state, total = tf.while_loop(
            lambda i, *_: i < steps, body, (0, theta, AdamState(*state), tf.zeros_like(targets[0]))
        )
        return theta, state, total / steps


def explained_variance(values: NDArray[np.float32], targets: NDArray[np.float32]) -> float:
    """Return 1 - Var(targets - values) / Var(targets): 1 for a perfect critic, 0 for a constant one.

    NaN if the targets are constant.
    """
    variance = float(np.var(targets))
    return 1.0 - float(np.var(targets - values)) / variance if variance > 0 else float("nan")
