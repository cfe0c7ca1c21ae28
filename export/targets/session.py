"""Run ONNX and ORT files in ONNX Runtime, and write the Python code that does so."""

from collections.abc import Callable
from pathlib import Path

from trpo_tf.export.policy.functions import Actor, Answers
from trpo_tf.export.targets.snippet_feeds import feeds
from trpo_tf.serving import Manifest
from trpo_tf.serving.runtime.observations import Array, Observation, by_name
from trpo_tf.serving.runtime.onnx_runtime import open_session
from trpo_tf.serving.verify import replay, replay_all

_LINES = """\
import os; os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime{numpy}
session = onnxruntime.InferenceSession("{path}")
feeds = {feeds}
action = session.run(["{action}"], feeds)[0][0]
"""


def session_actor(file: str, folder: Path, manifest: Manifest) -> Actor:
    """Return a function that computes the actions of a file."""
    run, names = _runner(folder / file, manifest), [manifest.action.name]
    return lambda observations, noise: replay(lambda *batch: run(names, *batch)[0], manifest, observations, noise)


def session_outputs(file: str, folder: Path, manifest: Manifest) -> Answers:
    """Return a function that computes all outputs of a file. They may be not finite: the comparison checks that."""
    run = _runner(folder / file, manifest)
    names = [spec.name for spec in manifest.outputs]
    return lambda observations, noise: replay_all(
        lambda *batch: dict(zip(names, run(names, *batch), strict=True)), manifest, observations, noise
    )


def session_snippet(file: str, manifest: Manifest) -> tuple[str, str]:
    """Write Python that runs a file without this package."""
    rows, noise = manifest.graph.batch or 1, manifest.graph.noise == "required"
    numpy = ", numpy as np" if noise or rows > 1 or manifest.state else ""
    inputs = feeds(manifest, {}, noise=noise, rows=rows)
    return "python", _LINES.format(numpy=numpy, path=file, feeds=inputs, action=manifest.action.name)


def _runner(file: Path, manifest: Manifest) -> Callable[[list[str], Observation, Array | None], list[Array]]:
    session = open_session(file.read_bytes())

    def run(outputs: list[str], observations: Observation, noise: Array | None) -> list[Array]:
        fed = by_name(observations, manifest.observation[0].name)
        if noise is not None:
            fed[manifest.noise.name] = noise
        return session.run(outputs, fed)  # type: ignore[no-any-return]

    return run
