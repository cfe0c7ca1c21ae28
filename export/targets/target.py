"""Define a target: a format to ship a policy in, as one value."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trpo_tf.export.errors import ExportError
from trpo_tf.export.policy.functions import Actor, Answers, Outputs, PolicyFunction
from trpo_tf.export.policy.spec import PolicySpec
from trpo_tf.serving import Manifest
from trpo_tf.serving.runtime.observations import Observation

Refusal = Callable[[Any, PolicySpec], str | None]
"""The traced graph of a policy and its spec -> why a target can't carry it, or None."""


@dataclass(frozen=True)
class ExportInputs:
    """The policy that targets are made of, as a function and as ONNX.

    Attributes:
        function: the policy; with state it takes the state, and returns the next one.
        outputs: functions of all outputs by name: the action, further outputs and the next state.
        spec: its arrays.
        graph: ONNX with the noise input that was asked for and all outputs, for any batch size.
        batch: the fixed batch size, if any.
        action_graph: ONNX of the action and the next state alone, with optional noise, for any batch size.
        visited: inputs [n, ...] of episodes of the policy, by which targets in 8 bits are calibrated.
    """

    function: PolicyFunction
    outputs: Outputs
    spec: PolicySpec
    graph: bytes
    batch: int | None
    action_graph: bytes
    visited: Observation | None

    def calibration(self) -> Observation:
        """Return `visited`. Raises `ExportError` if there are none."""
        if self.visited is None:
            raise ExportError("8 bits are calibrated on what the policy visits; give observations, or an environment")
        return self.visited


@dataclass(frozen=True)
class Target:
    """A format to ship a policy in.
    path: the file or folder in the bundle.
    write: writes it into the bundle's folder.
    open: opens it on this machine: bundle's folder and manifest -> actor.
    snippet: manifest -> a language, and code that computes `action` from `observation` in the bundle's folder.
    purpose: its use, for the model card.
    exact: whether it computes in floats.
    follows_form: whether it has the noise input and batch size of the `GraphForm`.
    refusal: returns why it can't carry a policy, before anything is converted.
    input_names: the names of its inputs, by the spec's names.
    open_outputs: opens its further outputs as `open` does; None if it has only the action.
    open_step: of a policy with state, what `open` is otherwise: the action and the next state; None if it can't do so.
    """

    name: str
    path: str
    write: Callable[[ExportInputs, Path], None]
    open: Callable[[Path, Manifest], Actor]
    snippet: Callable[[Manifest], tuple[str, str]]
    purpose: str
    exact: bool = True
    follows_form: bool = False
    refusal: Refusal = lambda *_: None
    input_names: Callable[[PolicySpec], Mapping[str, str]] = lambda _: {}
    open_outputs: Callable[[Path, Manifest], Answers] | None = None
    open_step: Callable[[Path, Manifest], Answers] | None = None

    def renamed_inputs(self, spec: PolicySpec) -> dict[str, str]:
        """Return the inputs that have another name in the target, by the spec's names."""
        return {name: own for name, own in self.input_names(spec).items() if own != name}

    def files(self, manifest: Manifest) -> list[str]:
        """List the manifest's files that belong to the target."""
        return [name for name in manifest.files if name == self.path or name.startswith(f"{self.path}/")]
