"""SavedModel: for TensorFlow alone."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from trpo_tf.export.errors import ExportError
from trpo_tf.export.graph.convert import with_neutral_names
from trpo_tf.export.policy.functions import Actor, Answers, Outputs
from trpo_tf.export.policy.input_checks import with_input_checks
from trpo_tf.export.policy.on_arrays import OnArrays
from trpo_tf.export.policy.signature_names import signature_names
from trpo_tf.export.policy.spec import PolicySpec, spec_of
from trpo_tf.export.targets.snippet_feeds import feeds
from trpo_tf.export.targets.target import ExportInputs, Target
from trpo_tf.serving import Manifest
from trpo_tf.serving.runtime.observations import Array, Observation, by_name, list_parts, map_parts

_FOLDER, _DETERMINISTIC, _SAMPLE = "saved_model", "serving_default", "sample"
_LINES = """\
{numpy}import tensorflow as tf
act = tf.saved_model.load("{path}").signatures["serving_default"]
feeds = {feeds}
feeds = {{name: tf.constant(array) for name, array in feeds.items()}}
action = act(**feeds)["{action}"].numpy()[0]
"""


def write_saved_model(outputs: Outputs, spec: PolicySpec, path: Path) -> None:
    """Write a SavedModel with the signatures `serving_default` (takes observations) and `sample` (takes noise too).

    Both check the inputs of a policy with state or a mask. Raises `ExportError` for what a SavedModel can't hold.
    """
    outputs = with_input_checks(outputs, spec)

    def deterministic(observation: Any) -> dict[str, Any]:
        rows = tf.shape(list_parts(observation)[0])[0]
        noise = tf.zeros((rows, *spec.noise.shape), spec.noise.dtype)
        return outputs(observation, noise)

    def sample(observation: Any, noise: Any) -> dict[str, Any]:
        return outputs(observation, noise)

    (observation, noise), names = with_neutral_names(spec.signature())
    module = tf.Module()
    module.deterministic = tf.function(deterministic, [observation], autograph=False)
    module.sample = tf.function(sample, [observation, noise], autograph=False)
    # Only variables that the module holds are saved, and those of the function belong to someone else.
    module.captured = list(module.sample.get_concrete_function().graph.variables)
    signatures = {
        _DETERMINISTIC: _named(module.deterministic, names, spec),
        _SAMPLE: _named(module.sample, names, spec),
    }
    try:
        tf.saved_model.save(module, str(path), signatures=signatures)
    except AssertionError as error:
        raise ExportError(f"the function uses what a SavedModel can't hold: {_reason(error)}") from error
    # A random identifier, of no use to anyone who loads the model.
    (path / "fingerprint.pb").unlink(missing_ok=True)


def _named(function: Any, neutral: Mapping[str, str], spec: PolicySpec) -> Any:
    """Restore the names of the signature's inputs, which TensorFlow turns to lower case."""
    concrete, names = function.get_concrete_function(), signature_names(spec)
    concrete._arg_keywords = [names[neutral[keyword]] for keyword in concrete._arg_keywords]
    return concrete


def _reason(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _write(inputs: ExportInputs, folder: Path) -> None:
    write_saved_model(inputs.outputs, inputs.spec, folder / _FOLDER)


class _Signatures:
    """All outputs of a SavedModel, or one: by `serving_default` if all noise is zero, otherwise by `sample`."""

    def __init__(self, folder: Path, manifest: Manifest, output: str | None = None) -> None:
        # Signatures alone would not keep their variables.
        self._loaded = tf.saved_model.load(str(folder / _FOLDER))
        self._output, self._spec = output, spec_of(manifest)
        self._names = signature_names(self._spec)

    def __call__(self, inputs: Observation, noise: Array) -> Any:
        key = _key(noise)
        drawn = tf.constant(noise) if key == _SAMPLE else None
        answers = self._answer(key, map_parts(tf.constant, inputs), drawn)
        return map_parts(lambda tensor: tensor.numpy(), answers)

    def in_batches(self, inputs: Observation, noise: Array, size: int) -> Any:
        """Answer the rows in batches of `size`."""
        return self._traced[_key(noise)].in_batches(inputs, noise, size)

    @functools.cached_property
    def _traced(self) -> dict[str, OnArrays]:
        signature = self._spec.signature()
        return {key: OnArrays(functools.partial(self._answer, key), signature) for key in (_DETERMINISTIC, _SAMPLE)}

    def _answer(self, key: str, inputs: Any, noise: Any) -> Any:
        feeds = by_name(inputs, self._spec.observation[0].name)
        if key == _SAMPLE:
            feeds = {**feeds, self._spec.noise.name: noise}
        answers = self._loaded.signatures[key](**{self._names[name]: tensor for name, tensor in feeds.items()})
        return answers if self._output is None else answers[self._output]


def _key(noise: Array) -> str:
    return _SAMPLE if noise.any() else _DETERMINISTIC


def _open(folder: Path, manifest: Manifest) -> Actor:
    return _Signatures(folder, manifest, manifest.action.name)


def _open_outputs(folder: Path, manifest: Manifest) -> Answers:
    """Open all outputs, including the action."""
    return _Signatures(folder, manifest)


def _snippet(manifest: Manifest) -> tuple[str, str]:
    inputs = feeds(manifest, signature_names(spec_of(manifest)), noise=False)
    return "python", _LINES.format(
        numpy="import numpy as np\n" if manifest.state else "", path=_FOLDER, feeds=inputs, action=manifest.action.name
    )


SAVED_MODEL = Target(
    "savedmodel",
    _FOLDER,
    _write,
    _open,
    _snippet,
    "TensorFlow alone",
    input_names=signature_names,
    open_outputs=_open_outputs,
    open_step=_open_outputs,
)
