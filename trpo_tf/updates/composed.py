"""Compose updates of a direction and a step rule, TRPO's among them."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from trpo_tf.config.settings import Config, TrustRegionConfig
from trpo_tf.updates.directions import FindDirection, compatible_weights, gradient_direction, natural_gradient
from trpo_tf.updates.local_problem import LocalProblem
from trpo_tf.updates.result import Update, UpdateStatus
from trpo_tf.updates.trust_region_steps import (
    Slope,
    TakeStep,
    adaptive_radius,
    kl_bounded_backtracking,
    kl_sphere,
    l2_ball,
)


def directed_update(
    problem: LocalProblem, find: FindDirection, take: TakeStep, config: TrustRegionConfig, radius: Any
) -> Update:
    """Return one update of `problem`; the old parameters are kept unless direction and step are both valid."""
    surrogate, gradient = problem.gradient()
    norm = tf.sqrt(tf.tensordot(gradient, gradient, 1))
    direction = find(problem, gradient, config)
    step = take(problem, Slope(surrogate, gradient, direction.vector, direction.curvature), config, radius)

    status = tf.where(direction.status == UpdateStatus.ACCEPTED, step.status, direction.status)
    status = tf.where(norm == 0, int(UpdateStatus.ZERO_GRADIENT), status)
    status = tf.where(tf.math.is_finite(norm), status, int(UpdateStatus.NON_FINITE_GRADIENT))
    accepted = status == UpdateStatus.ACCEPTED
    # tf.where rather than a product with 0: 0 x NaN would reach the parameters.
    theta = tf.where(accepted, problem.theta + step.vector, problem.theta)
    zero = tf.zeros_like(norm)
    return Update(
        theta=theta,
        status=status,
        adapted=step.radius,
        surrogate_gain=tf.where(accepted, step.gain, zero),
        expected_gain=step.expected_gain,
        mean_kl=tf.where(accepted, step.mean_kl, zero),
        max_state_kl=tf.where(accepted, step.max_state_kl, zero),
        entropy=problem.entropy(),
        gradient_norm=norm,
        cg_iterations=direction.iterations,
        cg_residual=direction.residual,
        line_search_tries=step.tries,
    )


def composed(find: FindDirection, take: TakeStep) -> Callable[[LocalProblem, Config, Any, Any], Update]:
    """Return the rule of an algorithm that goes in this direction by this step, without minibatches."""

    def rule(problem: LocalProblem, config: Config, radius: Any, minibatches: Any) -> Update:  # noqa: ARG001
        return directed_update(problem, find, take, config.trust_region, radius)

    return rule


trpo = composed(natural_gradient, kl_bounded_backtracking)
"""Trust region policy optimization (Schulman et al. 2015, section 6 and appendix C)."""
trpo_adaptive = composed(natural_gradient, adaptive_radius)
npg = composed(natural_gradient, kl_sphere)
nac = composed(compatible_weights, kl_sphere)
vpg = composed(gradient_direction, l2_ball)
