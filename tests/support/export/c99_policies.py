"""Policies of every head and encoder, and of two tasks' sizes, with cases to compare them on."""

import functools
import re

import gymnasium as gym
import numpy as np

from tests.support.export.untrained import untrained_policy
from trpo_tf.export import PolicySpec, convert_policy
from trpo_tf.export.c99 import HEADER_FILE
from trpo_tf.export.parity.reference.case_inputs import observation_cases
from trpo_tf.serving import ArraySpec, NoiseSpec
from trpo_tf.serving.runtime.noise import draw_noise
from trpo_tf.serving.runtime.observations import batch_size, by_name
from trpo_tf.serving.runtime.onnx_runtime import open_session

spaces = gym.spaces
NUMBERS = spaces.Box(-5, 5, (3,), np.float32)
BOUNDED = spaces.Box(-2, 6, (2,), np.float32)
CHOICES = spaces.MultiDiscrete([[2, 3], [4, 2]], start=[[0, 1], [0, -2]])
MIXED = spaces.Dict(
    {
        "int": spaces.Discrete(3, start=1),
        "arm": spaces.Dict({"place": spaces.Box(-9, 9, (1, 2), np.float64), "buttons": spaces.MultiBinary(3)}),
        "bytes": spaces.Box(0, 255, (3,), np.uint8),
    }
)
THREE = ArraySpec("obs", "float32", (3,))
POLICIES = {
    "categorical": (NUMBERS, spaces.Discrete(3)),
    "categorical from 2": (spaces.Box(-5, 5, (3,), np.float64), spaces.Discrete(3, start=2)),
    "one-hot": (spaces.Discrete(4, start=-2), spaces.Discrete(2)),
    "clipped": (NUMBERS, BOUNDED),
    "squashed": (NUMBERS, BOUNDED),
    "state-dependent": (NUMBERS, BOUNDED),
    "unbounded": (NUMBERS, spaces.Box(-np.inf, np.inf, (2,), np.float32)),
    "bounded on one side": (NUMBERS, spaces.Box(np.array([-1, -np.inf]), np.array([np.inf, 2.5]), (2,), np.float64)),
    "float64": (NUMBERS, spaces.Box(-0.4, 0.4, (2, 2), np.float64)),
    "multidiscrete": (CHOICES, CHOICES),
    "multibinary": (spaces.MultiBinary((2, 2)), spaces.MultiBinary((2, 2))),
    "dict": (MIXED, BOUNDED),
}
HEADS = {"squashed": {"squash": True}, "state-dependent": {"state_dependent_std": True}}
SIZES = {
    "CartPole-v1": (spaces.Box(-np.inf, np.inf, (4,), np.float32), spaces.Discrete(2)),
    "HalfCheetah-v5": (spaces.Box(-np.inf, np.inf, (17,), np.float64), spaces.Box(-1, 1, (6,), np.float32)),
}


class Exported:
    """A policy, its graph, and cases: with noise and, for the first few, without."""

    def __init__(self, function, spec: PolicySpec, count: int = 64) -> None:
        self.spec, self.model = spec, convert_policy(function, spec)
        rng = np.random.default_rng(0)
        self.observations = observation_cases(spec.observation, None, rng, count)
        self.noise = draw_noise(spec.noise, batch_size(self.observations), rng)
        self.noise[: count // 2] = 0

    def onnx_runtime(self, observations, noise, model: bytes | None = None):
        feeds = {**by_name(observations, self.spec.observation[0].name), self.spec.noise.name: noise}
        return open_session(model or self.model).run([self.spec.action.name], feeds)[0]

    @functools.cached_property
    def actions(self):
        return self.onnx_runtime(self.observations, self.noise)


@functools.cache
def exported(name: str) -> Exported:
    policy = untrained_policy(*POLICIES[name], **HEADS.get(name, {}))
    return Exported(policy.function, policy.spec)


@functools.cache
def sized(name: str) -> Exported:
    policy = untrained_policy(*SIZES[name], hidden_sizes=(64, 64))
    return Exported(policy.function, policy.spec, count=14)


def exported_function(function, observation: ArraySpec = THREE) -> Exported:
    spec = PolicySpec((observation,), ArraySpec("action", "float32", (3,)), NoiseSpec("normal", (3,)))
    return Exported(function, spec)


def stated(sources, what: str) -> int:
    """Bytes that the header states."""
    return int(re.search(rf"^ \* {what}: +(\d+) bytes", sources[HEADER_FILE].decode(), re.MULTILINE).group(1))
