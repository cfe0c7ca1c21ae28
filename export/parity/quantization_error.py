"""Measure the error of a policy in 8 bits, relative to the error of the best constant answer."""

import numpy as np
from numpy.typing import NDArray

from trpo_tf.export.parity.reference.answers import NO_OPTION, TIE, Answered, choices
from trpo_tf.serving import ArraySpec
from trpo_tf.serving.runtime.observations import Array
from trpo_tf.serving.verify import ABSOLUTE_TOLERANCE

MOST_ERROR = 0.2
"""Largest error of a target in 8 bits: it then leaves less than 4% of the answers' variance unexplained."""

_LEAST_SPREAD = 0.05
"""Answers that vary by less than this share of their range pass for constant."""
_LEAST_SHARE = 0.01


def action_error(actions: Array, visited: Answered, action: ArraySpec) -> float:
    """Measure the error of actions [n, ...] on visited observations: 0 is exact, 1 as bad as a constant.

    For numbers the error is the root mean square, for choices the mean loss of score. It is divided by that of the best
    constant answer. If an action has several elements, the largest error counts.
    """
    if visited.scores is not None:
        return float(_regret(actions, visited).max())
    if visited.actions.dtype.kind != "f":
        return float(_other_choices(actions, visited.actions).max())
    return output_error(actions, visited.actions, action)


def output_error(actual: Array, expected: Array, spec: ArraySpec) -> float:
    """Measure the error of an output's numbers [n, ...], on the scale of `action_error`: 0 is exact."""
    one, other = (array.reshape(len(expected), -1).astype(np.float64) for array in (actual, expected))
    low, high = (bound.ravel() for bound in spec.bounds())
    bounded = np.isfinite(low) & np.isfinite(high)
    size = np.where(bounded, np.where(bounded, high, 1.0) - np.where(bounded, low, 0.0), np.abs(other).max(axis=0))
    spread = np.maximum(np.maximum(other.std(axis=0), _LEAST_SPREAD * size), ABSOLUTE_TOLERANCE / MOST_ERROR)
    error = np.sqrt(np.mean((one - other) ** 2, axis=0))
    return float((error / spread).max())


def _regret(actions: Array, visited: Answered) -> NDArray[np.float64]:
    assert visited.scores is not None
    scores = visited.scores.reshape(len(visited), -1, visited.scores.shape[-1]).astype(np.float64)
    lost = scores.max(axis=-1, keepdims=True) - scores  # of each choice
    # A constant answer may be illegal; it then loses as much as the worst that is legal.
    lost = np.minimum(lost, np.where(scores > NO_OPTION, lost, 0.0).max(axis=-1, keepdims=True))
    chosen = np.clip(choices(actions, visited), 0, scores.shape[-1] - 1)[..., np.newaxis]
    found = np.take_along_axis(lost, chosen, axis=-1)[..., 0].mean(axis=0)
    constant = lost.mean(axis=0).min(axis=-1)
    second = np.partition(lost, 1, axis=-1)[..., 1] if lost.shape[-1] > 1 else lost[..., 0]
    least = np.maximum(_LEAST_SPREAD * second.mean(axis=0), TIE / MOST_ERROR)
    return np.asarray(found / np.maximum(constant, least))


def _other_choices(actual: Array, expected: Array) -> NDArray[np.float64]:
    rows = (len(expected), -1)
    one, other = actual.reshape(rows), expected.reshape(rows)
    most_frequent = np.array([np.unique(column, return_counts=True)[1].max() for column in other.T])
    rest = np.maximum(1 - most_frequent / len(other), _LEAST_SHARE / MOST_ERROR)
    return np.asarray((one != other).mean(axis=0) / rest)
