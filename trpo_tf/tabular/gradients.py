"""Exact steps along the plain and the natural gradient of tabular softmax policies, for either objective.

Equation numbers are those of docs/explanation/equations.md.
"""

import numpy as np

from trpo_tf.tabular.exact import Evaluation, policy_gradient
from trpo_tf.tabular.mdps import Array
from trpo_tf.tabular.policies import compatible_weights, indicator_features, scores, softmax


def plain_step(pi: Array, evaluation: Evaluation, step: float) -> Array:
    """Return the policy after theta + step grad eta(theta), theta = log pi: gradient ascent on eta (equation 17)."""
    score = scores(pi, indicator_features(*pi.shape))
    gradient = policy_gradient(pi, pi[..., None] * score, evaluation)
    return softmax(np.log(pi) + step * gradient.reshape(pi.shape))


def natural_step(pi: Array, evaluation: Evaluation, step: float) -> Array:
    """Return the policy after theta + step F^+ grad eta(theta), F = E_rho[F_s] (equations N14, N15).

    It is computed from the compatible weights w. For tabular softmax w(s, a) is the advantage plus a constant for each
    state, wherever rho > 0: the policy becomes pi exp(step A), renormalised.
    """
    score = scores(pi, indicator_features(*pi.shape))
    weights = compatible_weights(pi, score, evaluation.visitation, evaluation.advantage)
    return softmax(np.log(pi) + step * weights.reshape(pi.shape))
