"""Small policies and batches to test updates on, in a chosen float type."""

import contextlib

import keras
import numpy as np
import tensorflow as tf

from trpo_tf.config.settings import Config, PolicyConfig, TrustRegionConfig
from trpo_tf.policies.encoders import Encoder, MaskedInputs
from trpo_tf.policies.heads.discrete import MaskableHead
from trpo_tf.policies.heads.head import Head
from trpo_tf.policies.heads.make import make_head
from trpo_tf.policies.networks import mlp
from trpo_tf.policies.policy import Policy
from trpo_tf.serving import ArraySpec
from trpo_tf.serving.bundle.specs import option_counts
from trpo_tf.updates.composed import trpo
from trpo_tf.updates.local_problem import LocalProblem, Rows
from trpo_tf.updates.result import Update

OBSERVATIONS = 3

ACTIONS = {
    "categorical": ArraySpec("action", "int64", (), 0, 3),
    "multi-categorical": ArraySpec("action", "int64", (2, 2), (0, 0, 0, 1), (1, 2, 3, 2)),
    "bernoulli": ArraySpec("action", "int8", (3,), 0, 1),
    "gaussian": ArraySpec("action", "float32", (2,), -1.0, 1.0),
    "state-dependent": ArraySpec("action", "float32", (2,), -1.0, 1.0),
    "masked": ArraySpec("action", "int64", (), 0, 3),
    "masked-choices": ArraySpec("action", "int64", (2, 2), (0, 0, 0, 1), (1, 2, 3, 2)),
}

MASKED = ("masked", "masked-choices")
"""Kinds with a mask of legal actions in each row."""

SAMPLES = {
    "categorical": lambda rng, count: rng.integers(0, 4, count),
    "multi-categorical": lambda rng, count: rng.integers(0, (2, 3, 4, 2), (count, 4)),
    "bernoulli": lambda rng, count: rng.integers(0, 2, (count, 3)),
    "gaussian": lambda rng, count: rng.normal(size=(count, 2)),
    "state-dependent": lambda rng, count: rng.normal(size=(count, 2)),
}


def head_of(kind: str) -> Head:
    settings = PolicyConfig(initial_log_std=-0.3, state_dependent_std=kind == "state-dependent")
    return make_head(ACTIONS[kind], settings, masked=kind in MASKED)


def make_masks(action: ArraySpec, count: int, rng: np.random.Generator) -> np.ndarray:
    """Masks [count, n] with one legal option or more of each choice; of the first row's choices, one alone."""
    masks = []
    for options in option_counts(action):
        rank = rng.permuted(np.tile(np.arange(options), (count, 1)), axis=1)
        legal = rng.integers(1, options + 1, (count, 1))
        legal[0] = 1
        masks.append(rank < legal)
    return np.concatenate(masks, axis=1)


@contextlib.contextmanager
def keras_float(dtype: str):
    policy, floatx = keras.config.dtype_policy(), keras.config.floatx()
    keras.config.set_dtype_policy(dtype)
    # Of inputs, which a model casts.
    keras.config.set_floatx(dtype)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)
        keras.config.set_floatx(floatx)


def make_policy(kind: str, dtype: str = "float64", *, seed: int = 0, hidden: tuple[int, ...] = (5,)) -> Policy:
    head = head_of(kind)
    network = mlp(OBSERVATIONS, hidden, head.inputs, seed=seed, last_layer_scale=1.0, dtype=dtype)
    observation = ArraySpec("obs", "float32", (OBSERVATIONS,))
    return Policy(Encoder(plain=(observation,)), network, head, (observation,), ACTIONS[kind])


def make_theta(policy: Policy, dtype: str = "float64", *, seed: int = 0) -> np.ndarray:
    """The initial parameters, moved a little, so that no bias is zero."""
    noise = np.random.default_rng(seed).normal(size=policy.network.size)
    return (policy.initial_theta().astype(np.float64) + 0.1 * noise).astype(dtype)


def make_rows(kind: str, dtype: str = "float64", *, count: int = 40, seed: int = 0) -> Rows:
    rng, inputs = np.random.default_rng(seed), None
    if kind in MASKED:
        legal, head = make_masks(ACTIONS[kind], count, rng), head_of(kind)
        assert isinstance(head, MaskableHead)
        sample = head.options.legal(legal, 1, rng)[:, 0]
        inputs = MaskedInputs(rng.normal(size=(count, OBSERVATIONS)).astype(dtype), legal)
    else:
        sample = SAMPLES[kind](rng, count).astype(dtype if ACTIONS[kind].dtype == "float32" else "int64")
    weight = (rng.random(count) > 0.2).astype(dtype)
    if inputs is None:
        inputs = rng.normal(size=(count, OBSERVATIONS)).astype(dtype)
    return Rows(inputs, sample, rng.normal(size=count).astype(dtype), weight)


def trpo_update(problem: LocalProblem, config: TrustRegionConfig) -> Update:
    """TRPO's update with a radius of `max_kl`."""
    return trpo(problem, Config("", trust_region=config), tf.constant(config.max_kl, problem.theta.dtype), None)
