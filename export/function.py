"""What can be exported: an inference function and the arrays it takes and gives."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from serving import ArraySpec, NoiseSpec
from serving.observations import structured

InferenceFunction = Callable[[Any, Any], Any]
"""observations [batch, ...], noise [batch, k] -> actions [batch, ...], in TensorFlow operations.

Observations are a tensor, or a dict of them by name where the policy takes several.
"""


@dataclass(frozen=True)
class PolicySpec:
    """The arrays of an observation, action and noise of a policy, without the batch dimension."""

    observation: tuple[ArraySpec, ...]
    action: ArraySpec
    noise: NoiseSpec

    def signature(self) -> tuple[Any, Any]:
        """`tf.TensorSpec`s of observation and noise, with a free batch dimension."""
        return structured({spec.name: _tensor_spec(spec) for spec in self.observation}), _tensor_spec(self.noise)


def _tensor_spec(spec: ArraySpec | NoiseSpec) -> Any:
    return tf.TensorSpec((None, *spec.shape), spec.dtype, spec.name)
