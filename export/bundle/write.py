"""Write a bundle: a policy in every target that is asked for, each compared with the original, and a manifest."""

import io
import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tensorflow as tf
from numpy.typing import NDArray

from trpo_tf.export.bundle.model_card import CARD_FILE, model_card
from trpo_tf.export.errors import ExportError
from trpo_tf.export.graph.convert import to_onnx
from trpo_tf.export.graph.metadata import manifest_metadata, with_metadata
from trpo_tf.export.graph.noise_input import with_noise, with_optional_input
from trpo_tf.export.parity.evidence import Evidence, check_episodes, make_reference_cases
from trpo_tf.export.parity.latency import latency_json, measure_latencies
from trpo_tf.export.parity.proof import (
    Proof,
    ReferenceCases,
    compare_target,
    is_repeatable,
    manifest_parity,
    without_returns,
)
from trpo_tf.export.parity.reference import Answered
from trpo_tf.export.parity.soundness import outputs_of
from trpo_tf.export.policy.checks import check_answer
from trpo_tf.export.policy.functions import Actor, InferenceFunction, Outputs
from trpo_tf.export.policy.opsets import OPSET
from trpo_tf.export.policy.spec import DEFAULT_FORM, GraphForm, PolicySpec, all_outputs, check_function, spec_of
from trpo_tf.export.support.new_folder import new_folder
from trpo_tf.export.targets.table import DEFAULT_TARGETS, checked_targets
from trpo_tf.export.targets.target import ExportInputs, Target
from trpo_tf.serving import ArraySpec, BundleError, GraphSpec, Manifest
from trpo_tf.serving.arguments import expect
from trpo_tf.serving.bundle.files import GOLDEN_FILE, LATENCY_FILE, MANIFEST_FILE, FileEntry
from trpo_tf.serving.bundle.manifest import read_manifest
from trpo_tf.serving.bundle.signing import sign, signer
from trpo_tf.serving.bundle.specs import MOST_STATISTICS, Statistics
from trpo_tf.serving.runtime.observations import Array, by_name
from trpo_tf.serving.runtime.policy import as_observations

_NOT_REPEATABLE = (
    "the environment plays another episode from the same seed (does it draw from global random numbers?): targets are "
    "compared on observations alone, and no returns"
)


_LEAST_GOLDEN, _MOST_GOLDEN = 16, 128
"""Golden cases without noise, and as many with it."""

_NO_EVIDENCE = Evidence()


def write_bundle(
    function: InferenceFunction,
    spec: PolicySpec,
    path: str | Path,
    *,
    targets: Sequence[str] = DEFAULT_TARGETS,
    form: GraphForm = DEFAULT_FORM,
    name: str = "policy",
    evidence: Evidence = _NO_EVIDENCE,
    provenance: Mapping[str, Any] | None = None,
    statistics: Mapping[str, Statistics] | None = None,
    files: Mapping[str, bytes] | None = None,
    accept_loss: bool = False,
    signing_key: Path | None = None,
    observer: Callable[[str], None] = lambda _: None,
) -> Manifest:
    """Export an inference function to the bundle folder `path`, which must not exist yet.

    The folder appears only when every target was compared with `function` and stands the comparison.

    Args:
        function: observations [batch, ...], noise [batch, k] -> actions [batch, ...], in TensorFlow.
        spec: the arrays' names, types, shapes and bounds, and the law of the noise.
        path: the folder to make.
        targets: names of `trpo_tf.export.targets.table.TARGETS`, or `all` for each that can carry the policy.
        form: the ONNX graph's opset, noise input, batch, and further outputs.
        name: the model's name when served.
        evidence: more to compare on.
        provenance: where the policy comes from; any JSON.
        statistics: what was observed in training, by input; those of inputs too large for a manifest are left out.
        files: more files to put in the bundle, by name.
        accept_loss: write a target that does not stand the comparison too; the manifest then says so.
        signing_key: a private key to sign the bundle with.
        observer: called with what is being done.

    Raises:
        FileExistsError: `path` exists.
        ExportError: a target is unknown, can't carry the policy, or can't be made of it.
        ParityError: a target differs from the policy, or loses return.
        BundleError: a name or spec that a manifest can't hold, or a key that can't sign.
    """
    _check_arguments(function, spec, path, form, name, evidence)
    _check_contents(provenance, statistics, files)
    expect(observer, Callable, "observer must be a function of what is being done", ExportError)
    if signing_key is not None:
        signer(signing_key)  # before all the work
    with new_folder(Path(path)) as folder:
        chosen = checked_targets(targets, function, spec, observer)
        check_episodes(chosen, evidence)
        for file, content in (files or {}).items():
            (folder / file).write_bytes(content)
        outputs = all_outputs(function, spec, form)
        graph = GraphSpec(form.noise, form.batch, _further_outputs(outputs, spec))
        kept = {key: value for key, value in (statistics or {}).items() if len(value.mean) <= MOST_STATISTICS}
        manifest = Manifest(
            name, spec.observation, spec.action, spec.noise, graph, provenance=provenance or {}, statistics=kept
        )
        observer(f"playing {evidence.episodes} episodes" if evidence.environment else "computing golden cases")
        graphs = _graphs(function, outputs, spec, form)
        reference_cases = make_reference_cases(function, outputs, manifest, evidence, _serialized(graphs.outputs))
        if not reference_cases.repeatable:
            observer(_NOT_REPEATABLE)
        inputs = _export_inputs(function, outputs, manifest, form, graphs, reference_cases)
        optional = chosen.keys() - {"onnx", *targets}
        actors, proofs = _written(folder, manifest, chosen, inputs, reference_cases, optional, observer)
        chosen = {target: chosen[target] for target in proofs}
        if not is_repeatable(proofs, reference_cases):
            observer(_NOT_REPEATABLE)
            proofs, reference_cases = without_returns(proofs), replace(reference_cases, repeatable=False)
        parity = manifest_parity(proofs, reference_cases, accept_loss=accept_loss)
        for target, figures in parity.items():
            if renamed := chosen[target].renamed_inputs(spec):
                figures["inputs"] = renamed
        manifest = replace(manifest, parity=_with_missing(parity, chosen, manifest, observer))
        _finish(folder, manifest, chosen, reference_cases)
        observer("measuring latencies")
        latencies = measure_latencies(actors, reference_cases.observations, reference_cases.noise)
        (folder / LATENCY_FILE).write_text(latency_json(latencies))
        if signing_key is not None:
            sign(folder, signing_key)
        return read_manifest(folder)


def _check_arguments(function: Any, spec: Any, path: Any, form: Any, name: Any, evidence: Any) -> None:
    check_function(function, "function")
    expect(spec, PolicySpec, "spec must be a PolicySpec", ExportError)
    expect(path, (str, os.PathLike), "path must be that of the folder to make", ExportError)
    expect(form, GraphForm, "form must be a GraphForm", ExportError)
    expect(evidence, Evidence, "evidence must be Evidence(observations), or Evidence(environment=...)", ExportError)
    if not isinstance(name, str) or not name.isprintable() or "/" in name or not name:
        raise BundleError(f"name must be printable text without '/', not {name!r}")
    clashes = set(form.outputs) & {spec.noise.name, spec.action.name, *(part.name for part in spec.observation)}
    if clashes:
        raise ExportError(f"output {min(clashes)!r} has the name of another array; choose another")
    check_answer(function, spec)
    if evidence.observations is not None:
        try:
            as_observations(evidence.observations, spec.observation, batched=True)
        except ValueError as error:
            raise ExportError(f"observations of the evidence: {error}") from None


def _check_contents(provenance: Any, statistics: Any, files: Any) -> None:
    for value, wanted in ((provenance, "provenance"), (statistics, "statistics"), (files, "files")):
        expect(value, Mapping | None, f"{wanted} must be a dict", ExportError)
    try:
        json.dumps(dict(provenance or {}), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ExportError(f"provenance must be JSON: {error}") from None
    for each in (statistics or {}).values():
        expect(each, Statistics, "statistics must hold a Statistics for each input", ExportError)
    for name, content in (files or {}).items():
        expect(content, bytes, f"files[{name!r}] must be bytes", ExportError)
        if not isinstance(name, str) or Path(name).name != name:
            raise ExportError(f"files must have plain names, without a folder, not {name!r}")


def convert_policy(function: InferenceFunction, spec: PolicySpec, *, opset: int = OPSET) -> bytes:
    """Convert the policy to a serialized ONNX graph with optional noise.

    Arguments and errors are those of `to_onnx`.
    """
    check_function(function, "function")
    expect(spec, PolicySpec, "spec must be a PolicySpec", ExportError)
    return _serialized(_converted(all_outputs(function, spec), spec, opset))


def _converted(outputs: Outputs, spec: PolicySpec, opset: int) -> onnx.ModelProto:
    return with_optional_input(to_onnx(outputs, spec.signature(), opset=opset), spec.noise.name)


def _serialized(model: onnx.ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)


def _further_outputs(outputs: Outputs, spec: PolicySpec) -> tuple[ArraySpec, ...]:
    """Describe the further outputs' arrays. Raises `ExportError` for one whose rows have no fixed shape."""
    traced = tf.function(outputs, spec.signature(), autograph=False).get_concrete_function().structured_outputs
    further = {name: tensor for name, tensor in traced.items() if name != spec.action.name}
    for name, tensor in further.items():
        if tensor.shape.rank in (None, 0) or None in tensor.shape[1:]:
            raise ExportError(f"output {name!r} has shape {tensor.shape}; rows must have a fixed one")
    return tuple(ArraySpec(name, tensor.dtype.name, tuple(tensor.shape[1:])) for name, tensor in further.items())


@dataclass(frozen=True)
class _Graphs:
    """Two ONNX graphs with optional noise and any batch size: one of the action alone, one of all outputs."""

    plain: onnx.ModelProto
    outputs: onnx.ModelProto


def _graphs(function: InferenceFunction, outputs: Outputs, spec: PolicySpec, form: GraphForm) -> _Graphs:
    plain = _converted(all_outputs(function, spec), spec, form.opset)
    return _Graphs(plain, _converted(outputs, spec, form.opset) if form.outputs else plain)


def _export_inputs(
    function: InferenceFunction,
    outputs: Outputs,
    manifest: Manifest,
    form: GraphForm,
    graphs: _Graphs,
    reference_cases: ReferenceCases,
) -> ExportInputs:
    spec = spec_of(manifest)
    graph = with_metadata(with_noise(graphs.outputs, spec.noise.name, form.noise), manifest_metadata(manifest))
    plain = _serialized(graphs.plain)
    return ExportInputs(function, outputs, spec, _serialized(graph), form.batch, plain, reference_cases.visited)


def _written(
    folder: Path,
    manifest: Manifest,
    targets: Mapping[str, Target],
    inputs: ExportInputs,
    reference_cases: ReferenceCases,
    optional: Collection[str],
    observer: Callable[[str], None],
) -> tuple[dict[str, Actor], dict[str, Proof]]:
    """Write every target and compare it. Returns what runs it and its proof, both by name.

    An `optional` one that can't be made is left out, and the observer is called with the reason.
    """
    actors, proofs = {}, {}
    for name, target in targets.items():
        observer(f"writing and comparing {name}")
        try:
            _write(name, target, inputs, folder)
        except ExportError as error:
            if name not in optional:
                raise
            observer(f"{name} is left out: {error}")
            shutil.rmtree(folder / target.path, ignore_errors=True)
            continue
        actors[name] = target.open(folder, manifest)
        samples = manifest.graph.noise != "none" or not target.follows_form
        further = target.open_outputs(folder, manifest) if target.open_outputs and manifest.graph.outputs else None
        proofs[name] = compare_target(
            name, actors[name], reference_cases, exact=target.exact, samples=samples, further=further
        )
    return actors, proofs


def _write(name: str, target: Target, inputs: ExportInputs, folder: Path) -> None:
    """Write a target. Raises `ExportError` for whatever its converter raises, and `OSError` for a full disk."""
    try:
        target.write(inputs, folder)
    except (ExportError, OSError):
        raise
    except tf.errors.OpError as error:  # a full disk, say
        raise ExportError(f"{name} can't be written: {error.message}") from error
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ExportError(f"{name} can't be made of this function: {reason}") from error


def _with_missing(
    parity: Mapping[str, Any], targets: Mapping[str, Target], manifest: Manifest, observer: Callable[[str], None]
) -> dict[str, Any]:
    """Add to the manifest's parity which outputs a target does not answer."""
    names = [spec.name for spec in manifest.graph.outputs]
    missing = [name for name, target in targets.items() if target.open_outputs is None and names]
    for name in missing:
        observer(f"{name} answers the action alone, without {', '.join(names)}")
    return {name: figures | ({"without": names} if name in missing else {}) for name, figures in parity.items()}


def _finish(folder: Path, manifest: Manifest, targets: Mapping[str, Target], reference_cases: ReferenceCases) -> None:
    """Write the files about the targets: metadata inside of ONNX files, golden cases, model card, manifest."""
    for name, target in targets.items():
        file = folder / target.path
        if file.suffix == ".onnx":
            described = replace(manifest, parity={name: manifest.parity[name]})
            model = with_metadata(onnx.load_from_string(file.read_bytes()), manifest_metadata(described))
            file.write_bytes(_serialized(model))
    (folder / GOLDEN_FILE).write_bytes(_golden(reference_cases, manifest))
    (folder / CARD_FILE).write_text(model_card(replace(manifest, files=_entries(folder))))
    (folder / MANIFEST_FILE).write_text(replace(manifest, files=_entries(folder)).to_json())


def _entries(folder: Path) -> dict[str, FileEntry]:
    return {
        file.relative_to(folder).as_posix(): FileEntry.of(file.read_bytes())
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def _golden(reference_cases: ReferenceCases, manifest: Manifest) -> bytes:
    """Serialize golden cases with zero noise, then the same with noise, of which no rounding changes the action.

    Where there are few such, those that it changes least.
    """
    chosen = [cases.take(_firmest(cases)) for cases in (reference_cases.golden, reference_cases.noisy_golden)]
    arrays: dict[str, list[Array]] = {}
    for cases in chosen:
        inputs = by_name(cases.observations, manifest.observation[0].name) | {manifest.noise.name: cases.noise}
        for name, array in {**inputs, **outputs_of(cases)}.items():
            arrays.setdefault(name, []).append(array)
    buffer = io.BytesIO()
    np.savez(buffer, **{name: np.concatenate(parts) for name, parts in arrays.items()})  # type: ignore[arg-type]
    return buffer.getvalue()


def _firmest(cases: Answered) -> NDArray[np.int64]:
    (firm,) = np.nonzero(cases.firm)
    least = min(_LEAST_GOLDEN, len(cases))
    if len(firm) < least:
        firm = np.sort(np.argsort(cases.fragility, kind="stable")[:least])
    return np.asarray(firm[np.unique(np.linspace(0, len(firm) - 1, _MOST_GOLDEN).astype(int))])
