"""From an inference function to a SavedModel that TensorFlow alone can run."""

from pathlib import Path
from typing import Any

import tensorflow as tf

from export.function import InferenceFunction, PolicySpec
from export.onnx_graph import ExportError
from serving.observations import list_parts


def write_saved_model(function: InferenceFunction, spec: PolicySpec, path: Path) -> None:
    """Write a SavedModel with the signatures `serving_default` (observation) and `sample` (and noise).

    Both answer a dict with the one key that `spec.action.name` gives.
    """
    action = spec.action.name

    def deterministic(observation: Any) -> dict[str, Any]:
        rows = tf.shape(list_parts(observation)[0])[0]
        noise = tf.zeros((rows, *spec.noise.shape), spec.noise.dtype)
        return {action: function(observation, noise)}

    def sample(observation: Any, noise: Any) -> dict[str, Any]:
        return {action: function(observation, noise)}

    observation, noise = spec.signature()
    module = tf.Module()
    module.deterministic = tf.function(deterministic, [observation], autograph=False)
    module.sample = tf.function(sample, [observation, noise], autograph=False)
    # Only variables that the module holds are saved, and those of the function belong to someone else.
    module.captured = list(module.sample.get_concrete_function().graph.variables)
    signatures = {"serving_default": module.deterministic, "sample": module.sample}
    try:
        tf.saved_model.save(module, str(path), signatures=signatures)
    except AssertionError as error:
        raise ExportError(f"the function uses what a SavedModel can't hold: {_reason(error)}") from error
    # A random identifier, of no use to anyone who loads the model.
    (path / "fingerprint.pb").unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    return str(error).partition("\n")[0]
