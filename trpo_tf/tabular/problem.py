"""The local problem of a softmax policy on a finite MDP: every expectation an exact sum, in TensorFlow float64.

It has the members of `trpo_tf.updates.local_problem.LocalProblem` that directions and step rules ask for, so the
trainer's own updates run on it.

Equation numbers are those of docs/explanation/equations.md.
"""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import tensorflow as tf

from trpo_tf.config.settings import TrustRegionConfig
from trpo_tf.solvers.fisher_product import Linearization, gauss_newton_product, linearize
from trpo_tf.tabular.exact import Evaluation
from trpo_tf.tabular.mdps import Array
from trpo_tf.tabular.policies import indicator_features, softmax
from trpo_tf.updates.composed import directed_update
from trpo_tf.updates.directions import FindDirection
from trpo_tf.updates.local_problem import LocalProblem
from trpo_tf.updates.result import Update
from trpo_tf.updates.trust_region_steps import TakeStep


class TabularProblem:
    """Local problem of the policies softmax(phi theta) near `theta`, with fixed state weights and advantages."""

    def __init__(self, theta: Any, features: Any, states: Any, advantage: Any) -> None:
        """Take theta [P], phi [S, A, P], a distribution d of states [S] and advantages [S, A], all float64."""
        self.theta = theta
        self._features, self._states, self._table = features, states, advantage
        self._old = self._log_policy(theta)
        self._joint = states[:, None] * tf.exp(self._old)

    @property
    def advantage(self) -> Any:
        """Advantage of every pair of state and action, [S x A]; the weight of a pair is d(s) pi(a|s)."""
        return tf.reshape(self._table, [-1])

    def surrogate(self, theta: Any) -> Any:
        """Return sum_s d(s) sum_a pi_theta(a|s) A(s, a).

        That is L - eta(old) (equation 26), times 1 - gamma for discounted rho.
        """
        return tf.reduce_sum(self._states[:, None] * tf.exp(self._log_policy(theta)) * self._table)

    def gradient(self) -> tuple[Any, Any]:
        """Return the surrogate and its gradient [P] at the old policy."""
        with tf.GradientTape() as tape:
            tape.watch(self.theta)
            surrogate = self.surrogate(self.theta)
        return surrogate, tape.gradient(surrogate, self.theta)

    def kl(self, theta: Any) -> tuple[Any, Any]:
        """Return E_d[KL(old || new)] (equation 44), and the largest KL over the states that d visits (equation 38)."""
        divergence = tf.reduce_sum(tf.exp(self._old) * (self._old - self._log_policy(theta)), -1)
        visited = tf.where(self._states > 0, divergence, tf.zeros_like(divergence))
        return tf.reduce_sum(self._states * divergence), tf.reduce_max(visited)

    def fisher_vector_product(self, vector: Any) -> Any:
        """Return F v with F = E_d[F_s] (equation N14), by the trainer's Gauss-Newton product."""

        def metric(parameters: tuple[Any, ...], tangent: tuple[Any, ...]) -> tuple[Any, ...]:
            weighted = self._states[:, None] * tf.nn.softmax(parameters[0])
            mean = tf.reduce_sum(tf.nn.softmax(parameters[0]) * tangent[0], -1, keepdims=True)
            return (weighted * (tangent[0] - mean),)

        return gauss_newton_product(linearize(lambda theta: (self._logits(theta),), self.theta), metric, vector)

    @property
    def score(self) -> Linearization:
        """Products with the scores psi of every pair of state and action.

        `forward` maps v [P] to psi v [S x A]. `backward` maps values [S x A] to sum_s d(s) sum_a pi(a|s) psi(s, a) x
        values(s, a), [P].
        """

        def transposed(values: Any) -> Any:
            centred = self._joint * self._centred(tf.reshape(values, self._table.shape))
            return tf.tensordot(centred, self._features, [[0, 1], [0, 1]])

        return Linearization(
            tf.reshape(self._old, [-1]),
            lambda vector: tf.reshape(self._centred(self._logits(vector)), [-1]),
            transposed,
        )

    def entropy(self) -> Any:
        """Return the mean entropy of the old policy under d, in nats."""
        return -tf.reduce_sum(self._joint * self._old)

    def _centred(self, table: Any) -> Any:
        return table - tf.reduce_sum(tf.exp(self._old) * table, -1, keepdims=True)

    def _logits(self, theta: Any) -> Any:
        return tf.linalg.matvec(self._features, theta)

    def _log_policy(self, theta: Any) -> Any:
        return tf.nn.log_softmax(self._logits(theta))


def tabular_problem(pi: Array, evaluation: Evaluation) -> TabularProblem:
    """Return the local problem at a policy [S, A], theta = log pi, with its normalised visitation and advantages."""
    return TabularProblem(*_arguments(pi, evaluation))


def exact_update(
    find: FindDirection, take: TakeStep, config: TrustRegionConfig
) -> Callable[[Array, Evaluation], Array]:
    """Return the trainer's update with a direction and a step rule, as a function pi, evaluation -> new policy.

    It is compiled once for each shape. A rejected update leaves the policy as it was.
    """

    def update(*arguments: Any) -> Update:
        problem = cast(LocalProblem, TabularProblem(*arguments))
        return directed_update(problem, find, take, config, tf.constant(config.max_kl, tf.float64))

    compiled = tf.function(update, autograph=False, reduce_retracing=False)

    def apply(pi: Array, evaluation: Evaluation) -> Array:
        return softmax(compiled(*_arguments(pi, evaluation)).theta.numpy().reshape(pi.shape))

    return apply


def _arguments(pi: Array, evaluation: Evaluation) -> tuple[Any, ...]:
    states = evaluation.visitation / evaluation.visitation.sum()
    arrays = (np.log(pi).ravel(), indicator_features(*pi.shape), states, evaluation.advantage)
    return tuple(tf.constant(array, tf.float64) for array in arrays)
