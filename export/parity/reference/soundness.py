"""Check a policy by itself, before any target is compared with it.

Its answers must repeat, must not depend on the other rows of a batch, must be finite and within the declared bounds.
Its choices must maximise its scores.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from trpo_tf.export.errors import ExportError
from trpo_tf.export.parity.reference.answers import (
    NO_OPTION,
    Answered,
    Reference,
    choices,
    flat,
    matches,
    matches_output,
)
from trpo_tf.export.parity.reference.legal_actions import check_legal
from trpo_tf.export.policy.spec import PolicySpec
from trpo_tf.serving import ArraySpec
from trpo_tf.serving.runtime.observations import Array, list_parts
from trpo_tf.serving.verify import ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE, difference, outside_bounds

_FINITE_SHARE = 0.5
_SHOWN = 4
"""Most numbers of an observation in a message."""


def check_rows(reference: Reference, cases: Answered, sizes: Sequence[int] = ()) -> None:
    """Raise `ExportError` if the answer to a case depends on the other rows of its batch.

    `cases` holds answers computed one by one. They are compared with answers in batches of each of `sizes` and of all
    cases, in shuffled order. A batch of one finds answers that differ from call to call.
    """
    rng = np.random.default_rng(1)
    for size in (*sizes, len(cases)):
        expected = cases.take(rng.permutation(len(cases)))
        _refuse_other(reference.answered(expected.observations, expected.noise, size), expected, size)


def _refuse_other(answered: Answered, expected: Answered, size: int) -> None:
    for name, array in outputs_of(answered).items():
        right = matches_scores(answered, expected) if name == answered.action else None
        right = matches_output(array, expected, name) if right is None else right
        if right.all():
            continue
        if size == 1:
            raise ExportError(
                f"the policy's {name!r} for one observation and noise is another each time: it draws random numbers, "
                "or keeps a state; use the noise that it is given, and make a state an input"
            )
        row = int(np.flatnonzero(~right)[0])
        worst = difference(array[row], outputs_of(expected)[name][row])
        raise ExportError(
            f"the policy's {name!r} for an observation depends on the others of its batch: by {worst:.3g} in one of "
            f"{size}, from what it is alone; look for a mean, norm or softmax without its axis, or for batch "
            "normalisation in training mode"
        )


def matches_scores(answered: Answered, expected: Answered) -> NDArray[np.bool_] | None:
    """Mark rows whose scores are equal up to rounding and whose choices are best; None without scores."""
    if answered.scores is None or expected.scores is None:
        return None
    one, other = (flat(scores).astype(np.float64) for scores in (answered.scores, expected.scores))
    # The scores of options that can't be chosen are so low that they would allow any difference.
    largest = np.abs(np.where(np.isfinite(other) & (other > NO_OPTION), other, 0.0)).max(axis=1, keepdims=True)
    size = np.maximum(largest, np.where(np.isfinite(other), np.abs(other), 0.0))
    with np.errstate(invalid="ignore"):
        close = (np.abs(one - other) <= ABSOLUTE_TOLERANCE + RELATIVE_TOLERANCE * size) | (one == other)
    return np.asarray(close.all(axis=1) & matches(answered.actions, expected))


def check_actions(cases: Answered, spec: PolicySpec) -> None:
    """Raise `ExportError` for actions that are not finite, out of their bounds, or that their mask forbids."""
    finite = is_finite_rows(cases.actions)
    if not finite.all():
        raise ExportError(
            "the policy answers an action that is not finite within its observations' bounds, as for "
            f"{_shown(cases, int(np.argmin(finite)))}; look for NaN in its weights, a division by zero, or a standard "
            "deviation that overflows"
        )
    check_bounds(cases.actions, spec.action, "the policy")
    check_legal(cases.actions, cases.observations, spec.mask, spec.action, "the policy")


def _shown(cases: Answered, row: int) -> str:
    """Show one observation, the first numbers of each part."""
    parts = [np.ravel(part[row]) for part in list_parts(cases.observations)]
    numbers = [
        f"[{', '.join(f'{number:.4g}' for number in part[:_SHOWN])}{', ...' * (len(part) > _SHOWN)}]" for part in parts
    ]
    return ", ".join(numbers[:_SHOWN])


def check_bounds(actions: Array, action: ArraySpec, whose: str = "") -> None:
    """Raise `ExportError` for actions [n, ...] outside the declared bounds by more than rounding."""
    outside = outside_bounds(actions, action)
    if outside.any():
        (low, high), values = action.bounds(), actions[outside].astype(np.float64)
        found = f"{values.min():.4g} to {values.max():.4g}"
        raise ExportError(
            f"{whose} answers actions of {found} outside the declared bounds ({low.min():.4g} to {high.max():.4g}); "
            "clip them, or declare the bounds that hold".lstrip()
        )


def check_scores(cases: Answered) -> None:
    """Raise `ExportError` if scores are NaN, or actions are not the index of the best score plus a constant."""
    scores = cases.scores
    if scores is None:
        return
    if np.isnan(scores).any() or not np.isfinite(scores.max(axis=-1)).all():
        raise ExportError("scores are not finite; look for an overflow or NaN in the policy's weights")
    decided = cases.take(cases.decided)
    first = flat(decided.actions).astype(np.int64) - choices(decided.actions, decided)
    if (first != first[:1]).any():
        raise ExportError("scores are not what the actions maximise; give the function whose argmax is the action")


def check_scores_shape(cases: Answered) -> None:
    """Raise `ExportError` unless there is a score for each choice of each action."""
    scores = cases.scores
    if scores is not None and (scores.ndim < 2 or scores[..., 0].size != cases.actions.size):
        shape = ", ".join(map(str, ["batch", *cases.actions.shape[1:], "n"]))
        raise ExportError(f"scores must be [{shape}], one for each choice; they have shape {list(scores.shape)}")


def check_further(visited: Answered, *, is_known: bool) -> None:
    """Raise `ExportError` for further outputs that are not finite.

    If the observations that the policy visits are known, all rows must be finite, otherwise half of them.
    """
    for name, array in visited.further.items():
        finite = is_finite_rows(array)
        if finite.mean() < (1.0 if is_known else _FINITE_SHARE):
            raise ExportError(f"output {name!r} is not finite; look for an overflow or NaN in it")


def is_finite_rows(array: Array) -> NDArray[np.bool_]:
    """Mark the rows [n] of an array [n, ...] whose numbers are all finite."""
    if array.dtype.kind != "f":
        return np.ones(len(array), bool)
    return np.asarray(np.isfinite(flat(array)).all(axis=1))


def outputs_of(cases: Answered) -> Mapping[str, Array]:
    """Return the actions and further outputs by name."""
    return {cases.action: cases.actions, **cases.further}
