"""Compare the targets of a bundle with each other on new cases, without the policy that they were made of."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from trpo_tf.export.errors import ExportError
from trpo_tf.export.parity.compare import compare_cases, compare_sequences
from trpo_tf.export.parity.reference.answers import BATCH_SIZES, Answered, Reference
from trpo_tf.export.parity.reference.case_inputs import far_rows, with_tails
from trpo_tf.export.parity.reference.evidence import answerable, sequence_cases
from trpo_tf.export.parity.reference.legal_actions import check_legal, policy_cases
from trpo_tf.export.parity.reference.recurrent import Recurrent, fresh
from trpo_tf.export.parity.reference.rounding import Rounding, along_sequences
from trpo_tf.export.parity.reference.soundness import check_actions, check_bounds, check_rows
from trpo_tf.export.policy.functions import Actor, Answers
from trpo_tf.export.policy.spec import spec_of
from trpo_tf.export.targets.table import TARGETS
from trpo_tf.serving import BundleError, Manifest
from trpo_tf.serving.bundle.files import MODEL_FILE
from trpo_tf.serving.runtime.noise import draw_noise
from trpo_tf.serving.runtime.observations import Observation, batch_size, take

_VISITED = 64


def compare_on_new_cases(
    bundle: Path,
    manifest: Manifest,
    actors: Mapping[str, Actor],
    visited: Observation,
    seed: int,
    steps: Mapping[str, Answers],
) -> int:
    """Compare all targets in floats with policy.onnx on cases drawn from `seed`, and count these cases.

    Cases are made as an export makes them, around `visited` observations [n, ...]. If rounding decides policy.onnx's
    action in a case, any answer of a target counts as right. `steps` also answer the next state of a policy with state.

    Raises `BundleError` for a target that differs or leaves its bounds, or for rows that depend on each other.
    """
    rng, spec = np.random.default_rng(seed), spec_of(manifest)
    chosen = rng.choice(batch_size(visited), min(_VISITED, batch_size(visited)), replace=False)
    observations = policy_cases(spec, take(visited, chosen), rng)
    noise = with_tails(spec.noise, draw_noise(spec.noise, batch_size(observations), rng), rng)
    if manifest.graph.noise == "none":
        noise = np.zeros_like(noise)
    reference = _reference(bundle, manifest, actors["onnx"], steps.get("onnx"))
    name = "onnx"
    try:
        far = far_rows(spec.observation, observations, visited)
        kept = ~far | answerable(reference, fresh(observations, spec), noise)
        observations, noise, far = take(observations, kept), noise[kept], far[kept]
        noisy = observations
        if reference.recurrent is not None:
            observations, noisy, noise, _ = sequence_cases(reference.recurrent, observations, noise, far, rng)
        for seen, drawn in ((observations, np.zeros_like(noise)), (noisy, noise)):
            cases = reference.answered(seen, drawn, 1).with_margins()
            name = "onnx"
            check_actions(cases, spec)
            check_rows(reference, cases, BATCH_SIZES)
            for name, actor in actors.items():
                _compare(name, actor, cases, manifest, steps.get(name))
    except ExportError as error:
        raise BundleError(f"{bundle}: {name} {error}, on new cases of seed {seed}") from None
    return len(noise)


def _reference(bundle: Path, manifest: Manifest, actor: Actor, step: Answers | None) -> Reference:
    spec, rounding = spec_of(manifest), _rounding(bundle, manifest)
    recurrent = None if step is None else Recurrent(step, spec)
    return Reference(actor, rounding=rounding, action=spec.action.name, recurrent=recurrent, unit=spec.action.unit)


def _compare(name: str, actor: Actor, cases: Answered, manifest: Manifest, step: Answers | None) -> None:
    if not TARGETS[name].exact:
        actions = actor(cases.observations, cases.noise)
        check_bounds(actions, manifest.action)
        check_legal(actions, cases.observations, manifest.mask, manifest.action)
        return
    found = compare_cases(actor, [cases], step, sizes=BATCH_SIZES)
    if not found.complete:
        raise ExportError(f"differs from {MODEL_FILE} by {found.max_difference:.3g}")
    if step is not None:
        drift = compare_sequences(step, along_sequences(cases), spec_of(manifest))
        if not drift.complete:
            raise ExportError(f"drifts from {MODEL_FILE}: its state differs by {drift.max_difference:.3g}")


def _rounding(bundle: Path, manifest: Manifest) -> Rounding | None:
    """Measure the margins of rounding of policy.onnx, or return None for a graph with a fixed batch."""
    if manifest.graph.batch is not None:
        return None
    return Rounding((bundle / MODEL_FILE).read_bytes(), spec_of(manifest))
