"""The hand-made derivatives of dense chains are TensorFlow's own."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support.training.problems import keras_float
from trpo_tf.policies.dense_jacobian import is_chain, linearize_chain
from trpo_tf.policies.networks import PureNetwork
from trpo_tf.solvers.fisher_product import linearize

INPUTS, OUTPUTS, BATCH = 3, 2, 7


def chain(*activations):
    with keras_float("float64"):
        hidden = [keras.layers.Dense(5 - i, activation) for i, activation in enumerate(activations[:-1])]
        return keras.Sequential([keras.Input((INPUTS,)), *hidden, keras.layers.Dense(OUTPUTS, activations[-1])])


@pytest.mark.parametrize("activations", [["linear"], ["tanh", "linear"], ["relu", "elu", "selu"], ["silu", "gelu"]])
def test_value_and_products_are_those_of_automatic_differentiation(activations):
    network, rng = chain(*activations), np.random.default_rng(1)
    weights = [tf.constant(rng.normal(size=v.shape)) for v in network.trainable_variables]
    inputs = tf.constant(rng.normal(size=(BATCH, INPUTS)))
    pure = PureNetwork(network)
    by_hand = linearize_chain(network, weights, inputs)
    own = linearize(lambda parts: pure.apply(parts, inputs)[0], weights)
    np.testing.assert_allclose(by_hand.value, own.value, atol=1e-14)

    tangent = [tf.constant(rng.normal(size=w.shape)) for w in weights]
    forward = by_hand.forward(tangent)
    np.testing.assert_allclose(forward, own.forward(tangent), atol=1e-13)
    assert np.abs(forward).max() > 0.1
    cotangent = tf.constant(rng.normal(size=(BATCH, OUTPUTS)))
    for one, other in zip(by_hand.backward(cotangent), own.backward(cotangent), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-13)


def test_only_networks_that_the_formulas_hold_for_are_taken():
    dense = keras.layers.Dense
    assert is_chain(chain("tanh", "tanh", "linear"))
    without_bias = keras.Sequential([keras.Input((INPUTS,)), dense(4, use_bias=False), dense(2)])
    normalised = keras.Sequential([keras.Input((INPUTS,)), dense(4), keras.layers.LayerNormalization(), dense(2)])
    entry = keras.Input((INPUTS,))
    residual = keras.Model(entry, dense(2)(keras.layers.Concatenate()([entry, dense(4)(entry)])))
    half = keras.Sequential([keras.Input((INPUTS,)), dense(4, dtype="mixed_float16"), dense(2)])
    for other in (without_bias, normalised, residual, half, chain("softmax", "linear"), chain(tf.nn.l2_normalize)):
        assert not is_chain(other)


def test_another_network_is_differentiated_by_tensorflow():
    entry = keras.Input((INPUTS,))
    network = keras.Model(
        entry, keras.layers.Dense(OUTPUTS)(keras.layers.Concatenate()([entry, keras.layers.Dense(4)(entry)]))
    )
    pure = PureNetwork(network)
    weights = [tf.convert_to_tensor(v) for v in network.trainable_variables]
    linear = pure.linearize(weights, tf.ones((BATCH, INPUTS)))
    np.testing.assert_allclose(linear.value, network(np.ones((BATCH, INPUTS))), rtol=1e-6)
    tangent = [tf.random.stateless_normal(w.shape, (1, i)) for i, w in enumerate(weights)]
    cotangent = tf.random.stateless_normal((BATCH, OUTPUTS), (2, 0))
    backward = sum(float(tf.reduce_sum(a * b)) for a, b in zip(linear.backward(cotangent), tangent, strict=True))
    np.testing.assert_allclose(float(tf.reduce_sum(cotangent * linear.forward(tangent))), backward, rtol=1e-4)
    assert abs(backward) > 0.1
