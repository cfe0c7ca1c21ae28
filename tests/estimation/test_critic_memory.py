"""A critic with a memory is fitted to the batches of several iterations."""

import dataclasses
import itertools

import numpy as np
import pytest

from trpo_tf.errors import UserError
from trpo_tf.estimation.critic_memory import apart, remembered, side_by_side, with_memory
from trpo_tf.estimation.targets import estimate
from trpo_tf.learning.critic_fit import fit_critic
from trpo_tf.learning.iteration import iterate
from trpo_tf.learning.learner import build_learner
from trpo_tf.learning.training_state import TrainingState
from trpo_tf.sampling.batch import Batch
from trpo_tf.sampling.sampler import Experience

LENGTH, ENVS = 16, 4


def batch_of(reward: float, observation: float, size: int) -> Batch:
    """Episodes of one step, all from the same state, with the same reward."""
    shape = (LENGTH, ENVS)
    return Batch(
        np.full((LENGTH + 1, ENVS, size), observation, np.float32),
        np.zeros((*shape, 1), np.float32),
        np.full(shape, reward),
        np.ones(shape, bool),
        np.zeros(shape, bool),
        np.ones(shape),
    )


def estimated(config, learner, state, batch: Batch):
    memory = with_memory(state.earlier, batch, config.critic.memory)
    networks = learner.frozen(state)
    return estimate(config.sampling, networks, batch, state.return_moments, state.carried_returns, memory)


@pytest.fixture(scope="module")
def config(small_config):
    return small_config(
        "tests.support.environments:Reach-v0",
        critic_memory=3,
        critic_epochs=100,
        critic_learning_rate=0.01,
        value_scaling="none",
        normalize_observations=False,
    )


@pytest.fixture(scope="module")
def learner(config):
    return build_learner(config)


def test_a_value_is_the_mean_over_the_batches_that_are_remembered(config, learner):
    state, values = learner.initial_state(ENVS), []
    traced = learner.value_function.fit.experimental_get_tracing_count()
    (size,) = (spec.shape[1] for spec in learner.policy.encoder.inputs)
    for iteration, reward in enumerate([0.0, 1.0, 2.0, 3.0, 4.0]):
        batch = batch_of(reward, 1.0, size)
        estimates = estimated(config, learner, state, batch)
        theta, adam, _ = fit_critic(config, learner, state, estimates.critic_rows)
        values.append(float(learner.value_function.values(theta, np.ones((1, size), np.float32))[0]))
        state = dataclasses.replace(
            state,
            value_theta=theta,
            adam=adam,
            iteration=iteration + 1,
            earlier=remembered(state.earlier, batch, 3),
        )
    np.testing.assert_allclose(values, [0.0, 0.5, 1.0, 2.0, 3.0], atol=0.1)
    assert learner.value_function.fit.experimental_get_tracing_count() <= traced + 1
    assert state.adam.step == 5 * 100 * LENGTH * ENVS / config.critic.batch_size


def test_the_first_fit_is_that_without_a_memory(config, learner):
    alone = dataclasses.replace(config, critic=dataclasses.replace(config.critic, memory=1))
    (size,) = (spec.shape[1] for spec in learner.policy.encoder.inputs)
    batch = batch_of(1.0, 1.0, size)._replace(reward=np.random.default_rng(0).normal(size=(LENGTH, ENVS)))
    fits = []
    for one in (config, alone):
        state = learner.initial_state(ENVS)
        rows = estimated(one, learner, state, batch).critic_rows
        fits.append(fit_critic(one, learner, state, rows)[0])
    np.testing.assert_allclose(*fits, atol=1e-6)


def test_the_policy_learns_from_the_newest_batch_alone(config, learner, small_config):
    state = learner.initial_state(ENVS)
    (size,) = (spec.shape[1] for spec in learner.policy.encoder.inputs)
    rng = np.random.default_rng(0)
    old, new = (batch_of(1.0, 0.5, size)._replace(reward=rng.normal(size=(LENGTH, ENVS))) for _ in range(2))
    old = old._replace(observation=rng.normal(size=old.observation.shape).astype(np.float32))
    with_earlier = estimated(config, learner, dataclasses.replace(state, earlier=(old,)), new)
    without = estimated(small_config("tests.support.environments:Reach-v0", value_scaling="none"), learner, state, new)
    for one, other in zip(with_earlier.rows, without.rows, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert len(with_earlier.critic_rows.targets) == 3 * len(without.critic_rows.targets)


@pytest.mark.parametrize("env_id", ["tests.support.environments:Walk-v0", "tests.support.environments:Signals-dict-v0"])
def test_iterations_hand_their_batches_on(env_id, small_config):
    config = small_config(env_id, critic_memory=3)
    learner = build_learner(config)
    states = [learner.initial_state(ENVS)]
    with Experience(config, learner.policy) as experience:
        experience.restart()
        for _ in range(4):
            states.append(iterate(config, learner, experience, states[-1])[0])
    assert [len(state.earlier) for state in states] == [0, 1, 2, 2, 2]
    for before, after in itertools.pairwise(states[2:]):
        assert after.earlier[0] is before.earlier[1]
        assert not np.array_equal(after.earlier[1].sample, before.earlier[1].sample)


def test_batches_come_back_from_a_checkpoint_one_by_one(config, learner):
    state = learner.initial_state(ENVS)
    batches = tuple(batch_of(reward, 0.5, 3) for reward in (1.0, 2.0))
    kept = TrainingState.from_arrays(dataclasses.replace(state, earlier=batches).to_arrays()).earlier
    for batch, again in zip(batches, kept, strict=True):
        for part, other in zip(batch, again, strict=True):
            np.testing.assert_array_equal(part, other)
    assert apart(side_by_side(batches[:1]), ENVS)[0].reward.shape == (LENGTH, ENVS)


def test_without_a_memory_nothing_is_kept(trained):
    assert trained.run.state.earlier == ()


def test_a_memory_of_nothing_is_refused(small_config):
    with pytest.raises(UserError, match="critic_memory must be at least 1"):
        small_config(critic_memory=0)
