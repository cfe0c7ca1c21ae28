"""One trained-like policy of each kind that is exported, with observations such as it visits."""

import functools
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import gymnasium as gym
import keras
import numpy as np
import tensorflow as tf

from trpo_tf.config.settings import PolicyConfig
from trpo_tf.envs.spaces import action_spec, observation_kinds, observation_spec
from trpo_tf.export import InferenceFunction, PolicySpec, convert_policy
from trpo_tf.export.parity.compare import compare_cases
from trpo_tf.export.parity.reference.answers import BATCH_SIZES, Reference
from trpo_tf.export.parity.reference.reference_cases import ReferenceCases
from trpo_tf.export.policy.functions import Actor
from trpo_tf.policies.encoders import make_encoder
from trpo_tf.policies.heads.make import make_head
from trpo_tf.policies.networks import default_network
from trpo_tf.policies.policy import Policy, TrainedPolicy
from trpo_tf.policies.running_stats import Moments, Normalizer
from trpo_tf.serving.runtime.noise import draw_noise
from trpo_tf.serving.runtime.observations import (
    Array,
    Observation,
    batch_size,
    by_name,
    leaves_of,
    map_parts,
    structured,
)
from trpo_tf.serving.runtime.onnx_runtime import open_session

NUMBERS = gym.spaces.Box(-np.inf, np.inf, (5,), np.float32)
PIXELS = gym.spaces.Box(0, 255, (2, 18, 20), np.uint8)
PARTS = gym.spaces.Dict(
    {
        "choice": gym.spaces.Discrete(3, start=1),
        "arm": gym.spaces.Dict({"place": gym.spaces.Box(-9, 9, (1, 2), np.float64), "eye": PIXELS}),
    }
)
WINDOW = gym.spaces.Box(-np.inf, np.inf, (4, 6), np.float32)
COUNTS = gym.spaces.Box(0, 2**40, (600,), np.int64)
REACH = gym.spaces.Box(np.float32([-2, 0]), np.float32([6, 1]))
KINDS: dict[str, tuple[gym.Space[Any], gym.Space[Any], dict[str, bool]]] = {
    "categorical": (NUMBERS, gym.spaces.Discrete(3, start=2), {}),
    "gaussian": (NUMBERS, REACH, {}),
    "squashed": (NUMBERS, REACH, {"squash": True}),
    "state-dependent": (NUMBERS, REACH, {"state_dependent_std": True}),
    "multi-discrete": (NUMBERS, gym.spaces.MultiDiscrete([[2, 3], [4, 2]]), {}),
    "multi-binary": (NUMBERS, gym.spaces.MultiBinary(4), {}),
    "pixels": (PIXELS, gym.spaces.Discrete(4), {}),
    "dict": (PARTS, gym.spaces.MultiDiscrete([3, 2, 2]), {}),
    "window": (WINDOW, REACH, {}),
    "wide": (COUNTS, gym.spaces.Discrete(3), {}),
}
"""Observation and action space, and what the head is told."""


@dataclass(frozen=True)
class Case:
    """A policy, and observations and noise [64, ...] to compare it on."""

    policy: TrainedPolicy
    visited: Observation
    noise: Array

    @property
    def zero_noise(self) -> Array:
        """The noise of deterministic actions."""
        return self.reference_cases.zero_noise

    @property
    def feeds(self) -> dict[str, Array]:
        """All of a graph's inputs."""
        spec = self.policy.spec
        return by_name(self.visited, spec.observation[0].name) | {spec.noise.name: self.noise}

    @cached_property
    def reference(self) -> Reference:
        """The policy in TensorFlow."""
        policy = self.policy
        scores = _on_arrays(policy.scores, policy.spec) if policy.is_discrete else None
        return Reference(_on_arrays(policy.function, policy.spec), scores)

    @cached_property
    def reference_cases(self) -> ReferenceCases:
        """What an export would hold its targets against, without episodes."""
        return ReferenceCases(self.reference, self.visited, self.noise, None, None, {}, None)


@cache
def converted(kind: str) -> bytes:
    """The policy's graph, with optional noise."""
    policy = case(kind).policy
    return convert_policy(policy.function, policy.spec)


def onnx_actor(content: bytes, spec: PolicySpec) -> Actor:
    """A graph in ONNX Runtime, with noise if it takes any."""
    session = open_session(content)
    known = {i.name for i in (*session.get_inputs(), *session.get_overridable_initializers())}

    def act(observations: Observation, noise: Array) -> Array:
        feeds = by_name(observations, spec.observation[0].name) | {spec.noise.name: noise}
        actions: Array = session.run([spec.action.name], {name: feeds[name] for name in feeds.keys() & known})[0]
        return actions

    return act


def agrees(actor: Actor, tested: Case, *, noisy: bool = True) -> bool:
    """Whether an actor acts as the policy at every batch size, without noise and with it; few rows may be ties."""
    cases = [tested.reference_cases.cases(exact=True, noise=noise) for noise in (False, True)[: 1 + noisy]]
    found = compare_cases(actor, cases, sizes=BATCH_SIZES)
    return found.complete and found.undecided < 0.25 * found.compared


def error(case: Case, actor: Actor, noise: Array) -> float:
    """How a coarser policy differs: its continuous actions by what share of their range at most, others how often."""
    actual, expected = actor(case.visited, noise), case.reference.act(case.visited, noise)
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    if case.policy.is_discrete:
        return float(np.mean(actual != expected))
    low, high = case.policy.spec.action.bounds()
    return float(np.max(np.abs(actual - expected) / (high - low)))


@cache
def case(kind: str) -> Case:
    observation_space, action_space, settings = KINDS[kind]
    specs = observation_spec(observation_space)
    visited = _visited(observation_space, 64)
    head = make_head(action_spec(action_space), PolicyConfig(initial_log_std=-0.5, unit_std=False, **settings))
    encoder = make_encoder(observation_kinds(observation_space), specs, normalize=True)
    if kind == "window":
        network = attending(head.inputs)
    else:
        network = default_network(encoder.inputs, (16, 16), head.inputs, last_layer_scale=1.0, seed=1)
    policy = Policy(encoder, network, head, specs, action_spec(action_space))
    moments = Moments.empty((encoder.statistics,)).updated(encoder.measured(visited))
    rng = np.random.default_rng(2)
    theta = policy.initial_theta() + 0.05 * rng.standard_normal(policy.network.size)
    trained = TrainedPolicy(policy, theta.astype(np.float32), Normalizer.of(moments))
    return Case(trained, visited, draw_noise(policy.spec.noise, batch_size(visited), rng))


def attending(outputs: int) -> keras.Model:
    """Attention over a window of four steps, group normalisation and GELU: operations that no dense network has."""
    layers, initializer = keras.layers, functools.partial(keras.initializers.GlorotUniform, seed=1)
    steps = layers.Reshape(WINDOW.shape)(inputs := keras.Input((24,)))
    attended = layers.MultiHeadAttention(2, 3, kernel_initializer=initializer())(steps, steps)
    hidden = layers.Dense(16, kernel_initializer=initializer())(layers.Flatten()(layers.Add()([steps, attended])))
    active = layers.Activation("gelu")(layers.GroupNormalization(4)(hidden))
    return keras.Model(inputs, layers.Dense(outputs, kernel_initializer=initializer())(active))


def _visited(space: gym.Space[Any], count: int) -> Observation:
    space.seed(0)
    rows = [dict(leaves_of(space.sample())) for _ in range(count)]
    return structured({name: np.stack([row[name] for row in rows]) for name in rows[0]})  # type: ignore[no-any-return]


def _on_arrays(function: InferenceFunction, spec: PolicySpec) -> Actor:
    traced = tf.function(function, spec.signature(), autograph=False)
    return lambda observations, noise: traced(map_parts(tf.constant, observations), tf.constant(noise)).numpy()
