"""Backtracking line search under a constraint."""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf


class Accepted(NamedTuple):
    """Result of the search: the accepted length, and the gain, constraint and auxiliary value there.

    They are 0 if no length was accepted. `tries` counts the lengths tried (int32).
    """

    length: Any
    gain: Any
    constraint: Any
    aux: Any
    tries: Any


def backtracking_line_search(
    evaluate: Callable[[Any], tuple[Any, Any, Any]], *, limit: float, ratio: float, max_tries: int, dtype: Any
) -> Accepted:
    """Find the first of the lengths 1, ratio, ratio^2 ... with a positive gain that keeps the constraint.

    Args:
        evaluate: length -> (gain, constraint, auxiliary value), scalars; the auxiliary value is not used in the search.
        limit: upper limit of the constraint.
        ratio: factor from one length to the next.
        max_tries: maximum number of lengths to try.
        dtype: dtype of the length.

    Returns:
        See `Accepted`. A gain or constraint that is not finite is never accepted.
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
