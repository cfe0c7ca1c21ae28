"""Advantages of the vine's rollouts."""

import numpy as np

from trpo_tf.config.settings import SamplingConfig
from trpo_tf.estimation.critic import FrozenNetworks
from trpo_tf.estimation.gae import standardized
from trpo_tf.estimation.reward_scaling import ValueScale, scale_rewards
from trpo_tf.policies.running_stats import Moments
from trpo_tf.sampling.vine.sampler import Branches
from trpo_tf.serving.runtime.observations import map_parts, take
from trpo_tf.updates.local_problem import Rows


def vine_rows(
    sampling: SamplingConfig, networks: FrozenNetworks, branches: Branches, before: Moments, after: Moments
) -> Rows:
    """Return the objective's rows of N x K branches, state by state, weighted by pi_old(a|s) / q(a|s).

    The advantage is Q(s, a) minus its weighted mean over the state's branches. Q(s, a) is the discounted sum of a
    rollout's rewards, plus the critic's discounted value where the rollout was cut off. The critic's outputs are scaled
    by the statistics of returns `before` the batch, rewards by those `after` it.
    """
    n, k, longest = branches.reward.shape
    factor = sampling.discount
    finals = map_parts(lambda part: part.reshape(n * k, *part.shape[2:]), branches.final_observation)
    scaling = sampling.value_scaling
    value = ValueScale.of(scaling, before).values(networks.values(networks.encode(finals)))
    reward = scale_rewards(branches.reward, after) if scaling == "rewards" else branches.reward
    rest = factor**branches.length * ~branches.terminated * value.reshape(n, k)
    estimate = reward @ factor ** np.arange(longest) + rest

    inputs = networks.encode(take(branches.observation, np.repeat(np.arange(n), k)))
    sample = branches.sample.reshape(n * k, *branches.sample.shape[2:])
    weight = np.full((n, k), 1.0 / k)
    if networks.is_discrete:
        # q is uniform: each action was tried once, or actions were drawn uniformly.
        probability = np.exp(networks.log_prob(inputs, sample).reshape(n, k))
        weight = probability / probability.sum(axis=1, keepdims=True)
    advantage = estimate - (weight * estimate).sum(axis=1, keepdims=True)
    weight *= branches.weight[:, np.newaxis]
    return Rows(
        inputs,
        sample,
        standardized(advantage, weight).ravel().astype(np.float32),
        weight.ravel().astype(np.float32),
    )
