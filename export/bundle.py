"""Write a bundle: every format of a policy, proven to act alike, with a manifest of it all."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from export.cases import observation_cases
from export.folders import new_folder
from export.function import InferenceFunction, PolicySpec
from export.inputs import with_optional_input
from export.onnx_graph import OPSET, to_onnx
from export.parity import NOTHING, Actor, Environment, Reference, compare_cases, compare_episodes, play
from export.saved_model import write_saved_model
from serving.manifest import GOLDEN_FILE, MANIFEST_FILE, MODEL_FILE, FileEntry, Manifest, read_manifest
from serving.observations import Array, Observation, batch_size, by_name, map_parts, take
from serving.policy import Policy, draw_noise

SAVED_MODEL_FOLDER = "saved_model"
_EPISODES = 3


@dataclass(frozen=True)
class Evidence:
    """What an export is compared on, beside random observations and the bounds.

    Attributes:
        observations: recorded observations [n, ...].
        environment: an environment to play whole episodes in.
        scores: for discrete actions, the function whose argmax over the last axis is the action: [batch, ..., n].
    """

    observations: Observation | None = None
    environment: Environment | None = None
    scores: InferenceFunction | None = None


def write_bundle(
    function: InferenceFunction,
    spec: PolicySpec,
    path: str | Path,
    *,
    name: str = "policy",
    evidence: Evidence = Evidence(),
    provenance: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> Manifest:
    """Export an inference function to the bundle folder `path`, which must not exist yet.

    The folder appears only when every format was compared with `function` and agrees.

    Args:
        function: observations [batch, ...], noise [batch, k] -> actions [batch, ...], in TensorFlow.
        spec: the arrays' names, types, shapes and bounds, and the law of the noise.
        path: the folder to make.
        name: the model's name when served.
        evidence: more to compare on.
        provenance: where the policy comes from; any JSON.
        files: more files to put in the bundle, by name.

    Raises:
        FileExistsError: `path` exists.
        ExportError: the function can't be converted, or a format differs from it.
        BundleError: a name or spec that a manifest can't hold.
    """
    with new_folder(Path(path)) as folder:
        for file, content in (files or {}).items():
            (folder / file).write_bytes(content)
        manifest = Manifest(name, spec.observation, spec.action, spec.noise, provenance=provenance or {})
        manifest = _fill(folder, function, manifest, evidence)
        (folder / MANIFEST_FILE).write_text(manifest.to_json())
        return read_manifest(folder)


def _fill(folder: Path, function: InferenceFunction, manifest: Manifest, evidence: Evidence) -> Manifest:
    spec = PolicySpec(manifest.observation, manifest.action, manifest.noise)
    model = convert_policy(function, spec)
    (folder / MODEL_FILE).write_bytes(model)
    write_saved_model(function, spec, folder / SAVED_MODEL_FOLDER)

    actors = {MODEL_FILE: Policy(model, manifest).run, SAVED_MODEL_FOLDER: _saved_model_actor(folder, spec)}
    reference = Reference(
        _tensorflow_actor(function, spec),
        None if evidence.scores is None else _tensorflow_actor(evidence.scores, spec),
    )
    rng = np.random.default_rng(0)
    observations = observation_cases(spec.observation, evidence.observations, rng)
    noise = draw_noise(spec.noise, batch_size(observations), rng)
    parity = _compare(actors, reference, evidence.environment, observations, noise)
    (folder / GOLDEN_FILE).write_bytes(_golden(reference, observations, noise, spec))
    files = {
        file.relative_to(folder).as_posix(): FileEntry.of(file.read_bytes())
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    return replace(manifest, files=files, parity=parity)


def convert_policy(function: InferenceFunction, spec: PolicySpec, *, opset: int = OPSET) -> bytes:
    """The policy as a serialized ONNX graph whose noise input is optional; arguments and errors as in `to_onnx`."""

    def outputs(observation: Any, noise: Any) -> dict[str, Any]:
        return {spec.action.name: function(observation, noise)}

    model = with_optional_input(to_onnx(outputs, spec.signature(), opset=opset), spec.noise.name)
    return bytes(model.SerializeToString())


def _compare(
    actors: Mapping[str, Actor],
    reference: Reference,
    environment: Environment | None,
    observations: Observation,
    noise: Array,
) -> dict[str, Any]:
    still, seeds = np.zeros_like(noise[:1]), range(_EPISODES if environment else 0)
    episodes = {seed: list(play(reference.act, environment, seed, still)) for seed in seeds if environment}
    parity = {}
    for name, actor in actors.items():
        cases = compare_cases(name, actor, reference, observations, noise)
        played = compare_episodes(name, actor, reference, environment, episodes, still) if environment else NOTHING
        parity[name] = {
            "max_difference": (cases + played).max_difference,
            "cases": cases.compared,
            "episode_steps": played.compared,
        }
    return parity


def _tensorflow_actor(function: InferenceFunction, spec: PolicySpec) -> Actor:
    traced = tf.function(function, spec.signature(), autograph=False)

    def act(observations: Observation, noise: Array) -> Array:
        return traced(map_parts(tf.constant, observations), tf.constant(noise)).numpy()  # type: ignore[no-any-return]

    return act


def _saved_model_actor(folder: Path, spec: PolicySpec) -> Actor:
    loaded = tf.saved_model.load(str(folder / SAVED_MODEL_FOLDER))
    sample, deterministic = (loaded.signatures[key] for key in ("sample", "serving_default"))

    def act(observations: Observation, noise: Array) -> Array:
        feeds = {name: tf.constant(part) for name, part in by_name(observations, spec.observation[0].name).items()}
        signature = deterministic
        if noise.any():
            feeds[spec.noise.name], signature = tf.constant(noise), sample
        return signature(**feeds)[spec.action.name].numpy()  # type: ignore[no-any-return]

    return act


def _golden(reference: Reference, observations: Observation, noise: Array, spec: PolicySpec) -> bytes:
    """Cases with zero noise, then the same with noise; ties, to which any answer is right, are left out."""
    observations = map_parts(lambda part: np.concatenate([part, part]), observations)
    noise = np.concatenate([np.zeros_like(noise), noise])
    decisive = reference.decisive(observations, noise)
    observations, noise = take(observations, decisive), noise[decisive]
    arrays = {spec.noise.name: noise, spec.action.name: reference.act(observations, noise)}
    buffer = io.BytesIO()
    np.savez(buffer, **by_name(observations, spec.observation[0].name), **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
