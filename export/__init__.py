"""Export a policy, any TensorFlow function of observations and noise, to a verified bundle."""

from export.bundle import Evidence, convert_policy, write_bundle
from export.function import GraphForm, InferenceFunction, PolicySpec
from export.onnx_graph import ExportError, to_onnx, with_constants
from export.proof import ParityError

__all__ = [
    "Evidence",
    "ExportError",
    "GraphForm",
    "InferenceFunction",
    "ParityError",
    "PolicySpec",
    "convert_policy",
    "to_onnx",
    "with_constants",
    "write_bundle",
]
