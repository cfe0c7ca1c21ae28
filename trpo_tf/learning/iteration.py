"""One iteration of the practical algorithm (Schulman et al. 2015, section 6)."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from trpo_tf.config.settings import Config
from trpo_tf.estimation.critic_memory import remembered, with_memory
from trpo_tf.estimation.targets import Estimates, estimate
from trpo_tf.estimation.vine_targets import vine_rows
from trpo_tf.learning.critic_fit import CriticFit, fit_critic
from trpo_tf.learning.learner import Learner
from trpo_tf.learning.metrics import Metrics, estimate_metrics, progress_metrics, timing_metrics, update_metrics
from trpo_tf.learning.observation_statistics import with_observations
from trpo_tf.learning.schedules import annealing, entropy_term, present_sampling, progress, radius_or_coefficient
from trpo_tf.learning.training_state import Purpose, TrainingState
from trpo_tf.policies.encoders import MaskedInputs, without_mask
from trpo_tf.policies.recurrence.sequences import Sequences, sequence_minibatches
from trpo_tf.sampling.sampler import Experience, Sampled
from trpo_tf.serving.runtime.observations import take
from trpo_tf.support.phase_timer import PhaseClock
from trpo_tf.updates.minibatch import minibatches
from trpo_tf.updates.result import Update


def iterate(
    config: Config, learner: Learner, experience: Experience, state: TrainingState, *, traced: bool = False
) -> tuple[TrainingState, Metrics]:
    """Run one iteration, and return the state after it and its metrics (docs/reference/metrics.md).

    `traced` marks the phases in the trace that TensorFlow's profiler records.
    """
    clock = PhaseClock(traced=traced)

    # 1. Collect state-action pairs, along with Monte Carlo estimates of their Q-values.
    experience.load(state.theta, learner.policy.encoder.normalizer(state.observation_moments))
    correlation = config.sampling.noise_correlation * annealing(config, state)
    experience.set_progress(progress(config, state))
    sampled = experience.collect(state.rng(config.seed, Purpose.SAMPLING), clock, correlation)

    # 2. By averaging over samples, construct the estimated objective and constraint.
    clock.enter("advantages")
    seconds_sampling = sum(clock.seconds.values())
    estimates = objective(config, learner, state, sampled)

    # 3. Approximately solve the constrained problem to update the policy's parameters.
    clock.enter("update")
    update, critic = update_and_fit(config, learner, state, estimates, clock)

    clock.enter("rest")
    after = _state_after(config, learner, state, sampled, estimates, update, critic)
    return after, {
        **progress_metrics(after, sampled.episodes),
        **update_metrics(update, config.algo),
        "value_loss": critic.loss,
        **estimate_metrics(estimates),
        "branch_steps": sampled.branch_steps,
        **{f"info/{name}": value for name, value in experience.take_info().items()},
        **timing_metrics(sampled.steps, seconds_sampling, clock.stop()),
    }


def objective(config: Config, learner: Learner, state: TrainingState, sampled: Sampled) -> Estimates:
    """Return advantages and value targets of the batch; with a vine, the objective's rows are those of its rollouts."""
    networks, sampling = learner.frozen(state), present_sampling(config, state)
    memory = with_memory(state.earlier, sampled.batch, config.critic.memory)
    estimates = estimate(sampling, networks, sampled.batch, state.return_moments, state.carried_returns, memory)
    if sampled.branches is None:
        return estimates
    rows = vine_rows(sampling, networks, sampled.branches, state.return_moments, estimates.return_moments)
    if isinstance(without_mask(estimates.rows.inputs), Sequences):
        # What led to a rollout's first state is the batch's own course.
        starts = np.repeat(sampled.branches.rows, sampled.branches.reward.shape[1]).astype(np.int32)
        course = without_mask(estimates.rows.inputs)._replace(rows=starts)
        masked = isinstance(rows.inputs, MaskedInputs)
        rows = rows._replace(inputs=rows.inputs._replace(inputs=course) if masked else course)
    return estimates._replace(rows=rows)


def update_and_fit(
    config: Config, learner: Learner, state: TrainingState, estimates: Estimates, clock: PhaseClock
) -> tuple[Update, CriticFit]:
    """Return the policy's update and the critic's fit.

    They run at the same time: each keeps one core busy, and neither needs the other's result.
    """
    rng = state.rng(config.seed, Purpose.POLICY)
    length, n, inner = config.rollout_length, config.sampling.num_envs, config.inner
    if not learner.policy.core.is_recurrent:
        batches = minibatches(rng, length * n, inner.policy_batch_size, inner.policy_epochs)
    else:
        batches = sequence_minibatches(rng, length, n, inner.policy_batch_size, inner.policy_epochs)
    with ThreadPoolExecutor(1) as worker:
        critic = worker.submit(fit_critic, config, learner, state, estimates.critic_rows)
        result = learner.update(
            state.theta,
            estimates.rows,
            radius_or_coefficient(config, state),
            batches,
            entropy_term(config, state, learner.policy.head),
        )
        update = Update(*(value.numpy() for value in result))
        clock.enter("critic")
        return update, critic.result()


def _state_after(
    config: Config,
    learner: Learner,
    state: TrainingState,
    sampled: Sampled,
    estimates: Estimates,
    update: Update,
    critic: CriticFit,
) -> TrainingState:
    """Return the state after the iteration; the observations of the batch are added to the statistics last."""
    batch = sampled.batch
    after = dataclasses.replace(
        state.with_episodes(sampled.episodes.returns, sampled.episodes.lengths),
        theta=update.theta,
        adapted=np.float32(update.adapted),
        value_theta=critic.theta,
        adam=critic.adam,
        earlier=remembered(state.earlier, batch, config.critic.memory),
        return_moments=estimates.return_moments,
        carried_returns=estimates.carried_returns,
        iteration=state.iteration + 1,
        steps=state.steps + sampled.steps,
    )
    measured = learner.policy.encoder.measured(take(batch.rows(), batch.weight.ravel() > 0))
    return with_observations(config, learner, after, measured)
