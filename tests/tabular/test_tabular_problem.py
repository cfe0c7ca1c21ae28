"""The trainer's own updates on exact problems: rows 6, 11, 13 and the exact end of 16."""

import numpy as np
import pytest
import tensorflow as tf

from tests.support.training.problems import trpo_update
from trpo_tf.config.settings import TrustRegionConfig
from trpo_tf.policies.heads.make import make_head
from trpo_tf.serving import ArraySpec
from trpo_tf.solvers.fisher_product import linearize
from trpo_tf.tabular.bounds import kl_divergence
from trpo_tf.tabular.exact import evaluate, evaluate_average, local_approximation, optimal_policy, policy_gradient
from trpo_tf.tabular.mdps import ergodic, garnet
from trpo_tf.tabular.policies import compatible_weights, fisher, indicator_features, scores, softmax
from trpo_tf.tabular.problem import TabularProblem, exact_update, tabular_problem
from trpo_tf.updates.directions import compatible_weights as solved_weights
from trpo_tf.updates.directions import gradient_direction, natural_gradient
from trpo_tf.updates.local_problem import LocalProblem, Rows
from trpo_tf.updates.result import UpdateStatus
from trpo_tf.updates.trust_region_steps import kl_bounded_backtracking, l2_ball

STATES, ACTIONS = 5, 3
MDP = ergodic(garnet(STATES, ACTIONS, 2, np.random.default_rng(1)))
FEATURES = indicator_features(STATES, ACTIONS)
RNG = np.random.default_rng(2)
PI, NEW = softmax(RNG.standard_normal((2, STATES, ACTIONS)))
THETA, NEW_THETA = np.log(PI).ravel(), np.log(NEW).ravel()
CONFIG = TrustRegionConfig(max_kl=0.01, damping=1e-8, cg_iterations=100, cg_tolerance=1e-10)


@pytest.fixture(scope="module", params=[evaluate, evaluate_average])
def solved(request):
    return request.param(MDP, PI)


@pytest.fixture
def problem(solved):
    return tabular_problem(PI, solved)


@pytest.fixture
def share(solved):
    return solved.visitation / solved.visitation.sum()


def test_row_11_the_surrogate_is_the_local_approximation(problem, solved):
    total = solved.visitation.sum()
    np.testing.assert_allclose(total * problem.surrogate(NEW_THETA), local_approximation(solved, NEW) - solved.eta)
    value, gradient = problem.gradient()
    np.testing.assert_allclose(value, 0, atol=1e-14)
    exact = policy_gradient(PI, PI[..., None] * scores(PI, FEATURES), solved)
    np.testing.assert_allclose(total * gradient, exact, atol=1e-13)


def test_its_divergence_is_the_exact_one(problem, share):
    divergence = kl_divergence(old=PI, new=NEW)
    np.testing.assert_allclose(problem.kl(tf.constant(NEW_THETA)), [share @ divergence, divergence.max()], rtol=1e-12)


def test_its_entropy_is_the_exact_one(problem, share):
    np.testing.assert_allclose(problem.entropy(), -share @ (PI * np.log(PI)).sum(1))


def test_row_6_fisher_products_are_those_of_the_dense_matrix(problem, share):
    dense = fisher(PI, scores(PI, FEATURES), share)
    products = [problem.fisher_vector_product(tf.constant(row)) for row in np.eye(STATES * ACTIONS)]
    np.testing.assert_allclose(np.stack(products), dense, atol=1e-15)


def test_scores_of_all_pairs(problem, share):
    psi = scores(PI, FEATURES).reshape(-1, STATES * ACTIONS)
    vector = RNG.standard_normal(STATES * ACTIONS)
    np.testing.assert_allclose(problem.score.forward(tf.constant(vector)), psi @ vector, atol=1e-14)
    transposed = psi.T @ ((share[:, None] * PI).ravel() * vector)
    np.testing.assert_allclose(problem.score.backward(tf.constant(vector)), transposed, atol=1e-15)


@pytest.mark.parametrize("find", [natural_gradient, solved_weights])
def test_row_5_conjugate_gradient_finds_the_least_squares_weights(find, problem, solved):
    """Theorem 1 through the trainer's solver: F^+ g and compatible weights, both = least squares in NumPy."""
    direction = find(problem, problem.gradient()[1], CONFIG)
    assert direction.status == UpdateStatus.ACCEPTED
    exact = compatible_weights(PI, scores(PI, FEATURES), solved.visitation, solved.action_value)
    np.testing.assert_allclose(direction.vector, exact, atol=1e-5)


def test_an_exact_trpo_update_keeps_its_region_and_gains(problem, solved):
    update = trpo_update(problem, CONFIG)
    assert update.status == UpdateStatus.ACCEPTED
    assert 0.005 < update.mean_kl <= 0.01
    assert update.max_state_kl >= update.mean_kl
    new = softmax(update.theta.numpy().reshape(PI.shape))
    gain = local_approximation(solved, new) - solved.eta
    np.testing.assert_allclose(solved.visitation.sum() * update.surrogate_gain, gain, rtol=1e-9)
    assert gain > 0


def test_it_is_the_trainers_problem_with_every_pair_as_a_row(problem, solved, share):
    """The sampled problem over all (s, a), each with the weight d(s) pi(a|s), is the exact one."""

    class Table:
        """A policy whose network is a table of logits."""

        head = make_head(ArraySpec("action", "int64", (), 0, ACTIONS - 1))

        def parameters(self, theta, inputs):
            return (tf.gather(tf.reshape(theta, (STATES, ACTIONS)), inputs),)

        def linearize(self, theta, inputs):
            return linearize(lambda point: self.parameters(point, inputs), theta)

    state, action = (index.ravel() for index in np.indices((STATES, ACTIONS)))
    rows = Rows(state, action, solved.advantage.ravel(), (share[:, None] * PI).ravel())
    sampled = LocalProblem(Table(), tf.constant(THETA), rows)
    theta, vector = tf.constant(NEW_THETA), tf.constant(RNG.standard_normal(STATES * ACTIONS))
    for exact, other in (
        (problem.surrogate(theta), sampled.surrogate(theta)),
        (problem.gradient()[1], sampled.gradient()[1]),
        (problem.kl(theta), sampled.kl(theta)),
        (problem.fisher_vector_product(vector), sampled.fisher_vector_product(vector)),
        (problem.score.forward(vector), sampled.score.forward(vector)),
        (problem.score.backward(vector), sampled.score.backward(vector)),
        (problem.advantage, sampled.advantage),
        (problem.entropy(), sampled.entropy()),
    ):
        np.testing.assert_allclose(exact, other, atol=1e-14)


def test_states_that_are_never_visited_count_for_nothing():
    states = tf.constant([1.0, 0.0], tf.float64)
    features, advantage = indicator_features(2, 2), tf.constant([[1.0, -1.0], [5.0, -5.0]], tf.float64)
    problem = TabularProblem(tf.zeros(4, tf.float64), tf.constant(features), states, advantage)
    moved = tf.constant([0.0, 0.0, 3.0, -3.0], tf.float64)
    np.testing.assert_array_equal(problem.kl(moved), [0, 0])
    assert problem.surrogate(moved) == 0


@pytest.mark.parametrize(
    ("find", "take", "shortfall"),
    [(natural_gradient, kl_bounded_backtracking, 1e-6), (gradient_direction, l2_ball, 0.5)],
)
def test_row_16_repeated_updates_approach_the_optimum(find, take, shortfall):
    """Each a direction and a step rule of the trainer; nothing guarantees it, and eta rises all the way."""
    update = exact_update(find, take, CONFIG)
    pi, etas = np.full((STATES, ACTIONS), 1 / ACTIONS), []
    for _ in range(60):
        old = evaluate(MDP, pi)
        etas.append(old.eta)
        pi = update(pi, old)
    assert np.diff(etas).min() > -1e-12
    assert etas[-1] > evaluate(MDP, optimal_policy(MDP)).eta - shortfall
