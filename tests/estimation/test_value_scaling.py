"""Rewards of any size and rarity, and observations whose range changes, without a setting."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import tomli_w

from trpo_tf.config.settings import SamplingConfig, read_config
from trpo_tf.estimation.reward_scaling import ValueScale
from trpo_tf.estimation.targets import estimate
from trpo_tf.learning.iteration import iterate
from trpo_tf.learning.learner import build_learner
from trpo_tf.learning.observation_statistics import with_observations
from trpo_tf.policies.running_stats import Moments, Normalizer
from trpo_tf.sampling.sampler import Experience

ENVS = 4


def test_values_are_in_units_of_rewards_whatever_the_critic_answers_in():
    scale = ValueScale.of("targets", Moments.empty(()).updated(np.array([90.0, 110.0])))
    np.testing.assert_allclose(scale, (100.0, 10.0))
    np.testing.assert_allclose(scale.values(scale.answers(np.array([1e6, -3.0]))), [1e6, -3.0])
    assert ValueScale.of("targets", Moments.empty(())) == ValueScale.of("none", Moments.empty(())) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("known", "unit", "factor"),
    [
        *(([-30.0, 10.0, 20.0], 1.0, factor) for factor in (1e-6, 1.0, 1e6)),
        ([], 1e-1, 1e-4),  # the first batch; the values of rewards above 1 are the bare answers of the critic there
    ],
)
def test_the_unit_of_rewards_changes_neither_policy_nor_critic(known, unit, factor, small_config):
    config = small_config("tests.support.environments:Reach-v0", value_scaling="targets")
    learner = build_learner(config)
    state = learner.initial_state(ENVS)
    with Experience(config, learner.policy) as experience:
        experience.restart()
        experience.load(state.theta, Normalizer.of(state.observation_moments))
        batch = experience.collect(np.random.default_rng(0), _clock())[0]
    known = Moments.empty(()).updated(np.array(known))

    def estimated(factor):
        moments = known._replace(mean=known.mean * factor, deviations=known.deviations * factor**2)
        here = _replaced(state, return_moments=moments)
        rewarded = batch._replace(reward=batch.reward * factor)
        return estimate(config.sampling, learner.frozen(here), rewarded, moments, here.carried_returns)

    plain, scaled = estimated(unit), estimated(factor)
    assert plain.rows.advantage.std() > 0.5
    np.testing.assert_allclose(scaled.rows.advantage, plain.rows.advantage, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(scaled.critic_rows.targets, plain.critic_rows.targets, rtol=1e-3, atol=1e-3)


def test_one_reward_at_the_end_is_clipped_only_with_scaled_rewards_and_is_counted(small_config):
    """Of sizes 1 to 5, after 50 steps of nothing."""
    learner = build_learner(small_config())
    state = learner.initial_state(1)
    from trpo_tf.sampling.batch import Batch

    length, episodes = 50, 40
    ended = np.arange(length * episodes) % length == length - 1
    sizes = 1.0 + np.arange(length * episodes) // length % 5
    zeros = np.zeros(len(ended))
    batch = Batch(
        np.zeros((len(ended) + 1, 1, 2), np.float32),
        np.zeros((len(ended), 1), np.int64),
        np.where(ended, sizes, zeros)[:, np.newaxis],
        ended[:, np.newaxis],
        np.zeros((len(ended), 1), bool),
        np.ones((len(ended), 1)),
    )
    found = {
        scaling: estimate(
            SamplingConfig(num_envs=1, value_scaling=scaling, discount=1.0),
            learner.frozen(state),
            batch,
            state.return_moments,
            state.carried_returns,
        )
        for scaling in ("rewards", "targets")
    }
    assert found["rewards"].clipped_rewards == pytest.approx(2 / 5 / length, rel=0.51)
    assert found["targets"].clipped_rewards == 0
    last = found["targets"].rows.advantage[ended]
    assert len(set(np.round(last, 3))) == 5  # every size is told from every other


@pytest.mark.parametrize("least_deviation", [0.0, 3.0])
@pytest.mark.parametrize("hidden", [(), (8, 8)])
def test_statistics_that_follow_leave_policy_and_critic_the_same_functions(hidden, least_deviation, small_config):
    config = small_config(
        "tests.support.environments:Reach-v0",
        hidden_sizes=hidden,
        statistics_window=100,
        least_deviation=least_deviation,
    )
    learner = build_learner(config)
    rng = np.random.default_rng(0)
    state = learner.initial_state(ENVS)
    wide = Moments.empty((2,)).updated(rng.normal(50.0, 200.0, (1000, 2)))
    state = _replaced(state, observation_moments=wide)
    near = rng.normal(3.0, 0.5, (90, 2))
    after = with_observations(config, learner, state, near)
    assert (after.observation_moments.variance < 0.2 * wide.variance).all()
    assert not np.allclose(after.theta, state.theta)

    def encoded(state, observations):
        return learner.encode(learner.policy.encoder.normalizer(state.observation_moments), observations)

    # Inside ten deviations of either, beyond which inputs are clipped.
    observations = rng.uniform(-20.0, 30.0, (64, 2))
    for theta, functions in (
        ("theta", lambda s, x: learner.policy.parameters(tf.constant(s.theta), x)[0]),
        ("value_theta", lambda s, x: learner.value_function.values(s.value_theta, x)),
    ):
        answers = [
            functions(s, learner.encode(learner.policy.encoder.normalizer(s.observation_moments), observations)).numpy()
            for s in (state, after)
        ]
        np.testing.assert_allclose(answers[1], answers[0], rtol=2e-3, atol=2e-4, err_msg=theta)
    assert np.abs(answers[0]).max() > 0.01


def test_statistics_follow_the_window_and_forget_what_was_before(small_config):
    rng = np.random.default_rng(0)
    moments = Moments.empty((1,)).updated(rng.normal(0.0, 1000.0, (5000, 1)), 1000)
    for _ in range(100):
        moments = moments.updated(rng.normal(5.0, 1.0, (200, 1)), 1000)
    assert float(moments.total) == 1000
    np.testing.assert_allclose(moments.mean, 5.0, atol=0.2)
    np.testing.assert_allclose(moments.variance, 1.0, rtol=0.5)


def test_a_number_that_begins_to_vary_does_not_grow_by_what_it_was_divided_by(small_config):
    config = small_config("tests.support.environments:Reach-v0", statistics_window=150)
    learner = build_learner(config)
    state = learner.initial_state(ENVS)
    constant = _replaced(state, observation_moments=Moments.empty((2,)).updated(np.full((100, 2), 7.0)))
    after = with_observations(config, learner, constant, np.random.default_rng(0).normal(7.0, 2.0, (100, 2)))
    kernel = learner.policy.network.split_array(after.theta)[0]
    np.testing.assert_array_equal(kernel, learner.policy.network.split_array(state.theta)[0])


def test_other_networks_keep_the_statistics_of_the_whole_run(small_config):
    import keras

    config = small_config("tests.support.environments:Reach-v0", statistics_window=50)
    layers = keras.layers
    other = keras.Sequential([keras.Input((2,)), layers.Reshape((2, 1)), layers.Flatten(), layers.Dense(2)])
    learner = build_learner(config, policy_network=other)
    state = learner.initial_state(ENVS)
    after = with_observations(config, learner, state, np.ones((100, 2)))
    after = with_observations(config, learner, after, np.ones((100, 2)))
    assert float(after.observation_moments.total) == 200
    np.testing.assert_array_equal(after.theta, state.theta)


def test_the_whole_iteration_keeps_the_trust_region_when_statistics_move(small_config):
    """What the next iteration's actor is given acts as the policy did that the update ended with."""
    config = small_config("tests.support.environments:Reach-v0", statistics_window=64)
    learner = build_learner(config)
    with Experience(config, learner.policy) as experience:
        state = learner.initial_state(ENVS)
        experience.restart()
        for _ in range(3):
            state, metrics = iterate(config, learner, experience, state)
            assert metrics["mean_kl"] <= config.trust_region.max_kl * 1.001
    assert float(state.observation_moments.total) == 64


@pytest.mark.parametrize(("scaled", "scaling"), [("true", "rewards"), ("false", "none")])
def test_a_run_of_an_earlier_release_goes_on_as_it_was(scaled, scaling, tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(f'env_id = "CartPole-v1"\n[sampling]\nscale_rewards = {scaled}\n')
    sampling = read_config(path).sampling
    assert sampling.value_scaling == scaling


def test_settings_that_a_run_of_an_earlier_release_did_not_have_are_as_it_was_then(small_config, tmp_path):
    """Such a run is known by its having all settings of its release."""
    path = tmp_path / "config.toml"
    config = small_config("tests.support.environments:Reach-v0")
    former = {name: value for name, value in config.to_dict()["sampling"].items() if name != "adaptive_lambda"}
    path.write_text(tomli_w.dumps({**config.to_dict(), "sampling": former}))
    assert config.sampling.adaptive_lambda
    assert read_config(path).sampling == dataclasses.replace(config.sampling, adaptive_lambda=False)


def _clock():
    from trpo_tf.support.phase_timer import PhaseClock

    return PhaseClock()


def _replaced(state, **changes):
    return dataclasses.replace(state, **changes)
