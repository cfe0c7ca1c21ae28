"""Advantages and value targets of a batch."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from trpo_tf.config.settings import SamplingConfig
from trpo_tf.estimation.critic import FrozenNetworks, explained_variance
from trpo_tf.estimation.gae import Floats, generalized_advantages, participation_ratio, standardized, td_errors
from trpo_tf.estimation.reward_scaling import ValueScale, rewards_in_units
from trpo_tf.policies.recurrence.sequences import as_sequences
from trpo_tf.policies.running_stats import Moments
from trpo_tf.sampling.batch import Batch
from trpo_tf.serving.runtime.observations import map_parts
from trpo_tf.updates.local_problem import Rows


class CriticRows(NamedTuple):
    """Rows that the critic is fitted to."""

    inputs: Any  # [M x B, ...], encoded observations; a tuple of them for a network of several inputs
    targets: NDArray[np.float32]  # [M x B]
    weight: NDArray[np.float32]  # [M x B]


class Estimates(NamedTuple):
    """Estimates from a batch: flat rows of the objective [B = T x N], and the critic's with its memory [M x B]."""

    rows: Rows
    critic_rows: CriticRows
    gae_lambda: float
    explained_variance: float
    return_moments: Moments
    carried_returns: NDArray[np.float64]  # [N]
    clipped_rewards: float  # share of the new rewards


def estimate(
    sampling: SamplingConfig,
    networks: FrozenNetworks,
    batch: Batch,
    moments: Moments,
    carried: NDArray[np.float64],
    memory: Batch | None = None,
) -> Estimates:
    """Compute advantages of the batch, and value targets of the batches that the critic learns from.

    Args:
        sampling: the settings, with the discount at this point of the run.
        networks: policy and critic, with statistics as they were during sampling.
        batch: the new batch [T, N].
        moments: statistics of returns, or of value targets, before this batch.
        carried: discounted sums of rewards so far in the running episodes [N].
        memory: earlier batches and, as its last columns, the new one [T, M x N]; by default the new one alone.
    """
    memory = batch if memory is None else memory
    n = sampling.num_envs
    length, width = memory.reward.shape
    newest = slice(width - n, None)
    observations = map_parts(lambda part: part.reshape((length + 1) * width, *part.shape[2:]), memory.observation)
    inputs = networks.encode(observations)
    answers = networks.values(inputs).reshape(length + 1, width)
    is_first = sampling.value_scaling == "targets" and moments.total == 0
    scale = ValueScale.of_first(sampling, batch) if is_first else ValueScale.of(sampling.value_scaling, moments)
    value = scale.values(answers)

    counted = batch.weight > 0
    reward, moments, carried, clipped = rewards_in_units(sampling, memory, batch, moments, carried)
    sampling = dataclasses.replace(sampling, gae_lambda=present_lambda(sampling, memory, reward, value))
    advantage, targets = advantages_and_targets(sampling, memory, reward, value)
    if sampling.value_scaling == "targets":
        moments = moments.updated(targets[:, newest][counted])
    fitted = ValueScale.of(sampling.value_scaling, moments).answers(targets)
    acted_on = tf.nest.map_structure(lambda part: part[:-width], inputs)
    of_policy = acted_on
    if width > n:
        of_policy = tf.nest.map_structure(lambda part: _columns_of_rows(part, width, newest), acted_on)
    rows = Rows(
        as_sequences(of_policy, batch.weight) if networks.is_recurrent else of_policy,
        batch.sample.reshape(length * n, *batch.sample.shape[2:]),
        standardized(advantage[:, newest], batch.weight).ravel().astype(np.float32),
        batch.weight.ravel().astype(np.float32),
    )
    return Estimates(
        rows,
        CriticRows(acted_on, fitted.ravel().astype(np.float32), memory.weight.ravel().astype(np.float32)),
        sampling.gae_lambda,
        explained_variance(value[:-1, newest][counted], targets[:, newest][counted]),
        moments,
        carried,
        clipped,
    )


def present_lambda(sampling: SamplingConfig, batch: Batch, reward: Floats, value: Floats) -> float:
    """Return lambda of generalised advantage estimation for this batch: 1 if the critic can't foresee rewards.

    GAE sums the critic's TD errors delta over about 1 / (1 - lambda) steps. That is enough if the critic's values
    show an action's effect within that many steps. The critic can't foresee rewards if three conditions hold.
    All rewards before episodes' ends are equal. Less than a share 1 - lambda of the steps ends an episode. Less than
    that share makes up the sum of delta^2. Then only the return shows what an action did.
    """
    trusted = sampling.gae_lambda
    if not sampling.adaptive_lambda or sampling.objective == "average":
        return trusted
    counted = batch.weight > 0
    within, at_ends = batch.reward[counted & ~batch.ended], batch.reward[counted & batch.ended]
    if len(at_ends) >= (1 - trusted) * counted.sum() or len(np.unique(within)) != 1:
        return trusted
    # Without a termination or a reward of its own at any end, the batch can't show what the critic misses.
    if not batch.terminated.any() and (at_ends == within[0]).all():
        return trusted
    errors = td_errors(reward, sampling.discount * ~batch.terminated, value)
    return 1.0 if participation_ratio(errors[counted]) < 1 - trusted else trusted


def advantages_and_targets(
    sampling: SamplingConfig, batch: Batch, reward: Floats, value: Floats
) -> tuple[Floats, Floats]:
    """Return advantages and value targets, both [T, N], from rewards [T, N] and values [T + 1, N].

    For the average-reward objective, advantages sum r - r_bar + V' - V (Zhang & Ross 2021, eq 22). Differential values
    are known only up to a constant, so the targets are shifted to mean 0.
    """
    discount, trace = sampling.discount, sampling.gae_lambda if sampling.advantage == "gae" else 1.0
    if sampling.objective == "average":
        reward, discount = reward - np.average(reward, weights=batch.weight), 1.0
    advantage = generalized_advantages(reward, discount * ~batch.terminated, trace * ~batch.ended, value)
    targets = advantage + value[:-1]
    if sampling.objective == "average":
        targets = targets - np.average(targets, weights=batch.weight)
    return (targets if sampling.advantage == "return" else advantage), targets


def _columns_of_rows(rows: Any, width: int, chosen: slice) -> NDArray[Any]:
    """Return the columns `chosen` of flat rows [T x width, ...], flat again."""
    part = np.asarray(rows).reshape(-1, width, *rows.shape[1:])[:, chosen]
    return part.reshape(-1, *rows.shape[1:])
