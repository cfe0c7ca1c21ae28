"""Export a policy, any TensorFlow function of observations and noise, to a verified bundle."""

from export.bundle import Evidence, convert_policy, write_bundle
from export.function import InferenceFunction, PolicySpec
from export.onnx_graph import ExportError, to_onnx, with_constants

__all__ = [
    "Evidence",
    "ExportError",
    "InferenceFunction",
    "PolicySpec",
    "convert_policy",
    "to_onnx",
    "with_constants",
    "write_bundle",
]
