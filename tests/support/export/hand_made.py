"""Policies made by hand in Keras, for the tests of export: a network, noise, and a law."""

import keras
import numpy as np
import tensorflow as tf

from trpo_tf.export import PolicySpec
from trpo_tf.serving import ArraySpec, NoiseSpec


def network(inputs: int, outputs: int) -> keras.Model:
    first, second = keras.initializers.GlorotUniform(seed=1), keras.initializers.Orthogonal(seed=1)
    hidden = keras.layers.Dense(8, "tanh", kernel_initializer=first)
    dense = keras.layers.Dense(outputs, kernel_initializer=second, bias_initializer="ones")
    return keras.Sequential([keras.Input((inputs,)), hidden, dense])


class Continuous:
    """Two actions between -1 and 1: a Gaussian around a network's output, clipped."""

    def __init__(self, dtype: str = "float32") -> None:
        low, high = (0, 255) if dtype == "uint8" else (-5.0, 5.0)
        self.model = network(3, 2)
        self.spec = PolicySpec(
            (ArraySpec("obs", dtype, (3,), low, high),),
            ArraySpec("action", "float32", (2,), -1, 1),
            NoiseSpec("normal", (2,)),
        )

    def function(self, observation, noise):
        return tf.clip_by_value(self.model(tf.cast(observation, tf.float32) / 5.0) + 0.5 * noise, -1.0, 1.0)


class Discrete:
    """One of three actions: the largest of a network's noisy outputs."""

    def __init__(self, actions: int = 3) -> None:
        self.model = network(4, actions)
        self.spec = PolicySpec(
            (ArraySpec("obs", "float32", (4,)),),
            ArraySpec("action", "int64", (), 0, actions - 1),
            NoiseSpec("gumbel", (actions,)),
        )

    def scores(self, observation, noise):
        return self.model(observation) + noise

    def function(self, observation, noise):
        return tf.argmax(self.scores(observation, noise), axis=-1)


def observations(spec: tuple[ArraySpec, ...], count: int = 5) -> np.ndarray:
    (only,) = spec
    return np.random.default_rng(3).uniform(0, 3, (count, *only.shape)).astype(only.dtype)
