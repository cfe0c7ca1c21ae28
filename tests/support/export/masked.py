"""Policies with a mask of legal actions, of one choice and of several, with random weights."""

from functools import cache

import numpy as np

from tests.support.training.problems import make_masks
from trpo_tf.export import Evidence
from trpo_tf.policies.encoders import make_encoder
from trpo_tf.policies.heads.make import make_head
from trpo_tf.policies.networks import mlp
from trpo_tf.policies.policy import Policy, TrainedPolicy
from trpo_tf.policies.running_stats import Moments
from trpo_tf.serving import ArraySpec

MASKED = {
    "one": (ArraySpec("action", "int64", (), 2, 6), "int8"),
    "several": (ArraySpec("action", "int64", (3,), 0, (2, 1, 3)), "bool"),
    "fractions": (ArraySpec("action", "int32", (), 0, 3), "float32"),
}


@cache
def masked_policy(name: str) -> TrainedPolicy:
    action, dtype = MASKED[name]
    head = make_head(action, masked=True)
    parts = (ArraySpec("action_mask", dtype, (head.inputs,), 0, 1), ArraySpec("obs", "float32", (3,), -4, 4))
    encoder = make_encoder(("ActionMask", "Box"), parts, normalize=True)
    network = mlp(3, (16,), head.inputs, seed=0, last_layer_scale=3.0)
    policy = Policy(encoder, network, head, parts, action, mask="action_mask")
    return policy.trained(policy.initial_theta(), Moments(np.zeros(3), np.full(3, 400.0), np.asarray(400.0)))


def visited(name: str, count: int = 200) -> dict[str, np.ndarray]:
    """Observations of the policy, each with a mask that allows an action."""
    rng, (action, dtype) = np.random.default_rng(1), MASKED[name]
    mask = make_masks(action, count, rng).astype(dtype)
    return {"action_mask": mask, "obs": rng.normal(size=(count, 3)).astype(np.float32)}


def evidence(name: str) -> Evidence:
    return Evidence(visited(name), scores=masked_policy(name).scores)
