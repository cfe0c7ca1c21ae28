"""Policies for the image to act with: one that was trained, and one of each type of observation."""

from pathlib import Path

import numpy as np
import tensorflow as tf

from trpo_tf.config.settings import Config
from trpo_tf.evaluation.evaluate import FIRST_SEED
from trpo_tf.export import PolicySpec, write_bundle
from trpo_tf.exporting.run_bundle import export_run
from trpo_tf.serving import ArraySpec, NoiseSpec
from trpo_tf.serving.bundle.specs import DTYPES
from trpo_tf.training.train import train

ENVIRONMENT = "CartPole-v1"
STEPS = 30_000
SEEDS = tuple(range(FIRST_SEED, FIRST_SEED + 20))
"""Of the episodes that a training ends with."""


def trained(folder: Path) -> float:
    """Train, and export the bundle to `folder`; the mean return of the episodes that training ended with."""
    run = train(Config(ENVIRONMENT, total_steps=STEPS), folder.with_name("run"))
    export_run(run, folder, targets=("onnx",), episodes=1)
    return float(run.summary["trained"]["mean_return"])


def of_every_type(folder: Path) -> None:
    """A bundle for each datatype of observations, in a subfolder of its name."""
    folder.mkdir()
    for dtype in DTYPES:
        write_bundle(*_policy(dtype), folder / dtype, name=dtype, targets=("onnx",))


def _policy(dtype: str) -> tuple[tf.types.experimental.PolymorphicFunction, PolicySpec]:
    low, high = (-8.0, 8.0) if np.dtype(dtype).kind == "f" else (0, 1)
    weight = tf.constant(np.random.default_rng(1).normal(size=(3, 2)), tf.float32)

    def act(observation: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
        return tf.tanh(tf.matmul(tf.cast(observation, tf.float32), weight) + noise)

    observation = ArraySpec("obs", dtype, (3,), low, high)
    return act, PolicySpec((observation,), ArraySpec("action", "float32", (2,), -1, 1), NoiseSpec("normal", (2,)))
