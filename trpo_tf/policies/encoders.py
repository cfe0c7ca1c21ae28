"""The encoder: from observations as the environment gives them to what a network sees, inside the policy's graph."""

import math
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from serving import ArraySpec
from serving.observations import Observation, by_name
from trpo_tf.normalization import OBSERVATION_CLIP, Normalizer

_SMALLEST_IMAGE = 16
"""Pixels, each way: what is smaller is a table of numbers."""


class Encoder:
    """A function of the frozen statistics and an observation [batch, ...].

    A network's inputs are the numbers of all parts side by side, float [batch, width], then each image as it is, uint8
    [batch, height, width, channels]; a tuple if there are several.
    """

    def __init__(
        self,
        *,
        normalized: Sequence[ArraySpec] = (),
        plain: Sequence[ArraySpec] = (),
        choices: Sequence[ArraySpec] = (),
        images: Sequence[ArraySpec] = (),
    ) -> None:
        """Parts of the observation by what becomes of them.

        `normalized` numbers are standardised and clipped to +-10 deviations, `plain` ones are left as they are,
        `choices` become one-hot vectors, whose first and last are the spec's bounds.
        """
        self._normalized, self._plain, self._choices, self._images = normalized, plain, choices, images
        self._only = next(spec.name for group in (normalized, plain, choices, images) for spec in group)
        self.statistics = _size(normalized)
        options = sum(int(count) for spec in choices for count in _counts(spec))
        self.width = self.statistics + _size(plain) + options
        self.inputs = [tf.TensorSpec((None, self.width), tf.float32)] if self.width else []
        self.inputs += [tf.TensorSpec((None, *_channels_last_shape(spec)), spec.dtype) for spec in images]

    def __call__(self, normalizer: Normalizer, observation: Any) -> Any:
        """The network's inputs; numbers have the normaliser's float type."""
        parts, dtype = by_name(observation, self._only), normalizer.mean.dtype
        columns = [_flat(parts[spec.name], spec, dtype) for spec in self._normalized]
        if columns:
            values = (_side_by_side(columns) - normalizer.mean) * normalizer.scale
            columns = [tf.clip_by_value(values, -OBSERVATION_CLIP, OBSERVATION_CLIP)]
        columns += [_flat(parts[spec.name], spec, dtype) for spec in self._plain]
        columns += [one_hot for spec in self._choices for one_hot in _one_hot(parts[spec.name], spec, dtype)]
        inputs = [_side_by_side(columns)] if columns else []
        inputs += [_channels_last(parts[spec.name], spec) for spec in self._images]
        return inputs[0] if len(inputs) == 1 else tuple(inputs)

    def by_part(self, statistics: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Statistics [statistics] as those of each normalised part, flat, by its name."""
        ends = np.cumsum([math.prod(spec.shape) for spec in self._normalized], dtype=int)
        parts = np.split(statistics, ends[:-1])
        return {spec.name: part for spec, part in zip(self._normalized, parts, strict=False)}

    def measured(self, observations: Observation) -> NDArray[np.float64]:
        """What the statistics are taken of: the normalised numbers of observations [n, ...], as [n, statistics]."""
        parts = by_name(observations, self._only)
        rows = [parts[spec.name].reshape(-1, math.prod(spec.shape)) for spec in self._normalized]
        return np.concatenate(rows, axis=1, dtype=np.float64) if rows else np.zeros((0, 0))


def make_encoder(spaces: Sequence[gym.Space[Any]], specs: Sequence[ArraySpec], *, normalize: bool) -> Encoder:
    """The encoder of an observation whose parts have these spaces and specs."""
    groups: dict[str, list[ArraySpec]] = {"normalized": [], "plain": [], "choices": [], "images": []}
    for space, spec in zip(spaces, specs, strict=True):
        if isinstance(space, gym.spaces.Discrete | gym.spaces.MultiDiscrete):
            kind = "choices"
        elif is_image(spec):
            kind = "images"
        else:
            kind = "normalized" if normalize and isinstance(space, gym.spaces.Box) else "plain"
        groups[kind].append(spec)
    return Encoder(**groups)


def is_image(spec: ArraySpec) -> bool:
    """Whether an array is pixels: bytes in three dimensions, channels (or stacked frames) the smallest of them."""
    if spec.dtype != "uint8" or len(spec.shape) != 3:
        return False
    height, width, _ = _channels_last_shape(spec)
    return min(height, width) >= _SMALLEST_IMAGE


def _channels_last_shape(spec: ArraySpec) -> tuple[int, ...]:
    return (*spec.shape[1:], spec.shape[0]) if _channels_first(spec) else spec.shape


def _channels_last(image: Any, spec: ArraySpec) -> Any:
    return tf.transpose(image, (0, 2, 3, 1)) if _channels_first(spec) else image


def _channels_first(spec: ArraySpec) -> bool:
    return spec.shape[0] < spec.shape[2]


def _size(specs: Sequence[ArraySpec]) -> int:
    return sum(math.prod(spec.shape) for spec in specs)


def _flat(values: Any, spec: ArraySpec, dtype: Any) -> Any:
    numbers = tf.cast(values, dtype)
    return numbers if len(spec.shape) == 1 else tf.reshape(numbers, (-1, math.prod(spec.shape)))


def _counts(spec: ArraySpec) -> NDArray[np.int64]:
    low, high = spec.bounds()
    return (high - low).ravel().astype(np.int64) + 1


def _one_hot(values: Any, spec: ArraySpec, dtype: Any) -> list[Any]:
    counts, first = _counts(spec), spec.bounds()[0].ravel().astype(np.int64)
    choices = tf.reshape(tf.cast(values, tf.int64), (-1, len(counts))) - first
    # Sliced, since LiteRT has no `tf.unstack` of int64.
    return [tf.one_hot(choices[:, place], int(count), dtype=dtype) for place, count in enumerate(counts)]


def _side_by_side(columns: list[Any]) -> Any:
    return columns[0] if len(columns) == 1 else tf.concat(columns, axis=1)
