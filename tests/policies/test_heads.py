import contextlib
import math

import numpy as np
import pytest
import tensorflow as tf

from trpo_tf.config.settings import PolicyConfig
from trpo_tf.errors import UserError
from trpo_tf.policies.heads.discrete import BernoulliHead, CategoricalHead, MultiCategoricalHead
from trpo_tf.policies.heads.gaussian import GaussianHead
from trpo_tf.policies.heads.make import make_head
from trpo_tf.serving import ArraySpec
from trpo_tf.serving.runtime.noise import draw_noise

CHOICES = ArraySpec("action", "int64", (), 5, 8)
ARM = ArraySpec("action", "float32", (2,), (-2.0, 0.0), (2.0, 1.0))


def test_categorical_noise_samples_the_softmax():
    head = CategoricalHead(CHOICES)
    logits = np.log([0.5, 0.3, 0.15, 0.05]).astype(np.float32)
    noise = draw_noise(head.noise, 200_000, np.random.default_rng(0))
    counts = np.bincount(head.sample((logits[None],), noise).numpy(), minlength=4)
    np.testing.assert_allclose(counts / len(noise), [0.5, 0.3, 0.15, 0.05], atol=0.005)


def test_categorical_without_noise_is_the_mode_counted_from_the_first_action():
    head = CategoricalHead(CHOICES)
    action = head.action(head.sample((tf.constant([[0.1, 0.3, 0.2, 0.0]]),), tf.zeros((1, 4))))
    np.testing.assert_array_equal(action, [6])
    assert action.dtype == tf.int64


def test_gaussian_noise_samples_mean_and_deviation():
    head = GaussianHead(ARM, initial_log_std=-0.5)
    mean = tf.constant([[0.2, -0.4]])
    parameters = head.parameters(mean, [tf.constant(v) for v in head.initial_extra()])
    noise = draw_noise(head.noise, 200_000, np.random.default_rng(0))
    sample = head.sample(parameters, noise).numpy()
    np.testing.assert_allclose(sample.mean(axis=0), mean[0], atol=0.01)
    np.testing.assert_allclose(sample.std(axis=0), math.exp(-0.5), atol=0.01)


def test_the_first_deviation_is_at_most_a_unit_of_the_action_and_at_least_half_of_its_half_width():
    spec = ArraySpec("action", "float32", (5,), (-0.4, -1.0, -1.6, -100.0, 0.0), (0.4, 1.0, 1.6, 100.0, math.inf))
    (first,) = GaussianHead(spec, unit_std=True).initial_extra()
    np.testing.assert_allclose(np.exp(first), [1.0, 1.0, 1 / 1.6, 0.5, 1.0], rtol=1e-6)
    (smaller,) = GaussianHead(spec, unit_std=True, initial_log_std=-0.6).initial_extra()
    np.testing.assert_allclose(smaller, [-0.6, -0.6, -0.6, math.log(0.5), -0.6], rtol=1e-6)


def test_a_deviation_of_the_state_is_the_shared_one_times_what_the_network_answers():
    head = GaussianHead(ARM, initial_log_std=math.log(0.4), state_dependent_std=True)
    output = tf.constant([[0.2, -0.4, 0.0, math.log(2.0)], [0.3, 0.1, -50.0, 1.0]])
    mean, log_std = head.parameters(output, [tf.constant(v) for v in head.initial_extra()])
    np.testing.assert_allclose(mean, [[0.2, -0.4], [0.3, 0.1]])
    np.testing.assert_allclose(tf.exp(log_std), [[0.4, 0.8], [math.exp(-4), 0.4 * math.e]], rtol=1e-6)
    np.testing.assert_allclose(head.sample((mean, log_std), tf.ones((2, 2)))[0], [0.6, 0.4], rtol=1e-6)


def test_gaussian_samples_are_in_half_widths_of_the_action_range_and_clipped_to_it():
    samples = tf.constant([[0.0, 0.0], [1.0, -1.0], [0.5, 0.5], [9.0, -9.0]])
    actions = GaussianHead(ARM).action(samples)
    np.testing.assert_allclose(actions, [[0.0, 0.5], [2.0, 0.0], [1.0, 0.75], [2.0, 0.0]])


@pytest.mark.parametrize("widest", [math.inf, float(np.finfo(np.float32).max), 1e10])
def test_a_bound_stated_for_want_of_one_gives_no_scale(widest):
    spec = ArraySpec("action", "float32", (4,), (-widest, 10.0, -widest, 0.0), (widest, widest, -5.0, widest))
    samples = tf.constant([[0.0] * 4, [2.0, 2.0, 2.0, -2.0], [-2.0, -2.0, -2.0, 2.0]])
    for censored in (False, True):
        head = GaussianHead(spec, censored=censored)
        np.testing.assert_allclose(head.action(samples), [[0, 11, -6, 0], [2, 13, -5, 0], [-2, 10, -8, 2]])
        with tf.GradientTape() as tape:
            mean = tf.zeros((3, 4))
            tape.watch(mean)
            log_prob = head.log_prob((mean, tf.zeros((3, 4))), samples)
        assert np.isfinite(log_prob).all()
        assert np.isfinite(tape.gradient(log_prob, mean)).all()
    with pytest.raises(UserError, match="needs an action space with bounds"):
        GaussianHead(spec, squash=True)


@pytest.mark.parametrize("settings", [{}, {"squash": True}, {"censored": True}])
def test_an_action_whose_bounds_are_equal_is_constant_and_harms_no_other(settings):
    head = GaussianHead(ArraySpec("action", "float32", (2,), (0.5, -1.0), (0.5, 1.0)), **settings)
    with tf.GradientTape() as tape:
        mean = tf.Variable([[0.3, 0.3]])
        sample = tf.constant([[1.7, 0.2]])
        log_prob = head.log_prob((mean, tf.zeros((1, 2))), sample)
    assert np.isfinite(tape.gradient(log_prob, mean)).all()
    assert head.action(sample).numpy()[0, 0] == 0.5


@pytest.mark.parametrize(("low", "high", "fits"), [(1000.0, 1000.000001, False), (52.51, 52.53, True)])
def test_float64_bounds_that_float32_can_not_tell_apart_are_refused(low, high, fits):
    with contextlib.nullcontext() if fits else pytest.raises(UserError, match=r"1000 and 1000\.000001 are too close"):
        GaussianHead(ArraySpec("action", "float64", (2,), (0.0, low), (1.0, high)))


def test_squashed_samples_reach_the_bounds_only_far_out():
    samples = tf.constant([[0.0, 0.5], [40.0, -40.0]])
    actions = GaussianHead(ARM, squash=True).action(samples)
    np.testing.assert_allclose(actions, [[0.0, 0.5 + 0.5 * math.tanh(0.5)], [2.0, 0.0]], rtol=1e-6)


def test_squash_needs_bounds():
    with pytest.raises(UserError, match="squash needs an action space with bounds"):
        GaussianHead(ArraySpec("action", "float32", (2,)), squash=True)


def test_half_bounded_actions_keep_their_units_and_their_bound():
    spec = ArraySpec("action", "float64", (1,), (0.0,), (math.inf,))
    actions = GaussianHead(spec).action(tf.constant([[-3.0], [30.0]]))
    np.testing.assert_array_equal(actions, [[0.0], [30.0]])
    assert actions.dtype == tf.float64


def test_log_probabilities_are_those_of_the_sample():
    gaussian = GaussianHead(ARM)
    sample = np.array([[0.3, -1.2]], np.float32)
    parameters = (np.array([[0.1, 0.2]], np.float32), np.log([[0.5, 2.0]]).astype(np.float32))
    closed_form = sum(
        -((s - m) ** 2) / (2 * d**2) - math.log(d * math.sqrt(2 * math.pi))
        for s, m, d in zip(sample[0], parameters[0][0], [0.5, 2.0], strict=True)
    )
    np.testing.assert_allclose(gaussian.distribution(parameters).log_prob(sample), [closed_form], rtol=1e-6)


def censored(spec, mean, deviation):
    head = make_head(spec, PolicyConfig(censored=True))
    count = int(np.prod(spec.shape))
    return head, (tf.fill((1, count), mean), tf.fill((1, count), math.log(deviation)))


def normal_cdf(x):
    return 0.5 * math.erfc(-x / math.sqrt(2))


def test_a_censored_sample_counts_by_all_that_is_clipped_as_it_is():
    """The arm's bounds are -1 and 1 in units of the sample, whatever they are in those of the action."""
    head, parameters = censored(ARM, 0.2, 0.5)
    below, above = normal_cdf((-1 - 0.2) / 0.5), 1 - normal_cdf((1 - 0.2) / 0.5)
    density = math.exp(-((0.3 - 0.2) ** 2) / 0.5) / (0.5 * math.sqrt(2 * math.pi))
    for samples, expected in (((-1.5, 0.3), below * density), ((7.0, -9.0), above * below)):
        log_prob = head.log_prob(parameters, tf.constant([samples], tf.float32))
        np.testing.assert_allclose(log_prob, [math.log(expected)], rtol=1e-5)


def test_the_score_of_a_censored_sample_has_the_same_mean_and_less_variance():
    """Of f(action) x score: what a policy gradient is made of, for an f that knows only the clipped action."""
    spec = ArraySpec("action", "float32", (1,), -1.0, 1.0)
    rng = np.random.default_rng(0)
    sample = tf.constant(0.4 + 1.5 * rng.normal(size=(400_000, 1)), tf.float64)
    value = tf.exp(tf.clip_by_value(sample, -1.0, 1.0))[:, 0]
    gradients = []
    for head in (make_head(spec), make_head(spec, PolicyConfig(censored=True))):
        mean = tf.fill(sample.shape, tf.constant(0.4, tf.float64))
        with tf.GradientTape() as tape:
            tape.watch(mean)
            log_prob = head.log_prob((mean, tf.fill(sample.shape, tf.cast(math.log(1.5), tf.float64))), sample)
        gradients.append((value * tape.gradient(log_prob, mean)[:, 0]).numpy())
    plain, clipped = gradients
    assert abs(plain.mean() - clipped.mean()) < 4 * np.std(plain - clipped) / math.sqrt(len(plain))
    assert clipped.var() < 0.8 * plain.var()


def test_where_there_are_no_bounds_nothing_is_censored():
    spec = ArraySpec("action", "float32", (3,), (0.0, -np.inf, -np.inf), (np.inf, 1.0, np.inf))
    sample = tf.constant([[0.5, 0.5, 40.0]])
    (head, parameters), plain = censored(spec, 0.1, 1.0), make_head(spec)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(parameters)
        log_prob, expected = head.log_prob(parameters, sample), plain.log_prob(parameters, sample)
    np.testing.assert_allclose(log_prob, expected)
    for part in parameters:
        np.testing.assert_allclose(tape.gradient(log_prob, part), tape.gradient(expected, part))
    beyond = head.log_prob(parameters, tf.constant([[-3.0, 5.0, 0.1]]))
    standard = -0.5 * math.log(2 * math.pi)
    np.testing.assert_allclose(beyond, [math.log(normal_cdf(-0.1) * normal_cdf(-0.9)) + standard], rtol=1e-5)


def test_squashed_actions_are_not_censored(small_config):
    with pytest.raises(UserError, match="censored must be off, for squashed actions"):
        small_config(squash=True, censored=True)


GRID = ArraySpec("action", "int64", (2, 2), (0, 5, 0, 0), (1, 7, 3, 0))
BITS = ArraySpec("action", "int8", (2,), 0, 1)


def multi_parameters(head, *logits):
    return head.parameters(tf.constant([np.concatenate(logits)], tf.float32), [])


def test_each_of_several_choices_is_sampled_by_its_own_softmax():
    head = MultiCategoricalHead(GRID)
    probabilities = [[0.3, 0.7], [0.2, 0.5, 0.3], [0.1, 0.2, 0.3, 0.4], [1.0]]
    parameters = multi_parameters(head, *map(np.log, probabilities))
    noise = draw_noise(head.noise, 100_000, np.random.default_rng(0))
    samples = head.sample(parameters, noise).numpy()
    for choice, expected in enumerate(probabilities):
        counts = np.bincount(samples[:, choice], minlength=len(expected))
        np.testing.assert_allclose(counts / len(samples), expected, atol=0.006)
    actions = head.action(samples).numpy()
    assert actions.shape == (100_000, 2, 2)
    np.testing.assert_array_equal(actions.min(axis=0), [[0, 5], [0, 0]])
    np.testing.assert_array_equal(actions.max(axis=0), [[1, 7], [3, 0]])


def test_several_choices_have_the_sum_of_their_log_probabilities_and_entropies():
    head = MultiCategoricalHead(GRID)
    probabilities = [[0.3, 0.7], [0.2, 0.5, 0.3], [0.1, 0.2, 0.3, 0.4], [1.0]]
    distribution = head.distribution(multi_parameters(head, *map(np.log, probabilities)))
    log_prob = math.log(0.7) + math.log(0.2) + math.log(0.3)
    np.testing.assert_allclose(distribution.log_prob([[1, 0, 2, 0]]), [log_prob], rtol=1e-5)
    entropy = -sum(p * math.log(p) for ps in probabilities for p in ps)
    np.testing.assert_allclose(distribution.entropy(), [entropy], rtol=1e-5)


def test_bits_are_sampled_by_their_odds():
    head = BernoulliHead(BITS)
    parameters = (tf.constant([[math.log(0.2 / 0.8), math.log(0.9 / 0.1)]]),)
    noise = draw_noise(head.noise, 100_000, np.random.default_rng(0))
    samples = head.sample(parameters, noise)
    np.testing.assert_allclose(samples.numpy().mean(axis=0), [0.2, 0.9], atol=0.006)
    assert head.action(samples).dtype == tf.int8
    np.testing.assert_array_equal(head.sample(parameters, np.zeros((1, 2), np.float32)), [[0, 1]])


@pytest.mark.parametrize(
    ("spec", "kind"),
    [(CHOICES, CategoricalHead), (GRID, MultiCategoricalHead), (BITS, BernoulliHead), (ARM, GaussianHead)],
)
def test_the_action_spec_decides_the_head(spec, kind):
    assert type(make_head(spec)) is kind
