"""One iteration of the practical algorithm (Schulman et al. 2015, section 6)."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from trpo_tf.advantages import Floats, generalized_advantages, participation_ratio, standardized, td_errors
from trpo_tf.components import Components
from trpo_tf.config import Config, SamplingConfig
from trpo_tf.normalization import Moments, scale_rewards
from trpo_tf.phases import PhaseClock
from trpo_tf.sampling.batch import Batch, Episodes
from trpo_tf.sampling.experience import Experience
from trpo_tf.sampling.vine import Branches
from trpo_tf.schedules import annealing, control, entropy_term, present_discount
from trpo_tf.serving.observations import map_parts, take
from trpo_tf.solvers.adam import AdamState
from trpo_tf.state import TrainingState
from trpo_tf.updates.problem import Rows
from trpo_tf.updates.result import Update, UpdateStatus
from trpo_tf.value_scaling import ValueScale, rewards_in_units
from trpo_tf.values import explained_variance

Metrics = dict[str, Any]

_SAMPLING, _CRITIC, _POLICY = range(3)


class CriticRows(NamedTuple):
    """What the critic is fitted to."""

    inputs: Any  # [M x B, ...], encoded observations; a tuple of them for a network of several inputs
    targets: NDArray[np.float32]  # [M x B]
    weight: NDArray[np.float32]  # [M x B]


class Estimates(NamedTuple):
    """What the batch says about the objective, in flat rows B = T x N, and the critic's rows, M x B with its memory."""

    rows: Rows
    critic_rows: CriticRows
    gae_lambda: float
    explained_variance: float
    return_moments: Moments
    carried_returns: NDArray[np.float64]  # [N]
    clipped_rewards: float  # share


def iterate(
    config: Config, components: Components, experience: Experience, state: TrainingState, *, traced: bool = False
) -> tuple[TrainingState, Metrics]:
    """The state after one more iteration, and its metrics (docs/metrics.md).

    `traced` marks the phases in the trace that TensorFlow's profiler records.
    """
    clock = PhaseClock(traced=traced)

    # 1. Collect state-action pairs, along with Monte Carlo estimates of their Q-values.
    experience.actor.load(state.theta, components.policy.encoder.normalizer(state.observation_moments))
    correlation = config.sampling.noise_correlation * annealing(config, state)
    batch, episodes, branches = experience.collect(_rng(config, state, _SAMPLING), clock, correlation)

    # 2. By averaging over samples, construct the estimated objective and constraint.
    clock.enter("advantages")
    seconds_sampling = sum(clock.seconds.values())
    memory = remembered(config, state, batch)
    estimates = estimate(config, components, state, memory)
    rows = estimates.rows
    if branches is not None:
        rows = vine_rows(config, components, state, branches, estimates.return_moments)

    # 3. Approximately solve the constrained problem to update the policy's parameters; fit the critic beside it, since
    # either keeps one core busy and needs nothing of the other.
    clock.enter("update")
    order = minibatches(
        _rng(config, state, _POLICY), batch.reward.size, config.inner.policy_batch_size, config.inner.policy_epochs
    )
    with ThreadPoolExecutor(1) as beside:
        critic = beside.submit(fit_critic, config, components, state, estimates.critic_rows)
        result = components.update(
            state.theta, rows, control(config, state), order, entropy_term(config, components, state)
        )
        update = Update(*(value.numpy() for value in result))
        clock.enter("critic")
        value_theta, adam, value_loss = critic.result()

    clock.enter("rest")
    steps = batch.steps + (0 if branches is None else branches.steps)
    measured = components.policy.encoder.measured(take(batch.rows(), batch.weight.ravel() > 0))
    after = dataclasses.replace(
        state.with_episodes(*episodes),
        theta=update.theta,
        control=np.float32(update.control),
        value_theta=value_theta,
        adam=adam,
        earlier=columns(memory, slice(config.sampling.num_envs, None)) if config.critic.critic_memory > 1 else None,
        return_moments=estimates.return_moments,
        carried_returns=estimates.carried_returns,
        iteration=state.iteration + 1,
        steps=state.steps + steps,
    )
    after = with_observations(config, components, after, measured)
    seconds = clock.stop()
    metrics = {
        **_progress(after, episodes),
        **_update_metrics(update),
        "value_loss": value_loss,
        "gae_lambda": estimates.gae_lambda,
        "explained_variance": estimates.explained_variance,
        "clipped_rewards": estimates.clipped_rewards,
        "branch_steps": steps - batch.steps,
        **{f"info/{name}": value for name, value in experience.take_info().items()},
        "steps_per_second": steps / sum(seconds.values()),
        "seconds_sampling": seconds_sampling,
        **{f"seconds_{phase}": spent for phase, spent in seconds.items()},
    }
    return after, metrics


def with_observations(
    config: Config, components: Components, state: TrainingState, measured: NDArray[np.float64]
) -> TrainingState:
    """The state whose statistics know the observations [n, statistics], and whose networks answer as before.

    Statistics that follow the policy change what its networks see. Their first layers are changed the other way, so
    policy and critic stay the same functions of the observation: the trust region bounds what the update did alone.
    Networks that don't begin with a dense layer keep statistics of the whole run, which soon hardly change.
    """
    networks = components.policy.network, components.value_function.network
    window = config.sampling.statistics_window if all(network.is_chain for network in networks) else 0
    before, after = state.observation_moments, state.observation_moments.updated(measured, window)
    state = dataclasses.replace(state, observation_moments=after)
    if window == 0 or before.total == 0:
        return state
    policy, critic = networks
    least = components.policy.encoder.least_deviation
    return dataclasses.replace(
        state,
        theta=policy.recentred(state.theta, before, after, least),
        value_theta=critic.recentred(state.value_theta, before, after, least),
    )


def remembered(config: Config, state: TrainingState, batch: Batch) -> Batch:
    """The batch [T, N] as the last columns of [T, M x N], behind those of M - 1 iterations before; zeros at first.

    Policies M steps apart are near each other, each step being small, so their returns tell a critic more than those
    of one batch, for a bias that the trust region bounds.
    """
    before = config.critic.critic_memory - 1
    if before == 0:
        return batch
    earlier = state.earlier or tf.nest.map_structure(
        lambda part: np.zeros((len(part), before * part.shape[1], *part.shape[2:]), part.dtype), batch
    )
    return tf.nest.map_structure(lambda *parts: np.concatenate(parts, axis=1), earlier, batch)  # type: ignore[no-any-return]


def columns(batch: Batch, chosen: slice) -> Batch:
    """Some environments' part of a batch."""
    return tf.nest.map_structure(lambda part: part[:, chosen], batch)  # type: ignore[no-any-return]


def estimate(config: Config, components: Components, state: TrainingState, memory: Batch) -> Estimates:
    """Advantages of the last N columns and value targets of all, with statistics as they were during sampling."""
    n = config.sampling.num_envs
    sampling = dataclasses.replace(config.sampling, discount=present_discount(config, state))
    length, width = memory.reward.shape
    newest = slice(width - n, None)
    observations = map_parts(lambda part: part.reshape((length + 1) * width, *part.shape[2:]), memory.observation)
    inputs = components.encode(components.policy.encoder.normalizer(state.observation_moments), observations)
    answers = components.value_function.values(state.value_theta, inputs).numpy().reshape(length + 1, width)
    value = ValueScale.of(sampling.value_scaling, state.return_moments).values(answers)

    batch = columns(memory, newest)
    counted = batch.weight > 0
    reward, moments, carried, clipped = rewards_in_units(
        sampling, memory, batch, state.return_moments, state.carried_returns
    )
    sampling = dataclasses.replace(sampling, gae_lambda=present_lambda(sampling, memory, reward, value))
    advantage, targets = advantages_and_targets(sampling, memory, reward, value)
    if sampling.value_scaling == "targets":
        moments = moments.updated(targets[:, newest][counted])
    fitted = ValueScale.of(sampling.value_scaling, moments).answers(targets)
    acted_on = tf.nest.map_structure(lambda part: part[:-width], inputs)
    rows = Rows(
        acted_on if width == n else tf.nest.map_structure(lambda part: _columns_of_rows(part, width, newest), acted_on),
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
    """lambda of generalised advantage estimation for this batch: 1 where the critic's foresight can't be relied on.

    GAE sums errors of the critic, delta, over some 1 / (1 - lambda) steps. It is right where the critic sees what an
    action has done within as many. It can't have learnt that if less than a share 1 - lambda of steps has a reward
    other than the commonest or terminates, and a share as small makes up the sum of delta^2. What an action did then
    shows in the return alone.
    """
    trusted = sampling.gae_lambda
    if not sampling.adaptive_lambda or sampling.objective == "average":
        return trusted
    counted = batch.weight > 0
    rewards, counts = np.unique(batch.reward[counted], return_counts=True)
    tells = (batch.reward != rewards[counts.argmax()]) | batch.terminated
    if tells[counted].mean() >= 1 - trusted:
        return trusted
    errors = td_errors(reward, sampling.discount * ~batch.terminated, value)
    return 1.0 if participation_ratio(errors[counted]) < 1 - trusted else trusted


def advantages_and_targets(
    sampling: SamplingConfig, batch: Batch, reward: Floats, value: Floats
) -> tuple[Floats, Floats]:
    """Advantages [T, N], and what the critic is fitted to, from rewards [T, N] and values [T + 1, N].

    Of the average-reward objective the advantage is r - r_bar + V' - V and its sums (Zhang & Ross 2021, eq 22);
    differential values are known up to a constant only, so the targets are kept at mean 0.
    """
    discount, trace = sampling.discount, sampling.gae_lambda if sampling.advantage == "gae" else 1.0
    if sampling.objective == "average":
        reward, discount = reward - np.average(reward, weights=batch.weight), 1.0
    advantage = generalized_advantages(reward, discount * ~batch.terminated, trace * ~batch.ended, value)
    targets = advantage + value[:-1]
    if sampling.objective == "average":
        targets = targets - np.average(targets, weights=batch.weight)
    return (targets if sampling.advantage == "return" else advantage), targets


def vine_rows(
    config: Config, components: Components, state: TrainingState, branches: Branches, moments: Moments
) -> Rows:
    """Rows of N x K branches, state by state: Q estimates less their mean, weighed by pi_old(a|s) / q(a|s).

    Q(s, a) is a rollout's discounted reward, and the critic's value where it was cut off.
    """
    n, k, longest = branches.reward.shape
    normalizer = components.policy.encoder.normalizer(state.observation_moments)
    factor = present_discount(config, state)
    finals = map_parts(lambda part: part.reshape(n * k, *part.shape[2:]), branches.final_observation)
    answers = components.value_function.values(state.value_theta, components.encode(normalizer, finals)).numpy()
    scaling = config.sampling.value_scaling
    value = ValueScale.of(scaling, state.return_moments).values(answers)
    reward = scale_rewards(branches.reward, moments) if scaling == "rewards" else branches.reward
    rest = factor**branches.length * ~branches.terminated * value.reshape(n, k)
    estimate = reward @ factor ** np.arange(longest) + rest

    inputs = components.encode(normalizer, take(branches.observation, np.repeat(np.arange(n), k)))
    sample = branches.sample.reshape(n * k, *branches.sample.shape[2:])
    weight = np.full((n, k), 1.0 / k)
    if components.policy.is_discrete:
        # Actions were taken uniformly, each once or at random.
        probability = np.exp(components.log_prob(state.theta, inputs, sample).numpy().reshape(n, k))
        weight = probability / probability.sum(axis=1, keepdims=True)
    advantage = estimate - (weight * estimate).sum(axis=1, keepdims=True)
    weight *= branches.weight[:, np.newaxis]
    return Rows(
        inputs,
        sample,
        standardized(advantage, weight).ravel().astype(np.float32),
        weight.ravel().astype(np.float32),
    )


def fit_critic(
    config: Config, components: Components, state: TrainingState, rows: CriticRows
) -> tuple[NDArray[np.float32], AdamState, float]:
    """The critic's parameters and Adam's state after the fit, and its loss; the old ones if it is not finite."""
    critic, n = config.critic, config.sampling.num_envs
    width = critic.critic_memory * n
    known = np.arange(len(rows.targets)).reshape(-1, width)[:, -n * (state.iteration + 1) :].ravel()
    # With a memory there are more rows to choose from, but no more steps.
    count = len(rows.targets) // critic.critic_memory
    epochs = -(-critic.critic_epochs * count // len(known))
    order = minibatches(_rng(config, state, _CRITIC), len(known), critic.critic_batch_size, epochs)
    order = known.astype(np.int32)[order[: critic.critic_epochs * (count // critic.critic_batch_size)]]
    # The clock of the phases is another thread's.
    with tf.profiler.experimental.Trace("critic"):
        theta, adam, loss = components.value_function.fit(
            state.value_theta,
            state.adam,
            *rows,
            order,
            np.float32(critic.critic_learning_rate * annealing(config, state)),
        )
        theta, adam = theta.numpy(), AdamState(*(value.numpy() for value in adam))
    if not np.isfinite(theta).all():
        return state.value_theta, state.adam, float("nan")
    return theta, adam, float(loss)


def minibatches(rng: np.random.Generator, count: int, size: int, epochs: int) -> NDArray[np.int32]:
    """Rows of each minibatch, [steps, size]: each epoch a new permutation of `count` rows, less what is left over."""
    permutations = [rng.permutation(count)[: count - count % size].reshape(-1, size) for _ in range(epochs)]
    return np.concatenate(permutations).astype(np.int32)


def _columns_of_rows(rows: Any, width: int, chosen: slice) -> NDArray[Any]:
    """Of flat rows [T x width, ...] those of some columns, flat."""
    part = np.asarray(rows).reshape(-1, width, *rows.shape[1:])[:, chosen]
    return part.reshape(-1, *rows.shape[1:])


def _rng(config: Config, state: TrainingState, purpose: int) -> np.random.Generator:
    return np.random.default_rng([config.seed, state.iteration, purpose])


def _progress(state: TrainingState, episodes: Episodes) -> Metrics:
    return {
        "iteration": state.iteration,
        "steps": state.steps,
        "episodes": state.episodes,
        "mean_return": float(np.mean(state.recent_returns)) if state.recent_returns else None,
        "mean_length": float(np.mean(state.recent_lengths)) if state.recent_lengths else None,
        "episodes_ended": len(episodes.returns),
    }


def _update_metrics(update: Update) -> Metrics:
    scalars = {name: value.item() for name, value in update._asdict().items() if name not in ("theta", "status")}
    return {"update_status": UpdateStatus(int(update.status)).name.lower(), **scalars}
