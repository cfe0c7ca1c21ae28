"""Values, visitation, performance and its gradient, solved exactly for discounted return and average reward.

Policies are tables pi [S, A] whose rows sum to 1. rho^pi is *unnormalised* for the discounted objective, as in
equations 8 and 9. It sums to 1 / (1 - gamma), so eta and the gradient are in the units of the return.

Equation numbers in this folder are those of docs/explanation/equations.md.
"""

from typing import NamedTuple

import numpy as np

from trpo_tf.tabular.mdps import Array, FiniteMDP, require_distributions


class Evaluation(NamedTuple):
    """Values, visitation and performance of a policy, under one of the two objectives."""

    value: Array  # V [S]
    action_value: Array  # Q [S, A]
    advantage: Array  # A = Q - V [S, A], equation 6
    visitation: Array  # rho [S]: discounted, summing to 1 / (1 - gamma); or stationary, summing to 1
    eta: float


def evaluate(mdp: FiniteMDP, pi: Array) -> Evaluation:
    """Evaluate a policy's discounted return.

    V = r_pi + gamma P_pi V (equations 2, 3), with Q (4, 5), A (6), eta = rho_0 . V (7) and rho (8, 9). rho solves
    rho = rho_0 + gamma P_pi' rho, the fixed point of the series in equation 9. Raises `ValueError` if `pi` is not a
    policy of `mdp`.
    """
    chain, reward = _under(mdp, pi)
    system = np.eye(mdp.states) - mdp.discount * chain
    value = np.linalg.solve(system, reward)
    action_value = mdp.reward + mdp.discount * mdp.transition @ value
    visitation = np.linalg.solve(system.T, mdp.initial)
    return Evaluation(value, action_value, action_value - value[:, None], visitation, float(mdp.initial @ value))


def evaluate_average(mdp: FiniteMDP, pi: Array) -> Evaluation:
    """Evaluate a policy's average reward.

    rho is stationary, eta = rho . r_pi (equations 10, 12), Q differential (13), and V = E_pi[Q]. V solves V = r_pi -
    eta + P_pi V with rho . V = 0, which is the sum of equation 13 where that converges and its Cesaro limit where the
    chain is periodic. The first state does not matter. Raises `ValueError` if `pi` is not a policy of `mdp`, or if its
    chain has more than one recurrent class: then eta depends on the first state.
    """
    chain, reward = _under(mdp, pi)
    # I - P has rank S - 1 exactly if there is one recurrent class; then adding the matrix of ones leaves
    # rho as the solution of rho' (I - P + 11') = 1'.
    away = np.eye(mdp.states) - chain
    if np.linalg.matrix_rank(away, tol=1e-12) < mdp.states - 1:
        raise ValueError("pi must have a single recurrent class for the average reward; see mdps.ergodic")
    visitation = np.linalg.solve((away + 1).T, np.ones(mdp.states))
    eta = float(visitation @ reward)
    value = np.linalg.solve(away + visitation, reward - eta)
    action_value = mdp.reward - eta + mdp.transition @ value
    return Evaluation(value, action_value, action_value - value[:, None], visitation, eta)


def policy_gradient(pi: Array, jacobian: Array, evaluation: Evaluation) -> Array:
    """Return the policy gradient, sum_s rho(s) sum_a dpi(a|s)/dtheta Q(s, a), [P] (equation 17; Sutton et al. 2000).

    `jacobian` is dpi(a|s)/dtheta [S, A, P]. Subtracting V, which all actions share, changes nothing but rounding.
    Holds for both objectives, each with its own rho and Q.
    """
    if jacobian.shape[:2] != pi.shape:
        raise ValueError(f"jacobian must have the shape [*{pi.shape}, parameters], not {jacobian.shape}")
    gradient: Array = np.einsum("s,sap,sa->p", evaluation.visitation, jacobian, evaluation.advantage)
    return gradient


def performance_difference(mdp: FiniteMDP, pi: Array, new: Array) -> float:
    """Return eta(new) - eta(pi) as the sum over states sum_s rho_new(s) sum_a new(a|s) A_pi(s, a) (equation 27)."""
    return advantage_of(new, evaluate(mdp, pi)._replace(visitation=evaluate(mdp, new).visitation))


def local_approximation(old: Evaluation, new: Array) -> float:
    """Return L_pi(new) = eta(pi) + sum_s rho_pi(s) sum_a new(a|s) A_pi(s, a) (equation 26), where `old` evaluates pi.

    It agrees with eta at pi in value (equations 28, 29) and gradient (equation 30).
    """
    return old.eta + advantage_of(new, old)


def advantage_of(new: Array, old: Evaluation) -> float:
    """Return the unnormalised policy advantage, sum_s rho(s) sum_a new(a|s) A(s, a), with rho and A of `old`."""
    return float(np.einsum("s,sa,sa->", old.visitation, new, old.advantage))


def greedy(evaluation: Evaluation) -> Array:
    """Return the policy that takes the first action of largest advantage in every state (equation 25)."""
    advantage = evaluation.advantage
    policy: Array = np.eye(advantage.shape[1])[advantage.argmax(1)]
    return policy


def optimal_policy(mdp: FiniteMDP) -> Array:
    """Find a deterministic policy of largest discounted return from every state, by policy iteration (Howard 1960)."""
    pi = np.eye(mdp.actions)[np.zeros(mdp.states, int)]
    while True:
        advantage = evaluate(mdp, pi).advantage
        scale = 1 + np.abs(advantage).max()
        # A tie keeps the current action: with rounding, policy iteration could otherwise cycle.
        better = advantage.max(1) > 1e-13 * scale
        if not better.any():
            return pi
        pi = np.where(better[:, None], np.eye(mdp.actions)[advantage.argmax(1)], pi)


def _under(mdp: FiniteMDP, pi: Array) -> tuple[Array, Array]:
    """Return state transitions P_pi [S, S] and expected reward r_pi [S] of the chain of `mdp` under `pi`."""
    if pi.shape != mdp.reward.shape:
        raise ValueError(f"pi must have the shape {mdp.reward.shape} of the MDP's rewards, not {pi.shape}")
    require_distributions("pi", pi)
    return np.einsum("sa,sat->st", pi, mdp.transition), np.einsum("sa,sa->s", pi, mdp.reward)
