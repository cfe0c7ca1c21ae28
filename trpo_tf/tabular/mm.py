"""Minorise-maximise: Algorithm 1 of Schulman et al. 2015, its inner maximisation solved exactly.

Maximise M(pi) = L_old(pi) - C max_s KL(old(.|s) || pi(.|s)) over all policies (equations 39 to 42 of
docs/explanation/equations.md). With a bound d on each state's KL, the largest gain of L separates into states. In each,
maximise rho(s) sum_a pi(a|s) A(s, a) subject to KL <= d. Its Lagrangian is stationary at

    pi(a|s) = old(a|s) lambda / (t + g(a)),  g(a) = max_b A(s, b) - A(s, a),  lambda = 1 / sum_a old(a|s) / (t + g(a)),

with one scalar t > 0 for each state. KL decreases in t, and lambda is the multiplier of the constraint. The total gain
is concave in d with slope sum_s rho(s) lambda(s) - C, so the best d is one more root. Both roots are found by Newton's
method within a bracket.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from trpo_tf.tabular.bounds import excess, penalty_coefficient
from trpo_tf.tabular.exact import Evaluation
from trpo_tf.tabular.mdps import Array, FiniteMDP
from trpo_tf.tabular.policies import LEAST_PROBABILITY

_NOTHING = 1e-20
_LOG_LEAST_SHIFT = -690.0
_LOG_MOST_KL = np.log(700.0)


class Maximum(NamedTuple):
    """The maximiser of M, with its gain over the old policy, its largest KL and a bound on what it misses."""

    policy: Array
    gain: float  # M(policy) - M(old) >= 0
    max_kl: float
    gap: float  # no policy's M is larger by more than this: a certificate by duality, rounding aside
    lower_bound: float  # M(policy) <= eta(policy)


class _Tilted(NamedTuple):
    """Policies of the form above at given log t [S], as relative changes of the old one."""

    change: Array  # pi / old - 1 [S, A]
    kl: Array  # [S]
    multiplier: Array  # lambda [S]
    spread: Array  # sum_a old x change^2 [S]


def maximise_minorant(mdp: FiniteMDP, old: Evaluation, pi: Array) -> Maximum:
    """Return the policy that maximises M around `pi`.

    eta does not fall, since eta(new) >= M(new) >= M(pi) = eta(pi) (equation 41). `old` evaluates `pi`. Raises
    `ValueError` unless `pi` is positive everywhere, as the maximiser then is too.
    """
    if not (pi > 0).all():
        raise ValueError("pi must be positive everywhere")
    coefficient = penalty_coefficient(mdp, old)
    gap = old.advantage.max(1, keepdims=True) - old.advantage
    # No policy can gain more than this in each state. Where that is negligible, the old one is kept.
    available = old.visitation * (pi * gap).sum(1)
    live = available > _NOTHING * np.abs(old.advantage).max()
    if not live.any():
        return Maximum(pi, 0.0, 0.0, float(available.sum()), old.eta)
    scale = gap[live].max(1)
    prices = old.visitation[live] * scale
    budget, tilted = _best_budget(pi[live], gap[live] / scale[:, None], prices, coefficient)
    change = np.zeros_like(pi)
    change[live] = tilted.change
    gain = float(np.einsum("s,sa,sa->", old.visitation, pi * change, old.advantage)) - coefficient * budget
    excess_price = float(prices @ tilted.multiplier) / coefficient - 1
    shortfall = coefficient * float(excess(np.array(excess_price), np.array(1 + excess_price)))
    shortfall += float(available[~live].sum())
    if not gain > 0:
        return Maximum(pi, 0.0, 0.0, shortfall - gain, old.eta)
    # Where the old probability is small, the best may be smaller than floats go.
    new = np.maximum(pi * (1 + change), LEAST_PROBABILITY)
    return Maximum(new / new.sum(1, keepdims=True), gain, budget, shortfall, old.eta + gain)


def _best_budget(pi: Array, gap: Array, prices: Array, coefficient: float) -> tuple[float, _Tilted]:
    """Return the KL budget d at which sum_s prices(s) lambda(s) = coefficient, and its policies. Gaps are in [0, 1].

    By Lagrange duality the M of these policies is within C (k - 1 - log k) of the largest, k = sum_s prices lambda / C.
    """

    def log_price(log_budget: Array) -> tuple[Array, Array]:
        budget = np.exp(log_budget)
        tilted = _tilted(pi, gap, _log_shift(pi, gap, budget))
        total = prices * tilted.multiplier
        slope = -(total @ ((1 + tilted.spread) * budget / tilted.spread)) / total.sum()
        return np.log(total.sum() / coefficient), slope

    # For small d, lambda(s) is the standard deviation of the gap over sqrt(2 d).
    guess = 2 * np.log(prices @ _deviation(pi, gap) / coefficient) - np.log(2)
    guess = np.minimum(guess, _LOG_MOST_KL - 1)
    log_budget = _decreasing_root(log_price, guess, guess - 50, np.array(_LOG_MOST_KL))
    tilted = _tilted(pi, gap, _log_shift(pi, gap, np.exp(log_budget)))
    return float(tilted.kl.max()), tilted


def _log_shift(pi: Array, gap: Array, budget: Array) -> Array:
    """Return log t [S] at which KL = budget; where no t has so large a KL, the least that floats allow."""

    def log_kl(log_shift: Array) -> tuple[Array, Array]:
        tilted = _tilted(pi, gap, log_shift)
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = -np.exp(log_shift) * tilted.spread / (tilted.multiplier * tilted.kl)
            return np.log(tilted.kl / budget), slope

    # KL <= log(1 + 1 / t) < 1 / t; for large t, KL is the variance of the gap over 2 t^2.
    high = -np.log(budget) * np.ones(len(pi))
    guess = np.log(_deviation(pi, gap) / np.sqrt(2 * budget))
    return _decreasing_root(log_kl, np.clip(guess, _LOG_LEAST_SHIFT, high), np.full(len(pi), _LOG_LEAST_SHIFT), high)


def _tilted(pi: Array, gap: Array, log_shift: Array) -> _Tilted:
    shifted = np.exp(log_shift)[:, None] + gap
    share = pi / shifted
    multiplier = 1 / share.sum(1)
    # multiplier - t = multiplier x sum(share gap): written so, the change is exact however small it is.
    change = (multiplier * (share * gap).sum(1))[:, None] / shifted - gap / shifted
    kl = (pi * excess(change, multiplier[:, None] / shifted)).sum(1)
    return _Tilted(change, kl, multiplier, (pi * change**2).sum(1))


def _deviation(pi: Array, gap: Array) -> Array:
    mean = (pi * gap).sum(1, keepdims=True)
    deviation: Array = np.sqrt((pi * (gap - mean) ** 2).sum(1))
    return deviation


def _decreasing_root(function: Callable[[Array], tuple[Array, Array]], x: Array, low: Array, high: Array) -> Array:
    """Find the root of a decreasing function, given with its slope: Newton, or bisection outside the bracket."""
    for _ in range(200):
        value, slope = function(x)
        low, high = np.where(value > 0, x, low), np.where(value > 0, high, x)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            newton = x - value / slope
        following = np.where((newton >= low) & (newton <= high), newton, (low + high) / 2)
        done = np.abs(following - x) <= 1e-14 * (1 + np.abs(x))
        x = following
        if done.all():
            break
    return x
