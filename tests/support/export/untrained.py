"""Policies of any spaces, as training makes them, with weights and statistics drawn at random."""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import keras
import numpy as np

from trpo_tf.config.settings import PolicyConfig
from trpo_tf.envs.spaces import action_spec, observation_kinds, observation_spec
from trpo_tf.policies.encoders import make_encoder
from trpo_tf.policies.heads.make import make_head
from trpo_tf.policies.networks import default_network
from trpo_tf.policies.policy import Policy, TrainedPolicy
from trpo_tf.policies.running_stats import Moments, Normalizer

Network = Callable[[int, int], keras.Model]


def untrained_policy(
    observation: gym.Space[Any],
    action: gym.Space[Any],
    *,
    hidden_sizes: Sequence[int] = (8, 8),
    activation: str = "tanh",
    network: Network | None = None,
    **gaussian: bool,
) -> TrainedPolicy:
    """The policy of an environment with these spaces; `network` makes one of a width and a number of outputs.

    What else there is, a Gaussian head is told.
    """
    specs = observation_spec(observation)
    head = make_head(action_spec(action), PolicyConfig(unit_std=False, **gaussian))
    encoder = make_encoder(observation_kinds(observation), specs, normalize=True)
    if network is None:
        body = default_network(encoder.inputs, hidden_sizes, head.inputs, activation=activation)
    else:
        body = network(encoder.width, head.inputs)
    policy = Policy(encoder, body, head, specs, action_spec(action))
    rng = np.random.default_rng(0)
    theta = policy.initial_theta() + 0.1 * rng.normal(size=policy.network.size)
    moments = Moments.empty((encoder.statistics,)).updated(rng.normal(1.0, 2.0, (50, encoder.statistics)))
    return TrainedPolicy(policy, theta.astype(np.float32), Normalizer.of(moments))
