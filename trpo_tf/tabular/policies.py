"""Softmax policies pi(a|s) proportional to exp(theta . phi(s, a)): score, Fisher information, compatible approximation.

`indicator_features` makes theta a table [S, A] flattened. Other features [S, A, P] give the log-linear policies of
Kakade 2001. In these, states share parameters, and a compatible approximation can be wrong about Q.

Equation numbers are those of docs/explanation/equations.md.
"""

import numpy as np

from trpo_tf.tabular.mdps import Array

LEAST_PROBABILITY = 1e-260
"""Least probability that a softmax policy gives an action: log pi must not underflow."""

_RANK_TOLERANCE = 1e-11
"""Singular values below this share of the largest count as 0: a softmax policy has directions that change nothing."""


def softmax(logits: Array) -> Array:
    """Return the policy [S, A] of logits [S, A], with no probability below about `LEAST_PROBABILITY`."""
    shifted = logits - logits.max(-1, keepdims=True)
    weights: Array = np.exp(np.maximum(shifted, np.log(LEAST_PROBABILITY)))
    policy: Array = weights / weights.sum(-1, keepdims=True)
    return policy


def indicator_features(states: int, actions: int) -> Array:
    """Return phi(s, a) = the unit vector of (s, a), [S, A, S x A]."""
    return np.eye(states * actions).reshape(states, actions, states * actions)


def log_linear(features: Array, theta: Array) -> Array:
    """Return the policy [S, A] of features [S, A, P] and parameters [P]."""
    return softmax(features @ theta)


def scores(pi: Array, features: Array) -> Array:
    """Return psi(s, a) = grad log pi(a|s) = phi(s, a) - E_pi[phi(s, .)] (equation N16), [S, A, P].

    pi psi is dpi/dtheta.
    """
    score: Array = features - np.einsum("sa,sap->sp", pi, features)[:, None]
    return score


def state_fisher(pi: Array, score: Array) -> Array:
    """Return F_s = E_{a ~ pi(.|s)}[psi psi'] of each state (equation N13), [S, P, P]."""
    information: Array = np.einsum("sa,sap,saq->spq", pi, score, score)
    return information


def fisher(pi: Array, score: Array, weights: Array) -> Array:
    """Return F = sum_s weights(s) F_s (equation N14: E_rho[F_s]), [P, P]."""
    information: Array = np.einsum("s,spq->pq", weights, state_fisher(pi, score))
    return information


def compatible_weights(pi: Array, score: Array, weights: Array, target: Array) -> Array:
    """Return the weights w [P] of the compatible approximation of `target` (equation N17).

    w has the least norm that minimises sum_s weights(s) sum_a pi(a|s) (w . psi(s, a) - target(s, a))^2. With rho and Q
    w is F^+ grad eta, the natural gradient (Kakade 2001, theorem 1; equation N18). Q and A give the same w, since
    scores have mean 0 in every state. F^+, the pseudo-inverse, stands for F^-1: softmax policies make F singular.
    """
    root = np.sqrt(weights[:, None] * pi)
    solution = np.linalg.lstsq(
        (root[..., None] * score).reshape(-1, score.shape[-1]), (root * target).ravel(), rcond=_RANK_TOLERANCE
    )
    return solution[0]
