"""Rows 1, 11 and 17: estimates from simulated trajectories against the exact values, with fixed seeds."""

import numpy as np
import pytest
from hypothesis import given

from tests.support.training.random_mdps import cases, some_examples
from trpo_tf.tabular.exact import advantage_of, evaluate, policy_gradient
from trpo_tf.tabular.mdps import garnet
from trpo_tf.tabular.policies import indicator_features, scores, softmax
from trpo_tf.tabular.simulation import (
    discounted_returns,
    discounted_visits,
    draw,
    importance_terms,
    simulate,
)

MDP = garnet(5, 3, 2, np.random.default_rng(0), discount=0.8)
PI, NEW, SAMPLING = softmax(np.random.default_rng(1).standard_normal((3, 5, 3)))
STEPS = 150
"""0.8^150 < 1e-14: what is cut off is below rounding."""


def assert_within_standard_errors(samples, exact, errors=4.0):
    """The mean over the first axis, within `errors` of its standard errors, in every entry."""
    standard_error = samples.std(0, ddof=1) / np.sqrt(len(samples))
    assert (np.abs(samples.mean(0) - exact) <= errors * standard_error + 1e-12).all()


@pytest.fixture(scope="module")
def trajectories():
    return simulate(MDP, PI, 4000, STEPS, np.random.default_rng(2))


def test_row_1_sampled_returns_and_visits_converge_to_the_exact_ones(trajectories):
    """eta, V of each first state, and rho (equations 1 to 3, 7, 9), each inside its standard error, which is small."""
    solved = evaluate(MDP, PI)
    returns = discounted_returns(trajectories, MDP.discount)
    assert_within_standard_errors(returns, solved.eta)
    assert returns.std() / np.sqrt(len(returns)) < 0.05
    for state in range(MDP.states):
        assert_within_standard_errors(returns[trajectories.states[:, 0] == state], solved.value[state])
    assert_within_standard_errors(discounted_visits(trajectories, MDP.states, MDP.discount), solved.visitation)


def test_row_1_sampled_returns_after_an_action_converge_to_q(trajectories):
    solved, returns = evaluate(MDP, PI), discounted_returns(trajectories, MDP.discount)
    first = trajectories.states[:, 0], trajectories.actions[:, 0]
    for state, action in np.ndindex(*PI.shape):
        chosen = returns[(first[0] == state) & (first[1] == action)]
        if len(chosen) > 50:
            assert_within_standard_errors(chosen, solved.action_value[state, action])


def test_draws_follow_their_distribution_and_never_the_impossible():
    probabilities = np.array([0.2, 0.0, 0.5, 0.3, 0.0])
    drawn = draw(np.tile(probabilities, (20000, 1)), np.random.default_rng(3))
    assert_within_standard_errors(np.eye(5)[drawn], probabilities)


@given(cases())
@some_examples
def test_row_17_importance_sampling_is_unbiased_for_any_sampling_policy(case):
    """The mean of new / q x A under q != pi is exact in every state (equation 47), and over rho (equation 48)."""
    old = evaluate(case.mdp, case.pi)
    sampling = softmax(case.rng.standard_normal(case.pi.shape))
    state, action = (index.ravel() for index in np.indices(case.pi.shape))
    for values in (old.advantage, old.action_value):
        terms = importance_terms(case.new, sampling, state, action, values).reshape(case.pi.shape)
        np.testing.assert_allclose((sampling * terms).sum(1), (case.new * values).sum(1), atol=1e-11)
    # Q in place of A adds a constant, the same for every policy.
    constant = old.visitation @ old.value
    with_q = np.einsum("s,sa,sa->", old.visitation, case.new, old.action_value)
    assert with_q - constant == pytest.approx(advantage_of(case.new, old), abs=1e-10)


def test_row_17_sampled_surrogate_converges_to_the_exact_sum():
    """States from rho_pi, actions from a third policy q: the sample mean is L - eta, inside its standard error."""
    old, rng = evaluate(MDP, PI), np.random.default_rng(4)
    total = old.visitation.sum()
    states = draw(np.tile(old.visitation / total, (40000, 1)), rng)
    actions = draw(SAMPLING[states], rng)
    assert_within_standard_errors(
        total * importance_terms(NEW, SAMPLING, states, actions, old.advantage), advantage_of(NEW, old)
    )


def test_row_11_the_sampled_gradient_at_pi_converges_to_that_of_eta(trajectories):
    """sum_t gamma^t psi(s_t, a_t) A(s_t, a_t) over trajectories of pi: the gradient of the ratio surrogate at pi."""
    old, score = evaluate(MDP, PI), scores(PI, indicator_features(*PI.shape))
    per_pair = (score * old.advantage[..., None])[trajectories.states, trajectories.actions]
    samples = np.einsum("etp,t->ep", per_pair, MDP.discount ** np.arange(STEPS))
    assert_within_standard_errors(samples, policy_gradient(PI, PI[..., None] * score, old))
