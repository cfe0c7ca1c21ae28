"""Rows 8, 12 and 13: distances between policies, and lower bounds on eta that nothing violates."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.training.random_mdps import cases, some_examples
from trpo_tf.tabular.bounds import (
    divergence_bound,
    kl_divergence,
    penalty_coefficient,
    total_variation,
    variation_bound,
)
from trpo_tf.tabular.cpi import mixture, mixture_bound, mixture_epsilon, safe_alpha, simple_mixture_bound
from trpo_tf.tabular.exact import evaluate, greedy
from trpo_tf.tabular.mdps import two_state

ALPHAS = np.linspace(0, 1, 41)


@pytest.mark.parametrize("near", [False, True])
@given(data=st.data())
@some_examples
def test_row_13_the_bounds_hold_for_any_policy(near, data):
    """eta(new) >= L - C D_TV^max^2 >= L - C D_KL^max (equations 34 to 38), near and far."""
    mdp, pi, new, _ = data.draw(cases(near=near))
    old, eta = evaluate(mdp, pi), evaluate(mdp, new).eta
    by_variation, by_divergence = variation_bound(mdp, old, pi, new), divergence_bound(mdp, old, pi, new)
    assert eta >= by_variation - 1e-11
    assert by_variation >= by_divergence - 1e-11


def test_row_13_the_coefficient():
    """C = 4 epsilon gamma / (1 - gamma)^2 with epsilon the largest absolute advantage."""
    mdp = two_state(0.5)
    old = evaluate(mdp, np.array([[1.0, 0.0], [1.0, 0.0]]))
    # Staying is worth 2 and 4; leaving 0.5 x 4 and 0.5 x 2.
    np.testing.assert_allclose(old.advantage, [[0, 0], [0, -3]], atol=1e-12)
    assert penalty_coefficient(mdp, old) == pytest.approx(4 * 3 * 0.5 / 0.25)


@given(cases(spread=30.0))
@some_examples
def test_row_13_the_square_of_variation_is_at_most_the_divergence(case):
    """D_TV^2 <= D_KL (equation 37), and with Pinsker's factor 2 as well; both are 0 only between equal policies."""
    variation, divergence = total_variation(case.pi, case.new), kl_divergence(old=case.pi, new=case.new)
    assert (2 * variation**2 <= divergence * (1 + 1e-12)).all()
    assert (kl_divergence(old=case.pi, new=case.pi) == 0).all()


def test_divergence_of_distributions_known_by_hand():
    old = np.array([[0.5, 0.5], [1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    new = np.array([[0.25, 0.75], [0.5, 0.5], [1.0, 0.0], [0.0, 1.0]])
    expected = [0.5 * np.log(2) + 0.5 * np.log(2 / 3), np.log(2), np.inf, 0]
    np.testing.assert_allclose(kl_divergence(old=old, new=new), expected, rtol=1e-15)
    np.testing.assert_allclose(total_variation(old, new), [0.25, 0.5, 0.5, 0])


def test_divergence_is_exact_between_very_near_policies():
    """KL = x^2 / 8 to first order between (1 +- x) / 2 and (1, 1) / 2 with x = 1e-7: below the rounding of a log."""
    pi, new = np.array([[0.5, 0.5]]), np.array([[0.5 + 5e-8, 0.5 - 5e-8]])
    np.testing.assert_allclose(kl_divergence(old=pi, new=new), 5e-15, rtol=1e-6)


def test_a_policy_that_excludes_an_action_has_no_bound_by_divergence():
    mdp, pi = two_state(), np.full((2, 2), 0.5)
    assert divergence_bound(mdp, evaluate(mdp, pi), pi, np.array([[1.0, 0.0], [1.0, 0.0]])) == -np.inf


@given(cases())
@some_examples
def test_row_12_the_mixture_bound_holds_for_every_alpha(case):
    """eta(mixture) >= equation 32 >= equation 33, whatever policy is mixed in, over a grid of alpha."""
    mdp, pi = case.mdp, case.pi
    old = evaluate(mdp, pi)
    for target in (greedy(old), case.new):
        for alpha in ALPHAS:
            eta = evaluate(mdp, mixture(pi, target, alpha)).eta
            bound = mixture_bound(mdp, old, pi, target, alpha)
            assert eta >= bound - 1e-11
            assert bound >= simple_mixture_bound(mdp, old, pi, target, alpha) - 1e-11


@given(cases())
@some_examples
def test_row_12_the_safe_alpha_is_where_the_bound_is_largest(case):
    """The closed form against the grid, for the greedy policy and for any other."""
    old = evaluate(case.mdp, case.pi)
    for target in (greedy(old), case.new):
        best = mixture_bound(case.mdp, old, case.pi, target, safe_alpha(case.mdp, old, target))
        grid = [mixture_bound(case.mdp, old, case.pi, target, alpha) for alpha in ALPHAS]
        assert best >= max(grid) - 1e-12
        assert best >= old.eta - 1e-12


def test_row_12_epsilon_is_of_the_target_policy():
    """max_s |E_{a ~ target}[A]|, not the largest advantage of single actions."""
    mdp, pi = two_state(0.5), np.array([[1.0, 0.0], [1.0, 0.0]])
    assert mixture_epsilon(evaluate(mdp, pi), np.array([[0.5, 0.5], [0.5, 0.5]])) == pytest.approx(1.5)


def test_nothing_to_gain_is_no_step():
    mdp = two_state()
    old = evaluate(mdp, np.array([[0.0, 1.0], [1.0, 0.0]]))
    assert safe_alpha(mdp, old, greedy(old)) == 0


@given(cases())
@some_examples
def test_row_8_the_surrogates_touch_eta_and_stay_below(case):
    """What minorise-maximise asks of a surrogate M: M(pi) = eta(pi), and M <= eta elsewhere (equations 39, 40)."""
    mdp, pi = case.mdp, case.pi
    old = evaluate(mdp, pi)
    for surrogate in (divergence_bound, variation_bound):
        assert surrogate(mdp, old, pi, pi) == pytest.approx(old.eta, abs=1e-11)
        for share in (1e-4, 1e-2, 0.3, 1.0):
            new = mixture(pi, case.new, share)
            assert surrogate(mdp, old, pi, new) <= evaluate(mdp, new).eta + 1e-11
    assert mixture_bound(mdp, old, pi, case.new, 0.0) == pytest.approx(old.eta, abs=1e-11)
