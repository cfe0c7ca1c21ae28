"""Distances between policies, and how far a policy may fall short of its local approximation (equations 34 to 38).

Equation numbers are those of docs/explanation/equations.md.
"""

import numpy as np

from trpo_tf.tabular.exact import Evaluation, local_approximation
from trpo_tf.tabular.mdps import Array, FiniteMDP

_SERIES_BELOW = 1e-4


def total_variation(pi: Array, new: Array) -> Array:
    """Return D_TV(pi(.|s) || new(.|s)), half the sum of absolute differences (equation 34), [S]."""
    distance: Array = np.abs(pi - new).sum(-1) / 2
    return distance


def kl_divergence(*, old: Array, new: Array) -> Array:
    """Return D_KL(old(.|s) || new(.|s)), [S] in nats: infinite where `new` excludes an action of `old`."""
    ratio = np.divide(new, old, out=np.ones_like(new), where=old > 0)
    # Summed as new - old - old log(new / old): every term is at least 0, and the first two sum to 0.
    divergence: Array = np.where(old > 0, old * excess(ratio - 1, ratio), new).sum(-1)
    return divergence


def excess(change: Array, ratio: Array) -> Array:
    """Return x - log(1 + x) for x = `change` and 1 + x = `ratio`, each exact near its own zero; inf at x = -1."""
    with np.errstate(divide="ignore"):
        log = np.where(np.abs(change) < 0.5, np.log1p(np.maximum(change, -0.5)), np.log(ratio))
    series = change**2 * (1 / 2 - change * (1 / 3 - change * (1 / 4 - change / 5)))
    return np.where(np.abs(change) < _SERIES_BELOW, series, change - log)


def penalty_coefficient(mdp: FiniteMDP, old: Evaluation) -> float:
    """Return C = 4 epsilon gamma / (1 - gamma)^2 with epsilon = max_{s,a} |A_pi(s, a)| (equations 36, 38)."""
    epsilon = float(np.abs(old.advantage).max())
    return 4 * epsilon * mdp.discount / (1 - mdp.discount) ** 2


def variation_bound(mdp: FiniteMDP, old: Evaluation, pi: Array, new: Array) -> float:
    """Return the lower bound L_pi(new) - C D_TV^max(pi, new)^2 of eta(new) (equations 35, 36).

    Schulman et al. 2015, theorem 1. `old` evaluates `pi`.
    """
    distance = float(total_variation(pi, new).max())
    return local_approximation(old, new) - penalty_coefficient(mdp, old) * distance**2


def divergence_bound(mdp: FiniteMDP, old: Evaluation, pi: Array, new: Array) -> float:
    """Return the lower bound M(new) = L_pi(new) - C D_KL^max(pi, new) of eta(new) (equations 38, 39).

    It is -inf if the divergence is infinite. It follows from equation 36 by D_TV^2 <= D_KL (equation 37). At pi it
    equals eta (equation 40), so it minorises eta.
    """
    coefficient = penalty_coefficient(mdp, old)
    # With no advantage anywhere pi is optimal, C is 0, and 0 x inf would be NaN.
    cost = coefficient * float(kl_divergence(old=pi, new=new).max()) if coefficient > 0 else 0.0
    return local_approximation(old, new) - cost
