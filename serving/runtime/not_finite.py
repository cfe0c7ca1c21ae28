"""Outputs that are not finite, and whether an absurd input explains them: then it is its sender's error."""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from trpo_tf.serving.bundle.manifest import ArraySpec, Manifest, NoiseSpec, Statistics
from trpo_tf.serving.runtime.observation_bounds import is_outside
from trpo_tf.serving.runtime.observations import Array, is_finite

MOST_DEVIATIONS = 1e6
"""Standard deviations of training beyond which an observation is absurd."""

MOST_NOISE = 1e6
"""Noise is of a standard law, so that what is beyond this was never drawn."""


class NotFiniteError(FloatingPointError):
    """An output is not finite.

    Attributes:
        answers: what the graph gave, by name.
        is_absurd: whether each row that is not finite comes of an input that no policy could be asked for.
    """

    def __init__(self, message: str, answers: Mapping[str, Array], *, is_absurd: bool) -> None:
        super().__init__(message)
        self.answers, self.is_absurd = answers, is_absurd


def check_finite(answers: Mapping[str, Array], feeds: Mapping[str, Array], manifest: Manifest) -> None:
    """Raise `NotFiniteError` unless all outputs [batch, ...] that came of the inputs `feeds` [batch, ...] are finite.

    An input is absurd if it is outside its bounds, more than `MOST_DEVIATIONS` from the training's mean, or so large
    that its square is infinite, as a float32 at most: networks compute with those.
    """
    for name, values in answers.items():
        if values.dtype.kind == "f" and not is_finite(values):
            rows = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
            culprit = _absurd_input({key: feed[rows] for key, feed in feeds.items()}, manifest)
            hint = f"input {culprit!r} holds an absurd value" if culprit else "check the observation against its bounds"
            raise NotFiniteError(f"output {name!r} is not finite; {hint}", answers, is_absurd=culprit is not None)


def _absurd_input(feeds: Mapping[str, Array], manifest: Manifest) -> str | None:
    """An input that is absurd in some row, if every row has one."""
    absurd = {
        spec.name: _is_absurd(feeds[spec.name], spec, manifest.statistics.get(spec.name))
        for spec in _specs(manifest)
        if spec.name in feeds
    }
    if not np.logical_or.reduce([*absurd.values()]).all():
        return None
    return next(name for name, rows in absurd.items() if rows.any())


def _specs(manifest: Manifest) -> Iterable[ArraySpec | NoiseSpec]:
    return (*manifest.observation, manifest.noise)


def _is_absurd(feed: Array, spec: ArraySpec | NoiseSpec, training: Statistics | None) -> NDArray[np.bool_]:
    """Which rows [batch] of an input [batch, ...] are absurd."""
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
