"""Check every target of a bundle on this machine: its golden cases, and how fast it answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trpo_tf.export.errors import ExportError
from trpo_tf.export.parity.compare import Agreement, compare_cases, compare_sequences
from trpo_tf.export.parity.latency import measure_latencies
from trpo_tf.export.parity.reference.answers import Answered
from trpo_tf.export.parity.reference.rounding import Rounding, along_sequences
from trpo_tf.export.policy.batches import ActionAlone
from trpo_tf.export.policy.functions import Actor, Answers
from trpo_tf.export.policy.spec import spec_of
from trpo_tf.export.targets.table import TARGETS, target_sizes
from trpo_tf.serving import BundleError, Manifest
from trpo_tf.serving.bundle.files import GOLDEN_FILE, MODEL_FILE
from trpo_tf.serving.bundle.golden import read_golden
from trpo_tf.serving.bundle.manifest import read_checked, read_manifest
from trpo_tf.serving.runtime.observations import structured

_UNKNOWN = "no such target is known here; install the package that adds it"


@dataclass(frozen=True)
class VerifiedTargets:
    """The result of checking a bundle's targets on this machine.

    Attributes:
        parity: the manifest's `parity`, with the differences found here.
        sizes: bytes of each target.
        latencies: of each target here.
        skipped: targets that can't run here, with the reason.
        new_cases: number of cases drawn besides the golden ones.
    """

    parity: Mapping[str, Any]
    sizes: Mapping[str, int]
    latencies: Mapping[str, Any]
    skipped: Mapping[str, str]
    new_cases: int = 0


def verify_targets(bundle: str | Path, seed: int | None = None) -> VerifiedTargets:
    """Replay the golden cases in every target that can be run here, after `trpo_tf.serving.verify`.

    With a seed, targets are compared with each other on cases drawn from it, too.

    Raises `BundleError` for a target in floats that doesn't reproduce them, or differs on the new cases.
    """
    folder = Path(bundle)
    manifest = read_manifest(folder)
    cases = read_golden(read_checked(folder, manifest, GOLDEN_FILE), manifest)
    observations = structured({spec.name: cases[spec.name] for spec in manifest.step_inputs})
    noise = cases[manifest.noise.name]
    without_noise = ~noise.reshape(len(noise), -1).any(axis=1)
    further = {spec.name: cases[spec.name] for spec in manifest.outputs[1:] if spec.name in cases}
    expected = cases[manifest.action.name]
    rounding = None if manifest.graph.batch else Rounding((folder / MODEL_FILE).read_bytes(), spec_of(manifest))
    action = manifest.action
    golden = Answered(observations, noise, expected, further, rounding=rounding, action=action.name, unit=action.unit)

    parity: dict[str, Any] = {}
    actors: dict[str, Actor] = {}
    steps: dict[str, Answers] = {}
    skipped: dict[str, str] = {}
    skipped |= {name: _UNKNOWN for name in manifest.parity if name not in TARGETS}
    for name in filter(manifest.parity.__contains__, TARGETS):
        target = TARGETS[name]
        try:
            if manifest.state and target.open_step is not None:
                steps[name] = target.open_step(folder, manifest)
                actors[name] = ActionAlone(steps[name], manifest.action.name)
            else:
                actors[name] = target.open(folder, manifest)
        except ExportError as error:
            skipped[name] = str(error)
            continue
        rows = without_noise if target.follows_form and manifest.graph.noise == "none" else np.ones(len(noise), bool)
        found = _replayed(name, actors[name], golden.take(rows), folder, manifest, steps.get(name))
        if target.exact and not found.complete:
            raise BundleError(
                f"{folder}: {name} differs from its golden cases by {found.max_difference:.3g} on this machine"
            )
        parity[name] = {**manifest.parity[name], **_found(found)}
        if name in steps:
            parity[name]["state_max_difference"] = _drift(name, steps[name], golden.take(rows), folder, manifest)
    new_cases = 0
    if seed is not None:
        from trpo_tf.export.parity.new_cases import compare_on_new_cases  # imports TensorFlow

        seen = structured({spec.name: cases[spec.name] for spec in manifest.observation})
        new_cases = compare_on_new_cases(folder, manifest, actors, seen, seed, steps)
    latencies = measure_latencies(actors, observations, noise)
    return VerifiedTargets(parity, target_sizes(manifest), latencies, skipped, new_cases)


def _replayed(
    name: str, actor: Actor, golden: Answered, folder: Path, manifest: Manifest, step: Answers | None
) -> Agreement:
    target, further = TARGETS[name], None
    if target.exact and golden.further:
        has_more = step is None or manifest.graph.outputs
        further = target.open_outputs(folder, manifest) if target.open_outputs and has_more else step
    try:
        return compare_cases(actor, [golden], further)
    except ExportError as error:
        raise BundleError(f"{folder}: {name} {error}, on this machine") from None


def _drift(name: str, step: Answers, golden: Answered, folder: Path, manifest: Manifest) -> float:
    """Measure how far the state is from the golden one along its sequences. Raises `BundleError` if it drifts."""
    found = compare_sequences(step, along_sequences(golden), spec_of(manifest))
    if TARGETS[name].exact and not found.complete:
        raise BundleError(
            f"{folder}: {name} drifts from its golden sequences: its state differs by {found.max_difference:.3g} on "
            "this machine"
        )
    return found.max_difference


def _found(found: Agreement) -> dict[str, Any]:
    return {"max_difference": found.max_difference, "cases": found.compared, "cases_equal": found.equal}
