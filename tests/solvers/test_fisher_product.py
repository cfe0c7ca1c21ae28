import numpy as np
import pytest
import tensorflow as tf

from tests.support.training.problems import ACTIONS, make_policy, make_rows, make_theta
from trpo_tf.config import groups
from trpo_tf.config.settings import TrustRegionConfig
from trpo_tf.errors import UserError
from trpo_tf.updates.fisher_metric import FISHER_PRODUCTS, damped_product, inverse_diagonal
from trpo_tf.updates.local_problem import LocalProblem

KINDS = list(ACTIONS)


def setting(kind):
    policy, rows = make_policy(kind), make_rows(kind)
    theta = tf.constant(make_theta(policy))
    return policy, rows, theta, LocalProblem(policy, theta, rows)


def dense(product, size):
    traced = tf.function(product, autograph=False)
    return np.stack([traced(tf.constant(row)).numpy() for row in np.eye(size)], axis=1)


@pytest.mark.parametrize("kind", KINDS)
def test_gauss_newton_is_the_hessian_of_the_mean_kl(kind):
    _, _, theta, problem = setting(kind)
    gradient, step = tf.function(lambda point: kl_gradient(problem, point), autograph=False), 1e-4
    hessian = [
        (gradient(theta + step * unit) - gradient(theta - step * unit)) / (2 * step) for unit in np.eye(len(theta))
    ]
    fisher = dense(problem.fisher_vector_product, len(theta))
    np.testing.assert_allclose(fisher, hessian, atol=1e-7)
    assert np.linalg.eigvalsh(fisher).min() > -1e-12


def kl_gradient(problem, theta):
    with tf.GradientTape() as tape:
        tape.watch(theta)
        kl, _ = problem.kl(theta)
    return tape.gradient(kl, theta)


def scores_of(policy, rows):
    """A function of parameters and samples: differences of each row's log-probability, [B, P]."""

    @tf.function(autograph=False)
    def log_prob(theta, sample):
        return policy.head.distribution(policy.parameters(theta, rows.inputs)).log_prob(sample)

    def scores(theta, sample, step=1e-5):
        pairs = [
            (log_prob(theta + step * unit, sample), log_prob(theta - step * unit, sample))
            for unit in np.eye(len(theta))
        ]
        return np.stack([(after - before) / (2 * step) for after, before in pairs], axis=1)

    return scores


@pytest.mark.parametrize("kind", ["categorical", "bernoulli", "gaussian"])
def test_gauss_newton_is_the_expected_covariance_of_the_score(kind):
    """F = E[grad log pi grad log pi'], the expectation over actions exact: a sum, or Gauss-Hermite quadrature."""
    policy, rows, theta, problem = setting(kind)
    samples, probabilities = _all_samples(policy, theta, rows)
    share = rows.weight / rows.weight.sum()
    expected, scores = np.zeros((len(theta), len(theta))), scores_of(policy, rows)
    for sample, probability in zip(samples, probabilities, strict=True):
        score = scores(theta, tf.constant(sample))
        expected += np.einsum("b,bi,bj->ij", share * probability, score, score)
    np.testing.assert_allclose(dense(problem.fisher_vector_product, len(theta)), expected, atol=1e-8)


def _all_samples(policy, theta, rows):
    parameters = policy.parameters(theta, rows.inputs)
    count = len(rows.inputs)
    if policy.spec.noise.law == "logistic":
        odds = tf.sigmoid(parameters[0]).numpy()
        bits = [np.array(b) for b in np.ndindex(2, 2, 2)]
        return [np.tile(b, (count, 1)) for b in bits], [np.prod(np.where(b, odds, 1 - odds), axis=1) for b in bits]
    if len(parameters) == 1:
        probabilities = tf.nn.softmax(parameters[0]).numpy()
        return [np.full(count, a) for a in range(4)], list(probabilities.T)
    mean, log_std = (p.numpy() for p in parameters)
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)  # exact for products of two scores
    weights = weights / weights.sum()
    pairs = [(i, j) for i in range(3) for j in range(3)]
    samples = [mean + np.exp(log_std) * np.array([nodes[i], nodes[j]]) for i, j in pairs]
    return samples, [np.full(count, weights[i] * weights[j]) for i, j in pairs]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_weight_zero_do_not_count(kind):
    policy, rows, theta, problem = setting(kind)
    kept = rows.weight > 0
    fewer = LocalProblem(policy, theta, tf.nest.map_structure(lambda array: array[kept], rows))
    vector = tf.constant(np.random.default_rng(3).normal(size=len(theta)))
    np.testing.assert_allclose(problem.fisher_vector_product(vector), fewer.fisher_vector_product(vector))


@pytest.mark.parametrize("kind", KINDS)
def test_double_backpropagation_gives_the_same_products(kind):
    _, _, theta, problem = setting(kind)
    vector = tf.constant(np.random.default_rng(3).normal(size=len(theta)))
    np.testing.assert_allclose(problem.kl_hessian_product(vector), problem.fisher_vector_product(vector), atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_score_covariance_products_are_those_of_the_dense_covariance(kind):
    policy, rows, theta, problem = setting(kind)
    score = scores_of(policy, rows)(theta, tf.constant(rows.sample))
    covariance = np.einsum("b,bi,bj->ij", rows.weight / rows.weight.sum(), score, score)
    product = FISHER_PRODUCTS["score-covariance"](problem)
    np.testing.assert_allclose(dense(product, len(theta)), covariance, atol=1e-8)


def test_products_on_a_fraction_of_the_rows_are_those_of_every_other_row():
    policy, rows, theta, problem = setting("gaussian")
    half = LocalProblem(policy, theta, type(rows)(*(array[::2] for array in rows)))
    vector = tf.constant(np.random.default_rng(3).normal(size=len(theta)))
    product = damped_product(problem, TrustRegionConfig(fisher_fraction=0.5, damping=0.5))(vector)
    np.testing.assert_allclose(product, half.fisher_vector_product(vector) + 0.5 * vector)


def test_inverse_diagonal_is_exact_for_a_diagonal_matrix():
    diagonal = np.array([1.0, 2.0, 4.0, 8.0])
    estimate = inverse_diagonal(lambda v: diagonal * v, tf.zeros(4, tf.float64))
    np.testing.assert_allclose(estimate, 1 / diagonal)


def test_an_unknown_fisher_product_is_named_with_the_known_ones():
    with pytest.raises(UserError, match=r"fisher must be one of gauss-newton, .*, not 'k-fac'"):
        TrustRegionConfig(fisher="k-fac")
    assert tuple(FISHER_PRODUCTS) == groups.FISHER_PRODUCTS
