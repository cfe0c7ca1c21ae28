"""Adam as a pure function of a flat vector."""

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-7


class AdamState(NamedTuple):
    """State of Adam: steps taken, and running first and second moments of the gradient, each [P]."""

    step: Any
    mean: Any
    square: Any

    @classmethod
    def zeros(cls, size: int) -> "AdamState":
        """Return the state before the first step, for `size` parameters."""
        return cls(np.zeros((), np.float32), np.zeros(size, np.float32), np.zeros(size, np.float32))


def adam(theta: Any, state: AdamState, gradient: Any, learning_rate: Any) -> tuple[Any, AdamState]:
    """Return parameters and state after one descent step (Kingma & Ba 2015, algorithm 1).

    Keras's optimisers change variables in place, which a compiled loop over a flat vector can't use.
    """
    step = state.step + 1.0
    mean = _BETA1 * state.mean + (1 - _BETA1) * gradient
    square = _BETA2 * state.square + (1 - _BETA2) * gradient**2
    rate = learning_rate * tf.sqrt(1 - _BETA2**step) / (1 - _BETA1**step)
    return theta - rate * mean / (tf.sqrt(square) + _EPSILON), AdamState(step, mean, square)
