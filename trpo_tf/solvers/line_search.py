"""Backtracking line search under a constraint."""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf


class Accepted(NamedTuple):
    """The step length found, 0 if none was; what was evaluated there; the lengths tried (int32)."""

    length: Any
    gain: Any
    constraint: Any
    aux: Any
    tries: Any


def backtracking_line_search(
    evaluate: Callable[[Any], tuple[Any, Any, Any]], *, limit: float, ratio: float, max_tries: int, dtype: Any
) -> Accepted:
    """The first of the lengths 1, ratio, ratio^2 ... that gains something and keeps the constraint.

    Args:
        evaluate: length -> (gain, constraint, an auxiliary value that plays no part in the search), scalars.
        limit: the most that the constraint may be.
        ratio: between one length and the next.
        max_tries: lengths to try.
        dtype: of the length.

    Returns:
        See `Accepted`. A gain or constraint that is not finite is never accepted. If no length is, all but
        `tries` are 0.
    """
    zero = tf.zeros((), dtype)

    def unfinished(tries: Any, length: Any, values: Any, accepted: Any) -> Any:  # noqa: ARG001
        return (tries < max_tries) & ~accepted

    def body(tries: Any, length: Any, values: Any, accepted: Any) -> tuple[Any, ...]:  # noqa: ARG001
        length = tf.cast(ratio, dtype) ** tf.cast(tries, dtype)
        gain, constraint, aux = evaluate(length)
        finite = tf.math.is_finite(gain) & tf.math.is_finite(constraint)
        return tries + 1, length, (gain, constraint, aux), finite & (gain > 0) & (constraint <= limit)

    state = (tf.constant(0), zero, (zero, zero, zero), tf.constant(False))
    tries, length, values, accepted = tf.while_loop(unfinished, body, state)
    length, gain, constraint, aux = (tf.where(accepted, value, zero) for value in (length, *values))
    return Accepted(length, gain, constraint, aux, tries)
