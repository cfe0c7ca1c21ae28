"""Export a policy, any TensorFlow function of observations and noise, to a verified bundle."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trpo_tf.export.bundle.write import convert_policy, write_bundle
    from trpo_tf.export.graph.convert import ExportError, to_onnx, with_constants
    from trpo_tf.export.parity.evidence import Evidence
    from trpo_tf.export.parity.proof import ParityError
    from trpo_tf.export.policy.spec import GraphForm, InferenceFunction, PolicySpec

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

_MODULES = {
    "bundle.write": ("convert_policy", "write_bundle"),
    "parity.evidence": ("Evidence",),
    "policy.spec": ("GraphForm", "InferenceFunction", "PolicySpec"),
    "graph.convert": ("ExportError", "to_onnx", "with_constants"),
    "parity.proof": ("ParityError",),
}


def __getattr__(name: str) -> Any:
    # On demand: this package works in part without TensorFlow.
    module = next((module for module, names in _MODULES.items() if name in names), None)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"trpo_tf.export.{module}"), name)
    globals()[name] = value
    return value
