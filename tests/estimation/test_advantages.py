import dataclasses

import numpy as np
import pytest

from trpo_tf.config.settings import SamplingConfig
from trpo_tf.estimation.gae import generalized_advantages, participation_ratio, standardized
from trpo_tf.estimation.targets import advantages_and_targets, present_lambda
from trpo_tf.sampling.batch import Batch

DISCOUNT, TRACE = 0.9, 0.8


def batch(length=30, n=3, seed=0):
    rng = np.random.default_rng(seed)
    terminated, truncated = rng.random((length, n)) < 0.1, rng.random((length, n)) < 0.1
    return rng.normal(size=(length, n)), terminated, truncated & ~terminated, rng.normal(size=(length + 1, n))


def by_definition(reward, terminated, truncated, value, discount, trace):
    """The weighted sum of n-step advantages, episode by episode, straight from the paper's equation 16."""
    length, n = reward.shape
    result = np.zeros_like(reward)
    for env in range(n):
        for t in range(length):
            weight = 1.0
            for k in range(t, length):
                bootstrap = 0.0 if terminated[k, env] else value[k + 1, env]
                result[t, env] += weight * (reward[k, env] + discount * bootstrap - value[k, env])
                weight *= discount * trace
                if terminated[k, env] or truncated[k, env]:
                    break
    return result


@pytest.mark.parametrize("trace", [0.0, TRACE, 1.0])
def test_agrees_with_the_definition(trace):
    reward, terminated, truncated, value = batch()
    advantages = generalized_advantages(reward, DISCOUNT * ~terminated, trace * ~(terminated | truncated), value)
    np.testing.assert_allclose(advantages, by_definition(reward, terminated, truncated, value, DISCOUNT, trace))


def test_a_terminated_episode_ends_with_its_reward_and_a_truncated_one_with_its_value():
    reward, value = np.array([[1.0, 1.0]]), np.array([[0.5, 0.5], [10.0, 10.0]])
    advantages = generalized_advantages(reward, DISCOUNT * np.array([[0.0, 1.0]]), np.zeros((1, 2)), value)
    np.testing.assert_allclose(advantages, [[0.5, 1.0 + DISCOUNT * 10.0 - 0.5]])


def test_with_trace_one_advantage_and_value_make_the_discounted_return():
    reward = np.random.default_rng(0).normal(size=(10, 1))
    value = np.random.default_rng(1).normal(size=(11, 1))
    trace = np.ones((10, 1))
    discount = np.full((10, 1), DISCOUNT)
    discount[-1] = 0.0
    returns = [sum(DISCOUNT ** (k - t) * reward[k, 0] for k in range(t, 10)) for t in range(10)]
    advantages = generalized_advantages(reward, discount, trace, value)
    np.testing.assert_allclose((advantages + value[:-1])[:, 0], returns)


def test_standardised_over_the_rows_that_count():
    rng = np.random.default_rng(0)
    advantage, weight = rng.normal(3.0, 5.0, 1000), (rng.random(1000) > 0.3).astype(float)
    advantage[weight == 0] = 1e9
    result = standardized(advantage, weight)
    np.testing.assert_array_equal(result[weight == 0], 0.0)
    np.testing.assert_allclose([result[weight > 0].mean(), result[weight > 0].std()], [0.0, 1.0], atol=1e-7)


def rewards_and_batch():
    reward, terminated, truncated, value = batch()
    weight = np.ones_like(reward)
    weight[5] = 0.0
    return reward, Batch(np.empty(0), np.empty(0), reward, terminated, truncated, weight), value


def test_monte_carlo_is_the_return_less_the_value_and_return_has_no_baseline():
    reward, rows, value = rewards_and_batch()
    mc, mc_targets = advantages_and_targets(SamplingConfig(advantage="monte-carlo"), rows, reward, value)
    plain, targets = advantages_and_targets(SamplingConfig(advantage="return"), rows, reward, value)
    expected = by_definition(reward, rows.terminated, rows.truncated, value, 0.99, 1.0)
    np.testing.assert_allclose(mc, expected)
    np.testing.assert_allclose(plain, expected + value[:-1])
    np.testing.assert_array_equal(mc_targets, targets)


def test_average_reward_advantages_are_undiscounted_and_centred():
    """delta = r - r_bar + V' - V; adding a constant to all values or rewards changes nothing."""
    reward, rows, value = rewards_and_batch()
    rows = rows._replace(terminated=np.zeros_like(rows.terminated))
    settings = SamplingConfig(objective="average", gae_lambda=0.0)
    advantage, targets = advantages_and_targets(settings, rows, reward, value)
    r_bar = np.average(reward, weights=rows.weight)
    np.testing.assert_allclose(advantage, reward - r_bar + value[1:] - value[:-1])
    shifted, shifted_targets = advantages_and_targets(settings, rows, reward + 5.0, value - 3.0)
    np.testing.assert_allclose(shifted, advantage)
    np.testing.assert_allclose(shifted_targets, targets, atol=1e-12)


def test_the_participation_ratio_is_the_share_of_numbers_that_count():
    assert participation_ratio(np.full(7, -3.0)) == pytest.approx(1.0)
    assert participation_ratio(np.eye(1, 50)[0] * 1e200) == pytest.approx(1 / 50)
    assert participation_ratio(np.repeat([0.0, 2.0, -2.0], [90, 5, 5])) == pytest.approx(0.1)
    assert participation_ratio(np.random.default_rng(0).normal(size=100_000)) == pytest.approx(1 / 3, rel=0.02)
    assert participation_ratio(np.zeros(3)) == 1.0


LENGTH, SCORES = 200, np.array([0.0, 0.5, 1.0])


def paid_at_the_end(rewards):
    """Three episodes of rewards [LENGTH, 3] that terminate, and a row of weight 0 behind them."""
    zeros = np.zeros((LENGTH + 1, len(SCORES)), bool)
    terminated, weight = zeros.copy(), np.ones(zeros.shape)
    terminated[LENGTH - 1], weight[LENGTH] = True, 0.0
    reward = np.append(rewards, [[7.0, 8.0, 9.0]], axis=0)
    return reward, Batch(np.empty(0), np.empty(0), reward, terminated, zeros, weight)


def ends_with(scores):
    return np.append(np.zeros((LENGTH - 1, len(SCORES))), [scores], axis=0)


def only_the_mean():
    """What a critic knows that sees the time alone."""
    ahead = 0.99 ** np.arange(LENGTH - 1, -1.0, -1)
    return np.append(ahead, [9.0, 9.0])[:, np.newaxis] * SCORES.mean() * np.ones(len(SCORES))


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_an_end_that_the_critic_does_not_foresee_reaches_the_first_action_whole(unit):
    settings = SamplingConfig()
    reward, rows = paid_at_the_end(unit * ends_with(SCORES))
    value = unit * only_the_mean()
    settings = dataclasses.replace(settings, gae_lambda=present_lambda(settings, rows, reward, value))
    advantage, _ = advantages_and_targets(settings, rows, reward, value)
    np.testing.assert_allclose(advantage[0], 0.99 ** (LENGTH - 1) * unit * (SCORES - SCORES.mean()), atol=1e-9 * unit)


def test_lambda_stays_where_the_critic_foresees_the_end():
    """Its errors are alike at all steps: it learns of the score little by little."""
    reward, rows = paid_at_the_end(ends_with(SCORES))
    settings = SamplingConfig()
    drift = np.linspace(0.0, 1.0, LENGTH)[:, np.newaxis] * (SCORES - SCORES.mean())
    known = (SCORES.mean() + drift) * 0.99 ** np.arange(LENGTH - 1, -1.0, -1)[:, np.newaxis]
    value = np.append(known, np.full((2, len(SCORES)), 9.0), axis=0)
    assert present_lambda(settings, rows, reward, value) == settings.gae_lambda


def test_lambda_stays_where_rewards_vary_or_it_is_not_to_adapt():
    settings = SamplingConfig()
    value = only_the_mean()
    rare, rows = paid_at_the_end(ends_with(SCORES))
    assert present_lambda(settings, rows, rare, value) == 1.0
    for other in ({"adaptive_lambda": False}, {"objective": "average"}, {"gae_lambda": 0.999}):
        fixed = dataclasses.replace(settings, **other)
        assert present_lambda(fixed, rows, rare, value) == fixed.gae_lambda
    before_the_end = ends_with(SCORES)
    before_the_end[3, 1] = 1e-6
    dense, rows = paid_at_the_end(before_the_end)
    assert present_lambda(settings, rows, dense, value) == settings.gae_lambda


def test_lambda_stays_where_episodes_are_no_longer_than_what_gae_sums():
    rare, rows = paid_at_the_end(ends_with(SCORES))
    ended = np.zeros_like(rows.terminated)
    ended[LENGTH - 1 :: -19] = True
    settings = SamplingConfig()
    short = present_lambda(settings, rows._replace(terminated=ended), rare, only_the_mean())
    assert short == settings.gae_lambda


def test_a_batch_in_which_nothing_is_paid_and_nothing_terminates_changes_no_lambda():
    """The critic's largest error says nothing then of what it misses."""
    _, rows = paid_at_the_end(ends_with(SCORES))
    cut = rows._replace(terminated=np.zeros_like(rows.terminated), truncated=rows.terminated)
    settings, value = SamplingConfig(), only_the_mean()
    value[50] += 1.0
    assert present_lambda(settings, cut, cut.reward, value) == 1.0
    nothing = cut._replace(reward=np.where(cut.weight > 0, 0.0, cut.reward))
    assert present_lambda(settings, nothing, nothing.reward, value) == settings.gae_lambda
