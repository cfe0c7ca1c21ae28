"""Export a policy, any TensorFlow function of observations and noise, to a verified bundle."""

from typing import TYPE_CHECKING

from trpo_tf.lazy_attributes import lazy_attributes

if TYPE_CHECKING:
    from trpo_tf.export.bundle.write import write_bundle
    from trpo_tf.export.errors import ExportError, ParityError
    from trpo_tf.export.graph.convert import to_onnx
    from trpo_tf.export.graph.convert_policy import convert_policy
    from trpo_tf.export.graph.editing import with_constants
    from trpo_tf.export.parity.reference.evidence import Evidence
    from trpo_tf.export.policy.functions import InferenceFunction
    from trpo_tf.export.policy.spec import GraphForm, PolicySpec
    from trpo_tf.export.targets.target import ExportInputs, Target

__all__ = [
    "Evidence",
    "ExportError",
    "ExportInputs",
    "GraphForm",
    "InferenceFunction",
    "ParityError",
    "PolicySpec",
    "Target",
    "convert_policy",
    "to_onnx",
    "with_constants",
    "write_bundle",
]

# Lazily: this package works in part without TensorFlow.
__getattr__ = lazy_attributes(
    __name__,
    {
        "Evidence": "parity.reference.evidence",
        "ExportError": "errors",
        "ExportInputs": "targets.target",
        "GraphForm": "policy.spec",
        "InferenceFunction": "policy.functions",
        "ParityError": "errors",
        "PolicySpec": "policy.spec",
        "Target": "targets.target",
        "convert_policy": "graph.convert_policy",
        "to_onnx": "graph.convert",
        "with_constants": "graph.editing",
        "write_bundle": "bundle.write",
    },
)
