"""Chains of dense layers, differentiated by hand: what products with their Jacobian share is computed once."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from trpo_tf.solvers.fisher import Linearization

_ELEMENTWISE = [
    keras.activations.get(name)
    for name in ("linear", "tanh", "relu", "elu", "selu", "silu", "gelu", "sigmoid", "softplus", "leaky_relu")
]


def is_chain(network: keras.Model) -> bool:
    """Whether the network is dense layers one after the other, with biases and activations of single numbers."""
    return isinstance(network, keras.Sequential) and all(
        type(layer) is keras.layers.Dense
        and layer.use_bias
        and layer.trainable
        and layer.activation in _ELEMENTWISE
        and layer.compute_dtype == layer.variable_dtype
        for layer in network.layers
    )


def linearize_chain(network: keras.Sequential, weights: Sequence[Any], inputs: Any) -> Linearization:
    """The network's output [batch, outputs] as a function of its weights, kernel and bias in turn, at `weights`.

    Activations and their slopes are kept, and so are transposed matrices: a compiled loop multiplies by them two to
    five times as fast as by matrices that it has to transpose each time.
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
        moved = None
        for kernel, x, slope, d_kernel, d_bias in zip(
            kernels, entering, slopes, tangents[::2], tangents[1::2], strict=True
        ):
            change = x @ d_kernel + d_bias
            moved = slope * (change if moved is None else change + moved @ kernel)
        return moved

    def backward(cotangent: Any) -> list[Any]:
        gradients: list[Any] = []
        for place in reversed(range(len(kernels))):
            cotangent = cotangent * slopes[place]
            gradients = [entering_transposed[place] @ cotangent, tf.reduce_sum(cotangent, axis=0), *gradients]
            if place > 0:
                cotangent = cotangent @ kernels_transposed[place]
        return gradients

    return Linearization(output, forward, backward)
