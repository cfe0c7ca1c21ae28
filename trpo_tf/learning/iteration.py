"""One iteration of the practical algorithm (Schulman et al. 2015, section 6)."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from trpo_tf.config.settings import Config
from trpo_tf.estimation.critic_memory import remembered, with_memory
from trpo_tf.estimation.targets import estimate
from trpo_tf.estimation.vine_targets import vine_rows
from trpo_tf.learning.critic_fit import fit_critic
from trpo_tf.learning.learner import Learner
from trpo_tf.learning.metrics import Metrics, progress_metrics, update_metrics
from trpo_tf.learning.observation_statistics import with_observations
from trpo_tf.learning.schedules import annealing, entropy_term, present_sampling, radius_or_coefficient
from trpo_tf.learning.training_state import Purpose, TrainingState
from trpo_tf.sampling.sampler import Experience
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
    experience.actor.load(state.theta, learner.policy.encoder.normalizer(state.observation_moments))
    correlation = config.sampling.noise_correlation * annealing(config, state)
    batch, episodes, branches = experience.collect(state.rng(config.seed, Purpose.SAMPLING), clock, correlation)

    # 2. By averaging over samples, construct the estimated objective and constraint.
    clock.enter("advantages")
    seconds_sampling = sum(clock.seconds.values())
    networks, sampling = learner.frozen(state), present_sampling(config, state)
    memory = with_memory(state.earlier, batch, config.critic.memory)
    estimates = estimate(sampling, networks, batch, state.return_moments, state.carried_returns, memory)
    rows = estimates.rows
    if branches is not None:
        rows = vine_rows(sampling, networks, branches, state.return_moments, estimates.return_moments)

    # 3. Approximately solve the constrained problem to update the policy's parameters. The critic is fitted at the same
    # time: each of the two keeps one core busy, and neither needs the other's result.
    clock.enter("update")
    batches = minibatches(
        state.rng(config.seed, Purpose.POLICY),
        batch.reward.size,
        config.inner.policy_batch_size,
        config.inner.policy_epochs,
    )
    with ThreadPoolExecutor(1) as worker:
        critic = worker.submit(fit_critic, config, learner, state, estimates.critic_rows)
        result = learner.update(
            state.theta,
            rows,
            radius_or_coefficient(config, state),
            batches,
            entropy_term(config, state, learner.policy.head),
        )
        update = Update(*(value.numpy() for value in result))
        clock.enter("critic")
        value_theta, adam, value_loss = critic.result()

    clock.enter("rest")
    steps = batch.steps + (0 if branches is None else branches.steps)
    measured = learner.policy.encoder.measured(take(batch.rows(), batch.weight.ravel() > 0))
    after = dataclasses.replace(
        state.with_episodes(*episodes),
        theta=update.theta,
        adapted=np.float32(update.adapted),
        value_theta=value_theta,
        adam=adam,
        earlier=remembered(state.earlier, batch, config.critic.memory),
        return_moments=estimates.return_moments,
        carried_returns=estimates.carried_returns,
        iteration=state.iteration + 1,
        steps=state.steps + steps,
    )
    after = with_observations(config, learner, after, measured)
    seconds = clock.stop()
    metrics = {
        **progress_metrics(after, episodes),
        **update_metrics(update, config.algo),
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
