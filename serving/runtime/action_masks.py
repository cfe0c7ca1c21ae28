"""Check masks of legal actions: each choice of a discrete action needs a legal option."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from trpo_tf.serving.bundle.specs import ArraySpec, option_counts
from trpo_tf.serving.runtime.observations import Array

MaskCheck = Callable[[Array], None]
"""A mask [batch, n] -> None. Raises `ValueError` for a row without a legal action."""


def rows_without_action(mask: Array, counts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Mark the rows [batch] of a mask [batch, n] in which one of the choices has no legal option.

    `counts` are the options of each choice, which stand side by side in the mask.
    """
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return np.asarray(~np.logical_or.reduceat(mask != 0, starts, axis=1).all(axis=1))


def mask_check(name: str, action: ArraySpec) -> MaskCheck:
    """Return the check of the mask `name` of an `action`."""
    counts = option_counts(action)

    def check(mask: Array) -> None:
        lacking = rows_without_action(mask, counts)
        if lacking.any():
            row = "" if len(mask) == 1 else f" in row {int(np.flatnonzero(lacking)[0])}"
            each = "" if len(counts) == 1 else f" of each of the {len(counts)} choices"
            raise ValueError(f"{name!r} allows no action{row}: one option{each} must be 1 or true")

    return check


def legal_rows(actions: Array, inputs: Mapping[str, Array], name: str, action: ArraySpec) -> NDArray[np.bool_]:
    """Mark the rows [batch] whose actions the mask `name` among the inputs [batch, ...] allows."""
    counts, first = option_counts(action), action.bounds()[0].ravel()
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    choices = (actions.reshape(len(actions), -1) - first).astype(np.int64)
    known = (choices >= 0) & (choices < counts)
    places = starts + np.where(known, choices, 0)
    return np.asarray((known & (np.take_along_axis(inputs[name], places, axis=1) != 0)).all(axis=1))
