"""Conjugate gradient for symmetric positive definite systems that are given by matrix-vector products."""

from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple

import tensorflow as tf


class SolverStatus(IntEnum):
    """Reason why the solver stopped."""

    CONVERGED = 0
    ITERATION_LIMIT = 1
    NON_POSITIVE_CURVATURE = 2
    NON_FINITE = 3


class Solution(NamedTuple):
    """Result: x, the recursively updated residual b - A x, iterations done (int32), and a `SolverStatus` (int32)."""

    x: Any
    residual: Any
    iterations: Any
    status: Any


def conjugate_gradient(
    matvec: Callable[[Any], Any],
    b: Any,
    *,
    iterations: int,
    tolerance: float = 1e-10,
    inverse_diagonal: Any = None,
) -> Solution:
    """Solve A x = b (Hestenes & Stiefel 1952), from x = 0, until |b - A x| <= tolerance |b|.

    Args:
        matvec: v -> A v, both [P].
        b: right side [P], of any float type.
        iterations: maximum number of products.
        tolerance: residual relative to |b|.
        inverse_diagonal: positive diagonal preconditioner [P], which residuals are multiplied by.

    Returns:
        The last valid x. A direction d with d'Ad <= 0, or a value that is not finite, ends the iteration before x
        changes, and the status says so. The caller decides whether to use such an x.
    """
    limit = tolerance**2 * _square(b)
    running = tf.constant(SolverStatus.ITERATION_LIMIT, tf.int32)

    def preconditioned(r: Any) -> Any:
        return r if inverse_diagonal is None else inverse_diagonal * r

    def status_of(rr: Any) -> Any:
        finite = tf.math.is_finite(rr)
        done = tf.where(rr <= limit, int(SolverStatus.CONVERGED), running)
        return tf.where(finite, done, int(SolverStatus.NON_FINITE))

    def unfinished(i: Any, x: Any, r: Any, d: Any, rz: Any, status: Any) -> Any:  # noqa: ARG001
        return (i < iterations) & (status == running)

    def body(i: Any, x: Any, r: Any, d: Any, rz: Any, status: Any) -> tuple[Any, ...]:
        product = matvec(d)
        curvature = tf.tensordot(d, product, 1)
        step = rz / curvature
        next_r = r - step * product
        z = preconditioned(next_r)
        next_rz = tf.tensordot(next_r, z, 1)
        status = tf.where(curvature <= 0, int(SolverStatus.NON_POSITIVE_CURVATURE), status_of(_square(next_r)))
        status = tf.where(tf.math.is_finite(curvature), status, int(SolverStatus.NON_FINITE))
        sound = status <= running
        return (
            i + 1,
            tf.where(sound, x + step * d, x),
            tf.where(sound, next_r, r),
            z + (next_rz / rz) * d,
            next_rz,
            status,
        )

    z = preconditioned(b)
    state = (tf.constant(0), tf.zeros_like(b), b, z, tf.tensordot(b, z, 1), status_of(_square(b)))
    i, x, r, _, _, status = tf.while_loop(unfinished, body, state)
    return Solution(x, r, i, status)


def _square(vector: Any) -> Any:
    return tf.tensordot(vector, vector, 1)
