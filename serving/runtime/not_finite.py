"""Checks for outputs that are not finite, and whether an absurd input explains them.

An absurd input makes it the client's error rather than the server's.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from trpo_tf.serving.bundle.manifest import Manifest
from trpo_tf.serving.bundle.specs import ArraySpec, NoiseSpec, Statistics
from trpo_tf.serving.runtime.observation_bounds import is_outside
from trpo_tf.serving.runtime.observations import Array, all_finite

MOST_DEVIATIONS = 1e6
"""Distance from the training mean beyond which an observation is absurd, in standard deviations of training."""

MOST_NOISE = 1e6
"""Absolute value beyond which noise is absurd: a standard distribution practically never gives it."""


class NotFiniteError(FloatingPointError):
    """An output is not finite.

    Attributes:
        answers: the outputs of the graph, by name.
        is_absurd: whether each row that is not finite has an absurd input.
    """

    def __init__(self, message: str, answers: Mapping[str, Array], *, is_absurd: bool) -> None:
        super().__init__(message)
        self.answers, self.is_absurd = answers, is_absurd


def check_finite(answers: Mapping[str, Array], feeds: Mapping[str, Array], manifest: Manifest) -> None:
    """Raise `NotFiniteError` unless all outputs [batch, ...] are finite; `feeds` are the inputs [batch, ...].

    An observation is absurd if it is outside its bounds, or more than `MOST_DEVIATIONS` from the training mean. It is
    also absurd if its square overflows its own dtype, or float32, in which networks compute.
    """
    for name, values in answers.items():
        if values.dtype.kind == "f" and not all_finite(values):
            rows = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
            culprit = _absurd_input({key: feed[rows] for key, feed in feeds.items()}, manifest)
            hint = f"input {culprit!r} holds an absurd value" if culprit else "check the observation against its bounds"
            raise NotFiniteError(f"output {name!r} is not finite; {hint}", answers, is_absurd=culprit is not None)


def _absurd_input(feeds: Mapping[str, Array], manifest: Manifest) -> str | None:
    """Return the name of an absurd input if every row has one, otherwise None."""
    absurd = {
        spec.name: _is_absurd(feeds[spec.name], spec, manifest.statistics.get(spec.name))
        for spec in _specs(manifest)
        if spec.name in feeds
    }
    if not np.logical_or.reduce([*absurd.values()]).all():
        return None
    return next(name for name, rows in absurd.items() if rows.any())


def _specs(manifest: Manifest) -> Iterable[ArraySpec | NoiseSpec]:
    return (*manifest.step_inputs, manifest.noise)


def _is_absurd(feed: Array, spec: ArraySpec | NoiseSpec, training: Statistics | None) -> NDArray[np.bool_]:
    """Return a mask [batch] of the rows in which an input [batch, ...] is absurd."""
    if isinstance(spec, NoiseSpec):
        absurd = np.abs(feed.astype(np.float64)) > MOST_NOISE
    else:
        absurd = is_outside(feed, spec)
        if feed.dtype.kind == "f":
            largest = min(float(np.finfo(feed.dtype).max), float(np.finfo(np.float32).max))
            absurd |= np.abs(feed.astype(np.float64)) > np.sqrt(largest)
        if training is not None:
            mean, stddev = np.reshape(training.mean, spec.shape), np.reshape(training.stddev, spec.shape)
            absurd |= np.abs(feed.astype(np.float64) - mean) > MOST_DEVIATIONS * stddev
    return np.asarray(absurd.reshape(len(feed), -1).any(axis=1))
