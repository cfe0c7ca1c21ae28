"""Describe what is exported: the arrays that an inference function takes and gives, and the form of its graph."""

import contextlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import tensorflow as tf

from trpo_tf.export.errors import ExportError
from trpo_tf.export.policy.functions import InferenceFunction, Outputs
from trpo_tf.export.policy.opsets import OPSET, OPSETS
from trpo_tf.serving import ArraySpec, Manifest, NoiseSpec
from trpo_tf.serving.arguments import expect, expect_count
from trpo_tf.serving.bundle.specs import NOISE_INPUTS
from trpo_tf.serving.runtime.observations import structured


@dataclass(frozen=True)
class PolicySpec:
    """The arrays of an observation, action and noise of a policy, without the batch dimension."""

    observation: tuple[ArraySpec, ...]
    action: ArraySpec
    noise: NoiseSpec

    def __post_init__(self) -> None:
        """Raise `ExportError` naming the field that is no description of arrays."""
        wanted = "observation must be a tuple of ArraySpec, (ArraySpec(...),) for one"
        expect(self.observation, (list, tuple), wanted, ExportError)
        for part in self.observation or (None,):
            expect(part, ArraySpec, wanted, ExportError)
        expect(self.action, ArraySpec, "action must be an ArraySpec", ExportError)
        noise = (
            "noise must be a NoiseSpec (one that draws none too: NoiseSpec('normal', (1,)), GraphForm(noise='none'))"
        )
        expect(self.noise, NoiseSpec, noise, ExportError)
        names = [self.noise.name, self.action.name, *(part.name for part in self.observation)]
        if len(set(names)) < len(names):
            raise ExportError(f"every array needs a name of its own; these have {', '.join(names)}")
        object.__setattr__(self, "observation", tuple(self.observation))

    def signature(self) -> tuple[Any, Any]:
        """Return `tf.TensorSpec`s of observation and noise, with a free batch dimension."""
        return structured({spec.name: tensor_spec(spec) for spec in self.observation}), tensor_spec(self.noise)


@dataclass(frozen=True)
class GraphForm:
    """The form that the ONNX graph should have. Raises `ExportError` for what no graph can be.

    Attributes:
        opset: version of the standard operators, 13 to 18.
        noise: whether the noise input is `optional`, `required`, or left out (`none`).
        batch: the one number of rows to take; any if absent.
        outputs: more to answer besides the action, by name: a distribution's parameters, a value ...
    """

    opset: int = OPSET
    noise: str = "optional"
    batch: int | None = None
    outputs: Mapping[str, InferenceFunction] = field(default_factory=dict)

    def __post_init__(self) -> None:
        expect(self.outputs, Mapping, "outputs must be a dict of functions by name", ExportError)
        for name, function in self.outputs.items():
            check_function(function, f"output {name!r}")
        if type(self.opset) is not int or self.opset not in OPSETS:
            raise ExportError(f"opset {self.opset} isn't supported; choose one from {OPSETS[0]} to {OPSETS[-1]}")
        if self.noise not in NOISE_INPUTS:
            raise ExportError(f"noise {self.noise!r} is unknown; choose one of {', '.join(NOISE_INPUTS)}")
        if self.batch is not None:
            expect_count(self.batch, "batch", 1, ExportError)


DEFAULT_FORM = GraphForm()


def check_function(function: Any, name: str) -> None:
    """Raise `ExportError` unless `function` is one of observation and noise."""
    if isinstance(function, keras.layers.Layer):
        raise ExportError(
            f"{name} is a Keras {type(function).__name__}, which takes no noise; give a function that calls it: "
            "lambda observation, noise: model(observation)"
        )
    wanted = f"{name} must be a function of two arguments, observation and noise"
    expect(function, Callable, wanted, ExportError)
    with contextlib.suppress(ValueError):  # of what has no signature that Python knows
        try:
            inspect.signature(function).bind(None, None)
        except TypeError as error:
            raise ExportError(f"{wanted} ({error})") from None


def all_outputs(function: InferenceFunction, spec: PolicySpec, form: GraphForm = DEFAULT_FORM) -> Outputs:
    """Join the action and the further outputs of `form` in one function."""

    def answer(observation: Any, noise: Any) -> dict[str, Any]:
        more = {name: output(observation, noise) for name, output in form.outputs.items()}
        return {spec.action.name: function(observation, noise), **more}

    return answer


def spec_of(manifest: Manifest) -> PolicySpec:
    """Return the arrays that a manifest declares."""
    return PolicySpec(manifest.observation, manifest.action, manifest.noise)


def tensor_spec(spec: ArraySpec | NoiseSpec) -> Any:
    """Return a `tf.TensorSpec` of a batch of the array."""
    return tf.TensorSpec((None, *spec.shape), spec.dtype, spec.name)
