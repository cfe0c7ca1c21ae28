"""What a traced graph shows of operations that a target can't compute."""

import numpy as np
import pytest
import tensorflow as tf

from trpo_tf.export.targets.traced_operators import subtracts_in_float64

OFFSET = np.full(3, 1.7e9)


def centred(observation):
    return tf.cast(tf.reshape(tf.cast(observation, tf.float64), (-1, 3)) - OFFSET, tf.float32)


def normalised(observation):
    """A layer in float64, as of a network that is built with floatx float64."""
    hidden = tf.cast(observation, tf.float64) * OFFSET
    return hidden - tf.reduce_mean(hidden, 1, keepdims=True)


@pytest.mark.parametrize(("function", "found"), [(centred, True), (normalised, False)])
def test_an_offset_of_the_observation_is_told_from_arithmetic_in_float64(function, found):
    traced = tf.function(function, [tf.TensorSpec((None, 3))], autograph=False)
    assert subtracts_in_float64(traced.get_concrete_function().graph) is found
