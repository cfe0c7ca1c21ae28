from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf
from problems import make_policy, make_rows, make_theta

from trpo_tf.config import TrustRegionConfig
from trpo_tf.updates.problem import LocalProblem
from trpo_tf.updates.trpo import UpdateStatus, compile_update, trpo_update

KINDS = ["categorical", "gaussian"]
CONFIG = TrustRegionConfig()


class Case(NamedTuple):
    """A compiled update shared by the tests: compiling is what takes the time."""

    kind: str
    dtype: str
    policy: object
    theta: np.ndarray
    update: object

    def rows(self):
        return make_rows(self.kind, self.dtype, count=60)


@pytest.fixture(scope="module", params=[(k, d) for k in KINDS for d in ("float32", "float64")], ids="-".join)
def case(request):
    kind, dtype = request.param
    policy = make_policy(kind, dtype)
    return Case(kind, dtype, policy, make_theta(policy, dtype), compile_update(policy, CONFIG))


def test_improves_the_surrogate_inside_the_trust_region(case):
    rows = case.rows()
    update = case.update(case.theta, rows)
    assert update.status == UpdateStatus.ACCEPTED
    problem = LocalProblem(case.policy, tf.constant(case.theta), rows)
    gain = problem.surrogate(update.theta) - problem.surrogate(problem.theta)
    mean_kl, max_kl = problem.kl(update.theta)
    assert gain > 0
    assert 0 < mean_kl <= CONFIG.max_kl * (1 + 1e-5)
    assert update.mean_kl <= CONFIG.max_kl
    tolerance = 1e-5 if case.dtype == "float32" else 1e-12
    np.testing.assert_allclose([update.surrogate_gain, update.mean_kl], [gain, mean_kl], atol=tolerance)
    np.testing.assert_allclose(update.max_kl, max_kl, rtol=1e-3)


def test_the_step_is_along_the_damped_natural_gradient(case):
    rows = case.rows()
    problem = LocalProblem(case.policy, tf.constant(case.theta), rows)
    size = len(case.theta)
    fisher = np.stack([problem.fisher_vector_product(tf.constant(r)) for r in np.eye(size, dtype=case.dtype)])
    direction = np.linalg.solve(fisher + CONFIG.damping * np.eye(size), problem.gradient()[1])
    step = case.update(case.theta, rows).theta.numpy() - case.theta
    cosine = step @ direction / np.linalg.norm(step) / np.linalg.norm(direction)
    assert cosine > 0.999


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_advantages_that_are_not_finite_are_rejected(case, poison):
    rows = case.rows()
    rows.advantage[np.flatnonzero(rows.weight)[0]] = poison
    update = case.update(case.theta, rows)
    assert update.status == UpdateStatus.NON_FINITE_GRADIENT
    np.testing.assert_array_equal(update.theta, case.theta)


def test_no_advantage_no_step(case):
    rows = case.rows()
    update = case.update(case.theta, rows._replace(advantage=np.zeros_like(rows.advantage)))
    assert update.status == UpdateStatus.ZERO_GRADIENT
    np.testing.assert_array_equal(update.theta, case.theta)


def test_is_traced_once(case):
    for seed in range(3):
        case.update(case.theta, make_rows(case.kind, case.dtype, count=60, seed=seed))
    assert case.update.experimental_get_tracing_count() == 1


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
