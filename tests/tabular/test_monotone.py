"""Rows 8, 12 and 14: conservative policy iteration and minorise-maximise never lose, and maximise what they say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.training.random_mdps import cases, few_examples, some_examples
from trpo_tf.tabular.bounds import divergence_bound, kl_divergence, penalty_coefficient
from trpo_tf.tabular.cpi import conservative_step
from trpo_tf.tabular.exact import evaluate, optimal_policy
from trpo_tf.tabular.mdps import FiniteMDP, chain, two_state
from trpo_tf.tabular.mm import maximise_minorant
from trpo_tf.tabular.policies import softmax

ROUNDING = 1e-12


def etas(mdp, pi, step, iterations):
    """eta of each policy, checking that each step keeps the promise it made."""
    path = [evaluate(mdp, pi).eta]
    for _ in range(iterations):
        move = step(mdp, evaluate(mdp, pi), pi)
        pi = move.policy
        path.append(evaluate(mdp, pi).eta)
        assert path[-1] >= move.lower_bound - ROUNDING
    return np.array(path)


@pytest.mark.parametrize("step", [conservative_step, maximise_minorant])
@given(case=cases())
@few_examples
def test_rows_12_and_14_eta_never_falls(step, case):
    """Twenty steps from a random policy on a random MDP, to machine precision."""
    path = etas(case.mdp, case.pi, step, 20)
    assert np.diff(path).min() >= -ROUNDING


@pytest.mark.parametrize(("step", "iterations"), [(conservative_step, 400), (maximise_minorant, 400)])
def test_rows_12_and_14_they_reach_the_optimum(step, iterations):
    mdp = two_state(0.8)
    path = etas(mdp, np.full((2, 2), 0.5), step, iterations)
    assert np.diff(path).min() >= -ROUNDING
    assert path[-1] == pytest.approx(evaluate(mdp, optimal_policy(mdp)).eta, rel=2e-2)


def test_row_12_a_conservative_step_mixes_in_the_best_action_not_the_worst():
    """The document's arg min is a typo for arg max."""
    mdp, pi = chain(), np.full((6, 2), 0.5)
    old = evaluate(mdp, pi)
    move = conservative_step(mdp, old, pi)
    assert move.alpha > 0
    grew = (move.policy > pi).argmax(1)
    np.testing.assert_array_equal(grew, old.advantage.argmax(1))


def upper_bound(mdp, old, pi, policy):
    """No M is larger than this, by Lagrange duality, for any multipliers with sum rho lambda = C, and any nu > max A.

    They are read off `policy`: stationarity makes old / new an affine function of A in each state.
    """
    coefficient, total = penalty_coefficient(mdp, old), 0.0
    multipliers, offsets = [], []
    for a, old_s, new_s in zip(old.advantage, pi, policy, strict=True):
        slope, intercept = np.polyfit(-a, old_s / new_s, 1)
        multipliers.append(1 / slope)
        offsets.append(intercept / slope)
    multipliers = np.array(multipliers) * coefficient / (old.visitation @ multipliers)
    for a, old_s, rho, scale, nu in zip(old.advantage, pi, old.visitation, multipliers, offsets, strict=True):
        assert nu > a.max()
        total += rho * (nu - scale + scale * old_s @ np.log(scale / (nu - a)))
    return old.eta + total


@given(cases(spread=1.0))
@some_examples
def test_row_14_the_inner_maximum_is_certified_by_duality(case):
    """M(policy) is within 1e-9 (1 + C) of a bound on every policy's M, worked out here from Lagrange multipliers."""
    mdp, pi = case.mdp, case.pi
    old = evaluate(mdp, pi)
    found = maximise_minorant(mdp, old, pi)
    assert divergence_bound(mdp, old, pi, found.policy) == pytest.approx(found.lower_bound, abs=1e-11)
    assert 0 <= found.gap <= 1e-12
    scale = 1 + penalty_coefficient(mdp, old)
    assert found.lower_bound >= upper_bound(mdp, old, pi, found.policy) - 1e-9 * scale


@given(cases(), st.floats(-8, 1))
@some_examples
def test_row_14_no_other_policy_has_a_larger_minorant(case, size):
    """Random policies around the maximiser and around the old policy, and those on the line between the two."""
    mdp, pi = case.mdp, case.pi
    old = evaluate(mdp, pi)
    found = maximise_minorant(mdp, old, pi)
    for centre in (found.policy, pi):
        for direction in case.rng.standard_normal((10, *pi.shape)):
            other = softmax(np.log(centre) + 10**size * direction)
            assert divergence_bound(mdp, old, pi, other) <= found.lower_bound + 1e-11
    for share in np.linspace(0, 1, 11):
        between = (1 - share) * pi + share * found.policy
        assert divergence_bound(mdp, old, pi, between) <= found.lower_bound + 1e-11


@pytest.mark.parametrize("discount", [0.02, 0.5, 0.9])
def test_row_14_two_actions_in_one_state_against_a_grid(discount):
    """A small discount makes C small, and the best policy far: d is then above 1, where nothing is linear."""
    mdp = FiniteMDP(np.ones((1, 2, 1)), np.array([[0.0, 1.0]]), np.ones(1), discount)
    pi = np.array([[0.7, 0.3]])
    old = evaluate(mdp, pi)
    found = maximise_minorant(mdp, old, pi)
    grid = np.linspace(1e-6, 1 - 1e-6, 4001)
    values = [divergence_bound(mdp, old, pi, np.array([[1 - p, p]])) for p in grid]
    assert found.lower_bound >= max(values) - 1e-12
    assert found.lower_bound <= max(values) + 1e-6
    assert found.policy[0, 1] == pytest.approx(grid[np.argmax(values)], abs=1e-3)


@given(cases())
@some_examples
def test_row_14_every_state_spends_the_same_divergence(case):
    """The budget of KL is that of the worst state, so each state with something to gain uses all of it."""
    mdp, pi = case.mdp, case.pi
    old = evaluate(mdp, pi)
    found = maximise_minorant(mdp, old, pi)
    spent = kl_divergence(old=pi, new=found.policy)
    live = (np.ptp(old.advantage, axis=1) > 1e-6) & (old.visitation > 0)
    if found.gain > 0:
        np.testing.assert_allclose(spent[live], found.max_kl, rtol=1e-5, atol=1e-15)


def test_a_policy_that_excludes_an_action_is_refused():
    mdp, pi = two_state(), np.array([[1.0, 0.0], [0.5, 0.5]])
    with pytest.raises(ValueError, match="pi must be positive everywhere"):
        maximise_minorant(mdp, evaluate(mdp, pi), pi)


def test_where_all_actions_are_alike_the_policy_stands():
    mdp = FiniteMDP(np.full((2, 2, 2), 0.5), np.ones((2, 2)), np.array([0.5, 0.5]), 0.9)
    pi = np.array([[0.3, 0.7], [0.5, 0.5]])
    found = maximise_minorant(mdp, evaluate(mdp, pi), pi)
    np.testing.assert_array_equal(found.policy, pi)
    assert (found.gain, found.max_kl) == (0, 0)
