"""Describe what is exported: the arrays that an inference function takes and gives, and the form of its graph."""

import contextlib
import inspect
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from trpo_tf.export.errors import ExportError
from trpo_tf.export.policy.functions import PolicyFunction
from trpo_tf.export.policy.opsets import OPSET, OPSETS
from trpo_tf.export.support.forked import FORKED, forked_after_tensorflow
from trpo_tf.serving import ArraySpec, Manifest, NoiseSpec, StateSpec
from trpo_tf.serving.argument_checks import expect, expect_count
from trpo_tf.serving.bundle.specs import NOISE_INPUTS, carried_inputs, mask_fault, next_outputs
from trpo_tf.serving.runtime.observations import structured


@dataclass(frozen=True)
class PolicySpec:
    """The arrays of an observation, action and noise of a policy, and of its state, without the batch dimension.

    `mask` names the part of the observation that tells which actions are legal, if one does. It has a number for each
    option of each choice, side by side; 0 or false forbids the option.
    """

    observation: tuple[ArraySpec, ...]
    action: ArraySpec
    noise: NoiseSpec
    state: tuple[StateSpec, ...] = ()
    mask: str | None = None

    def __post_init__(self) -> None:
        """Raise `ExportError` naming the field that is not an array spec."""
        wanted = "observation must be a tuple of ArraySpec, (ArraySpec(...),) for one"
        expect(self.observation, (list, tuple), wanted, ExportError)
        for part in self.observation or (None,):
            expect(part, ArraySpec, wanted, ExportError)
        expect(self.action, ArraySpec, "action must be an ArraySpec", ExportError)
        noise = (
            "noise must be a NoiseSpec (one that draws none too: NoiseSpec('normal', (1,)), GraphForm(noise='none'))"
        )
        expect(self.noise, NoiseSpec, noise, ExportError)
        wanted = "state must be a tuple of StateSpec, (StateSpec(...),) for one"
        expect(self.state, (list, tuple), wanted, ExportError)
        for each in self.state:
            expect(each, StateSpec, wanted, ExportError)
        object.__setattr__(self, "observation", tuple(self.observation))
        object.__setattr__(self, "state", tuple(self.state))
        if fault := mask_fault(self.mask, self.observation, self.action):
            raise ExportError(f"mask must be {fault}")
        names = [self.noise.name, *(array.name for array in (self.action, *self.step_inputs, *self.next_state))]
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ExportError(
                f"every array needs a name of its own, and {twice[0]!r} is there twice; these have {', '.join(names)}"
            )

    @property
    def step_inputs(self) -> tuple[ArraySpec, ...]:
        """All inputs of a step but the noise: the observation and, with state, the state and `reset`."""
        return *self.observation, *carried_inputs(self.state)

    @property
    def next_state(self) -> tuple[ArraySpec, ...]:
        """The outputs with the next state."""
        return next_outputs(self.state)

    def signature(self) -> tuple[Any, Any]:
        """Return `tf.TensorSpec`s of the inputs and noise, with a free batch dimension."""
        return structured({spec.name: tensor_spec(spec) for spec in self.step_inputs}), tensor_spec(self.noise)


@dataclass(frozen=True)
class GraphForm:
    """The form that the ONNX graph should have. Raises `ExportError` for a form that no graph can have.

    Attributes:
        opset: version of the standard operators, 13 to 18.
        noise: whether the noise input is `optional`, `required`, or left out (`none`).
        batch: the fixed batch size; None for any.
        outputs: further outputs besides the action, by name: a distribution's parameters, a value ...
    """

    opset: int = OPSET
    noise: str = "optional"
    batch: int | None = None
    outputs: Mapping[str, PolicyFunction] = field(default_factory=dict)

    def __post_init__(self) -> None:
        expect(self.outputs, Mapping, "outputs must be a dict of functions by name", ExportError)
        for name, function in self.outputs.items():
            check_callable(function, f"output {name!r}", _EITHER)
        if type(self.opset) is not int or self.opset not in OPSETS:
            raise ExportError(f"opset {self.opset} isn't supported; choose one from {OPSETS[0]} to {OPSETS[-1]}")
        if self.noise not in NOISE_INPUTS:
            raise ExportError(f"noise {self.noise!r} is unknown; choose one of {', '.join(NOISE_INPUTS)}")
        if self.batch is not None:
            expect_count(self.batch, "batch", 1, ExportError)


_STATELESS, _STATEFUL = ("observation", "noise"), ("observation", "state", "reset", "noise")
_EITHER = (_STATELESS, _STATEFUL)
_COUNTS = {2: "two", 4: "four"}

DEFAULT_FORM = GraphForm()


def check_function(function: Any, name: str, spec: PolicySpec) -> None:
    """Raise `ExportError` unless `function` is one of observation and noise, and of a spec's state between them.

    It also does in a process where TensorFlow, which the function calls, would hang.
    """
    if forked_after_tensorflow():
        raise ExportError(FORKED)
    check_callable(function, name, (_STATEFUL if spec.state else _STATELESS,))


def check_callable(function: Any, name: str, signatures: tuple[tuple[str, ...], ...] = _EITHER) -> None:
    """Raise `ExportError` unless `function` takes the arguments of one of `signatures`."""
    import keras

    first = ", ".join(signatures[0])
    if isinstance(function, keras.layers.Layer):
        raise ExportError(
            f"{name} is a Keras {type(function).__name__}, which takes no noise; give a function that calls it: "
            f"lambda {first}: model(observation)"
        )
    wanted = f"{name} must be a function of {_COUNTS[len(signatures[0])]} arguments, {_listed(signatures[0])}"
    expect(function, Callable, wanted, ExportError)
    refusals = []
    for arguments in signatures:
        with contextlib.suppress(ValueError):  # of what has no signature that Python knows
            try:
                inspect.signature(function).bind(*arguments)
                return
            except TypeError as error:
                refusals.append(error)
    if len(refusals) == len(signatures):
        raise ExportError(f"{wanted} ({refusals[0]})")


def _listed(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def spec_of(manifest: Manifest) -> PolicySpec:
    """Return the arrays that a manifest declares."""
    return PolicySpec(manifest.observation, manifest.action, manifest.noise, manifest.state, manifest.mask)


def tensor_spec(spec: ArraySpec | NoiseSpec) -> Any:
    """Return a `tf.TensorSpec` of a batch of the array."""
    import tensorflow as tf  # not above: bundles are verified with specs alone

    return tf.TensorSpec((None, *spec.shape), spec.dtype, spec.name)
