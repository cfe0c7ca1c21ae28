"""Serve a policy bundle: in process with `load`, or over HTTP with `python -m serving`.

Needs NumPy and ONNX Runtime; TensorFlow is neither used nor needed.
"""

from serving.manifest import ArraySpec, BundleError, GraphSpec, Manifest, NoiseSpec
from serving.policy import Policy, load

__all__ = ["ArraySpec", "BundleError", "GraphSpec", "Manifest", "NoiseSpec", "Policy", "load"]

__version__ = "0.1.0"
