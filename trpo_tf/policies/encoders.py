"""Encoders: from observations as the environment gives them to what a network sees, inside the policy's graph."""

import math
from abc import ABC, abstractmethod
from typing import Any

import gymnasium as gym
import numpy as np
import tensorflow as tf

from serving import ArraySpec
from trpo_tf.normalization import OBSERVATION_CLIP, Normalizer


class Encoder(ABC):
    """A function of the frozen statistics and observations [batch, ...]."""

    width: int
    """Features of the network's input."""

    @abstractmethod
    def __call__(self, normalizer: Normalizer, observation: Any) -> Any:
        """The network's input, float [batch, width]."""


class NumberEncoder(Encoder):
    """Numbers, flattened; standardised and clipped to +-10 deviations if `normalize`."""

    def __init__(self, spec: ArraySpec, *, normalize: bool) -> None:
        self.width = math.prod(spec.shape)
        self._normalize = normalize

    def __call__(self, normalizer: Normalizer, observation: Any) -> Any:
        """Numbers [batch, width]."""
        values = tf.cast(observation, normalizer.mean.dtype)
        if self._normalize:
            values = (values - normalizer.mean) * normalizer.scale
            values = tf.clip_by_value(values, -OBSERVATION_CLIP, OBSERVATION_CLIP)
        return values if values.shape.rank == 2 else tf.reshape(values, (-1, self.width))


class OneHotEncoder(Encoder):
    """Choices, each as a one-hot vector, side by side; the spec's bounds are the first and last of each."""

    def __init__(self, spec: ArraySpec) -> None:
        low, high = spec.bounds()
        self._first = low.ravel().astype(np.int64)
        self._counts = (high - low).ravel().astype(np.int64) + 1
        self.width = int(self._counts.sum())

    def __call__(self, normalizer: Normalizer, observation: Any) -> Any:
        """Zeros and ones [batch, width]."""
        choices = tf.reshape(tf.cast(observation, tf.int64), (-1, len(self._counts))) - self._first
        columns = zip(tf.unstack(choices, axis=1), self._counts, strict=True)
        return tf.concat([tf.one_hot(c, int(n), dtype=normalizer.mean.dtype) for c, n in columns], axis=1)


def make_encoder(space: gym.Space[Any], spec: ArraySpec, *, normalize: bool) -> Encoder:
    """How observations of `space`, whose spec is `spec`, become a network's input."""
    if isinstance(space, gym.spaces.Discrete | gym.spaces.MultiDiscrete):
        return OneHotEncoder(spec)
    return NumberEncoder(spec, normalize=normalize and isinstance(space, gym.spaces.Box))
