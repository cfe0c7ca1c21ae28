"""Rows 1, 2, 3, 10 and 11 of the table in docs/explanation/laboratory.md: values, objectives, gradients, identities."""

import itertools

import numpy as np
import pytest
from hypothesis import given

from tests.support.training.random_mdps import cases, derivative, some_examples
from trpo_tf.tabular.exact import (
    evaluate,
    evaluate_average,
    greedy,
    local_approximation,
    optimal_policy,
    performance_difference,
    policy_gradient,
)
from trpo_tf.tabular.mdps import FiniteMDP, ergodic, garnet, two_state
from trpo_tf.tabular.policies import log_linear, scores

OBJECTIVES = pytest.mark.parametrize("objective", [evaluate, evaluate_average])


def shared_features(case, parameters=3):
    """Features with which states share parameters, and a theta near 0."""
    features = case.rng.standard_normal((*case.pi.shape, parameters))
    return features, case.rng.standard_normal(parameters)


def exact_gradient(mdp, features, theta, objective):
    pi = log_linear(features, theta)
    return policy_gradient(pi, pi[..., None] * scores(pi, features), objective(mdp, pi))


@given(cases())
@some_examples
def test_row_1_values_and_visits_are_the_sums_that_define_them(case):
    """V, Q, A, eta and rho (equations 1 to 9) against their series, cut where gamma^t is below 1e-16."""
    mdp, pi, gamma = case.mdp, case.pi, case.mdp.discount
    solved = evaluate(mdp, pi)
    chain, reward = np.einsum("sa,sat->st", pi, mdp.transition), (pi * mdp.reward).sum(1)
    value, visits = np.zeros(mdp.states), np.zeros(mdp.states)
    ahead, state = reward, mdp.initial
    for _ in range(int(np.ceil(np.log(1e-16) / np.log(gamma)))):
        value, visits = value + ahead, visits + state
        ahead, state = gamma * chain @ ahead, gamma * chain.T @ state
    scale = 1e-12 / (1 - gamma)
    np.testing.assert_allclose(solved.value, value, atol=10 * scale)
    np.testing.assert_allclose(solved.visitation, visits, atol=scale)
    np.testing.assert_allclose(solved.visitation.sum(), 1 / (1 - gamma), rtol=1e-12)
    np.testing.assert_allclose(solved.action_value, mdp.reward + gamma * mdp.transition @ value, atol=10 * scale)
    np.testing.assert_allclose((pi * solved.advantage).sum(1), 0, atol=10 * scale)
    # eta is both the value of the first state and the reward collected at the visited ones.
    np.testing.assert_allclose([solved.eta, visits @ reward], mdp.initial @ value, atol=10 * scale)


def test_row_1_one_state_is_a_geometric_series():
    mdp = FiniteMDP(np.ones((1, 2, 1)), np.array([[1.0, 3.0]]), np.ones(1), 0.75)
    solved = evaluate(mdp, np.array([[0.5, 0.5]]))
    np.testing.assert_allclose([solved.value[0], solved.visitation[0], solved.eta], [8, 4, 8])
    np.testing.assert_allclose(solved.action_value, [[7, 9]])


@given(cases(ergodic_only=True))
@some_examples
def test_row_2_average_reward_and_differential_values(case):
    """eta is the long-run mean (equations 10, 12), rho stationary, Q the sum of rewards above it (equation 13)."""
    mdp, pi = case.mdp, case.pi
    solved = evaluate_average(mdp, pi)
    chain, reward = np.einsum("sa,sat->st", pi, mdp.transition), (pi * mdp.reward).sum(1)
    np.testing.assert_allclose(solved.visitation @ chain, solved.visitation, atol=1e-13)
    np.testing.assert_allclose(solved.visitation.sum(), 1)
    power = np.linalg.matrix_power(chain, 2**20)
    np.testing.assert_allclose(power @ reward, np.full(mdp.states, solved.eta), atol=1e-9)
    # A restart with probability 0.05 forgets the start at least as fast as 0.95^t.
    value = sum(np.linalg.matrix_power(chain, t) @ (reward - solved.eta) for t in range(600))
    np.testing.assert_allclose(solved.value, value, atol=1e-10)
    np.testing.assert_allclose(solved.action_value, mdp.reward - solved.eta + mdp.transition @ value, atol=1e-10)
    np.testing.assert_allclose((pi * solved.action_value).sum(1), solved.value, atol=1e-12)


def test_row_2_the_average_is_the_limit_of_the_discounted_return():
    mdp = ergodic(garnet(5, 2, 2, np.random.default_rng(4)))
    pi = np.full((5, 2), 0.5)
    patient = FiniteMDP(mdp.transition, mdp.reward, mdp.initial, 1 - 1e-7)
    np.testing.assert_allclose(
        (1 - patient.discount) * evaluate(patient, pi).eta, evaluate_average(mdp, pi).eta, atol=1e-5
    )


def test_row_2_a_periodic_chain_has_cesaro_values():
    """Two states that alternate, paying 0 and 2: a mean of 1, and half the swing as value."""
    mdp = FiniteMDP(np.eye(2)[::-1][:, None], np.array([[0.0], [2.0]]), np.array([1.0, 0.0]), 0.9)
    solved = evaluate_average(mdp, np.ones((2, 1)))
    assert solved.eta == pytest.approx(1)
    np.testing.assert_allclose(solved.value, [-0.5, 0.5])


def test_row_2_two_recurrent_classes_are_refused():
    with pytest.raises(ValueError, match="pi must have a single recurrent class"):
        evaluate_average(two_state(), np.array([[1.0, 0.0], [1.0, 0.0]]))


@OBJECTIVES
@given(case=cases(ergodic_only=True))
@some_examples
def test_row_3_the_theorem_gives_the_derivative_of_eta(objective, case):
    """Equation 17 = finite differences of eta, for both objectives, with parameters shared between states."""
    features, theta = shared_features(case)
    gradient = exact_gradient(case.mdp, features, theta, objective)
    differences = derivative(lambda t: objective(case.mdp, log_linear(features, t)).eta, theta)
    np.testing.assert_allclose(gradient, differences, atol=1e-7 * (1 + np.abs(gradient).max()))


@given(cases())
@some_examples
def test_row_10_performance_difference(case):
    """eta(new) - eta(pi) sums the new policy's advantages over time (equation 24) and over states (equation 27)."""
    mdp, old, new = case.mdp, evaluate(case.mdp, case.pi), evaluate(case.mdp, case.new)
    assert performance_difference(mdp, case.pi, case.new) == pytest.approx(new.eta - old.eta, abs=1e-10)
    expected = (case.new * old.advantage).sum(1)
    chain, state, total = np.einsum("sa,sat->st", case.new, mdp.transition), mdp.initial, 0.0
    for _ in range(int(np.ceil(np.log(1e-16) / np.log(mdp.discount)))):
        total, state = total + state @ expected, mdp.discount * chain.T @ state
    assert total == pytest.approx(new.eta - old.eta, abs=1e-10)


@given(cases())
@some_examples
def test_row_11_the_local_approximation_agrees_to_first_order(case):
    """L = eta at pi in value (equations 28, 29) and gradient (equation 30)."""
    features, theta = shared_features(case)
    old = evaluate(case.mdp, log_linear(features, theta))
    assert local_approximation(old, log_linear(features, theta)) == pytest.approx(old.eta, abs=1e-11)
    of_l = derivative(lambda t: local_approximation(old, log_linear(features, t)), theta)
    gradient = exact_gradient(case.mdp, features, theta, evaluate)
    np.testing.assert_allclose(of_l, gradient, atol=1e-7 * (1 + np.abs(gradient).max()))


@given(cases())
@some_examples
def test_no_deterministic_policy_beats_the_optimal_one(case):
    mdp = case.mdp
    best = evaluate(mdp, optimal_policy(mdp))
    assert (greedy(best) * best.advantage).max() <= 1e-10
    choices = itertools.islice(itertools.product(range(mdp.actions), repeat=mdp.states), 200)
    assert max(evaluate(mdp, np.eye(mdp.actions)[list(c)]).eta for c in choices) <= best.eta + 1e-10


@pytest.mark.parametrize(
    ("pi", "message"),
    [
        (np.full((2, 3), 1 / 3), "pi must have the shape"),
        (np.full((2, 2), 0.6), "pi must sum to 1"),
        (np.array([[2.0, -1.0], [0.5, 0.5]]), "pi must not be negative"),
        (np.full((2, 2), np.nan), "pi must"),
    ],
)
@OBJECTIVES
def test_what_is_no_policy_is_refused(objective, pi, message):
    with pytest.raises(ValueError, match=message):
        objective(two_state(), pi)


def test_a_jacobian_of_another_policy_is_refused():
    pi = np.full((2, 2), 0.5)
    with pytest.raises(ValueError, match="jacobian must have the shape"):
        policy_gradient(pi, np.zeros((3, 2, 1)), evaluate(two_state(), pi))
