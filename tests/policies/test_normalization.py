import numpy as np
import pytest

from trpo_tf.estimation.reward_scaling import discounted_returns, scale_rewards
from trpo_tf.policies.running_stats import Moments, Normalizer


def test_moments_of_pieces_are_those_of_the_whole():
    samples = np.random.default_rng(0).normal(1e4, 0.1, (1000, 3))
    moments = Moments.empty((3,))
    for piece in np.split(samples, [1, 1, 10, 700]):
        moments = moments.updated(piece)
    np.testing.assert_allclose(moments.mean, samples.mean(axis=0))
    np.testing.assert_allclose(moments.variance, samples.var(axis=0), rtol=1e-6)
    assert moments.total == 1000


def test_no_samples_standardise_nothing():
    moments = Moments.empty((2,))
    normalizer = Normalizer.of(moments.updated(np.zeros((0, 2))))
    np.testing.assert_array_equal(normalizer.mean, 0.0)
    np.testing.assert_allclose(normalizer.scale, 1.0)


def test_a_constant_observation_stays_finite():
    normalizer = Normalizer.of(Moments.empty((1,)).updated(np.full((50, 1), 3.0)))
    assert np.isfinite(normalizer.scale).all()


def test_an_observation_that_hardly_varies_is_not_magnified():
    samples = np.random.default_rng(0).normal((3.0, 0.0), (1e-3, 50.0), (1000, 2))
    normalizer = Normalizer.of(Moments.empty((2,)).updated(samples).widened(0.1))
    np.testing.assert_allclose(normalizer.scale, (10.0, 1 / 50), rtol=0.1)
    np.testing.assert_array_equal(Normalizer.of(Moments.empty((2,)).widened(0.1)).scale, 1.0)


def test_integer_observations_do_not_overflow():
    samples = np.array([[250], [255], [0]], np.uint8)
    moments = Moments.empty((1,)).updated(samples)
    np.testing.assert_allclose(moments.variance, samples.astype(float).var(axis=0))


def test_discounted_returns_start_anew_after_an_end_and_carry_over_batches():
    rewards = np.array([[1.0], [2.0], [4.0], [8.0]])
    ended = np.array([[False], [True], [False], [False]])
    sums, carried = discounted_returns(np.array([10.0]), rewards, ended, 0.5)
    np.testing.assert_allclose(sums[:, 0], [6.0, 5.0, 4.0, 10.0])
    np.testing.assert_allclose(carried, [10.0])
    parts = [discounted_returns(np.array([10.0]), rewards[:2], ended[:2], 0.5)]
    parts.append(discounted_returns(parts[0][1], rewards[2:], ended[2:], 0.5))
    np.testing.assert_allclose(np.concatenate([p[0] for p in parts]), sums)


@pytest.mark.parametrize(("reward", "scaled"), [(4.0, 2.0), (1000.0, 10.0), (-1000.0, -10.0)])
def test_rewards_are_scaled_by_the_deviation_of_the_return_and_clipped(reward, scaled):
    moments = Moments.empty(()).updated(np.array([-2.0, 2.0]))
    np.testing.assert_allclose(scale_rewards(np.array(reward), moments), scaled, rtol=1e-6)
