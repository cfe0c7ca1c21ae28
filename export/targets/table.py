"""The table of targets: those of this package and those that other packages add, by name."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

from trpo_tf.export.errors import ExportError
from trpo_tf.export.policy.functions import Outputs
from trpo_tf.export.policy.spec import PolicySpec
from trpo_tf.export.targets.target import Target
from trpo_tf.serving import Manifest
from trpo_tf.serving.support.entry_points import load_values

ENTRY_POINTS = "trpo_tf.targets"
"""The group in which an installed package names a `Target` of its own."""

DEFAULT_TARGETS = ("onnx", "savedmodel")
ALL = "all"

_BUILT_IN = {
    "onnx": "onnx:ONNX",
    "savedmodel": "saved_model:SAVED_MODEL",
    "onnx-int8": "onnx:ONNX_INT8",
    "onnx-int8-dynamic": "onnx:ONNX_INT8_DYNAMIC",
    "ort": "ort:ORT",
    "litert": "litert:LITERT",
    "litert-int8": "litert:LITERT_INT8",
    "c": "c99:C",
    "c-int8": "c99:C_INT8",
}
"""Name -> module of this folder, and the target in it."""


class _Targets(Mapping[str, Target]):
    """The targets by name. A module is imported when one of its targets is first looked up: some import TensorFlow."""

    def __init__(self, built_in: Mapping[str, str], added: Iterable[Target]) -> None:
        self._built_in, self._added = built_in, dict[str, Target]()
        for target in added:
            if target.name in (*self, ALL):
                raise ExportError(f"target {target.name!r} is there twice; rename the one of group {ENTRY_POINTS}")
            self._added[target.name] = target

    def __getitem__(self, name: str) -> Target:
        if name in self._added:
            return self._added[name]
        module, _, attribute = self._built_in[name].partition(":")
        target: Target = getattr(import_module(f"trpo_tf.export.targets.{module}"), attribute)
        return target

    def __iter__(self) -> Iterator[str]:
        return iter((*self._built_in, *self._added))

    def __len__(self) -> int:
        return len(self._built_in) + len(self._added)

    def __contains__(self, name: object) -> bool:
        return name in self._built_in or name in self._added  # without the import


TARGETS = _Targets(_BUILT_IN, load_values(ENTRY_POINTS, Target, ExportError).values())


def checked_targets(
    names: Sequence[str],
    outputs: Outputs,
    spec: PolicySpec,
    observer: Callable[[str], None] = lambda _: None,
) -> dict[str, Target]:
    """Look up targets by name, and put ONNX first, which every bundle has.

    `all` stands for those that can carry the policy; the observer is called with those left out, and why.

    Raises `ExportError` for a target that is unknown or can't carry the policy.
    """
    known = f"choose from {', '.join((*TARGETS, ALL))}"
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise ExportError(f"targets must be a list of names, such as ['onnx', 'c'], not {names!r}; {known}")
    names = list(names)
    unknown = [name for name in names if name not in (*TARGETS, ALL)]
    if unknown:
        raise ExportError(f"target {unknown[0]!r} is unknown; {known}")
    refusals = refusals_of(outputs, spec)
    if ALL in names:
        for name, reason in refusals.items():
            observer(f"{name} is left out: {reason}")
        names = [name for name in TARGETS if name not in refusals]
    for name in names:
        if name in refusals:
            raise ExportError(f"target {name} can't carry this policy: {refusals[name]}; leave it out")
    return {name: TARGETS[name] for name in TARGETS if name in {"onnx", *names}}


def refusals_of(outputs: Outputs, spec: PolicySpec) -> dict[str, str]:
    """Collect why targets can't carry the policy; there is no entry for one that can."""
    import tensorflow as tf

    graph = tf.function(outputs, autograph=False).get_concrete_function(*spec.signature()).graph
    reasons = {name: _refusal(target, graph, spec) for name, target in TARGETS.items()}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _refusal(target: Target, graph: Any, spec: PolicySpec) -> str | None:
    if spec.state and target.open_step is None:
        return "it has no way to carry a state from a step to the next"
    return target.refusal(graph, spec)


def target_sizes(manifest: Manifest) -> dict[str, int]:
    """Sum the bytes of each target's files, for the targets that are known here."""
    known = [name for name in manifest.parity if name in TARGETS]
    return {name: sum(manifest.files[file].size for file in TARGETS[name].files(manifest)) for name in known}
