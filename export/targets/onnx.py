"""ONNX: for ONNX Runtime and the server, in floats or with products in 8 bits."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from trpo_tf.export.graph.fixed_batch import with_fixed_batch
from trpo_tf.export.graph.quantize import quantize_dynamic, quantize_static
from trpo_tf.export.policy.functions import Actor
from trpo_tf.export.targets.session import session_outputs, session_snippet
from trpo_tf.export.targets.snippet_feeds import feeds, repeated
from trpo_tf.export.targets.target import ExportInputs, Target
from trpo_tf.serving import Manifest, Policy
from trpo_tf.serving.bundle.files import MODEL_FILE
from trpo_tf.serving.runtime.noise import draw_noise
from trpo_tf.serving.runtime.not_finite import NotFiniteError
from trpo_tf.serving.runtime.observations import Array, Observation, batch_size
from trpo_tf.serving.verify import replay

_STATIC_FILE, _DYNAMIC_FILE = "policy.int8.onnx", "policy.int8-dynamic.onnx"

_SERVING = """\
from trpo_tf import serving  # pip install '.[serve]' in a checkout of trpo-tf
policy = serving.load(".")
action = policy.act(observation)
"""
_SERVING_STATE = """\
from trpo_tf import serving  # pip install '.[serve]' in a checkout of trpo-tf
session = serving.load(".").start()  # session.reset() starts another episode
action = session.act(observation)
"""
_SERVING_STATE_BATCH = """\
import numpy as np
from trpo_tf import serving  # pip install '.[serve]' in a checkout of trpo-tf
session = serving.load(".").start({rows})  # session.reset() starts other episodes
action = session.act({observations})[0]
"""
_SERVING_BATCH = """\
import numpy as np
from trpo_tf import serving  # pip install '.[serve]' in a checkout of trpo-tf
policy = serving.load(".")
action = policy.act_batch({observations})[0]
"""


def with_batch(graph: bytes, batch: int | None) -> bytes:
    """Fix a graph's batch size, if one is given. Quantize before that: calibration runs on other sizes."""
    if batch is None:
        return graph
    return with_fixed_batch(onnx.load_from_string(graph), batch).SerializeToString()


def _write(inputs: ExportInputs, folder: Path) -> None:
    (folder / MODEL_FILE).write_bytes(with_batch(inputs.graph, inputs.batch))


def _write_static(inputs: ExportInputs, folder: Path) -> None:
    visited = inputs.calibration()
    noise = draw_noise(inputs.spec.noise, batch_size(visited), np.random.default_rng(0))
    quantized = quantize_static(inputs.graph, inputs.spec, visited, noise)
    (folder / _STATIC_FILE).write_bytes(with_batch(quantized, inputs.batch))


def _write_dynamic(inputs: ExportInputs, folder: Path) -> None:
    (folder / _DYNAMIC_FILE).write_bytes(with_batch(quantize_dynamic(inputs.graph, inputs.spec), inputs.batch))


def _open(file: str, folder: Path, manifest: Manifest) -> Actor:
    """Open a graph as the server runs it."""
    policy = Policy((folder / file).read_bytes(), manifest)

    def act(observations: Observation, noise: Array | None) -> Array:
        try:
            return policy.run(observations, noise)
        except NotFiniteError as error:  # the comparison says so of any target
            return error.answers[manifest.action.name]

    return lambda observations, noise: replay(act, manifest, observations, noise)


def _serving_snippet(manifest: Manifest) -> tuple[str, str]:
    rows, samples = manifest.graph.batch or 1, manifest.graph.noise != "none"
    if manifest.state and rows == 1:
        return "python", _SERVING_STATE
    if rows == 1:
        return "python", _SERVING + ("sample = policy.act(observation, deterministic=False)\n" if samples else "")
    structured = len(manifest.observation) > 1
    only_observed = replace(manifest, state=())
    observations = feeds(only_observed, {}, noise=False, rows=rows) if structured else repeated("", rows)
    if manifest.state:
        return "python", _SERVING_STATE_BATCH.format(rows=rows, observations=observations)
    sample = f"sample = policy.act_batch({observations}, deterministic=False)[0]\n"
    return "python", _SERVING_BATCH.format(observations=observations) + (sample if samples else "")


ONNX = Target(
    "onnx",
    MODEL_FILE,
    _write,
    partial(_open, MODEL_FILE),
    _serving_snippet,
    "ONNX Runtime and the server",
    follows_form=True,
    open_outputs=partial(session_outputs, MODEL_FILE),
    open_step=partial(session_outputs, MODEL_FILE),
)
ONNX_INT8 = Target(
    "onnx-int8",
    _STATIC_FILE,
    _write_static,
    partial(_open, _STATIC_FILE),
    partial(session_snippet, _STATIC_FILE),
    "8-bit accelerators (QDQ)",
    follows_form=True,
    exact=False,
    open_outputs=partial(session_outputs, _STATIC_FILE),
    open_step=partial(session_outputs, _STATIC_FILE),
)
ONNX_INT8_DYNAMIC = Target(
    "onnx-int8-dynamic",
    _DYNAMIC_FILE,
    _write_dynamic,
    partial(_open, _DYNAMIC_FILE),
    partial(session_snippet, _DYNAMIC_FILE),
    "small files of large networks",
    follows_form=True,
    exact=False,
    open_outputs=partial(session_outputs, _DYNAMIC_FILE),
    open_step=partial(session_outputs, _DYNAMIC_FILE),
)
