"""Products with the Fisher information matrix, without forming it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

Parameters = tuple[Any, ...]


class Linearization(NamedTuple):
    """Linearisation of a function at a point: its value, v -> J v, and u -> J' u, with its Jacobian J.

    Point and value are structures of tensors; v has the structure of the point, u that of the value.
    """

    value: Any
    forward: Callable[[Any], Any]
    backward: Callable[[Any], Any]


def linearize(function: Callable[[Any], Any], point: Any) -> Linearization:
    """Return the linearisation of `function` at `point`, by TensorFlow's automatic differentiation.

    Each product runs the function again.
    """

    def forward(tangent: Any) -> Any:
        with tf.autodiff.ForwardAccumulator(point, tangent) as accumulator:
            value = function(point)
        return tf.nest.map_structure(
            lambda part: accumulator.jvp(part, unconnected_gradients=tf.UnconnectedGradients.ZERO), value
        )

    def backward(cotangent: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(point)
            value = function(point)
        return tape.gradient(
            value, point, output_gradients=cotangent, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )

    return Linearization(function(point), forward, backward)


def gauss_newton_product(
    linear: Linearization, metric: Callable[[Parameters, Parameters], Parameters], vector: Any
) -> Any:
    """Return J' M J v: forward-mode differentiation gives J v, and reverse mode the product with J'.

    J' M J is positive semi-definite if the M of each row is (Schraudolph 2002; Martens 2014, section 8).

    Args:
        linear: theta [P] -> distribution parameters, a tuple of [batch, ...], linearised at some theta.
        metric: parameters, tangent -> M tangent, row by row, with the rows' weights included.
        vector: v [P].
    """
    return linear.backward(metric(linear.value, linear.forward(vector)))
