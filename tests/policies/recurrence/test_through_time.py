"""A step of any kind over time, against an unrolled loop under TensorFlow's automatic differentiation."""

import numpy as np
import pytest
import tensorflow as tf

from trpo_tf.policies.recurrence.sequences import Course
from trpo_tf.policies.recurrence.through_time import linearize_outputs, outputs

STEPS, SEQUENCES, INPUTS, KEPT, OUTPUTS = 6, 3, 2, 4, 2
INITIAL = (tf.constant(np.linspace(-1, 1, KEPT * INPUTS).reshape(KEPT, INPUTS)), tf.constant(np.array([0.3])))


def step(weights, inputs, state):
    """Attend to what a ring holds, which the weights change too, and leak a number: no derivative is elementwise."""
    query, mixing, out = weights
    ring, leaky = state
    attention = tf.nn.softmax(tf.einsum("bi,ij,bkj->bk", inputs, query, ring))
    seen = tf.einsum("bk,bki->bi", attention, ring)
    leaky = 0.9 * leaky + tf.tanh(tf.reduce_sum(seen @ mixing, axis=1, keepdims=True) * leaky)
    ring = tf.concat([ring[:, 1:], tf.tanh(inputs @ mixing + leaky)[:, tf.newaxis]], axis=1)
    return tf.concat([seen, leaky], axis=1) @ out, (ring, leaky)


def make_weights(seed=0):
    rng = np.random.default_rng(seed)
    return [tf.constant(rng.normal(size=shape)) for shape in ((2, 2), (2, 2), (3, OUTPUTS))]


@pytest.fixture(scope="module")
def course():
    """Two of the sequences begin anew, one of them twice in a row."""
    rng = np.random.default_rng(3)
    goes_on = np.ones((STEPS, SEQUENCES, 1))
    goes_on[[3, 4, 5], [0, 1, 1]] = 0
    state = (rng.normal(size=(SEQUENCES, KEPT, INPUTS)), rng.normal(size=(SEQUENCES, 1)))
    inputs = rng.normal(size=(STEPS, SEQUENCES, INPUTS))
    return Course(tf.constant(inputs), tf.constant(goes_on), tuple(map(tf.constant, state)))


def unrolled(weights, course):
    state, found = course.state, []
    for x, goes_on in zip(tf.unstack(course.inputs), tf.unstack(course.goes_on), strict=True):
        state = tuple(
            tf.where(tf.reshape(goes_on, (-1, *[1] * len(first.shape))) > 0, part, first)
            for part, first in zip(state, INITIAL, strict=True)
        )
        output, state = step(weights, x, state)
        found.append(output)
    return tf.stack(found)


def test_products_are_those_of_an_unrolled_loop(course):
    weights, tangent = make_weights(), make_weights(1)
    cotangent = tf.constant(np.random.default_rng(2).normal(size=(STEPS, SEQUENCES, OUTPUTS)))

    @tf.function(autograph=False, jit_compile=True)
    def products():
        linear = linearize_outputs(step, weights, course, INITIAL)
        return linear.value, linear.forward(tangent), linear.backward(cotangent)

    value, forward, backward = products()
    with tf.autodiff.ForwardAccumulator(weights, tangent) as accumulator:
        expected = unrolled(weights, course)
    np.testing.assert_allclose(value, expected, atol=1e-13)
    np.testing.assert_allclose(forward, accumulator.jvp(expected), atol=1e-12)
    assert np.abs(forward).max() > 0.1
    with tf.GradientTape() as tape:
        tape.watch(weights)
        expected = unrolled(weights, course)
    for one, other in zip(backward, tape.gradient(expected, weights, cotangent), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)


def test_the_tape_takes_the_adjoint_loop(course):
    weights = make_weights()

    def gradient(function):
        with tf.GradientTape() as tape:
            tape.watch(weights)
            loss = tf.reduce_sum(tf.sin(function(weights)) ** 2)
        return tape.gradient(loss, weights)

    found = gradient(lambda parts: outputs(step, parts, course, INITIAL))
    for one, other in zip(found, gradient(lambda parts: unrolled(parts, course)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)
