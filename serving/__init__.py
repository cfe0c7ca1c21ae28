"""Serve a policy bundle: in process with `load`, or over HTTP and gRPC with `trpo-tf serve`.

Needs NumPy and ONNX Runtime, but not TensorFlow.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trpo_tf.serving.errors import BundleError

if TYPE_CHECKING:
    from trpo_tf.serving.bundle.manifest import Manifest
    from trpo_tf.serving.bundle.specs import ArraySpec, GraphSpec, NoiseSpec, StateSpec
    from trpo_tf.serving.runtime.policy import Policy, load
    from trpo_tf.serving.runtime.session import Session

__all__ = ["ArraySpec", "BundleError", "GraphSpec", "Manifest", "NoiseSpec", "Policy", "Session", "StateSpec", "load"]

__version__ = "0.1.0"

_MODULES = {
    "ArraySpec": "bundle.specs",
    "GraphSpec": "bundle.specs",
    "Manifest": "bundle.manifest",
    "NoiseSpec": "bundle.specs",
    "Policy": "runtime.policy",
    "Session": "runtime.session",
    "StateSpec": "bundle.specs",
    "load": "runtime.policy",
}


def __getattr__(name: str) -> Any:
    # Imported on demand: NumPy and ONNX Runtime start threads, which the parent of `--workers` must not have at a fork.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"trpo_tf.serving.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
