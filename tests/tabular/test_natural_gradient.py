"""Rows 5, 6 and 7: compatible approximation, Fisher information and natural gradient, Kakade's theorems."""

import numpy as np
import pytest
from hypothesis import assume, given

from tests.support.training.random_mdps import cases, derivative, some_examples
from trpo_tf.tabular.bounds import kl_divergence
from trpo_tf.tabular.exact import evaluate, evaluate_average, policy_gradient
from trpo_tf.tabular.gradients import natural_step, plain_step
from trpo_tf.tabular.mdps import KAKADE_POLICY, FiniteMDP, two_state
from trpo_tf.tabular.policies import (
    compatible_weights,
    fisher,
    indicator_features,
    log_linear,
    scores,
    softmax,
    state_fisher,
)

OBJECTIVES = pytest.mark.parametrize("objective", [evaluate, evaluate_average])


def log_linear_case(case, parameters=3):
    """Features shared between states, theta, and the policy of both."""
    features, theta = case.rng.standard_normal((*case.pi.shape, parameters)), case.rng.standard_normal(parameters)
    return features, theta, log_linear(features, theta)


def gradient_and_weights(pi, features, solved):
    score = scores(pi, features)
    gradient = policy_gradient(pi, pi[..., None] * score, solved)
    return score, gradient, compatible_weights(pi, score, solved.visitation, solved.action_value)


@given(cases())
@some_examples
def test_scores_are_the_gradient_of_the_log_policy(case):
    features, theta, pi = log_linear_case(case)
    differences = derivative(lambda t: np.log(log_linear(features, t)), theta)
    np.testing.assert_allclose(scores(pi, features), np.moveaxis(differences, 0, -1), atol=1e-8)


@OBJECTIVES
@given(case=cases(ergodic_only=True, spread=1.0))
@some_examples
def test_row_5_theorem_1_weights_are_the_natural_gradient(objective, case):
    """Least squares w on psi = F^+ grad eta, and the gradient with f_w in place of Q is exact (equations N18, A22)."""
    for features in (log_linear_case(case)[0], indicator_features(*case.pi.shape)):
        pi, solved = case.pi, objective(case.mdp, case.pi)
        score, gradient, weights = gradient_and_weights(pi, features, solved)
        information = fisher(pi, score, solved.visitation)
        scale = 1 + np.abs(gradient).max()
        np.testing.assert_allclose(information @ weights, gradient, atol=1e-9 * scale)
        # The pseudo-inverse, since softmax policies have directions that change nothing.
        natural = np.linalg.pinv(information, rcond=1e-11, hermitian=True) @ gradient
        np.testing.assert_allclose(weights, natural, atol=1e-6 * (1 + np.abs(weights).max()))
        with_f = np.einsum("s,sap,sa->p", solved.visitation, pi[..., None] * score, score @ weights)
        np.testing.assert_allclose(with_f, gradient, atol=1e-9 * scale)


def test_row_5_the_compatible_approximation_may_be_wrong_and_the_gradient_right():
    """One feature for both states: f_w misses A by far, yet gives its gradient."""
    mdp, features = two_state(), np.array([[[1.0], [0.0]], [[1.0], [0.0]]])
    pi = log_linear(features, np.array([0.4]))
    solved = evaluate(mdp, pi)
    score, gradient, weights = gradient_and_weights(pi, features, solved)
    approximation = score @ weights
    assert np.abs(approximation - solved.advantage).max() > 0.7
    np.testing.assert_allclose((solved.visitation[:, None] * pi * approximation * score[..., 0]).sum(), gradient[0])


def test_row_5_policy_iteration_with_it_reaches_a_stationary_point():
    """Sutton et al. 2000, theorem 3, in a corridor whose actions are switched in its second state.

    All states share one parameter, and the best policy is stochastic: the gradient goes to 0 inside, not at the edge.
    """
    moves = np.zeros((4, 2, 4))
    for state, (left, right) in enumerate([(0, 1), (2, 0), (1, 3), (3, 3)]):
        moves[state, 0, left] = moves[state, 1, right] = 1
    reward = np.array([[-1.0, -1.0]] * 3 + [[0.0, 0.0]])
    mdp, features = FiniteMDP(moves, reward, np.eye(4)[0], 0.99), np.zeros((4, 2, 1))
    features[:, 1] = 1
    theta = np.zeros(1)
    for _ in range(300):
        pi = log_linear(features, theta)
        score, gradient, weights = gradient_and_weights(pi, features, evaluate(mdp, pi))
        visitation = evaluate(mdp, pi).visitation
        theta = theta + 0.1 * np.einsum("s,sap,sa->p", visitation, pi[..., None] * score, score @ weights)
    assert abs(gradient[0]) < 1e-8
    assert 0.5 < pi[0, 1] < 0.7
    here = evaluate(mdp, pi).eta
    assert here > max(evaluate(mdp, log_linear(features, theta + shift)).eta for shift in (-0.1, 0.1))


@given(cases())
@some_examples
def test_row_6_fisher_information_three_ways(case):
    """E_rho of score covariance = Hessian of the mean KL = J' (diag(pi) - pi pi') J, and each F_s is semi-definite."""
    features, theta, pi = log_linear_case(case)
    share = evaluate(case.mdp, pi).visitation * (1 - case.mdp.discount)
    information = fisher(pi, scores(pi, features), share)

    def mean_kl_gradient(t):
        return derivative(lambda u: share @ kl_divergence(old=pi, new=log_linear(features, u)), t)

    np.testing.assert_allclose(derivative(mean_kl_gradient, theta, h=1e-2), information, atol=1e-5)
    metric = np.einsum("sa,ab->sab", pi, np.eye(case.mdp.actions)) - pi[:, :, None] * pi[:, None]
    gauss_newton = np.einsum("s,sap,sab,sbq->pq", share, features, metric, features)
    np.testing.assert_allclose(gauss_newton, information, atol=1e-12)
    assert np.linalg.eigvalsh(state_fisher(pi, scores(pi, features))).min() >= -1e-12


@given(cases(spread=1.0))
@some_examples
def test_row_6_the_natural_gradient_does_not_see_the_parametrisation(case):
    """theta = M phi: a natural step in phi makes the same policy as one in theta, a plain step another."""
    assume(case.mdp.states >= 2)
    features, theta, pi = log_linear_case(case, parameters=2)
    transform = np.array([[3.0, 1.0], [0.0, 0.2]])
    solved = evaluate(case.mdp, pi)
    _, gradient, weights = gradient_and_weights(pi, features, solved)
    _, gradient_phi, weights_phi = gradient_and_weights(pi, features @ transform, solved)
    np.testing.assert_allclose(gradient_phi, transform.T @ gradient, atol=1e-10)

    def moved(direction, step=0.01):
        return log_linear(features, theta + step * direction)

    natural, plain = moved(weights), moved(gradient)
    np.testing.assert_allclose(moved(transform @ weights_phi), natural, atol=1e-8)
    assume(np.abs(plain - pi).max() > 1e-6)
    assert np.abs(moved(transform @ gradient_phi) - plain).max() > 1e-3 * np.abs(plain - pi).max()


def sigmoid_features():
    """One parameter a state, the log-odds of staying: the parametrisation of Kakade's example."""
    features = np.zeros((2, 2, 2))
    features[0, 0, 0] = features[1, 0, 1] = 1
    return features


def test_row_6_fisher_information_is_not_the_hessian_of_eta():
    """F is semi-definite; at Kakade's start the Hessian of eta is not, and near the optimum F is no multiple of it.

    The section on metrics and curvatures: F does not converge to the Hessian.
    """
    features, start = sigmoid_features(), np.log(KAKADE_POLICY[:, 0] / KAKADE_POLICY[:, 1])

    def gradient(theta):
        pi = log_linear(features, theta)
        return policy_gradient(pi, pi[..., None] * scores(pi, features), evaluate(two_state(), pi))

    def information(theta):
        pi = log_linear(features, theta)
        return fisher(pi, scores(pi, features), 0.1 * evaluate(two_state(), pi).visitation)

    np.testing.assert_allclose(np.diag(information(start)), [0.1306, 0.0165], atol=1e-4)
    np.testing.assert_allclose(np.linalg.eigvalsh(derivative(gradient, start)), [-0.690, 0.270], atol=1e-3)
    late = np.array([-8.0, 8.0])
    ratios = np.diag(derivative(gradient, late)) / np.diag(information(late))
    assert (ratios < 0).all()
    assert ratios[1] / ratios[0] > 3


def test_row_6_kakades_plateau():
    """From Kakade's start the plain gradient sits at an average reward of 1, where the natural one goes to 2."""
    path = {}
    for step in (plain_step, natural_step):
        pi = KAKADE_POLICY
        for _ in range(300):
            pi = step(pi, evaluate_average(two_state(), pi), 0.1)
        path[step] = evaluate_average(two_state(), pi)
    assert 0.95 < path[plain_step].eta < 1
    assert path[plain_step].visitation[1] < 0.02
    assert path[natural_step].eta > 1.999


@given(cases())
@some_examples
def test_the_natural_step_of_a_table_is_an_exponential_of_the_advantage(case):
    assume((evaluate(case.mdp, case.pi).visitation > 1e-3).all())
    solved = evaluate(case.mdp, case.pi)
    expected = softmax(np.log(case.pi) + 0.3 * solved.advantage)
    np.testing.assert_allclose(natural_step(case.pi, solved, 0.3), expected, atol=1e-6)


@given(cases(spread=1.0))
@some_examples
def test_row_7_theorem_2_a_long_natural_step_is_greedy(case):
    """alpha -> infinity leaves mass only on the actions of largest f_w (equation N19)."""
    features, theta, pi = log_linear_case(case)
    score, gradient, weights = gradient_and_weights(pi, features, evaluate(case.mdp, pi))
    assume(np.abs(gradient).max() > 1e-6)
    approximation = score @ weights
    ordered = np.sort(approximation, 1)
    gap = (ordered[:, -1] - ordered[:, -2]).min()
    assume(gap > 1e-4)
    limit = log_linear(features, theta + 100 / gap * weights)
    np.testing.assert_allclose(limit, np.eye(case.mdp.actions)[approximation.argmax(1)], atol=1e-9)


def test_row_7_theorem_2_ties_keep_their_share_and_the_plain_gradient_is_not_greedy():
    """A bandit with rewards 1, 1, 0: both best actions stay. With 0.4, 0.5, 0 plain ascent takes the likelier one."""
    bandit = np.ones((1, 3, 1)), np.ones(1), 0.5
    tied = FiniteMDP(bandit[0], np.array([[1.0, 1.0, 0.0]]), *bandit[1:])
    pi = np.array([[0.2, 0.3, 0.5]])
    np.testing.assert_allclose(natural_step(pi, evaluate(tied, pi), 1e3), [[0.4, 0.6, 0]], atol=1e-9)
    other = FiniteMDP(bandit[0], np.array([[0.4, 0.5, 0.0]]), *bandit[1:])
    pi = np.array([[0.6, 0.01, 0.39]])
    np.testing.assert_allclose(plain_step(pi, evaluate(other, pi), 1e4), [[1, 0, 0]], atol=1e-9)
    np.testing.assert_allclose(natural_step(pi, evaluate(other, pi), 1e4), [[0, 1, 0]], atol=1e-9)


@given(cases(spread=1.0))
@some_examples
def test_row_7_theorem_3_the_update_is_multiplicative_to_first_order(case):
    """pi(theta + alpha w) = pi (1 + alpha f_w) + O(alpha^2) (equation N20): halving alpha quarters the remainder."""
    features, theta, pi = log_linear_case(case)
    score, _, weights = gradient_and_weights(pi, features, evaluate(case.mdp, pi))
    approximation = score @ weights
    largest = np.abs(approximation).max()
    assume(largest > 1e-6)

    def remainder(alpha):
        return np.linalg.norm(log_linear(features, theta + alpha * weights) - pi * (1 + alpha * approximation))

    alpha = 1e-3 / largest
    assume(remainder(alpha) > 1e-10)
    assert remainder(alpha) / remainder(alpha / 2) == pytest.approx(4, rel=0.02)
