"""A few lines for each target that ask a policy for the action of one observation."""

from collections.abc import Mapping

from trpo_tf.export.c99.c_files import arguments
from trpo_tf.export.policy.spec import spec_of
from trpo_tf.export.targets.saved_model import signature_names
from trpo_tf.export.targets.table import C_FOLDER, C_INT8_FOLDER, TARGETS
from trpo_tf.serving import Manifest
from trpo_tf.serving.bundle.manifest import MODEL_FILE

_ONNX_RUNTIME = """\
import os; os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime{numpy}
session = onnxruntime.InferenceSession("{path}")
feeds = {feeds}
action = session.run(["{action}"], feeds)[0][0]
"""
_LITERT = """\
import numpy as np
from ai_edge_litert.interpreter import Interpreter
act = Interpreter("{path}").get_signature_runner()
feeds = {feeds}
action = act(**feeds)["{action}"][0]
"""
_TENSORFLOW = """\
import tensorflow as tf
act = tf.saved_model.load("{path}").signatures["serving_default"]
feeds = {feeds}
feeds = {{name: tf.constant(array) for name, array in feeds.items()}}
action = act(**feeds)["{action}"].numpy()[0]
"""
_SERVING = """\
from trpo_tf import serving  # pip install '.[serve]' in a checkout of trpo-tf
policy = serving.load(".")
action = policy.act(observation)
"""
_SERVING_BATCH = """\
import numpy as np
from trpo_tf import serving  # pip install '.[serve]' in a checkout of trpo-tf
policy = serving.load(".")
action = policy.act_batch({observations})[0]
"""
_C = """\
#include "policy.h"
{arguments}
{call}
"""


def snippet(target: str, manifest: Manifest) -> tuple[str, str]:
    """Language, and lines that make `action` of `observation`, run in the bundle's folder.

    A graph of a fixed batch is given the observation as often as it takes rows.
    """
    path = TARGETS[target].path
    if path in (C_FOLDER, C_INT8_FOLDER):
        return "c", _c(manifest)
    if path == MODEL_FILE:
        return "python", _serving(manifest)
    values = {"path": path, "action": manifest.action.name}
    if target == "savedmodel":
        return "python", _TENSORFLOW.format(
            feeds=_feeds(manifest, signature_names(spec_of(manifest)), noise=False), **values
        )
    rows = manifest.graph.batch or 1
    if target.startswith("litert"):
        feeds = _feeds(manifest, signature_names(spec_of(manifest)), noise=True, rows=rows)
        return "python", _LITERT.format(feeds=feeds, **values)
    if target == "ort":
        values["path"] = f"{path}/policy.ort"
    noise = manifest.graph.noise == "required"
    numpy = ", numpy as np" if noise or rows > 1 else ""
    return "python", _ONNX_RUNTIME.format(feeds=_feeds(manifest, {}, noise=noise, rows=rows), numpy=numpy, **values)


def _serving(manifest: Manifest) -> str:
    rows, samples = manifest.graph.batch or 1, manifest.graph.noise != "none"
    if rows == 1:
        return _SERVING + ("sample = policy.act(observation, deterministic=False)\n" if samples else "")
    observations = _feeds(manifest, {}, noise=False, rows=rows) if len(manifest.observation) > 1 else _rows("", rows)
    sample = f"sample = policy.act_batch({observations}, deterministic=False)[0]\n"
    return _SERVING_BATCH.format(observations=observations) + (sample if samples else "")


def _rows(part: str, rows: int) -> str:
    """A batch of `observation`, or of a part of it, so many times."""
    return f"observation{part}[None]" if rows == 1 else f"np.repeat(observation{part}[None], {rows}, 0)"


def _feeds(manifest: Manifest, inputs: Mapping[str, str], *, noise: bool, rows: int = 1) -> str:
    """A dict of batches of so many rows, from `observation` as `serving.load(...).act` takes it.

    `inputs` are names that the target has instead of the manifest's.
    """
    first, *others = (spec.name for spec in manifest.observation)
    parts = [f"{inputs.get(first, first)!r}: {_rows('', rows)}"]
    if others:
        parts = [f"{inputs.get(name, name)!r}: {_rows(f'[{name!r}]', rows)}" for name in (first, *others)]
    if noise:
        shape = ", ".join(map(str, (rows, *manifest.noise.shape)))
        own = manifest.noise.name
        parts.append(f'{inputs.get(own, own)!r}: np.zeros(({shape}), "{manifest.noise.dtype}")')
    return "{" + ", ".join(parts) + "}"


def _c(manifest: Manifest) -> str:
    *parts, _, action = arguments(spec_of(manifest))
    declared = [f"{array.c_type} {array.name}[POLICY_{array.name.upper()}];" for array in (*parts, action)]
    call = f"policy_act({', '.join(part.name for part in parts)}, 0, action);"
    return _C.format(arguments=" ".join(declared), call=call)
