"""Types of the functions that are exported and compared."""

from collections.abc import Callable
from typing import Any

from trpo_tf.serving.runtime.observations import Array, Observation

InferenceFunction = Callable[[Any, Any], Any]
"""observations [batch, ...], noise [batch, k] -> actions [batch, ...], in TensorFlow operations.

Observations are a tensor, or a dict of them by name where the policy takes several.
"""


Outputs = Callable[[Any, Any], dict[str, Any]]
"""The same arguments -> tensors [batch, ...] by name."""


Actor = Callable[[Observation, Array], Array]
"""observations [batch, ...], noise [batch, k] -> actions [batch, ...], on NumPy arrays."""


Answers = Callable[[Observation, Array], dict[str, Array]]
"""The same arguments -> arrays [batch, ...] by output name."""
