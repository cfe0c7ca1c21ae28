"""Products with the Fisher information matrix, without forming it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

Parameters = tuple[Any, ...]


class Linearization(NamedTuple):
    """A function at a point: its value there, v -> J v, and u -> J' u, where J is its Jacobian.

    Point and value are structures of tensors; v has the point's, u the value's.
    """

    value: Any
    forward: Callable[[Any], Any]
    backward: Callable[[Any], Any]


def linearize(function: Callable[[Any], Any], point: Any) -> Linearization:
    """By TensorFlow's own differentiation, which runs the function anew in each product."""

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
    """J' M J v: the Jacobian's product by forward differentiation, M's, then the transposed one by backward.

    Positive semi-definite by construction when each M is (Schraudolph 2002; Martens 2014, section 8).

    Args:
        linear: theta [P] -> distribution parameters, a tuple of [batch, ...], at some theta.
        metric: parameters, tangent -> M tangent, row by row, with the rows' weights inside.
        vector: v [P].
    """
    return linear.backward(metric(linear.value, linear.forward(vector)))
