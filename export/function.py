"""What can be exported: an inference function and the arrays it takes and gives."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from serving import ArraySpec, NoiseSpec

InferenceFunction = Callable[[Any, Any], Any]
"""observations [batch, ...], noise [batch, k] -> actions [batch, ...], in TensorFlow operations."""


@dataclass(frozen=True)
class PolicySpec:
    """Observation, action and noise of a policy, without the batch dimension."""

    observation: ArraySpec
    action: ArraySpec
    noise: NoiseSpec

    def signature(self) -> tuple[Any, Any]:
        """`tf.TensorSpec`s of observation and noise, with a free batch dimension."""
        return tuple(
            tf.TensorSpec((None, *spec.shape), spec.dtype, spec.name) for spec in (self.observation, self.noise)
        )
