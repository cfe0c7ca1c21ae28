"""Small policies of which every operation matters somewhere in their declared spaces, to mutate their exports."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import tensorflow as tf

from trpo_tf.export import Evidence, GraphForm, PolicySpec
from trpo_tf.export.policy.functions import InferenceFunction
from trpo_tf.serving import ArraySpec, NoiseSpec

RNG = np.random.default_rng(0)


def weights(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


FIRST, SQUARE, LAST = weights(3, 4), weights(4, 4), weights(4, 2) / 2
BIASES = [weights(size) for size in (4, 4, 2)]
MEAN, SCALE = np.float32([3, -2, 1]), np.float32([0.5, 2, 1])
LOW, HIGH = np.float32([-2, 0]), np.float32([6, 1])
CHOICE, PLACE, LOGITS = weights(5, 4), weights(2, 4), weights(4, 4)
KERNEL, PIXELS = weights(3, 3, 1, 2) / 3, weights(72, 3) / 3


@dataclass(frozen=True)
class Mutable:
    """A policy, and what its export is told."""

    function: InferenceFunction
    spec: PolicySpec
    scores: InferenceFunction | None = None
    outputs: dict[str, InferenceFunction] = field(default_factory=dict)

    @property
    def form(self) -> GraphForm:
        return GraphForm(outputs=self.outputs)

    def evidence(self) -> Evidence:
        """Observations such as it visits."""
        rng, parts = np.random.default_rng(1), {}
        for spec in self.spec.observation:
            low, high = spec.bounds()
            drawn = rng.uniform(np.maximum(low, -12), np.minimum(high, 255), (256, *spec.shape))
            parts[spec.name] = (np.rint(drawn) if spec.dtype[0] in "iu" else drawn).astype(spec.dtype)
        return Evidence(parts if len(parts) > 1 else next(iter(parts.values())), scores=self.scores)


def _hidden(observation):
    inputs = tf.clip_by_value((observation - MEAN) * SCALE, -5.0, 5.0)
    return tf.nn.relu(tf.tanh(inputs @ FIRST + BIASES[0]) @ SQUARE + BIASES[1])


def continuous() -> Mutable:
    """Normaliser, two layers, a Gaussian sample, units, and a clip."""

    def act(observation, noise):
        sample = _hidden(observation) @ LAST + BIASES[2] + np.float32([0.5, 0.2]) * noise
        return tf.clip_by_value(sample * (HIGH - LOW) / 2 + (HIGH + LOW) / 2, LOW, HIGH)

    spec = PolicySpec(
        (ArraySpec("obs", "float32", (3,), -50.0, 50.0),),
        ArraySpec("action", "float32", (2,), tuple(LOW.tolist()), tuple(HIGH.tolist())),
        NoiseSpec("normal", (2,)),
    )
    return Mutable(act, spec)


def discrete(*, outputs: bool = False) -> Mutable:
    """A choice and a place seen, one of four actions from 1 on."""

    def logits(observation, _noise):
        seen = tf.one_hot(observation["choice"] - 2, 5) @ CHOICE + observation["place"] @ PLACE
        return tf.tanh(seen) @ LOGITS

    def scores(observation, noise):
        return logits(observation, noise) + noise

    def act(observation, noise):
        return tf.argmax(scores(observation, noise), axis=-1) + 1

    spec = PolicySpec(
        (ArraySpec("choice", "int64", (), 2, 6), ArraySpec("place", "float32", (2,), -3.0, 3.0)),
        ArraySpec("action", "int64", (), 1, 4),
        NoiseSpec("gumbel", (4,)),
    )
    value = {"logits": logits, "value": lambda observation, _: tf.reduce_sum(observation["place"], axis=1)}
    return Mutable(act, spec, scores, value if outputs else {})


def counting() -> Mutable:
    """Integers that take 64 bits, scaled."""

    def act(observation, noise):
        return tf.cast(observation, tf.float32) / 2.0**40 + 0.1 * noise

    spec = PolicySpec(
        (ArraySpec("obs", "int64", (2,), 0, 2**40),), ArraySpec("action", "float32", (2,)), NoiseSpec("normal", (2,))
    )
    return Mutable(act, spec)


def seeing() -> Mutable:
    """Bytes of a picture through a convolution."""

    def act(observation, noise):
        picture = tf.cast(observation, tf.float32) / 255.0
        features = tf.nn.relu(tf.nn.conv2d(picture, KERNEL, 1, "SAME"))
        return tf.tanh(tf.reshape(features, (-1, 72)) @ PIXELS + 0.3 * noise)

    spec = PolicySpec(
        (ArraySpec("obs", "uint8", (6, 6, 1), 0, 255),),
        ArraySpec("action", "float32", (3,), -1.0, 1.0),
        NoiseSpec("normal", (3,)),
    )
    return Mutable(act, spec)


POLICIES: dict[str, Callable[[], Mutable]] = {
    "continuous": cache(continuous),
    "discrete": cache(discrete),
    "outputs": cache(lambda: discrete(outputs=True)),
    "counting": cache(counting),
    "seeing": cache(seeing),
}
