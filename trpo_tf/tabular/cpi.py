"""Conservative policy iteration (Kakade & Langford 2002): mix in the greedy policy, with a safe share.

Equation numbers are those of docs/explanation/equations.md.
"""

import math
from typing import NamedTuple

import numpy as np

from trpo_tf.tabular.exact import Evaluation, advantage_of, greedy, local_approximation
from trpo_tf.tabular.mdps import Array, FiniteMDP


class Mixing(NamedTuple):
    """One step: the mixture, the share of the greedy policy in it, and the bound on its eta (equation 32)."""

    policy: Array
    alpha: float
    lower_bound: float


def mixture(pi: Array, target: Array, alpha: float) -> Array:
    """Return the mixture (1 - alpha) pi + alpha target (equation 31)."""
    return (1 - alpha) * pi + alpha * target


def mixture_epsilon(old: Evaluation, target: Array) -> float:
    """Return epsilon = max_s |E_{a ~ target}[A_pi(s, a)]| (equation 32)."""
    return float(np.abs((target * old.advantage).sum(1)).max())


def mixture_bound(mdp: FiniteMDP, old: Evaluation, pi: Array, target: Array, alpha: float) -> float:
    """Return the lower bound of a mixture's eta (equation 32).

    eta(mixture) >= L(mixture) - 2 epsilon gamma alpha^2 / ((1 - gamma (1 - alpha)) (1 - gamma)). Kakade & Langford
    2002, theorem 4.1, in units of the unnormalised return; `old` evaluates `pi`.
    """
    gamma, epsilon = mdp.discount, mixture_epsilon(old, target)
    shortfall = 2 * epsilon * gamma * alpha**2 / ((1 - gamma * (1 - alpha)) * (1 - gamma))
    return local_approximation(old, mixture(pi, target, alpha)) - shortfall


def simple_mixture_bound(mdp: FiniteMDP, old: Evaluation, pi: Array, target: Array, alpha: float) -> float:
    """Return the weaker bound L(mixture) - 2 epsilon gamma alpha^2 / (1 - gamma)^2 (equation 33)."""
    gamma, epsilon = mdp.discount, mixture_epsilon(old, target)
    return local_approximation(old, mixture(pi, target, alpha)) - 2 * epsilon * gamma * (alpha / (1 - gamma)) ** 2


def safe_alpha(mdp: FiniteMDP, old: Evaluation, target: Array) -> float:
    """Return the alpha in [0, 1] at which the bound of equation 32 is largest; 0 if `target` has no advantage.
    The bound gains G(alpha) = alpha A - c alpha^2 / u with A the policy advantage, c = 2 epsilon gamma / (1 - gamma)
    and u = 1 - gamma (1 - alpha). In u its slope is A - (c / gamma) (1 - (1 - gamma)^2 / u^2), which falls in u. As
    A <= epsilon / (1 - gamma), it reaches 0 at a u of at most sqrt(2) (1 - gamma).
    """
    gamma, advantage = mdp.discount, advantage_of(target, old)
    if advantage <= 0:
        return 0.0
    share = advantage * (1 - gamma) / (2 * mixture_epsilon(old, target))
    return min(1.0, (1 - gamma) * (1 / math.sqrt(1 - share) - 1) / gamma)


def conservative_step(mdp: FiniteMDP, old: Evaluation, pi: Array) -> Mixing:
    """Mix in the policy that maximises L_pi, with share `safe_alpha`: eta does not fall. `old` evaluates `pi`.

    That policy is the arg max of L_pi, as in the paper: it takes an action of largest advantage in every state.
    """
    target = greedy(old)
    alpha = safe_alpha(mdp, old, target)
    return Mixing(mixture(pi, target, alpha), alpha, mixture_bound(mdp, old, pi, target, alpha))
