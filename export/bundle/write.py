"""Write a bundle: a policy in every target that is asked for, each compared with the original, and a manifest."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from trpo_tf.export.bundle.argument_checks import DEFAULT_NAME, Contents, check_arguments, check_contents
from trpo_tf.export.bundle.describe import describe
from trpo_tf.export.bundle.graphs import export_inputs, further_outputs, policy_graphs
from trpo_tf.export.bundle.make_targets import make_targets, target_parity, without_failed
from trpo_tf.export.graph.convert_policy import serialized
from trpo_tf.export.parity.latency import latency_json, measure_latencies
from trpo_tf.export.parity.proof import Proof, is_repeatable, without_returns
from trpo_tf.export.parity.reference.evidence import Evidence, check_episodes, make_reference_cases
from trpo_tf.export.parity.reference.reference_cases import ReferenceCases
from trpo_tf.export.policy.functions import Actor, Outputs, PolicyFunction
from trpo_tf.export.policy.outputs import all_outputs, of_inputs
from trpo_tf.export.policy.spec import DEFAULT_FORM, GraphForm, PolicySpec
from trpo_tf.export.support.new_folder import new_folder
from trpo_tf.export.targets.table import DEFAULT_TARGETS, checked_targets
from trpo_tf.serving import GraphSpec, Manifest
from trpo_tf.serving.bundle.files import LATENCY_FILE
from trpo_tf.serving.bundle.manifest import read_manifest
from trpo_tf.serving.bundle.signing import sign
from trpo_tf.serving.bundle.specs import MOST_STATISTICS

_NOT_REPEATABLE = (
    "the environment plays another episode from the same seed (does it draw from global random numbers?): targets are "
    "compared on observations alone, and no returns"
)

_NO_EVIDENCE = Evidence()


def write_bundle(
    function: PolicyFunction,
    spec: PolicySpec,
    path: str | Path,
    *,
    targets: Sequence[str] = DEFAULT_TARGETS,
    form: GraphForm = DEFAULT_FORM,
    evidence: Evidence = _NO_EVIDENCE,
    accept_loss: bool = False,
    observer: Callable[[str], None] = lambda _: None,
    **contents: Unpack[Contents],
) -> Manifest:
    """Export an inference function to the bundle folder `path`, which must not exist yet.

    The folder appears only after every target was compared with `function` and agrees with it.

    Args:
        function: observations [batch, ...], noise [batch, k] -> actions [batch, ...], in TensorFlow. Of a policy with
            state: observations, state, reset [batch], noise -> actions, next state. States are dicts of tensors
            [batch, ...] by name, and rows of the state in which `reset` is true are the initial ones.
        spec: the arrays' names, types, shapes and bounds, the law of the noise, and the state.
        path: the folder to make.
        targets: names of `trpo_tf.export.targets.table.TARGETS`, or `all` for each that can carry the policy.
        form: the ONNX graph's opset, noise input, batch, and further outputs.
        name: the model's name when served.
        evidence: observations, environment and scores to compare targets on.
        provenance: where the policy comes from; any JSON.
        statistics: what was observed in training, by input; those of inputs too large for a manifest are left out.
        files: more files to put in the bundle, by name.
        accept_loss: also write targets that differ or lose return; the manifest then says so.
        signing_key: a private key to sign the bundle with.
        observer: called with a text at each stage.

    Raises:
        FileExistsError: `path` exists.
        ExportError: a target is unknown, can't carry the policy, or can't be made of it.
        ParityError: a target differs from the policy, or loses return.
        BundleError: a name or spec that a manifest can't hold, or a key that can't sign.
    """
    check_arguments(function, spec, path, form, evidence, observer)
    check_contents(contents)
    with new_folder(Path(path)) as folder:
        chosen = checked_targets(targets, all_outputs(function, spec), spec, observer)
        check_episodes(chosen, evidence)
        outputs, policy = all_outputs(function, spec, form), of_inputs(function, spec)
        manifest = _new_manifest(outputs, spec, form, contents)
        for file, content in (contents.get("files") or {}).items():
            (folder / file).write_bytes(content)
        observer(f"playing {evidence.episodes} episodes" if evidence.environment else "computing golden cases")
        graphs = policy_graphs(function, outputs, spec, form)
        cases = make_reference_cases(policy, outputs, manifest, evidence, serialized(graphs.outputs))
        if not cases.repeatable:
            observer(_NOT_REPEATABLE)
        inputs = export_inputs(function, outputs, manifest, form, graphs, cases)
        optional = chosen.keys() - {"onnx", *targets}
        actors, proofs = make_targets(folder, manifest, chosen, inputs, cases, optional, observer)
        proofs, cases = _comparable(proofs, cases, observer)
        proofs = without_failed(folder, chosen, proofs, cases, optional, observer, accept_loss=accept_loss)
        chosen = {name: chosen[name] for name in proofs}
        parity = target_parity(proofs, cases, chosen, manifest, accept_loss=accept_loss)
        manifest = replace(manifest, parity=parity)
        _say_missing(manifest, observer)
        describe(folder, manifest, chosen, cases)
        _write_latencies(folder, {name: actors[name] for name in proofs}, cases, observer)
        if (key := contents.get("signing_key")) is not None:
            sign(folder, key)
        return read_manifest(folder)


def _new_manifest(outputs: Outputs, spec: PolicySpec, form: GraphForm, contents: Contents) -> Manifest:
    """Return the manifest before anything is compared: without `parity` and files."""
    statistics = contents.get("statistics") or {}
    return Manifest(
        contents.get("name", DEFAULT_NAME),
        spec.observation,
        spec.action,
        spec.noise,
        GraphSpec(form.noise, form.batch, further_outputs(outputs, spec) if form.outputs else ()),
        provenance=contents.get("provenance") or {},
        statistics={name: value for name, value in statistics.items() if len(value.mean) <= MOST_STATISTICS},
        state=spec.state,
        mask=spec.mask,
    )


def _comparable(
    proofs: dict[str, Proof], cases: ReferenceCases, observer: Callable[[str], None]
) -> tuple[dict[str, Proof], ReferenceCases]:
    """Leave the returns out if the environment does not repeat its episodes."""
    if is_repeatable(proofs, cases):
        return proofs, cases
    observer(_NOT_REPEATABLE)
    return without_returns(proofs), replace(cases, repeatable=False)


def _write_latencies(
    folder: Path, actors: Mapping[str, Actor], cases: ReferenceCases, observer: Callable[[str], None]
) -> None:
    observer("measuring latencies")
    latencies = measure_latencies(actors, cases.observations, cases.noise)
    (folder / LATENCY_FILE).write_text(latency_json(latencies))


def _say_missing(manifest: Manifest, observer: Callable[[str], None]) -> None:
    for name, figures in manifest.parity.items():
        if "without" in figures:
            observer(f"{name} answers the action alone, without {', '.join(figures['without'])}")
