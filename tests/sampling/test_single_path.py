import numpy as np
import pytest

from trpo_tf.config.settings import Config, PolicyConfig, SamplingConfig
from trpo_tf.envs.vector.backends import make_vector_env
from trpo_tf.errors import EnvironmentFailure, UserError
from trpo_tf.learning.learner import build_learner
from trpo_tf.policies.running_stats import Normalizer
from trpo_tf.sampling.acting_graph import acting_graph
from trpo_tf.sampling.actor import Actor
from trpo_tf.sampling.single_path import SinglePath
from trpo_tf.support.phase_timer import PhaseClock

LIMIT, LENGTH = 5, 3  # of Walk's episodes: where they are truncated, and where the end lies


def sampler_for(env_id: str, num_envs: int = 2, seed: int = 0):
    config = Config(env_id, sampling=SamplingConfig(num_envs=num_envs), policy=PolicyConfig(hidden_sizes=(4,)))
    learner = build_learner(config)
    actor = Actor(acting_graph(learner.policy), num_envs)
    state = learner.initial_state(num_envs)
    actor.load(state.theta, Normalizer.of(state.observation_moments))
    return SinglePath(make_vector_env(env_id, num_envs), actor, seed), learner


@pytest.fixture(scope="module")
def walked():
    sampler, _ = sampler_for("tests.support.environments:Walk-v0")
    rng = np.random.default_rng(0)
    first, episodes = sampler.collect(60, rng, PhaseClock())
    second, _ = sampler.collect(60, rng, PhaseClock())
    sampler.close()
    return first, second, episodes


def test_episodes_end_by_termination_at_the_end_and_by_truncation_at_the_time_limit(walked):
    batch, _, _ = walked
    place = batch.observation[1:, :, 1]
    steps = batch.observation[1:, :, 0]
    counted = batch.weight > 0
    np.testing.assert_array_equal(batch.terminated, counted & (place == LENGTH))
    np.testing.assert_array_equal(batch.truncated & ~batch.terminated, counted & (steps == LIMIT) & (place != LENGTH))
    assert batch.terminated.any()
    assert batch.truncated.any()


def test_the_row_after_an_end_is_the_reset_and_weighs_nothing(walked):
    batch, _, _ = walked
    np.testing.assert_array_equal(batch.weight[0], 1.0)
    np.testing.assert_array_equal(batch.weight[1:], 1.0 - batch.ended[:-1])
    resets = batch.weight == 0
    np.testing.assert_array_equal(batch.observation[1:][resets], 0.0)
    np.testing.assert_array_equal(batch.reward[resets], 0.0)
    assert batch.steps == batch.weight.size - resets.sum()


def test_the_final_observation_stands_where_its_value_is_looked_up(walked):
    """After a truncated step t, observation[t + 1] is what the episode ended with, not the next one's start."""
    batch, _, _ = walked
    final = batch.observation[1:][batch.truncated & ~batch.terminated]
    np.testing.assert_array_equal(final[:, 0], LIMIT)


def test_batches_follow_on_each_other(walked):
    first, second, _ = walked
    np.testing.assert_array_equal(first.observation[-1], second.observation[0])
    np.testing.assert_array_equal(second.weight[0], 1.0 - first.ended[-1])


def test_episodes_are_counted_with_returns_and_lengths(walked):
    batch, _, episodes = walked
    assert len(episodes.returns) == batch.ended.sum()
    assert sum(episodes.returns) == batch.reward.sum()
    assert sum(episodes.lengths) <= batch.steps
    assert set(episodes.lengths) <= {LENGTH, LIMIT}


def test_actions_are_those_of_the_distribution_and_repeat_with_the_seed():
    batches = []
    for seed in (7, 7, 8):
        sampler, _ = sampler_for("tests.support.environments:Walk-v0", num_envs=4)
        batches.append(sampler.collect(50, np.random.default_rng(seed), PhaseClock())[0])
        sampler.close()
    for a, b in zip(batches[0], batches[1], strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(batches[0].sample, batches[2].sample)
    assert 0.3 < batches[0].sample.mean() < 0.7


def test_an_exception_in_an_environment_is_named_and_kept():
    sampler, _ = sampler_for("tests.support.environments:FailingWalk-v0")
    with pytest.raises(EnvironmentFailure, match="step raised ArithmeticError: the motor is too hot") as caught:
        sampler.collect(1000, np.random.default_rng(0), PhaseClock())
    assert isinstance(caught.value.cause, ArithmeticError)
    sampler.close()


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "InvertedPendulum-v5"])
def test_backends_follow_the_same_conventions(env_id):
    """CartPole has a vector form of its own, the others are stepped one by one."""
    sampler, _ = sampler_for(env_id, num_envs=3)
    batch, episodes = sampler.collect(250, np.random.default_rng(0), PhaseClock())
    sampler.close()
    np.testing.assert_array_equal(batch.weight[1:], 1.0 - batch.ended[:-1])
    assert not (batch.reward * (1 - batch.weight)).any()
    assert batch.ended.sum() == len(episodes.returns) > 0


def test_correlated_noise_follows_its_law_step_by_step_and_from_batch_to_batch():
    sampling = SamplingConfig(num_envs=64, batch_size=128)
    config = Config("tests.support.environments:Reach-v0", sampling=sampling, policy=PolicyConfig(unit_std=False))
    learner = build_learner(config)
    state = learner.initial_state(64)
    actor = Actor(acting_graph(learner.policy), 64)
    actor.load(state.theta, Normalizer.of(state.observation_moments))
    sampler = SinglePath(make_vector_env(config.env_id, 64), actor, 0)
    rng = np.random.default_rng(0)
    first, second = (sampler.collect(300, rng, PhaseClock(), noise_correlation=0.8)[0].sample for _ in range(2))
    sampler.close()
    # The untrained mean is about 0 and the deviation 1, so that samples are the noise itself.
    samples = np.concatenate([first, second])
    assert samples.var() == pytest.approx(1.0, abs=0.03)
    for lag in (1, 3):
        assert np.mean(samples[lag:] * samples[:-lag]) == pytest.approx(0.8**lag, abs=0.03)
    assert np.mean(first[-1] * second[0]) == pytest.approx(0.8, abs=0.25)


def test_correlated_noise_is_for_continuous_actions():
    with pytest.raises(UserError, match="noise_correlation is for Gaussian actions"):
        build_learner(Config("CartPole-v1", sampling=SamplingConfig(noise_correlation=0.5)))
