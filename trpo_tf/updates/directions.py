"""Directions in parameter space along which the surrogate rises."""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from trpo_tf.config.settings import TrustRegionConfig
from trpo_tf.solvers.conjugate_gradient import SolverStatus, conjugate_gradient
from trpo_tf.updates.fisher_metric import Product, damped_product, inverse_diagonal
from trpo_tf.updates.local_problem import LocalProblem
from trpo_tf.updates.result import UpdateStatus


class Direction(NamedTuple):
    """A direction d [P], its `UpdateStatus` (ACCEPTED if valid), and the solver's iterations and residual norm."""

    vector: Any
    status: Any
    iterations: Any
    residual: Any
    curvature: Any = None
    """d'(F + damping I)d if finding d has computed it, else None."""


FindDirection = Callable[[LocalProblem, Any, TrustRegionConfig], Direction]
"""Problem, gradient [P] of its surrogate, settings -> direction."""


def gradient_direction(problem: LocalProblem, gradient: Any, config: TrustRegionConfig) -> Direction:  # noqa: ARG001
    """Return the gradient: steepest ascent in the Euclidean metric (REINFORCE; Sutton et al. 2000)."""
    accepted = tf.constant(UpdateStatus.ACCEPTED, tf.int32)
    return Direction(gradient, accepted, tf.constant(0), tf.zeros_like(gradient[0]))


def natural_gradient(problem: LocalProblem, gradient: Any, config: TrustRegionConfig) -> Direction:
    """Return (F + damping I)^-1 g, solved by conjugate gradient.

    It is the direction of steepest ascent in the Fisher metric (Kakade 2001, eq 3).
    """
    direction, product = _solved(damped_product(problem, config), gradient, config)
    return direction._replace(curvature=tf.tensordot(direction.vector, product, 1))


def compatible_weights(problem: LocalProblem, gradient: Any, config: TrustRegionConfig) -> Direction:  # noqa: ARG001
    """Return weights w of the compatible approximation f_w = psi'w to the advantage, psi = grad log pi.

    They minimise the mean of (A - psi'w)^2 + damping |w|^2 over the rows. They are the natural gradient with the
    samples' own Fisher matrix (Kakade 2001, theorem 1).
    """

    score = problem.score

    def product(vector: Any) -> Any:
        return score.backward(score.forward(vector)) + config.damping * vector

    return _solved(product, score.backward(problem.advantage), config)[0]


def _solved(product: Product, right_side: Any, config: TrustRegionConfig) -> tuple[Direction, Any]:
    """Return the direction, and the matrix times it, which is `right_side` minus the solver's residual."""
    solution = conjugate_gradient(
        product,
        right_side,
        iterations=config.cg_iterations,
        tolerance=config.cg_tolerance,
        inverse_diagonal=inverse_diagonal(product, right_side) if config.precondition else None,
    )
    status = tf.constant(UpdateStatus.ACCEPTED, tf.int32)
    for reason, update_status in (
        (SolverStatus.NON_FINITE, UpdateStatus.NON_FINITE_SOLUTION),
        (SolverStatus.NON_POSITIVE_CURVATURE, UpdateStatus.NON_POSITIVE_CURVATURE),
    ):
        status = tf.where(solution.status == int(reason), int(update_status), status)
    residual = tf.sqrt(tf.tensordot(solution.residual, solution.residual, 1))
    return Direction(solution.x, status, solution.iterations, residual), right_side - solution.residual
