"""Compare the states that sampling went through with those that the update computes over time."""

import dataclasses

import numpy as np

from trpo_tf.estimation.targets import estimate
from trpo_tf.policies.running_stats import Normalizer
from trpo_tf.sampling.sampler import Experience
from trpo_tf.support.phase_timer import PhaseClock


def objective_rows(config, learner, state, batch):
    return estimate(config.sampling, learner.frozen(state), batch, state.return_moments, state.carried_returns).rows


def assert_states_are_those_of_the_update(config, learner, names: set[str]) -> None:
    """The exported graph, one step at a time, and the update's loop over time give the same distribution at all rows.

    Through ends of episodes, first episodes that are cut, and from batch to batch; `names` are the state's.
    """
    state = learner.initial_state(config.sampling.num_envs)
    theta = state.theta + 0.3 * np.random.default_rng(0).normal(size=state.theta.shape).astype(np.float32)
    state = dataclasses.replace(state, theta=theta)
    with Experience(config, learner.policy) as experience:
        experience.restart(longest_recent=9)
        experience.load(theta, Normalizer.of(state.observation_moments))
        assert {spec.name for spec in experience.graph.state} == names
        for _ in range(2):
            batch = experience.collect(np.random.default_rng(0), PhaseClock()).batch
            rows = objective_rows(config, learner, state, batch)
            alone = rows.inputs.inputs.numpy().reshape(config.sampling.batch_size, -1)
            by_row = learner.policy.parameters(theta, alone)[0].numpy()
            over_time = learner.policy.parameters(theta, rows.inputs)[0].numpy()
            np.testing.assert_allclose(over_time, by_row, atol=1e-4)
            assert (batch.weight == 0).sum() > 4
            assert by_row.std() > 0.1
