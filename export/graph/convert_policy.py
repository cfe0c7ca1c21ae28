"""Convert a policy's function to an ONNX graph with optional noise."""

import onnx

from trpo_tf.export.errors import ExportError
from trpo_tf.export.graph.convert import to_onnx
from trpo_tf.export.graph.noise_input import with_optional_input
from trpo_tf.export.policy.functions import Outputs, PolicyFunction
from trpo_tf.export.policy.opsets import OPSET
from trpo_tf.export.policy.outputs import all_outputs
from trpo_tf.export.policy.spec import PolicySpec, check_function
from trpo_tf.serving.argument_checks import expect


def convert_policy(function: PolicyFunction, spec: PolicySpec, *, opset: int = OPSET) -> bytes:
    """Convert the policy to a serialized ONNX graph with optional noise; one with state, to a graph of one step.

    Arguments and errors are those of `to_onnx`.
    """
    expect(spec, PolicySpec, "spec must be a PolicySpec", ExportError)
    check_function(function, "function", spec)
    return serialized(converted(all_outputs(function, spec), spec, opset))


def converted(outputs: Outputs, spec: PolicySpec, opset: int) -> onnx.ModelProto:
    """Convert the outputs to a graph with optional noise. Raises `ExportError`."""
    return with_optional_input(to_onnx(outputs, spec.signature(), opset=opset), spec.noise.name)


def serialized(model: onnx.ModelProto) -> bytes:
    """Return the graph's bytes, the same in every process."""
    return model.SerializeToString(deterministic=True)
