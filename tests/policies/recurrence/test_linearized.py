"""Recurrent cells against Keras's, and products with their Jacobian against automatic and finite differences."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support.training.problems import keras_float
from trpo_tf.policies.recurrence.cells import gru, lstm
from trpo_tf.policies.recurrence.linearized import hidden_states, linearize_hidden_states, states
from trpo_tf.policies.recurrence.sequences import Course

STEPS, SEQUENCES, INPUTS, UNITS = 7, 3, 2, 4
CELLS = {"gru": gru(UNITS), "lstm": lstm(UNITS)}


def make_course(cell, *, starts=True):
    """Random inputs and a random first state; with `starts`, sequences begin anew at steps of their own."""
    rng = np.random.default_rng(3)
    goes_on = np.ones((STEPS, SEQUENCES, 1))
    if starts:
        goes_on[[3, 5, 6], [0, 1, 1]] = 0
    state = tuple(tf.constant(rng.normal(size=(SEQUENCES, UNITS))) for _ in cell.state)
    return Course(tf.constant(rng.normal(size=(STEPS, SEQUENCES, INPUTS))), tf.constant(goes_on), state)


def make_weights(cell, seed=0):
    rng = np.random.default_rng(seed)
    return [tf.constant(rng.normal(size=shape)) for shape in cell.shapes(INPUTS)]


def unrolled(cell, weights, course):
    """The hidden states by a loop in Python, one step at a time."""
    kernel, bias, recurrent = weights
    state, found = course.state, []
    for x, goes_on in zip(tf.unstack(course.inputs), tf.unstack(course.goes_on), strict=True):
        before = tuple(tf.where(goes_on > 0, part, tf.zeros_like(part)) for part in state)
        state = cell.gates(x @ kernel + bias, before[0] @ recurrent, before)
        found.append(state[0])
    return tf.stack(found)


def inner(left, right):
    return sum(float(tf.reduce_sum(a * b)) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("name", CELLS)
def test_cells_are_those_of_keras(name):
    """Its layers take a second bias, which is zero here, and an LSTM's gates in another order."""
    cell = CELLS[name]
    course, (kernel, bias, recurrent) = make_course(cell, starts=False), make_weights(cell)
    with keras_float("float64"):
        layer = {"gru": keras.layers.GRU, "lstm": keras.layers.LSTM}[name](UNITS, return_sequences=True)
        layer.build((SEQUENCES, STEPS, INPUTS))
    order = [0, 1, 2] if name == "gru" else [1, 0, 3, 2]
    ours = [
        np.concatenate([np.split(w, cell.blocks, axis=-1)[i] for i in order], axis=-1)
        for w in (kernel.numpy(), recurrent.numpy(), bias.numpy())
    ]
    if name == "gru":
        ours[2] = np.stack([ours[2], np.zeros_like(ours[2])])
    layer.set_weights(ours)
    expected = layer(tf.transpose(course.inputs, (1, 0, 2)), initial_state=list(course.state))
    found = states(cell, (kernel, bias, recurrent), course)
    np.testing.assert_allclose(found[0], tf.transpose(expected, (1, 0, 2)), atol=1e-12)


@pytest.mark.parametrize("name", CELLS)
def test_products_are_those_of_an_unrolled_loop(name):
    cell = CELLS[name]
    course, weights, rng = make_course(cell), make_weights(cell), np.random.default_rng(1)
    linear = linearize_hidden_states(cell, weights, course)
    np.testing.assert_allclose(linear.value, unrolled(cell, weights, course), atol=1e-13)

    tangent = [tf.constant(rng.normal(size=w.shape)) for w in weights]
    with tf.autodiff.ForwardAccumulator(weights, tangent) as accumulator:
        value = unrolled(cell, weights, course)
    forward = linear.forward(tangent)
    np.testing.assert_allclose(forward, accumulator.jvp(value), atol=1e-12)
    assert np.abs(forward).max() > 0.1

    cotangent = tf.constant(rng.normal(size=value.shape))
    with tf.GradientTape() as tape:
        tape.watch(weights)
        value = unrolled(cell, weights, course)
    for one, other in zip(
        linear.backward(cotangent), tape.gradient(value, weights, output_gradients=cotangent), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-12)
    np.testing.assert_allclose(inner([cotangent], [forward]), inner(linear.backward(cotangent), tangent), rtol=1e-12)


@pytest.mark.parametrize("name", CELLS)
def test_a_tangent_is_a_finite_difference(name):
    cell = CELLS[name]
    course, weights, step = make_course(cell), make_weights(cell), 1e-5
    tangent = make_weights(cell, seed=1)
    ahead, behind = (
        states(cell, [w + sign * step * t for w, t in zip(weights, tangent, strict=True)], course)[0]
        for sign in (1, -1)
    )
    forward = linearize_hidden_states(cell, weights, course).forward(tangent)
    np.testing.assert_allclose(forward, (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", CELLS)
def test_the_tape_takes_the_adjoint_loop(name):
    """Compiled as one function too, and of a function of the states that is not linear."""
    cell = CELLS[name]
    course, weights = make_course(cell), make_weights(cell)

    def gradient(function):
        with tf.GradientTape() as tape:
            tape.watch(weights)
            loss = tf.reduce_sum(tf.sin(function(cell, weights, course)) ** 2)
        return tape.gradient(loss, weights)

    compiled = tf.function(lambda: gradient(hidden_states), jit_compile=True, autograph=False)
    for one, other in zip(compiled(), gradient(unrolled), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-11)


def test_nothing_before_a_start_reaches_what_follows():
    cell = CELLS["lstm"]
    course, weights = make_course(cell), make_weights(cell)
    changed = course._replace(inputs=tf.concat([course.inputs[:3] + 1, course.inputs[3:]], axis=0))
    first, second = (states(cell, weights, each)[0].numpy() for each in (course, changed))
    np.testing.assert_array_equal(first[3:, 0], second[3:, 0])
    assert np.abs(first[3:, 2] - second[3:, 2]).max() > 1e-3
