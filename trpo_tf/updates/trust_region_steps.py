"""Step rules: how far to go along a direction, within a trust region.

Equation numbers are those of docs/explanation/equations.md.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from trpo_tf.config.settings import TrustRegionConfig
from trpo_tf.solvers.line_search import backtracking_line_search
from trpo_tf.updates.fisher_metric import damped_product
from trpo_tf.updates.local_problem import LocalProblem
from trpo_tf.updates.result import UpdateStatus


class Step(NamedTuple):
    """A step [P], its measured effect, and the trust region's radius for the next update."""

    vector: Any
    status: Any
    radius: Any
    gain: Any
    expected_gain: Any
    mean_kl: Any
    max_state_kl: Any
    tries: Any


class Slope(NamedTuple):
    """Start of a step: surrogate and gradient [P] there, the direction [P] to take, and its `curvature`."""

    surrogate: Any
    gradient: Any
    direction: Any
    curvature: Any


TakeStep = Callable[[LocalProblem, Slope, TrustRegionConfig, Any], Step]
"""Problem, slope, settings, radius of the trust region -> step."""

_LEAST_RADIUS, _MOST_RADIUS = 0.01, 10.0
"""Bounds of an adaptive radius, in multiples of max_kl."""


def l2_ball(problem: LocalProblem, slope: Slope, config: TrustRegionConfig, radius: Any) -> Step:
    """Step to the sphere |step| = `l2_radius`: the plain gradient's own trust region (equation 52)."""
    return _whole(problem, slope, config.l2_radius / tf.norm(slope.direction), radius)


def kl_sphere(problem: LocalProblem, slope: Slope, config: TrustRegionConfig, radius: Any) -> Step:
    """Step to where the quadratic model of the mean KL reaches the `radius`: normalised NPG (equation 51)."""
    return _whole(problem, slope, _kl_length(problem, slope, config, radius), radius)


def kl_bounded_backtracking(problem: LocalProblem, slope: Slope, config: TrustRegionConfig, radius: Any) -> Step:
    """Shorten the step of `kl_sphere` until the surrogate gains and the measured mean KL is at most the radius."""
    length = _kl_length(problem, slope, config, radius)
    full = length * slope.direction

    def evaluate(fraction: Any) -> tuple[Any, Any, Any]:
        candidate = problem.theta + fraction * full
        return problem.surrogate(candidate) - slope.surrogate, *problem.kl(candidate)

    sound = tf.math.is_finite(length)
    search = backtracking_line_search(
        evaluate,
        limit=radius,
        ratio=config.backtrack_ratio,
        max_tries=tf.where(sound, config.max_backtracks, 0),
        dtype=full.dtype,
    )
    status = tf.where(search.length > 0, int(UpdateStatus.ACCEPTED), int(UpdateStatus.LINE_SEARCH_FAILED))
    status = tf.where(sound, status, int(UpdateStatus.NON_POSITIVE_CURVATURE))
    expected = tf.tensordot(slope.gradient, full, 1) * tf.where(search.length > 0, search.length, 1.0)
    return Step(
        search.length * full, status, radius, search.gain, expected, search.constraint, search.aux, search.tries
    )


def adaptive_radius(problem: LocalProblem, slope: Slope, config: TrustRegionConfig, radius: Any) -> Step:
    """Step as `kl_bounded_backtracking`, and adapt the radius to how well the model predicted the gain (equation 23).

    With rho = actual / predicted gain, the radius is halved below 1/4 and doubled above 3/4. The thresholds are those
    of Nocedal & Wright 2006, algorithm 4.1; the radius here is a divergence. It stays within 0.01 to 10 times `max_kl`.
    """
    step = kl_bounded_backtracking(problem, slope, config, radius)
    rho = tf.where(step.tries > 0, step.gain / step.expected_gain, tf.zeros_like(step.gain))
    factor = tf.where(rho > 0.75, tf.constant(2.0, radius.dtype), tf.ones_like(radius))
    factor = tf.where(rho < 0.25, tf.constant(0.5, radius.dtype), factor)
    following = tf.clip_by_value(radius * factor, _LEAST_RADIUS * config.max_kl, _MOST_RADIUS * config.max_kl)
    return step._replace(radius=following)


def _kl_length(problem: LocalProblem, slope: Slope, config: TrustRegionConfig, radius: Any) -> Any:
    """Return the length at which length^2 d'(F + damping I)d / 2 = radius."""
    curvature = slope.curvature
    if curvature is None:
        curvature = tf.tensordot(slope.direction, damped_product(problem, config)(slope.direction), 1)
    return tf.sqrt(2.0 * radius / curvature)


def _whole(problem: LocalProblem, slope: Slope, length: Any, radius: Any) -> Step:
    step = length * slope.direction
    gain = problem.surrogate(problem.theta + step) - slope.surrogate
    mean_kl, max_state_kl = problem.kl(problem.theta + step)
    sound = tf.math.is_finite(gain) & tf.math.is_finite(mean_kl)
    status = tf.where(sound, int(UpdateStatus.ACCEPTED), int(UpdateStatus.NON_FINITE_STEP))
    expected = tf.tensordot(slope.gradient, step, 1)
    return Step(step, status, radius, gain, expected, mean_kl, max_state_kl, tf.constant(1))
