"""Trust region policy optimization: the natural gradient, and a line search that keeps the trust region.

Schulman et al. 2015, section 6 and appendix C: maximise the surrogate subject to mean KL(old || new) <= max_kl.
"""

from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple

import tensorflow as tf

from trpo_tf.config import TrustRegionConfig
from trpo_tf.policies.policy import Policy
from trpo_tf.solvers.conjugate_gradient import SolverStatus, conjugate_gradient
from trpo_tf.solvers.line_search import backtracking_line_search
from trpo_tf.updates.problem import LocalProblem, Rows


class UpdateStatus(IntEnum):
    """Whether the update was made, and if not, why the old parameters stand."""

    ACCEPTED = 0
    ZERO_GRADIENT = 1
    NON_FINITE_GRADIENT = 2
    NON_POSITIVE_CURVATURE = 3
    NON_FINITE_SOLUTION = 4
    LINE_SEARCH_FAILED = 5


class Update(NamedTuple):
    """New parameters, and scalars about how they came; docs/metrics.md defines each."""

    theta: Any  # [P], the old ones to the bit unless status is ACCEPTED
    status: Any  # int32, an UpdateStatus
    surrogate_gain: Any
    expected_gain: Any
    mean_kl: Any
    max_kl: Any
    entropy: Any
    gradient_norm: Any
    cg_iterations: Any
    cg_residual: Any
    line_search_tries: Any


def trpo_update(problem: LocalProblem, config: TrustRegionConfig) -> Update:
    """One update from `problem`. Measured after the step, the mean KL is at most `max_kl`."""
    theta = problem.theta
    surrogate, gradient = problem.gradient()
    norm = tf.norm(gradient)

    def damped_product(vector: Any) -> Any:
        return problem.fisher_vector_product(vector) + config.damping * vector

    solution = conjugate_gradient(
        damped_product, gradient, iterations=config.cg_iterations, tolerance=config.cg_tolerance
    )
    # The step along x for which the quadratic model of the KL, x'Fx / 2, reaches max_kl.
    curvature = tf.tensordot(solution.x, damped_product(solution.x), 1)
    step = tf.sqrt(2.0 * config.max_kl / curvature) * solution.x

    def evaluate(length: Any) -> tuple[Any, Any]:
        candidate = theta + length * step
        return problem.surrogate(candidate) - surrogate, problem.kl(candidate)[0]

    status = _status_before_search(norm, solution.status, curvature)
    search = backtracking_line_search(
        evaluate,
        limit=config.max_kl,
        ratio=config.backtrack_ratio,
        max_tries=tf.where(status == UpdateStatus.ACCEPTED, config.max_backtracks, 0),
        dtype=theta.dtype,
    )
    failed = (status == UpdateStatus.ACCEPTED) & (search.length == 0)
    status = tf.where(failed, int(UpdateStatus.LINE_SEARCH_FAILED), status)
    # tf.where rather than a product with 0: 0 x NaN would reach the parameters.
    theta = tf.where(status == UpdateStatus.ACCEPTED, theta + search.length * step, theta)
    return Update(
        theta=theta,
        status=status,
        surrogate_gain=search.gain,
        expected_gain=tf.tensordot(gradient, step, 1),
        mean_kl=search.constraint,
        max_kl=problem.kl(theta)[1],
        entropy=problem.entropy(),
        gradient_norm=norm,
        cg_iterations=solution.iterations,
        cg_residual=solution.residual,
        line_search_tries=search.tries,
    )


def compile_update(policy: Policy, config: TrustRegionConfig) -> Callable[[Any, Rows], Update]:
    """The whole update as one compiled function of parameters [P] and rows.

    XLA compiles it for dense networks; on convolutions XLA is slower on a CPU than TensorFlow's own kernels.
    """

    def update(theta: Any, rows: Rows) -> Update:
        return trpo_update(LocalProblem(policy, theta, Rows(*rows)), config)

    return tf.function(update, autograph=False, jit_compile=policy.network.dense_only)  # type: ignore[no-any-return]


def _status_before_search(gradient_norm: Any, solver_status: Any, curvature: Any) -> Any:
    status = tf.constant(UpdateStatus.ACCEPTED, tf.int32)
    for condition, reason in (
        (~tf.math.is_finite(curvature), UpdateStatus.NON_FINITE_SOLUTION),
        (solver_status == SolverStatus.NON_FINITE, UpdateStatus.NON_FINITE_SOLUTION),
        (curvature <= 0, UpdateStatus.NON_POSITIVE_CURVATURE),
        (solver_status == SolverStatus.NON_POSITIVE_CURVATURE, UpdateStatus.NON_POSITIVE_CURVATURE),
        (gradient_norm == 0, UpdateStatus.ZERO_GRADIENT),
        (~tf.math.is_finite(gradient_norm), UpdateStatus.NON_FINITE_GRADIENT),
    ):
        status = tf.where(condition, int(reason), status)
    return status
