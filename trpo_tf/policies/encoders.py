"""Encoders turn an environment's observations into a network's inputs, inside the policy's graph."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from trpo_tf.envs.spaces import MASK
from trpo_tf.errors import UserError
from trpo_tf.policies.running_stats import OBSERVATION_CLIP, Moments, Normalizer
from trpo_tf.serving import ArraySpec
from trpo_tf.serving.bundle.specs import MOST_STATISTICS, option_counts
from trpo_tf.serving.runtime.observations import Observation, by_name

_FIRST_CENTRED = 2.0**13
RECURRENT = "Recurrent"
"""Kind of a part that is the state of a recurrent policy, besides the kinds of Gymnasium's spaces."""
_SMALLEST_IMAGE = 16
"""Least height and width of an image, in pixels; smaller arrays are treated as numbers."""


class MaskedInputs(NamedTuple):
    """A network's inputs, and what the environment says of the actions."""

    inputs: Any  # as `Encoder` has them
    legal: Any  # bool [batch, n], the options of all choices side by side


def without_mask(encoded: Any) -> Any:
    """Return an encoded observation without its mask, if it has one: the inputs of the networks."""
    return encoded.inputs if isinstance(encoded, MaskedInputs) else encoded


class Encoder:
    """Function from frozen statistics and an observation [batch, ...] to a network's inputs.

    The inputs are the concatenated numbers of all parts, float [batch, width], and each image, uint8 [batch, height,
    width, channels]. If there are several inputs, they are a tuple. A recurrent policy's state is the last numbers. A
    mask of legal actions is no input of networks: with one, the encoder gives `MaskedInputs`.
    """

    def __init__(
        self,
        *,
        normalized: Sequence[ArraySpec] = (),
        plain: Sequence[ArraySpec] = (),
        choices: Sequence[ArraySpec] = (),
        images: Sequence[ArraySpec] = (),
        state: Sequence[ArraySpec] = (),
        mask: Sequence[ArraySpec] = (),
        offset: Sequence[float] = (),
        least_deviation: float = 0.0,
    ) -> None:
        """Group the parts of the observation by their encoding; at most one is a mask of legal actions.

        `normalized` numbers are standardised and clipped to +-10 deviations, `plain` ones are left unchanged. `choices`
        become one-hot vectors; the spec's bounds are the first and the last choice. The `offset`, one value per number,
        is subtracted in float64 before numbers become float32. Standardised numbers are divided by the root of their
        variance plus `least_deviation` squared. A recurrent policy's `state` is left unchanged. Raises `UserError` if
        the count of offsets is wrong.
        """
        self._normalized, self._choices, self._images, self._state = normalized, choices, images, state
        self._mask = mask
        self._only = next(spec.name for group in (normalized, plain, choices, images) for spec in group)
        self.statistics = _size(normalized)
        self._numbers = (*normalized, *plain)
        self.least_deviation = least_deviation
        self._offset = np.asarray(offset or np.zeros(_size(self._numbers)), np.float64)
        if self._offset.shape != (_size(self._numbers),):
            raise UserError(f"observation_offset must be {_size(self._numbers)} numbers, or none")
        options = sum(int(count) for spec in choices for count in option_counts(spec))
        self.observed_width = self.statistics + _size(plain) + options
        self.width = self.observed_width + _size(state)
        self.inputs = [tf.TensorSpec((None, self.width), tf.float32)] if self.width else []
        self.inputs += [tf.TensorSpec((None, *_channels_last_shape(spec)), spec.dtype) for spec in images]

    def __call__(self, normalizer: Normalizer, observation: Any) -> Any:
        """Return the network's inputs; numbers have the normaliser's float type."""
        inputs = self.observed(normalizer, observation)
        if self._state:
            parts = by_name(observation, self._only)
            state = [_flat(parts[spec.name], spec, inputs.dtype) for spec in self._state]
            inputs = tf.concat([inputs, *state], axis=-1)
        return self.with_mask(inputs, observation)

    def observed(self, normalizer: Normalizer, observation: Any) -> Any:
        """Return the network's inputs without a recurrent policy's state, and without a mask."""
        parts, dtype = by_name(observation, self._only), normalizer.mean.dtype
        offsets = np.split(self._offset, _ends(self._numbers)[:-1])
        columns = [
            _flat(parts[spec.name], spec, dtype, offset) for spec, offset in zip(self._numbers, offsets, strict=False)
        ]
        if self._normalized:
            count = len(self._normalized)
            values = (_side_by_side(columns[:count]) - normalizer.mean) * normalizer.scale
            columns[:count] = [tf.clip_by_value(values, -OBSERVATION_CLIP, OBSERVATION_CLIP)]
        columns += [column for spec in self._choices for column in one_hot(parts[spec.name], spec, dtype)]
        inputs = [_side_by_side(columns)] if columns else []
        inputs += [_channels_last(parts[spec.name], spec) for spec in self._images]
        return inputs[0] if len(inputs) == 1 else tuple(inputs)

    def with_mask(self, inputs: Any, observation: Any) -> Any:
        """Return the network's inputs of an observation, together with the observation's mask if it has one."""
        for spec in self._mask:
            return MaskedInputs(inputs, tf.cast(observation[spec.name], tf.bool))
        return inputs

    @property
    def flattened(self) -> list[ArraySpec]:
        """Parts as large as images that are taken as separate numbers, without regard to neighbours."""
        return [spec for spec in self._numbers if len(spec.shape) > 1 and math.prod(spec.shape) > MOST_STATISTICS]

    @property
    def has_wide_numbers(self) -> bool:
        """Whether some numbers have a type with values that float32 can't represent exactly."""
        return any(map(_is_wide, self._numbers))

    def by_part(self, statistics: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Return statistics [statistics] split into one flat array for each normalised part, by its name."""
        parts = np.split(statistics, _ends(self._normalized)[:-1])
        return {spec.name: part for spec, part in zip(self._normalized, parts, strict=False)}

    def measured(self, observations: Observation) -> NDArray[np.float64]:
        """Return the numbers that statistics are taken of, [n, statistics]: the observations' normalised parts."""
        return _rows(by_name(observations, self._only), self._normalized)

    def normalizer(self, moments: Moments) -> Normalizer:
        """Return the statistics that the graph takes, from the moments of `measured` minus the offset."""
        offset = self._offset[: self.statistics] if moments.total else 0.0
        widened = moments.widened(self.least_deviation)
        return Normalizer.of(widened._replace(mean=widened.mean - offset))

    def needed_offset(self, observation: Observation) -> tuple[float, ...]:
        """Return offsets for an environment with this first observation, or none if none is needed.

        A number of a type wider than float32 is centred by its first value if that is at least 8,192 in magnitude. From
        there on neighbouring numbers of float32 are 0.001 or more apart. Other numbers get 0.
        """
        parts = {name: part[np.newaxis] for name, part in by_name(observation, self._only).items()}
        first = _rows(parts, self._numbers).ravel()
        wide = np.repeat([_is_wide(spec) for spec in self._numbers], [math.prod(spec.shape) for spec in self._numbers])
        offset = np.where(wide & np.isfinite(first) & (np.abs(first) >= _FIRST_CENTRED), first, 0.0)
        return tuple(offset.tolist()) if offset.any() else ()


def make_encoder(
    kinds: Sequence[str],
    specs: Sequence[ArraySpec],
    *,
    normalize: bool,
    offset: Sequence[float] = (),
    least_deviation: float = 0.0,
) -> Encoder:
    """Return the encoder of an observation; `kinds` as in `Memory`. Raises `UserError` for a wrong offset."""
    names = ("normalized", "plain", "choices", "images", "state", "mask")
    groups: dict[str, list[ArraySpec]] = {name: [] for name in names}
    for kind, spec in zip(kinds, specs, strict=True):
        if kind == RECURRENT:
            group = "state"
        elif kind == MASK:
            group = "mask"
        elif kind in ("Discrete", "MultiDiscrete"):
            group = "choices"
        elif is_image(spec):
            group = "images"
        else:
            group = "normalized" if normalize and kind == "Box" else "plain"
        groups[group].append(spec)
    return Encoder(**groups, offset=offset, least_deviation=least_deviation)


def is_image(spec: ArraySpec) -> bool:
    """Return whether an array is an image: bytes in three dimensions, the smallest of them channels or frames."""
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


def _ends(specs: Sequence[ArraySpec]) -> NDArray[np.int64]:
    return np.cumsum([math.prod(spec.shape) for spec in specs], dtype=np.int64)


def _is_wide(spec: ArraySpec) -> bool:
    """Return whether float32 can't represent all values of the part's type."""
    return np.dtype(spec.dtype).itemsize > 2 and spec.dtype != "float32"


def _rows(parts: Mapping[str, NDArray[Any]], specs: Sequence[ArraySpec]) -> NDArray[np.float64]:
    """Return the numbers of these parts [n, ...], concatenated to [n, numbers]."""
    rows = [parts[spec.name].reshape(-1, math.prod(spec.shape)) for spec in specs]
    return np.concatenate(rows, axis=1, dtype=np.float64) if rows else np.zeros((0, 0))


def _flat(values: Any, spec: ArraySpec, dtype: Any, offset: NDArray[np.float64] | None = None) -> Any:
    if offset is not None and offset.any():
        values = tf.cast(values, tf.float64) - offset.reshape(spec.shape)
    numbers = tf.cast(values, dtype)
    return numbers if len(spec.shape) == 1 else tf.reshape(numbers, (-1, math.prod(spec.shape)))


def one_hot(values: Any, spec: ArraySpec, dtype: Any) -> list[Any]:
    """Return each choice of an integer part [batch, ...] as a one-hot vector [batch, options]."""
    counts, first = option_counts(spec), spec.bounds()[0].ravel().astype(np.int64)
    choices = tf.reshape(tf.cast(values, tf.int64), (-1, len(counts))) - first
    # Sliced, since LiteRT has no `tf.unstack` of int64.
    return [tf.one_hot(choices[:, place], int(count), dtype=dtype) for place, count in enumerate(counts)]


def _side_by_side(columns: list[Any]) -> Any:
    return columns[0] if len(columns) == 1 else tf.concat(columns, axis=1)
