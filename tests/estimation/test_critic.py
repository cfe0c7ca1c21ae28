import keras
import numpy as np
import pytest
import tensorflow as tf

from trpo_tf.estimation.critic import ValueFunction, explained_variance
from trpo_tf.policies.networks import mlp
from trpo_tf.solvers.adam import AdamState, adam


def test_adam_takes_the_steps_of_keras():
    variable = keras.Variable(np.float32([1.0, -2.0, 3.0]))
    optimizer = keras.optimizers.Adam(0.05)
    theta, state = tf.constant(variable.numpy()), AdamState.zeros(3)
    for seed in range(20):
        gradient = np.random.default_rng(seed).normal(size=3).astype(np.float32)
        optimizer.apply([gradient], [variable])
        theta, state = adam(theta, AdamState(*map(tf.constant, state)), gradient, 0.05)
        np.testing.assert_allclose(theta, variable.numpy(), rtol=1e-5)


@pytest.fixture(scope="module")
def critic():
    return ValueFunction(mlp(2, (16,), 1), xla=True)


def fitted(critic, targets, weights, inputs, epochs=60):
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.permutation(256).reshape(-1, 64) for _ in range(epochs)]).astype(np.int32)
    theta = critic.initial_theta()
    return critic.fit(theta, AdamState.zeros(len(theta)), inputs, targets, weights, rows, np.float32(1e-2))


def test_fit_learns_the_rows_that_count_and_is_traced_once(critic):
    inputs = np.random.default_rng(0).uniform(-1, 1, (256, 2)).astype(np.float32)
    targets = (inputs[:, 0] ** 2 - inputs[:, 1]).astype(np.float32)
    weights = (np.arange(256) % 4 > 0).astype(np.float32)
    poisoned = np.where(weights > 0, targets, 1e3).astype(np.float32)
    theta, state, _ = fitted(critic, poisoned, weights, inputs)
    error = critic.values(theta, inputs).numpy() - targets
    assert np.sqrt(np.mean(error**2)) < 0.1
    assert state.step == 240
    fitted(critic, targets, weights, inputs)
    assert critic.fit.experimental_get_tracing_count() == 1


def test_explained_variance():
    targets = np.float32([1.0, 2.0, 3.0])
    assert explained_variance(targets, targets) == 1.0
    assert explained_variance(np.full(3, 2.0, np.float32), targets) == 0.0
    assert np.isnan(explained_variance(targets, np.ones(3, np.float32)))
