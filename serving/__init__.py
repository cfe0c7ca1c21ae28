"""Serve a policy bundle: in process with `load`, or over HTTP and gRPC with `trpo-tf serve`.

Needs NumPy and ONNX Runtime, but not TensorFlow.
"""

from typing import TYPE_CHECKING

from trpo_tf.lazy_attributes import lazy_attributes
from trpo_tf.serving.errors import BundleError

if TYPE_CHECKING:
    from trpo_tf.serving.bundle.manifest import Manifest
    from trpo_tf.serving.bundle.specs import ArraySpec, GraphSpec, NoiseSpec, StateSpec
    from trpo_tf.serving.runtime.policy import Policy, load
    from trpo_tf.serving.runtime.session import Session

__all__ = ["ArraySpec", "BundleError", "GraphSpec", "Manifest", "NoiseSpec", "Policy", "Session", "StateSpec", "load"]

__version__ = "0.1.0"

# Lazily: NumPy and ONNX Runtime start threads, which the parent of `--workers` must not have at a fork.
__getattr__ = lazy_attributes(
    __name__,
    {
        "ArraySpec": "bundle.specs",
        "GraphSpec": "bundle.specs",
        "Manifest": "bundle.manifest",
        "NoiseSpec": "bundle.specs",
        "Policy": "runtime.policy",
        "Session": "runtime.session",
        "StateSpec": "bundle.specs",
        "load": "runtime.policy",
    },
)
