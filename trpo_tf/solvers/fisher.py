"""Products with the Fisher information matrix, without forming it."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

Parameters = tuple[Any, ...]


def gauss_newton_product(
    outputs: Callable[[Any], Parameters],
    metric: Callable[[Parameters, Parameters], Parameters],
    theta: Any,
    vector: Any,
) -> Any:
    """J' M J v: the Jacobian's product by forward differentiation, M's, then the transposed one by backward.

    Positive semi-definite by construction when each M is (Schraudolph 2002; Martens 2014, section 8).

    Args:
        outputs: theta [P] -> distribution parameters, a tuple of [batch, ...].
        metric: parameters, tangent -> M tangent, row by row, with the rows' weights inside.
        theta: where [P].
        vector: v [P].
    """
    with tf.GradientTape() as tape:
        tape.watch(theta)
        with tf.autodiff.ForwardAccumulator(theta, vector) as forward:
            parameters = outputs(theta)
        tangent = tuple(forward.jvp(p, unconnected_gradients=tf.UnconnectedGradients.ZERO) for p in parameters)
    return tape.gradient(parameters, theta, output_gradients=metric(parameters, tangent))
