"""Serve a policy bundle: in process with `load`, or over HTTP with `trpo-tf serve`.

Needs NumPy and ONNX Runtime; TensorFlow is neither used nor needed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trpo_tf.serving.errors import BundleError

if TYPE_CHECKING:
    from trpo_tf.serving.bundle.manifest import ArraySpec, GraphSpec, Manifest, NoiseSpec
    from trpo_tf.serving.runtime.policy import Policy, load

__all__ = ["ArraySpec", "BundleError", "GraphSpec", "Manifest", "NoiseSpec", "Policy", "load"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # On demand: the parent of `--workers` forks, so it must not have the threads that NumPy and ONNX Runtime start.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "runtime.policy" if name in ("Policy", "load") else "bundle.manifest"
    value = getattr(import_module(f"trpo_tf.serving.{module}"), name)
    globals()[name] = value
    return value
