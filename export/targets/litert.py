"""LiteRT (TensorFlow Lite): for phones and small boards, in floats or with products in 8 bits."""

import importlib.util
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from trpo_tf.export.litert.interpreter import litert_actor, litert_step
from trpo_tf.export.policy.functions import Actor, Answers
from trpo_tf.export.policy.signature_names import signature_names
from trpo_tf.export.policy.spec import PolicySpec, spec_of
from trpo_tf.export.targets.snippet_feeds import feeds
from trpo_tf.export.targets.target import ExportInputs, Target
from trpo_tf.export.targets.traced_operators import LARGE_OFFSET, no_loops, subtracts_in_float64
from trpo_tf.serving import Manifest
from trpo_tf.serving.errors import install

_FILE, _INT8_FILE = "policy.tflite", "policy.int8.tflite"
_LINES = """\
import numpy as np
from ai_edge_litert.interpreter import Interpreter
act = Interpreter("{path}").get_signature_runner()
feeds = {feeds}
action = act(**feeds)["{action}"][0]
"""


def _write(inputs: ExportInputs, folder: Path) -> None:
    from trpo_tf.export.litert.convert import to_litert  # not above: it imports TensorFlow

    (folder / _FILE).write_bytes(to_litert(inputs.function, inputs.spec, batch=inputs.batch))


def _write_int8(inputs: ExportInputs, folder: Path) -> None:
    from trpo_tf.export.litert.convert import to_litert

    visited = inputs.calibration()
    content = to_litert(inputs.function, inputs.spec, batch=inputs.batch, int8_observations=visited)
    (folder / _INT8_FILE).write_bytes(content)


def _open(file: str, folder: Path, manifest: Manifest) -> Actor:
    return litert_actor((folder / file).read_bytes(), spec_of(manifest))


def _open_step(file: str, folder: Path, manifest: Manifest) -> Answers:
    return litert_step((folder / file).read_bytes(), spec_of(manifest))


def _snippet(file: str, manifest: Manifest) -> tuple[str, str]:
    names = signature_names(spec_of(manifest))
    inputs = feeds(manifest, names, noise=True, rows=manifest.graph.batch or 1)
    return "python", _LINES.format(path=file, feeds=inputs, action=manifest.action.name)


def _refusal(graph: Any, spec: PolicySpec) -> str | None:
    if importlib.util.find_spec("ai_edge_litert") is None:
        return f"LiteRT, which it is compared in, is not installed ({install('litert')})"
    wide = [array.name for array in (*spec.step_inputs, spec.action) if array.dtype == "uint64"]
    if wide:
        return f"LiteRT has no uint64 ({wide[0]})"
    if subtracts_in_float64(graph):
        return f"LiteRT computes in float32, and {LARGE_OFFSET}"
    for what, array in (("actions", spec.action), *(("state", each) for each in spec.next_state)):
        kind = np.dtype(array.dtype)
        if kind.kind == "f" and kind != np.float32:
            return f"LiteRT gives no {kind} {what}"
    return None


def _refusal_int8(graph: Any, spec: PolicySpec) -> str | None:
    return _refusal(graph, spec) or no_loops(graph, "LiteRT in 8 bits")


LITERT = Target(
    "litert",
    _FILE,
    _write,
    partial(_open, _FILE),
    partial(_snippet, _FILE),
    "phones and small boards",
    refusal=_refusal,
    input_names=signature_names,
    open_step=partial(_open_step, _FILE),
)
LITERT_INT8 = Target(
    "litert-int8",
    _INT8_FILE,
    _write_int8,
    partial(_open, _INT8_FILE),
    partial(_snippet, _INT8_FILE),
    "small boards with 8-bit kernels",
    refusal=_refusal_int8,
    input_names=signature_names,
    open_step=partial(_open_step, _INT8_FILE),
    exact=False,
)
