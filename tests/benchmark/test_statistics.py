"""The statistics of a report, against values computed by hand or by brute force."""

import itertools

import numpy as np
import pytest
from rliable import metrics

from trpo_tf.benchmark.scores.statistics import (
    interquartile_curve,
    interquartile_mean,
    mean_improvement,
    probability_of_improvement,
)

DRAWS = np.random.default_rng(0).normal(size=(7, 5)).round(1)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([5.0], 5.0),
        ([1.0, 2.0, 6.0], 3.0),  # a quarter of 3 is less than one: nothing is cut
        ([100.0, 1.0, 2.0, -50.0], 1.5),
        ([1.0, 2.0, 3.0, 4.0, 1000.0], 3.0),
        ([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 700.0], 3.5),
    ],
)
def test_the_interquartile_mean_is_that_of_the_middle_half(scores, expected):
    estimate = interquartile_mean(np.array(scores))
    assert estimate.value == pytest.approx(expected)
    assert min(scores) <= estimate.low <= estimate.value <= estimate.high <= max(scores)


def test_the_interval_is_that_of_every_resample():
    scores = np.array([1.0, 2.0, 6.0])
    every = [np.mean(resample) for resample in itertools.product(scores, repeat=3)]
    estimate = interquartile_mean(scores)
    assert (estimate.low, estimate.high) == tuple(np.percentile(every, [2.5, 97.5], method="inverted_cdf"))


def test_the_interval_is_the_same_each_time():
    assert interquartile_mean(DRAWS[:, 0]) == interquartile_mean(DRAWS[:, 0])


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ([3.0], [1.0]),
        ([1.0, 2.0], [1.0, 2.0]),
        ([1.0, 2.0, 3.0], [2.0, 2.0]),
        (DRAWS[:, 0], DRAWS[:4, 1]),
        ([500.0, 500.0, 500.0], [500.0, 448.0, 500.0]),
    ],
)
def test_the_probability_of_improvement_counts_pairs(ours, theirs):
    pairs = [1.0 if x > y else 0.5 if x == y else 0.0 for x in ours for y in theirs]
    estimate = probability_of_improvement(np.array(ours), np.array(theirs))
    assert estimate.value == pytest.approx(np.mean(pairs))
    matrices = (np.array(scores)[:, np.newaxis] for scores in (ours, theirs))
    assert estimate.value == pytest.approx(metrics.probability_of_improvement(*matrices))
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_scores_that_are_all_above_improve_for_certain():
    assert probability_of_improvement(np.array([3.0, 4.0]), np.array([1.0, 2.0])) == (1.0, 1.0, 1.0)


def test_the_interval_over_environments_draws_seeds_within_each():
    pairs = [(np.array([1.0, 3.0]), np.array([2.0])), (np.array([7.0, 9.0]), np.array([8.0]))]
    # Of two seeds that a drawn seed of ours is, none, one or both are above: 1/4, 1/2, 1/4 in each environment.
    every = [np.mean([first, second]) for first in (0, 0.5, 0.5, 1) for second in (0, 0.5, 0.5, 1)]
    estimate = mean_improvement(pairs)
    assert estimate.value == 0.5
    assert (estimate.low, estimate.high) == tuple(np.percentile(every, [2.5, 97.5], method="inverted_cdf"))
    assert mean_improvement([(DRAWS[:, 0], DRAWS[:, 1])] * 8).low > mean_improvement([(DRAWS[:, 0], DRAWS[:, 1])]).low


def test_a_curve_s_points_are_interquartile_means():
    curve = interquartile_curve(DRAWS)
    assert curve.value == pytest.approx([metrics.aggregate_iqm(column) for column in DRAWS.T])
    assert np.all((curve.low <= curve.value) & (curve.value <= curve.high))
    assert interquartile_curve(DRAWS[:1]).low == pytest.approx(DRAWS[0])
