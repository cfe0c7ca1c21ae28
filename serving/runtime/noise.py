"""Noise by which a policy's graph samples actions."""

import numpy as np

from trpo_tf.serving.argument_checks import expect
from trpo_tf.serving.bundle.specs import NoiseSpec
from trpo_tf.serving.runtime.observations import Array

# NumPy imports its random generators at their first use, so annotations name them in quotes: few servers ever sample.


def generator(rng: "np.random.Generator | None") -> "np.random.Generator":
    """Return the random generator, or a new one for None. Raises `ValueError` for anything else, such as a seed."""
    if rng is None:
        return np.random.default_rng()
    expect(rng, np.random.Generator, "rng must be a generator, numpy.random.default_rng(seed)", ValueError)
    return rng


def draw_noise(spec: NoiseSpec, batch: int, rng: "np.random.Generator") -> Array:
    """Draw the noise [batch, k] with which the graph samples from its distribution."""
    shape = (batch, *spec.shape)
    match spec.law:
        case "normal":
            return rng.standard_normal(shape, np.float32).astype(spec.dtype, copy=False)
        case "gumbel":
            return rng.gumbel(size=shape).astype(spec.dtype)
        case "logistic":
            return rng.logistic(size=shape).astype(spec.dtype)
        case law:
            raise ValueError(f"noise law {law!r} is unknown")
