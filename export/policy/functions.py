"""Types of the functions that are exported and compared."""

from collections.abc import Callable
from typing import Any

from trpo_tf.serving.runtime.observations import Array, Observation

InferenceFunction = Callable[[Any, Any], Any]
"""observations [batch, ...], noise [batch, k] -> actions [batch, ...], in TensorFlow operations.

Observations are a tensor, or a dict of them by name where the policy takes several.
"""

StepFunction = Callable[[Any, Any, Any, Any], Any]
"""observations, state, reset [batch], noise -> actions, next state: an inference function of a policy with state.

State and next state are dicts of tensors [batch, ...] by name. Where `reset` is true the state is the initial one.
"""

PolicyFunction = Callable[..., Any]
"""An `InferenceFunction`, or a `StepFunction` if the policy has state."""

Outputs = Callable[[Any, Any], dict[str, Any]]
"""Inputs [batch, ...], noise [batch, k] -> tensors [batch, ...] by name.

Inputs are the observations; of a policy with state a dict of observations, state and `reset` by name.
"""


Actor = Callable[[Observation, Array], Array]
"""Inputs [batch, ...], noise [batch, k] -> actions [batch, ...], on NumPy arrays."""


Answers = Callable[[Observation, Array], dict[str, Array]]
"""The same arguments -> arrays [batch, ...] by output name."""
