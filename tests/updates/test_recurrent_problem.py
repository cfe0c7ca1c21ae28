"""The local problem of a recurrent policy: its derivatives go through time, and parts of it are consecutive steps."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support.training.problems import ACTIONS, OBSERVATIONS, SAMPLES, head_of, keras_float, make_theta
from trpo_tf.config.algorithms import ALGORITHMS
from trpo_tf.config.settings import Config, InnerConfig, TrustRegionConfig
from trpo_tf.policies.encoders import Encoder
from trpo_tf.policies.networks import mlp
from trpo_tf.policies.policy import Policy
from trpo_tf.policies.recurrence.cells import make_cell
from trpo_tf.policies.recurrence.own_state import OwnState
from trpo_tf.policies.recurrence.recurrence import Recurrence
from trpo_tf.policies.recurrence.sequences import as_sequences, chunks, sequence_minibatches
from trpo_tf.serving import ArraySpec, StateSpec
from trpo_tf.updates.local_problem import LocalProblem, Rows

LENGTH, N, UNITS = 6, 4, 3


def make_core(memory):
    if memory == "own":
        return OwnState(OBSERVATIONS, (StateSpec("hidden", "float32", (UNITS,), initial=0.5),))
    return Recurrence(make_cell(memory), OBSERVATIONS, seed=1)


def network_with_state(outputs):
    """A GRU cell of Keras before two dense layers."""
    with keras_float("float64"):
        entry, before = keras.Input((OBSERVATIONS,)), keras.Input((UNITS,))
        seen, after = keras.layers.GRUCell(UNITS)(entry, before)
        hidden = keras.layers.Dense(4, "tanh")(keras.layers.Concatenate()([entry, seen]))
        return keras.Model([entry, before], [keras.layers.Dense(outputs)(hidden), after])


def make_policy(kind, memory="gru:3"):
    head, core = head_of(kind), make_core(memory)
    if memory == "own":
        network = network_with_state(head.inputs)
    else:
        network = mlp(core.features_width, (5,), head.inputs, last_layer_scale=1.0, dtype="float64")
    observation = ArraySpec("obs", "float32", (OBSERVATIONS,))
    return Policy(Encoder(plain=(observation,)), network, head, (observation,), ACTIONS[kind], core=core)


def make_rows(policy, kind, theta):
    """Rows of a batch in which two rows only reset, with the states that `theta` itself leads to."""
    rng = np.random.default_rng(0)
    weight = np.ones((LENGTH, N))
    weight[[1, 3], [2, 0]] = 0
    count, first = (1, 0.5) if isinstance(policy.core, OwnState) else (len(policy.core.cell.state), 0.0)
    observed, state = rng.normal(size=(LENGTH, N, OBSERVATIONS)), rng.normal(size=(N, count * UNITS)) / 2
    inputs = []
    for t in range(LENGTH):
        if t:
            state = np.where(weight[t - 1][:, np.newaxis] > 0, state, first)
        inputs.append(np.concatenate([observed[t], state], axis=1))
        parts = policy.network.split(tf.constant(theta))
        before = tuple(tf.constant(part) for part in np.split(state, count, axis=1))
        _, after = policy.core.step(policy.network, parts[: policy._of_core], tf.constant(observed[t]), before)
        state = np.concatenate(after, axis=1)
    flat = np.concatenate(inputs)
    sample = SAMPLES[kind](rng, LENGTH * N)
    sample = sample.astype("float64" if ACTIONS[kind].dtype == "float32" else "int64")
    return flat, Rows(as_sequences(flat, weight), sample, rng.normal(size=LENGTH * N), weight.ravel())


def problem_of(kind, memory="gru:3", **changes):
    policy = make_policy(kind, memory)
    theta = make_theta(policy)
    flat, rows = make_rows(policy, kind, theta)
    return policy, flat, LocalProblem(policy, tf.constant(theta), rows._replace(**changes))


@pytest.mark.parametrize(("kind", "memory"), [("categorical", "lstm:3"), ("gaussian", "gru:3")])
def test_at_the_old_parameters_it_is_the_problem_of_rows_with_stored_states(kind, memory):
    """What the sampler stored is what the course through time leads to, so values agree; derivatives do not."""
    policy, flat, problem = problem_of(kind, memory)
    by_row, over_time = (policy.parameters(problem.theta, inputs) for inputs in (flat, problem._inputs))
    for one, other in zip(over_time, by_row, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-14)
    np.testing.assert_allclose(problem.kl(problem.theta), 0, atol=1e-15)
    truncated = LocalProblem(policy, problem.theta, Rows(flat, problem._sample, problem.advantage, problem._share))
    gradients = problem.gradient()[1], tape_gradient(truncated.surrogate, problem.theta)
    assert np.abs(gradients[0] - gradients[1]).max() > 1e-3


def tape_gradient(function, theta):
    with tf.GradientTape() as tape:
        tape.watch(theta)
        value = function(theta)
    return tape.gradient(value, theta)


@pytest.mark.parametrize(("kind", "memory"), [("categorical", "lstm:3"), ("gaussian", "gru:3"), ("gaussian", "own")])
def test_derivatives_are_finite_differences(kind, memory):
    _, _, problem = problem_of(kind, memory)
    theta, step = problem.theta, 1e-5
    surrogate, kl = (tf.function(f, autograph=False) for f in (problem.surrogate, lambda t: problem.kl(t)[0]))
    rng = np.random.default_rng(2)
    gradient, fisher = problem.gradient()[1], problem.fisher_vector_product
    np.testing.assert_allclose(gradient, tape_gradient(problem.surrogate, theta), atol=1e-12)
    score = problem.score
    for _ in range(3):
        v = tf.constant(rng.normal(size=theta.shape))
        difference = (surrogate(theta + step * v) - surrogate(theta - step * v)) / (2 * step)
        np.testing.assert_allclose(tf.tensordot(gradient, v, 1), difference, rtol=1e-6, atol=1e-9)
        curvature = (kl(theta + 1e-3 * v) + kl(theta - 1e-3 * v)) / 1e-6
        np.testing.assert_allclose(tf.tensordot(v, fisher(v), 1), curvature, rtol=1e-3)
        w = rng.normal(size=LENGTH * N)
        left = tf.reduce_sum(problem._share * w * score.forward(v))
        np.testing.assert_allclose(left, tf.tensordot(v, score.backward(tf.constant(w)), 1), rtol=1e-9)


def test_the_fisher_matrix_is_that_of_a_dense_jacobian():
    """Of the mean at all rows, by a loop in Python over the steps, in units of the standard deviation."""
    policy, flat, problem = problem_of("gaussian")
    observed = flat[:, :OBSERVATIONS].reshape(LENGTH, N, OBSERVATIONS)

    def scaled_means(theta):
        parts, state = policy.network.split(theta), tf.constant(flat[:N, OBSERVATIONS:])
        means = []
        for t in range(LENGTH):
            state = tf.where(problem._inputs.goes_on[t][:, np.newaxis], state, tf.zeros_like(state))
            mean, (state,) = policy.core.step(policy.network, parts[: policy._of_core], observed[t], (state,))
            means.append(mean)
        old_log_std = problem.theta[-2:]
        return tf.concat(means, axis=0) * tf.exp(-old_log_std) * tf.sqrt(problem._share)[:, np.newaxis]

    @tf.function(autograph=False)
    def dense_jacobian(theta):
        with tf.GradientTape() as tape:
            tape.watch(theta)
            value = scaled_means(theta)
        return tape.jacobian(value, theta)

    jacobian = dense_jacobian(problem.theta).numpy().reshape(-1, len(problem.theta))
    dense = jacobian.T @ jacobian
    dense[-2:, -2:] += 2 * np.eye(2)  # of the log standard deviations
    fisher = tf.function(problem.fisher_vector_product, autograph=False)
    found = np.stack([fisher(tf.constant(unit)).numpy() for unit in np.eye(len(dense))])
    np.testing.assert_allclose(found, dense, atol=1e-12)
    assert np.linalg.matrix_rank(dense) > 20


def test_a_part_is_the_problem_of_its_steps_from_the_stored_state():
    policy, flat, problem = problem_of("categorical")
    indices = chunks(LENGTH, N, 3)[:, [1, 6]]
    part = problem.rows(tf.constant(indices))
    weight = np.ones((LENGTH, N))
    weight[[1, 3], [2, 0]] = 0
    chosen = weight.ravel()[indices]
    rows = Rows(
        as_sequences(flat[indices.ravel()], chosen),
        *(np.asarray(a)[indices.ravel()] for a in (problem._sample, problem.advantage)),
        chosen.ravel(),
    )
    alone = LocalProblem(policy, problem.theta, rows)
    other = problem.theta + 0.1
    np.testing.assert_allclose(part.surrogate(other), alone.surrogate(other))
    np.testing.assert_allclose(part.kl(other), alone.kl(other))
    np.testing.assert_allclose(part.gradient()[1], alone.gradient()[1])


def test_single_rows_keep_what_led_to_them():
    """As the vine takes them: the same row twice, with the derivative through all earlier steps."""
    policy, _, problem = problem_of("categorical")
    whole = policy.linearize(problem.theta, problem._inputs)
    indices = [5, 21, 21, 8]
    part = policy.linearize(problem.theta, problem._inputs._replace(rows=tf.constant(indices)))
    v, u = (np.random.default_rng(i).normal(size=size) for i, size in enumerate((len(problem.theta), (4, 4))))
    np.testing.assert_allclose(part.forward(tf.constant(v))[0], tf.gather(whole.forward(tf.constant(v))[0], indices))
    spread = np.zeros(whole.value[0].shape)
    np.add.at(spread, indices, u)
    np.testing.assert_allclose(part.backward((tf.constant(u),)), whole.backward((tf.constant(spread),)), atol=1e-13)


@pytest.mark.parametrize("algo", ["trpo", "nac", "kl-penalty", "ppo"])
def test_every_kind_of_algorithm_gains(algo):
    """With Fisher products, with scores, and with minibatches of sequences; the others use no more of a problem."""
    _, _, problem = problem_of("categorical")
    config = Config(
        "CartPole-v1",
        algo=algo,
        trust_region=TrustRegionConfig(damping=0.01, fisher_fraction=0.5),
        inner=InnerConfig(policy_batch_size=8, policy_epochs=3),
    )
    batches = sequence_minibatches(np.random.default_rng(0), LENGTH, N, 8, 3)
    adapted = tf.constant(ALGORITHMS[algo].initial(config), tf.float64)
    policy, rows = problem._policy, Rows(problem._inputs, problem._sample, problem.advantage, problem._share)

    @tf.function(autograph=False)
    def update(theta):
        return ALGORITHMS[algo].rule(LocalProblem(policy, theta, rows), config, adapted, tf.constant(batches))

    result = update(problem.theta)
    assert result.status == 0
    assert result.surrogate_gain > 1e-4
    assert result.mean_kl < 0.1


def test_minibatches_are_consecutive_steps_and_each_row_comes_once_an_epoch():
    found = sequence_minibatches(np.random.default_rng(0), 20, 3, 8, 2)
    assert found.shape == (2 * 6, 8, 1)
    steps, envs = found // 3, found % 3
    assert (np.diff(steps, axis=1) == 1).all()
    assert (envs == envs[:, :1]).all()
    for epoch in np.split(found, 2):
        assert len(np.unique(epoch)) == epoch.size
    assert not np.array_equal(*np.split(found, 2))


@pytest.mark.parametrize(
    ("length", "n", "size", "shape"),
    [(40, 4, 160, (1, 32, 4)), (512, 4, 128, (16, 32, 4)), (2, 1, 2, (1, 2, 1)), (64, 2, 5, (24, 5, 1))],
)
def test_minibatches_fit_any_batch(length, n, size, shape):
    assert sequence_minibatches(np.random.default_rng(0), length, n, size, 1).shape == shape
