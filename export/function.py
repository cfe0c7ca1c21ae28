"""What can be exported: an inference function and the arrays it takes and gives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from export.onnx_graph import OPSET, OPSETS, ExportError
from serving import ArraySpec, NoiseSpec
from serving.manifest import NOISE_INPUTS
from serving.observations import structured

InferenceFunction = Callable[[Any, Any], Any]
"""observations [batch, ...], noise [batch, k] -> actions [batch, ...], in TensorFlow operations.

Observations are a tensor, or a dict of them by name where the policy takes several.
"""

Outputs = Callable[[Any, Any], dict[str, Any]]
"""The same arguments -> tensors [batch, ...] by name."""


@dataclass(frozen=True)
class PolicySpec:
    """The arrays of an observation, action and noise of a policy, without the batch dimension."""

    observation: tuple[ArraySpec, ...]
    action: ArraySpec
    noise: NoiseSpec

    def signature(self) -> tuple[Any, Any]:
        """`tf.TensorSpec`s of observation and noise, with a free batch dimension."""
        return structured({spec.name: _tensor_spec(spec) for spec in self.observation}), _tensor_spec(self.noise)


@dataclass(frozen=True)
class GraphForm:
    """What the ONNX graph should be like. Raises `ExportError` for what no graph can be.

    Attributes:
        opset: version of the standard operators, 13 to 18.
        noise: whether the noise input is `optional`, `required`, or left out (`none`).
        batch: the one number of rows to take; any if absent.
        outputs: more to answer beside the action, by name: a distribution's parameters, a value ...
    """

    opset: int = OPSET
    noise: str = "optional"
    batch: int | None = None
    outputs: Mapping[str, InferenceFunction] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.opset not in OPSETS:
            raise ExportError(f"opset {self.opset} isn't supported; choose one from {OPSETS[0]} to {OPSETS[-1]}")
        if self.noise not in NOISE_INPUTS:
            raise ExportError(f"noise {self.noise!r} is unknown; choose one of {', '.join(NOISE_INPUTS)}")
        if self.batch is not None and self.batch < 1:
            raise ExportError(f"a batch of {self.batch} rows isn't one; choose 1 or more")


DEFAULT_FORM = GraphForm()


def all_outputs(function: InferenceFunction, spec: PolicySpec, form: GraphForm = DEFAULT_FORM) -> Outputs:
    """The action, and the further outputs of `form`."""

    def answer(observation: Any, noise: Any) -> dict[str, Any]:
        more = {name: output(observation, noise) for name, output in form.outputs.items()}
        return {spec.action.name: function(observation, noise), **more}

    return answer


def _tensor_spec(spec: ArraySpec | NoiseSpec) -> Any:
    return tf.TensorSpec((None, *spec.shape), spec.dtype, spec.name)
