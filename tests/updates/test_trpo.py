import numpy as np
import pytest
import tensorflow as tf

from tests.support.training.problems import make_policy, make_rows, make_theta, trpo_update
from trpo_tf.config.settings import TrustRegionConfig
from trpo_tf.updates.local_problem import LocalProblem
from trpo_tf.updates.result import UpdateStatus


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_the_step_is_along_the_damped_natural_gradient(kind):
    config, policy, rows = TrustRegionConfig(), make_policy(kind), make_rows(kind)
    theta = tf.constant(make_theta(policy))
    problem = LocalProblem(policy, theta, rows)
    size = len(theta)
    product = tf.function(problem.fisher_vector_product, autograph=False)
    fisher = np.stack([product(tf.constant(row)) for row in np.eye(size)])
    direction = np.linalg.solve(fisher + config.damping * np.eye(size), problem.gradient()[1])
    step = (trpo_update(problem, config).theta - theta).numpy()
    assert step @ direction / np.linalg.norm(step) / np.linalg.norm(direction) > 0.9999


class Quadratic:
    """A problem with closed forms: a surrogate s(x), KL = x'x / 2, Fisher matrix = factor x identity."""

    def __init__(self, surrogate, *, fisher: float = 1.0) -> None:
        self.theta = tf.constant([0.1, -0.2], tf.float64)
        self.surrogate, self._fisher = surrogate, fisher

    def gradient(self):
        with tf.GradientTape() as tape:
            tape.watch(self.theta)
            value = self.surrogate(self.theta)
        return value, tape.gradient(value, self.theta)

    def kl(self, theta):
        mean = tf.reduce_sum((theta - self.theta) ** 2) / 2
        return mean, mean

    def fisher_vector_product(self, vector):
        return self._fisher * vector

    def entropy(self):
        return tf.constant(0.0, tf.float64)


def undamped(**settings):
    return TrustRegionConfig(damping=0.0, **settings)


def test_of_a_linear_surrogate_the_step_ends_on_the_trust_region():
    slope = tf.constant([3.0, 4.0], tf.float64)
    problem = Quadratic(lambda x: tf.reduce_sum(slope * x))
    # A little damping, since without it rounding decides whether the full step is inside.
    update = trpo_update(problem, TrustRegionConfig(max_kl=0.02, damping=1e-6))
    np.testing.assert_allclose(update.theta - problem.theta, np.array([0.6, 0.8]) * 0.2, atol=1e-6)
    np.testing.assert_allclose([update.mean_kl, update.expected_gain], [0.02, 1.0], atol=1e-5)
    assert update.line_search_tries == 1


def test_a_model_that_promises_too_long_a_step_is_cut_back():
    slope = tf.constant([3.0, 4.0], tf.float64)
    problem = Quadratic(lambda x: tf.reduce_sum(slope * x), fisher=0.25)
    update = trpo_update(problem, undamped(max_kl=0.02))
    assert update.status == UpdateStatus.ACCEPTED
    assert update.line_search_tries == 5  # 0.8^4 is the first below a half
    assert update.mean_kl <= 0.02


def test_a_surrogate_that_only_falls_is_rejected():
    surrogate_at_start_only = Quadratic(lambda x: tf.reduce_sum(x) - 1e6 * tf.reduce_sum((x - [0.1, -0.2]) ** 2))
    update = trpo_update(surrogate_at_start_only, undamped(max_kl=1.0))
    assert update.status == UpdateStatus.LINE_SEARCH_FAILED
    assert update.line_search_tries == 10
    np.testing.assert_array_equal(update.theta, surrogate_at_start_only.theta)


@pytest.mark.parametrize(
    ("fisher", "status"),
    [
        (0.0, UpdateStatus.NON_POSITIVE_CURVATURE),
        (-1.0, UpdateStatus.NON_POSITIVE_CURVATURE),
        (np.nan, UpdateStatus.NON_FINITE_SOLUTION),
    ],
)
def test_curvature_that_is_not_positive_or_not_finite_is_rejected(fisher, status):
    problem = Quadratic(tf.reduce_sum, fisher=fisher)
    update = trpo_update(problem, undamped())
    assert update.status == status
    np.testing.assert_array_equal(update.theta, problem.theta)
