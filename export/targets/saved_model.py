"""From an inference function to a SavedModel that TensorFlow alone can run."""

import itertools
import keyword
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from trpo_tf.export.graph.convert import ExportError, with_neutral_names
from trpo_tf.export.policy.spec import Outputs, PolicySpec
from trpo_tf.serving.bundle.input_names import input_names
from trpo_tf.serving.runtime.observations import list_parts


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

    (observation, noise), names = with_neutral_names(spec.signature())
    module = tf.Module()
    module.deterministic = tf.function(deterministic, [observation], autograph=False)
    module.sample = tf.function(sample, [observation, noise], autograph=False)
    # Only variables that the module holds are saved, and those of the function belong to someone else.
    module.captured = list(module.sample.get_concrete_function().graph.variables)
    signatures = {
        "serving_default": _named(module.deterministic, names, spec),
        "sample": _named(module.sample, names, spec),
    }
    try:
        tf.saved_model.save(module, str(path), signatures=signatures)
    except AssertionError as error:
        raise ExportError(f"the function uses what a SavedModel can't hold: {_reason(error)}") from error
    # A random identifier, of no use to anyone who loads the model.
    (path / "fingerprint.pb").unlink(missing_ok=True)


def signature_names(spec: PolicySpec) -> dict[str, str]:
    """The inputs of a signature, of a SavedModel or LiteRT, by the spec's names.

    They are the same, unless one can't be an argument in Python or differs from another in case alone: then what
    `input_names` makes of it, and a number behind that of the noise.
    """
    observation = [part.name for part in spec.observation]
    found = input_names(tuple((name,) for name in observation))
    taken = {name.lower() for name in found}
    own = spec.noise.name
    wanted = [own] if own.isidentifier() and own.isascii() and not keyword.iskeyword(own) and own != "self" else []
    numbered = (f"noise_{number}" for number in itertools.count(2))
    noise = next(name for name in itertools.chain(wanted, ["noise"], numbered) if name.lower() not in taken)
    return {**dict(zip(observation, found, strict=True)), own: noise}


def _named(function: Any, neutral: Mapping[str, str], spec: PolicySpec) -> Any:
    """The signature's function with its inputs' own names, of which TensorFlow would make others in lower case."""
    concrete, names = function.get_concrete_function(), signature_names(spec)
    concrete._arg_keywords = [names[neutral[keyword]] for keyword in concrete._arg_keywords]
    return concrete


def _reason(error: Exception) -> str:
    return str(error).partition("\n")[0]
