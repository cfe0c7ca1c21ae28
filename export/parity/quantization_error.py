"""Measure the error of a policy in 8 bits, relative to the error of the best constant answer."""

from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

from trpo_tf.export.parity.reference.answers import NO_OPTION, TIE, Answered, choices
from trpo_tf.serving import ArraySpec
from trpo_tf.serving.runtime.observations import Array
from trpo_tf.serving.verify import ABSOLUTE_TOLERANCE

MOST_ERROR = 0.2
"""Largest error of a target in 8 bits: it then leaves less than 4% of the answers' variance unexplained."""

MOST_ROW_ERROR = 0.5
"""Largest error of numbers on 99% of the observations. A mean alone would allow 4% of them an error of 1."""

_ROWS = 0.99

_LEAST_SPREAD = 0.05
"""Answers that vary by less than this share of their range pass for constant."""
_LEAST_SHARE = 0.01


@dataclass(frozen=True)
class OutputError:
    """Error of one output on visited observations, relative to the error of the best constant answer.

    If the output has several elements, the largest of their errors counts.

    Attributes:
        overall: root mean square of numbers, mean loss of score of choices.
        p99: error of numbers that 99% of the observations stay within.
        largest: error of numbers on one observation.
    """

    overall: float = 0.0
    p99: float = 0.0
    largest: float = 0.0

    def __or__(self, other: "OutputError") -> "OutputError":
        return OutputError(*map(max, astuple(self), astuple(other)))

    def fault(self) -> str | None:
        """Say why a target with this error may not be shipped, or return None."""
        for error, most, where in (
            (self.overall, MOST_ERROR, "the"),
            (self.p99, MOST_ROW_ERROR, "one in a hundred of the"),
        ):
            if error > most:
                return (
                    f"errs by {error:.2f} of what the best constant does on {where} observations that the policy "
                    f"visits, allowed are {most}"
                )
        return None


def action_error(actions: Array, visited: Answered, action: ArraySpec) -> OutputError:
    """Measure the error of actions [n, ...] on visited observations: 0 is exact, 1 as bad as a constant."""
    if visited.scores is not None:
        return OutputError(float(_regret(actions, visited).max()))
    if visited.actions.dtype.kind != "f":
        return OutputError(float(_other_choices(actions, visited.actions).max()))
    return output_error(actions, visited.actions, action)


def output_error(actual: Array, expected: Array, spec: ArraySpec) -> OutputError:
    """Measure the error of an output's numbers [n, ...]."""
    one, other = (array.reshape(len(expected), -1).astype(np.float64) for array in (actual, expected))
    low, high = (bound.ravel() for bound in spec.bounds())
    bounded = np.isfinite(low) & np.isfinite(high)
    size = np.where(bounded, np.where(bounded, high, 1.0) - np.where(bounded, low, 0.0), np.abs(other).max(axis=0))
    spread = np.maximum(
        np.maximum(other.std(axis=0), _LEAST_SPREAD * size), ABSOLUTE_TOLERANCE * spec.unit.ravel() / MOST_ERROR
    )
    errors = np.abs(one - other) / spread
    overall = np.sqrt(np.mean(errors**2, axis=0))
    return OutputError(float(overall.max()), float(np.quantile(errors, _ROWS, axis=0).max()), float(errors.max()))


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
