"""What runs a target of a bundle here: from the bundle's folder and manifest to a function that acts or answers."""

import functools
from collections.abc import Callable
from pathlib import Path

import tensorflow as tf

from trpo_tf.export import c99
from trpo_tf.export.litert import convert as litert
from trpo_tf.export.parity.reference import Actor, Answers
from trpo_tf.export.policy.spec import spec_of
from trpo_tf.export.targets.saved_model import signature_names
from trpo_tf.serving import Manifest, Policy
from trpo_tf.serving.runtime.not_finite import NotFiniteError
from trpo_tf.serving.runtime.observations import Array, Observation, by_name
from trpo_tf.serving.runtime.onnx_runtime import open_session
from trpo_tf.serving.verify import replay


def onnx_opener(file: str) -> Callable[[Path, Manifest], Actor]:
    """A graph as the server runs it."""

    def open_onnx(folder: Path, manifest: Manifest) -> Actor:
        policy = Policy((folder / file).read_bytes(), manifest)

        def act(observations: Observation, noise: Array | None) -> Array:
            try:
                return policy.run(observations, noise)
            except NotFiniteError as error:  # the comparison says so of any target
                return error.answers[manifest.action.name]

        return lambda observations, noise: replay(act, manifest, observations, noise)

    return open_onnx


def session_further(file: str) -> Callable[[Path, Manifest], Answers]:
    """A graph's further outputs, from a session: what is not finite is for the comparison to find."""

    def open_further(folder: Path, manifest: Manifest) -> Answers:
        run = _session_runner(folder / file, manifest)
        names = [spec.name for spec in manifest.graph.outputs]
        return lambda observations, noise: {
            name: replay(functools.partial(run, name), manifest, observations, noise) for name in names
        }

    return open_further


def _session_runner(file: Path, manifest: Manifest) -> Callable[[str, Observation, Array | None], Array]:
    session = open_session(file.read_bytes())

    def run(output: str, observations: Observation, noise: Array | None) -> Array:
        feeds = by_name(observations, manifest.observation[0].name)
        if noise is not None:
            feeds[manifest.noise.name] = noise
        return session.run([output], feeds)[0]  # type: ignore[no-any-return]

    return run


def ort_opener(file: str) -> Callable[[Path, Manifest], Actor]:
    """A graph in ONNX Runtime's own format."""

    def open_ort(folder: Path, manifest: Manifest) -> Actor:
        run = functools.partial(_session_runner(folder / file, manifest), manifest.action.name)
        return lambda observations, noise: replay(run, manifest, observations, noise)

    return open_ort


def saved_model_opener(path: str) -> Callable[[Path, Manifest], Actor]:
    """A SavedModel's actions."""

    def open_saved_model(folder: Path, manifest: Manifest) -> Actor:
        answer = _saved_model_answers(folder / path, manifest)
        return lambda observations, noise: answer(observations, noise)[manifest.action.name]

    return open_saved_model


def saved_model_further(path: str) -> Callable[[Path, Manifest], Answers]:
    """All that a SavedModel answers."""
    return lambda folder, manifest: _saved_model_answers(folder / path, manifest)


def _saved_model_answers(path: Path, manifest: Manifest) -> Answers:
    loaded = tf.saved_model.load(str(path))
    sample, deterministic = (loaded.signatures[key] for key in ("sample", "serving_default"))
    names = signature_names(spec_of(manifest))

    def answer(observations: Observation, noise: Array) -> dict[str, Array]:
        parts = by_name(observations, manifest.observation[0].name)
        feeds, signature = {names[name]: tf.constant(part) for name, part in parts.items()}, deterministic
        if noise.any():
            feeds[names[manifest.noise.name]], signature = tf.constant(noise), sample
        return {name: tensor.numpy() for name, tensor in signature(**feeds).items()}

    return answer


def litert_opener(file: str) -> Callable[[Path, Manifest], Actor]:
    """A model in LiteRT's interpreter."""
    return lambda folder, manifest: litert.litert_actor((folder / file).read_bytes(), spec_of(manifest))


def c_opener(path: str) -> Callable[[Path, Manifest], Actor]:
    """C sources, compiled here."""

    def open_c(folder: Path, manifest: Manifest) -> Actor:
        files = (c99.HEADER_FILE, c99.SOURCE_FILE)
        sources = {file: (folder / path / file).read_bytes() for file in files}
        return c99.compiled_actor(sources, spec_of(manifest))

    return open_c
