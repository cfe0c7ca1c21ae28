"""Write a bundle: a policy in every format asked for, each proven to act like it, with a manifest of it all."""

import io
import itertools
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

from export.cases import observation_cases
from export.folders import new_folder
from export.function import (
    DEFAULT_FORM,
    GraphForm,
    InferenceFunction,
    Outputs,
    PolicySpec,
    all_outputs,
    check_answer,
    check_function,
)
from export.inputs import with_noise, with_optional_input
from export.latency import latency_json, measure_latencies
from export.metadata import manifest_metadata, with_metadata
from export.model_card import CARD_FILE, model_card
from export.onnx_graph import OPSET, ExportError, to_onnx
from export.parity import Actor, Environment, Episode, Reference, play, repeats
from export.proof import Proof, Standard, is_repeatable, judged, prove, without_returns
from export.targets import DEFAULT_TARGETS, Material, Target, checked_targets
from serving import ArraySpec, BundleError, GraphSpec, Manifest
from serving.arguments import expect, expect_count
from serving.manifest import (
    GOLDEN_FILE,
    LATENCY_FILE,
    MANIFEST_FILE,
    MOST_STATISTICS,
    FileEntry,
    Statistics,
    read_manifest,
)
from serving.observations import Array, Observation, batch_size, by_name, map_parts, take
from serving.policy import as_observations, draw_noise
from serving.signature import sign, signer

_VISITED = 512
"""Observations of the policy's own episodes that it is compared and calibrated on."""


_NOT_REPEATABLE = (
    "the environment plays another episode from the same seed (does it draw from global random numbers?): targets are "
    "compared on observations alone, and no returns"
)


@dataclass(frozen=True)
class Evidence:
    """What an export is compared on, beside random observations and the bounds.

    Attributes:
        observations: recorded observations [n, ...]; by default those of the episodes.
        environment: an environment to play whole episodes in.
        scores: for discrete actions, the function whose argmax over the last axis is the action: [batch, ..., n].
        episodes: how many, of seeds from 0 on.
        untrained_return: mean return before training, against which a loss of return is weighed.
    """

    observations: Observation | None = None
    environment: Environment | None = None
    scores: InferenceFunction | None = None
    episodes: int = 20
    untrained_return: float | None = None

    def __post_init__(self) -> None:
        expect_count(self.episodes, "episodes", 1, ExportError)
        if self.scores is not None:
            check_function(self.scores, "scores")
        if self.environment is not None and not all(hasattr(self.environment, each) for each in ("reset", "step")):
            raise ExportError(f"environment must be one, with reset and step, not {self.environment!r}")
        if self.observations is not None:
            wanted = "observations must be an array [n, ...], or a dict of them by input"
            parts = self.observations.values() if isinstance(self.observations, dict) else [self.observations]
            for part in parts:
                expect(part, np.ndarray, wanted, ExportError)


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
        targets: names of `export.targets.TARGETS`, or `all` for each that can carry the policy.
        form: the ONNX graph's opset, noise input, batch, and further outputs.
        name: the model's name when served.
        evidence: more to compare on.
        provenance: where the policy comes from; any JSON.
        statistics: what was observed in training, by input; those of inputs too large for a manifest are left out.
        files: more files to put in the bundle, by name.
        accept_loss: write a target that does not stand the comparison too; the manifest then says so.
        signing_key: a private key to sign the bundle with.
        observer: told what is being done.

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
        for file, content in (files or {}).items():
            (folder / file).write_bytes(content)
        outputs = all_outputs(function, spec, form)
        graph = GraphSpec(form.noise, form.batch, _further_outputs(outputs, spec))
        kept = {key: value for key, value in (statistics or {}).items() if len(value.mean) <= MOST_STATISTICS}
        manifest = Manifest(
            name, spec.observation, spec.action, spec.noise, graph, provenance=provenance or {}, statistics=kept
        )
        observer(f"playing {evidence.episodes} episodes" if evidence.environment else "computing golden cases")
        standard = _standard(function, spec, evidence)
        if not standard.repeatable:
            observer(_NOT_REPEATABLE)
        material = _material(function, outputs, manifest, form, standard)
        optional = chosen.keys() - {"onnx", *targets}
        actors, proofs = _written(folder, manifest, chosen, material, standard, optional, observer)
        chosen = {target: chosen[target] for target in proofs}
        if not is_repeatable(proofs, standard):
            observer(_NOT_REPEATABLE)
            proofs, standard = without_returns(proofs), replace(standard, repeatable=False)
        parity = judged(proofs, standard, accept_loss=accept_loss)
        for target, figures in parity.items():
            if renamed := chosen[target].renamed(spec):
                figures["inputs"] = renamed
        manifest = replace(manifest, parity=parity)
        _finish(folder, manifest, chosen, standard)
        observer("measuring latencies")
        latencies = measure_latencies(actors, standard.observations, standard.noise)
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
    """The policy as a serialized ONNX graph whose noise input is optional; arguments and errors as in `to_onnx`."""
    check_function(function, "function")
    expect(spec, PolicySpec, "spec must be a PolicySpec", ExportError)
    return _serialized(_converted(all_outputs(function, spec), spec, opset))


def _converted(outputs: Outputs, spec: PolicySpec, opset: int) -> onnx.ModelProto:
    return with_optional_input(to_onnx(outputs, spec.signature(), opset=opset), spec.noise.name)


def _serialized(model: onnx.ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)


def _further_outputs(outputs: Outputs, spec: PolicySpec) -> tuple[ArraySpec, ...]:
    """Their names, types and shapes. Raises `ExportError` for one whose rows have no fixed shape."""
    traced = tf.function(outputs, spec.signature(), autograph=False).get_concrete_function().structured_outputs
    further = {name: tensor for name, tensor in traced.items() if name != spec.action.name}
    for name, tensor in further.items():
        if tensor.shape.rank in (None, 0) or None in tensor.shape[1:]:
            raise ExportError(f"output {name!r} has shape {tensor.shape}; rows must have a fixed one")
    return tuple(ArraySpec(name, tensor.dtype.name, tuple(tensor.shape[1:])) for name, tensor in further.items())


def _standard(function: InferenceFunction, spec: PolicySpec, evidence: Evidence) -> Standard:
    """The reference, its episodes, and the golden cases."""
    act = _tensorflow_actor(function, spec)
    scores = None if evidence.scores is None else _tensorflow_actor(evidence.scores, spec)
    reference = Reference(act, scores)
    still = np.zeros((1, *spec.noise.shape), spec.noise.dtype)
    environment, episodes = evidence.environment, {}
    if environment is not None:
        names = [part.name for part in spec.observation] if len(spec.observation) > 1 else ()
        episodes = {seed: list(play(act, environment, seed, still, names)) for seed in range(evidence.episodes)}
    visited = evidence.observations if evidence.observations is not None else _visited(episodes)
    rng = np.random.default_rng(0)
    observations = observation_cases(spec.observation, visited, rng)
    noise = draw_noise(spec.noise, batch_size(observations), rng)
    first = dict(itertools.islice(episodes.items(), 1))
    repeatable = environment is None or repeats(reference, environment, first, still)
    return Standard(
        reference, observations, noise, visited, environment, episodes, evidence.untrained_return, repeatable
    )


def _visited(episodes: Mapping[int, Episode]) -> Observation | None:
    """Observations [n, ...], evenly spaced over all episodes."""
    seen = [observation for episode in episodes.values() for observation, _ in episode]
    if not seen:
        return None
    first, *rest = seen[:: -(-len(seen) // _VISITED)]
    return map_parts(lambda *parts: np.stack(parts), first, *rest)  # type: ignore[no-any-return]


def _material(
    function: InferenceFunction, outputs: Outputs, manifest: Manifest, form: GraphForm, standard: Standard
) -> Material:
    spec = PolicySpec(manifest.observation, manifest.action, manifest.noise)
    plain = _converted(all_outputs(function, spec), spec, form.opset)
    graph = with_noise(_converted(outputs, spec, form.opset) if form.outputs else plain, spec.noise.name, form.noise)
    graph = with_metadata(graph, manifest_metadata(manifest))
    return Material(function, outputs, spec, _serialized(graph), form.batch, _serialized(plain), standard.visited)


def _written(
    folder: Path,
    manifest: Manifest,
    targets: Mapping[str, Target],
    material: Material,
    standard: Standard,
    optional: Collection[str],
    observer: Callable[[str], None],
) -> tuple[dict[str, Actor], dict[str, Proof]]:
    """Write every target and compare it: what runs it, and its proof.

    An `optional` one that can't be made is left out, which the observer is told.
    """
    actors, proofs = {}, {}
    for name, target in targets.items():
        observer(f"writing and comparing {name}")
        try:
            _write(name, target, material, folder)
        except ExportError as error:
            if name not in optional:
                raise
            observer(f"{name} is left out: {error}")
            shutil.rmtree(folder / target.path, ignore_errors=True)
            continue
        actors[name] = target.open(folder, manifest)
        samples = manifest.graph.noise != "none" or not target.formed
        proofs[name] = prove(name, actors[name], standard, exact=target.exact, samples=samples)
    return actors, proofs


def _write(name: str, target: Target, material: Material, folder: Path) -> None:
    """Write a target. Raises `ExportError` for whatever its converter raises, and `OSError` for a full disk."""
    try:
        target.write(material, folder)
    except (ExportError, OSError):
        raise
    except tf.errors.OpError as error:  # a full disk, say
        raise ExportError(f"{name} can't be written: {error.message}") from error
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ExportError(f"{name} can't be made of this function: {reason}") from error


def _finish(folder: Path, manifest: Manifest, targets: Mapping[str, Target], standard: Standard) -> None:
    """Write what is about the targets: metadata inside them, golden cases, model card, manifest."""
    for name, target in targets.items():
        file = folder / target.path
        if file.suffix == ".onnx":
            described = replace(manifest, parity={name: manifest.parity[name]})
            model = with_metadata(onnx.load_from_string(file.read_bytes()), manifest_metadata(described))
            file.write_bytes(_serialized(model))
    (folder / GOLDEN_FILE).write_bytes(_golden(standard, manifest))
    (folder / CARD_FILE).write_text(model_card(replace(manifest, files=_entries(folder))))
    (folder / MANIFEST_FILE).write_text(replace(manifest, files=_entries(folder)).to_json())


def _entries(folder: Path) -> dict[str, FileEntry]:
    return {
        file.relative_to(folder).as_posix(): FileEntry.of(file.read_bytes())
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def _tensorflow_actor(function: InferenceFunction, spec: PolicySpec) -> Actor:
    traced = tf.function(function, spec.signature(), autograph=False)

    def act(observations: Observation, noise: Array) -> Array:
        return traced(map_parts(tf.constant, observations), tf.constant(noise)).numpy()  # type: ignore[no-any-return]

    return act


def _golden(standard: Standard, manifest: Manifest) -> bytes:
    """Cases with zero noise, then the same with noise; ties, to which any answer is right, are left out."""
    reference = standard.reference
    observations = map_parts(lambda part: np.concatenate([part, part]), standard.observations)
    noise = np.concatenate([standard.still, standard.noise])
    decisive = reference.decisive(observations, noise)
    observations, noise = take(observations, decisive), noise[decisive]
    arrays = {manifest.noise.name: noise, manifest.action.name: reference.act(observations, noise)}
    buffer = io.BytesIO()
    np.savez(buffer, **by_name(observations, manifest.observation[0].name), **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
