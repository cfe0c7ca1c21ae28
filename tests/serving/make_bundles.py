"""Makes the small bundles that the serving tests load where TensorFlow is absent: run it after a format change.

`python tests/serving/make_bundles.py [NAME ...]` writes tests/serving/bundles/, or these of it.
"""

import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import tensorflow as tf

from trpo_tf.export import Evidence, GraphForm, PolicySpec, write_bundle
from trpo_tf.serving import ArraySpec, NoiseSpec, StateSpec
from trpo_tf.serving.bundle.files import GOLDEN_FILE, MANIFEST_FILE, FileEntry
from trpo_tf.serving.bundle.manifest import read_manifest

FOLDER = Path(__file__).parent / "bundles"


def layer(rng: np.random.Generator, inputs: int, outputs: int):
    weight = tf.constant(rng.normal(size=(inputs, outputs)) / math.sqrt(inputs), tf.float32)
    return lambda x: tf.matmul(x, weight)


def discrete(folder: Path) -> None:
    rng = np.random.default_rng(1)
    hidden, logits = layer(rng, 4, 8), layer(rng, 8, 2)

    def scores(observation, noise):
        return logits(tf.tanh(hidden(tf.clip_by_value(observation, -10.0, 10.0)))) + noise

    def act(observation, noise):
        return tf.argmax(scores(observation, noise), axis=-1)

    spec = PolicySpec(
        (ArraySpec("obs", "float32", (4,), (-4.8, -math.inf, -0.42, -math.inf), (4.8, math.inf, 0.42, math.inf)),),
        ArraySpec("action", "int64", (), 0, 1),
        NoiseSpec("gumbel", (2,)),
    )
    write_bundle(act, spec, folder, name="discrete", evidence=Evidence(scores=scores))


def continuous(folder: Path) -> None:
    rng = np.random.default_rng(2)
    hidden, mean = layer(rng, 3, 8), layer(rng, 8, 2)

    def act(observation, noise):
        sample = mean(tf.tanh(hidden(tf.cast(observation, tf.float32)))) + 0.5 * noise
        return tf.clip_by_value(sample, -1.0, 1.0)

    spec = PolicySpec(
        (ArraySpec("obs", "float64", (3,)),), ArraySpec("action", "float32", (2,), -1.0, 1.0), NoiseSpec("normal", (2,))
    )
    write_bundle(act, spec, folder, name="continuous")


def judged(folder: Path) -> None:
    """It answers its logits and a value beside the action; the value of a negative first number is NaN."""
    weight = layer(np.random.default_rng(3), 2, 3)

    def act(observation, noise):
        return tf.argmax(weight(observation) + noise, axis=-1)

    spec = PolicySpec(
        (ArraySpec("obs", "float32", (2,)),), ArraySpec("action", "int64", (), 0, 2), NoiseSpec("gumbel", (3,))
    )
    outputs = {
        "logits": lambda observation, _: weight(observation),
        "value": lambda observation, _: tf.sqrt(observation[:, 0]),
    }
    seen = np.random.default_rng(4).uniform(0, 1, (16, 2)).astype(np.float32)
    write_bundle(
        act, spec, folder, name="judged", form=GraphForm(outputs=outputs), evidence=Evidence(observations=seen)
    )


def wide(folder: Path) -> None:
    """Its observations are 1,000 numbers: so few rows of them fill a request. The action is half their sum."""

    def act(observation, noise):
        return tf.reduce_sum(observation, axis=1, keepdims=True) * 0.5 + 0.0 * noise

    spec = PolicySpec(
        (ArraySpec("obs", "float32", (1000,)),), ArraySpec("action", "float32", (1,)), NoiseSpec("normal", (1,))
    )
    write_bundle(act, spec, folder, name="wide", targets=("onnx",))
    keep_golden_cases(folder, 4)


def remembering(folder: Path) -> None:
    """It remembers two observations, filled with the first at a reset, and counts its steps up to ten."""
    weights = np.random.default_rng(5).normal(size=(3, 2)).astype(np.float32) / 8

    def act(observation, state, reset, noise):
        newest = observation[:, tf.newaxis]
        seen = tf.concat([tf.where(reset[:, tf.newaxis, tf.newaxis], newest, state["history"]), newest], axis=1)
        spent = tf.cast(tf.minimum(state["steps"], 10), tf.float32)[:, tf.newaxis] / 20
        mean = tf.reduce_sum(seen * weights, axis=[1, 2])[:, tf.newaxis] + spent
        return tf.clip_by_value(mean + 0.1 * noise, -1.0, 1.0), {"history": seen[:, 1:], "steps": state["steps"] + 1}

    spec = PolicySpec(
        (ArraySpec("obs", "float32", (2,), -5.0, 5.0),),
        ArraySpec("action", "float32", (1,), -1.0, 1.0),
        NoiseSpec("normal", (1,)),
        (StateSpec("history", "float32", (2, 2)), StateSpec("steps", "int64", ())),
    )
    write_bundle(act, spec, folder, name="remembering", targets=("onnx",))


def recurrent(folder: Path) -> None:
    """A GRU of plain operators: reset gate, update gate and candidate, of the observation and the hidden state."""
    rng, units = np.random.default_rng(6), 8
    gates, candidate, mean = layer(rng, 2 + units, 2 * units), layer(rng, 2 + units, units), layer(rng, units, 1)

    def act(observation, state, reset, noise):
        hidden = state["hidden"]
        forget, update = tf.split(tf.sigmoid(2.0 * gates(tf.concat([observation, hidden], axis=1))), 2, axis=1)
        new = tf.tanh(2.0 * candidate(tf.concat([observation, forget * hidden], axis=1)))
        following = update * hidden + (1.0 - update) * new
        return tf.clip_by_value(mean(following) + 0.1 * noise, -1.0, 1.0), {"hidden": following}

    spec = PolicySpec(
        (ArraySpec("obs", "float32", (2,), -5.0, 5.0),),
        ArraySpec("action", "float32", (1,), -1.0, 1.0),
        NoiseSpec("normal", (1,)),
        (StateSpec("hidden", "float32", (units,)),),
    )
    write_bundle(act, spec, folder, name="recurrent", targets=("onnx",))


def masked(folder: Path) -> None:
    """It has a mask of legal actions, of one choice of three options and one of two."""
    weight = layer(np.random.default_rng(6), 2, 5)

    def act(observation, noise):
        scores = tf.where(observation["action_mask"] != 0, weight(observation["obs"]) + noise, tf.float32.min)
        return tf.stack([tf.argmax(scores[:, :3], axis=-1), tf.argmax(scores[:, 3:], axis=-1)], axis=1)

    spec = PolicySpec(
        (ArraySpec("action_mask", "int8", (5,), 0, 1), ArraySpec("obs", "float32", (2,), -3, 3)),
        ArraySpec("action", "int64", (2,), 0, (2, 1)),
        NoiseSpec("gumbel", (5,)),
        mask="action_mask",
    )
    write_bundle(act, spec, folder, name="masked", targets=("onnx",))


def keep_golden_cases(folder: Path, count: int) -> None:
    """Leave the first of a bundle's golden cases, where all of them would take half a megabyte."""
    with np.load(folder / GOLDEN_FILE) as cases:
        np.savez_compressed(folder / GOLDEN_FILE, **{name: cases[name][:count] for name in cases.files})
    manifest = read_manifest(folder)
    files = {**manifest.files, GOLDEN_FILE: FileEntry.of((folder / GOLDEN_FILE).read_bytes())}
    (folder / MANIFEST_FILE).write_text(replace(manifest, files=files).to_json())


MAKERS = {
    "discrete": discrete,
    "continuous": continuous,
    "judged": judged,
    "wide": wide,
    "remembering": remembering,
    "recurrent": recurrent,
    "masked": masked,
}

if __name__ == "__main__":
    for name in sys.argv[1:] or MAKERS:
        shutil.rmtree(FOLDER / name, ignore_errors=True)
        MAKERS[name](FOLDER / name)
