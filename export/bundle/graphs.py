"""Convert a policy to the ONNX graphs that its bundle is made of."""

from dataclasses import dataclass

import onnx
import tensorflow as tf

from trpo_tf.export.errors import ExportError
from trpo_tf.export.graph.convert_policy import converted, serialized
from trpo_tf.export.graph.metadata import manifest_metadata, with_metadata
from trpo_tf.export.graph.noise_input import with_noise
from trpo_tf.export.parity.reference.reference_cases import ReferenceCases
from trpo_tf.export.policy.functions import Outputs, PolicyFunction
from trpo_tf.export.policy.outputs import all_outputs
from trpo_tf.export.policy.spec import GraphForm, PolicySpec, spec_of
from trpo_tf.export.targets.target import ExportInputs
from trpo_tf.serving import ArraySpec, Manifest


def further_outputs(outputs: Outputs, spec: PolicySpec) -> tuple[ArraySpec, ...]:
    """Return the specs of the further outputs. Raises `ExportError` for one whose rows have no fixed shape."""
    traced = tf.function(outputs, spec.signature(), autograph=False).get_concrete_function().structured_outputs
    known = {array.name for array in (spec.action, *spec.next_state)}
    further = {name: tensor for name, tensor in traced.items() if name not in known}
    for name, tensor in further.items():
        if tensor.shape.rank in (None, 0) or None in tensor.shape[1:]:
            raise ExportError(f"output {name!r} has shape {tensor.shape}; rows must have a fixed one")
    return tuple(ArraySpec(name, tensor.dtype.name, tuple(tensor.shape[1:])) for name, tensor in further.items())


@dataclass(frozen=True)
class PolicyGraphs:
    """Two ONNX graphs with optional noise and any batch size: of action and next state alone, and of all outputs."""

    plain: onnx.ModelProto
    outputs: onnx.ModelProto


def policy_graphs(function: PolicyFunction, outputs: Outputs, spec: PolicySpec, form: GraphForm) -> PolicyGraphs:
    """Convert action and next state alone, and all outputs where there are more."""
    plain = converted(all_outputs(function, spec), spec, form.opset)
    return PolicyGraphs(plain, converted(outputs, spec, form.opset) if form.outputs else plain)


def export_inputs(
    function: PolicyFunction,
    outputs: Outputs,
    manifest: Manifest,
    form: GraphForm,
    graphs: PolicyGraphs,
    reference_cases: ReferenceCases,
) -> ExportInputs:
    """Return the inputs of all targets. The graph gets its noise input, and the manifest as metadata."""
    spec = spec_of(manifest)
    graph = with_metadata(with_noise(graphs.outputs, spec.noise.name, form.noise), manifest_metadata(manifest))
    plain = serialized(graphs.plain)
    return ExportInputs(function, outputs, spec, serialized(graph), form.batch, plain, reference_cases.visited)
