"""From an inference function to a SavedModel that TensorFlow alone can run."""

from pathlib import Path
from typing import Any

import tensorflow as tf

from export.function import Outputs, PolicySpec
from export.onnx_graph import ExportError
from serving.observations import list_parts


def write_saved_model(outputs: Outputs, spec: PolicySpec, path: Path) -> None:
    """Write a SavedModel with the signatures `serving_default` (observation) and `sample` (and noise).

    Raises `ExportError` for what a SavedModel can't hold.
    """

    def deterministic(observation: Any) -> dict[str, Any]:
        rows = tf.shape(list_parts(observation)[0])[0]
        noise = tf.zeros((rows, *spec.noise.shape), spec.noise.dtype)
        return outputs(observation, noise)

    def sample(observation: Any, noise: Any) -> dict[str, Any]:
        return outputs(observation, noise)

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
