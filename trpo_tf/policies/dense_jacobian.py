"""Differentiate chains of dense layers by hand, to compute once what products with their Jacobian share."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from trpo_tf.solvers.fisher_product import Linearization

_ELEMENTWISE = [
    keras.activations.get(name)
    for name in ("linear", "tanh", "relu", "elu", "selu", "silu", "gelu", "sigmoid", "softplus", "leaky_relu")
]


def is_chain(network: keras.Model) -> bool:
    """Return whether the network is a chain of trained dense layers with biases and elementwise activations."""
    return isinstance(network, keras.Sequential) and all(
        type(layer) is keras.layers.Dense
        and layer.use_bias
        and layer.trainable
        and layer.activation in _ELEMENTWISE
        and layer.compute_dtype == layer.variable_dtype
        for layer in network.layers
    )


def linearize_chain(
    network: keras.Sequential, weights: Sequence[Any], inputs: Any, *, with_inputs: bool = False
) -> Linearization:
    """Return the linearisation of the network's output [batch, outputs] at `weights`, kernel and bias in turn.

    With `with_inputs` its point is `weights` and the inputs [batch, width] after them.

    Activations, their slopes and transposed matrices are kept. A compiled loop multiplies by a stored transpose two to
    five times as fast as by a matrix that it has to transpose each time.
    """
    kernels = weights[::2]
    entering, slopes = [inputs], []
    for layer, kernel, bias in zip(network.layers, kernels, weights[1::2], strict=True):
        before = entering[-1] @ kernel + bias
        with tf.GradientTape() as tape:
            tape.watch(before)
            after = layer.activation(before)
        slopes.append(tape.gradient(after, before))
        entering.append(after)
    output = entering.pop()
    entering_transposed, kernels_transposed = ([tf.transpose(m) for m in group] for group in (entering, kernels))

    def forward(tangents: Sequence[Any]) -> Any:
        moved = tangents[-1] if with_inputs else None
        for kernel, x, slope, d_kernel, d_bias in zip(
            kernels, entering, slopes, tangents[: 2 * len(kernels) : 2], tangents[1 : 2 * len(kernels) : 2], strict=True
        ):
            change = x @ d_kernel + d_bias
            moved = slope * (change if moved is None else change + moved @ kernel)
        return moved

    def backward(cotangent: Any) -> list[Any]:
        gradients: list[Any] = []
        for place in reversed(range(len(kernels))):
            cotangent = cotangent * slopes[place]
            gradients = [entering_transposed[place] @ cotangent, tf.reduce_sum(cotangent, axis=0), *gradients]
            if place > 0 or with_inputs:
                cotangent = cotangent @ kernels_transposed[place]
        return [*gradients, cotangent] if with_inputs else gradients

    return Linearization(output, forward, backward)
