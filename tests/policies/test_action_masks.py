"""Masks of legal actions in the head: the policy is the distribution over legal options alone."""

import numpy as np
import pytest
import tensorflow as tf
from gymnasium.spaces import Box, Discrete

from tests.support.training.problems import ACTIONS, MASKED, head_of, make_masks, make_policy, make_rows, make_theta
from trpo_tf.config.algorithms import ALGORITHMS
from trpo_tf.config.settings import Config, InnerConfig, PolicyConfig
from trpo_tf.envs.spaces import ActionMask, Spaces, action_spec
from trpo_tf.errors import UserError
from trpo_tf.policies.encoders import MaskedInputs, make_encoder
from trpo_tf.policies.heads.discrete import CategoricalHead, MultiCategoricalHead
from trpo_tf.policies.heads.make import make_head
from trpo_tf.policies.memory import make_memory
from trpo_tf.policies.running_stats import Moments
from trpo_tf.serving import ArraySpec
from trpo_tf.serving.bundle.specs import option_counts
from trpo_tf.serving.runtime.noise import draw_noise
from trpo_tf.updates.compiled_update import EntropyTerm, compile_update
from trpo_tf.updates.local_problem import LocalProblem, kl_divergence
from trpo_tf.updates.minibatch import minibatches
from trpo_tf.updates.result import UpdateStatus


def legal_only(output, mask, counts):
    """Probabilities of each row's legal options, one list for each choice, by a softmax over nothing else."""
    found = []
    for row, legal in zip(np.asarray(output, np.float64), mask, strict=True):
        ends = np.cumsum(counts)[:-1]
        chosen = [logits[allowed] for logits, allowed in zip(np.split(row, ends), np.split(legal, ends), strict=True)]
        found.append([np.exp(x - x.max()) / np.exp(x - x.max()).sum() for x in chosen])
    return found


def drawn(kind, rows=50, scale=2.0, seed=0, dtype="float64"):
    rng, head = np.random.default_rng(seed), head_of(kind)
    mask = make_masks(ACTIONS[kind], rows, rng)
    output = (scale * rng.normal(size=(rows, head.inputs))).astype(dtype)
    return head, mask, output


@pytest.mark.parametrize("scale", [2.0, 60.0])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", MASKED)
def test_entropy_and_divergence_are_those_over_legal_options_alone(kind, dtype, scale):
    head, mask, old = drawn(kind, scale=scale, dtype=dtype)
    new = old + drawn(kind, seed=1, dtype=dtype)[2]
    counts = option_counts(ACTIONS[kind])
    entropy, divergence = [], []
    for p, q in zip(legal_only(old, mask, counts), legal_only(new, mask, counts), strict=True):
        entropy.append(sum(-np.sum(each[each > 0] * np.log(each[each > 0])) for each in p))
        # A probability of 1e-300 adds nothing, and has a logarithm.
        divergence.append(
            sum(
                np.sum(a * (np.log(np.maximum(a, 1e-300)) - np.log(np.maximum(b, 1e-300))))
                for a, b in zip(p, q, strict=True)
            )
        )
    before, after = (head.parameters(head.mask(output, mask), []) for output in (old, new))
    tolerance = 1e-4 if dtype == "float32" else 1e-9
    np.testing.assert_allclose(head.distribution(before).entropy(), entropy, atol=tolerance)
    np.testing.assert_allclose(kl_divergence(head, old=before, new=after), divergence, rtol=tolerance, atol=tolerance)
    assert entropy[0] == divergence[0] == 0  # one legal option of each choice


@pytest.mark.parametrize("kind", MASKED)
def test_log_probabilities_add_up_over_legal_options_and_one_alone_is_certain(kind):
    head, mask, output = drawn(kind, dtype="float32")
    rng = np.random.default_rng(0)
    sample = head.options.legal(mask, 1, rng)[:, 0]
    log_prob = head.log_prob(head.parameters(head.mask(output, mask), []), sample).numpy()
    expected = []
    counts = option_counts(ACTIONS[kind])
    for p, legal, choice in zip(legal_only(output, mask, counts), mask, sample.reshape(len(sample), -1), strict=True):
        places = [np.flatnonzero(part).tolist() for part in np.split(legal, np.cumsum(counts)[:-1])]
        expected.append(sum(np.log(q[at.index(c)]) for q, at, c in zip(p, places, choice, strict=True)))
    np.testing.assert_allclose(log_prob, expected, atol=1e-5)
    assert log_prob[0] == 0


@pytest.mark.parametrize("kind", MASKED)
def test_masked_logits_have_no_gradient_and_every_derivative_is_finite(kind):
    """In float32, where the logarithm of a probability of 0 is -1e9, up to second derivatives."""
    head, mask, output = drawn(kind, dtype="float32")
    sample, old = head.options.legal(mask, 1, np.random.default_rng(0))[:, 0], tf.constant(output)

    def parameters(x):
        return head.parameters(head.mask(x, mask), [])

    for function in (
        lambda x: head.distribution(parameters(x)).entropy(),
        lambda x: head.log_prob(parameters(x), sample),
        lambda x: kl_divergence(head, old=parameters(old), new=parameters(x)),
    ):
        x = tf.constant(output + 0.3 * np.cos(np.arange(output.size, dtype=np.float32)).reshape(output.shape))
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                value = tf.reduce_sum(function(x))
            first = inner.gradient(value, x)
            along = tf.reduce_sum(first * tf.cast(np.arange(head.inputs), tf.float32))
        second = outer.gradient(along, x)
        for derivative in (first, second):
            assert np.isfinite(derivative).all()
            np.testing.assert_array_equal(derivative.numpy()[~mask], 0)
        assert np.abs(first.numpy()[mask]).max() > 0.01


@pytest.mark.parametrize("kind", MASKED)
def test_the_fisher_product_is_the_hessian_of_the_divergence_between_masked_policies(kind):
    """By Gauss-Newton, by double backpropagation, and by differences of the divergence's gradient."""
    policy, rows = make_policy(kind), make_rows(kind)
    theta = tf.constant(make_theta(policy))
    problem = LocalProblem(policy, theta, rows)
    product, other = problem.fisher_vector_product, tf.function(problem.kl_hessian_product, autograph=False)
    gradient = tf.function(lambda at: tf.gradients(problem.kl(at)[0], at)[0], autograph=False)
    dense = np.stack([product(tf.constant(unit)) for unit in np.eye(len(theta))])
    step = 1e-5
    differences = [(gradient(theta + step * e) - gradient(theta - step * e)) / (2 * step) for e in np.eye(len(theta))]
    np.testing.assert_allclose(dense, differences, atol=1e-8)
    np.testing.assert_allclose(dense, [other(tf.constant(e)) for e in np.eye(len(theta))], atol=1e-12)
    assert np.linalg.eigvalsh(dense).min() > -1e-12
    # A row in which one action is left does not move the policy.
    alone = rows._replace(weight=np.where(np.arange(len(rows.weight)) == 0, 1.0, 0.0))
    np.testing.assert_allclose(
        LocalProblem(policy, theta, alone).fisher_vector_product(tf.ones_like(theta)), 0, atol=1e-15
    )


@pytest.mark.parametrize("kind", MASKED)
def test_samples_are_legal_as_often_as_their_probability_and_no_noise_makes_another(kind):
    head, mask, output = drawn(kind, rows=4)
    count, counts = 50_000, option_counts(ACTIONS[kind])
    rng = np.random.default_rng(0)
    for row, probabilities in enumerate(legal_only(output, mask, counts)):
        legal, logits = np.tile(mask[row], (count, 1)), np.tile(output[row].astype(np.float32), (count, 1))
        noise = draw_noise(head.noise, count, rng)
        sample = head.legal_sample(head.parameters(logits, []), noise, legal).numpy().reshape(count, -1)
        split = np.split(mask[row], np.cumsum(counts)[:-1])
        for choice, options, p in zip(sample.T, split, probabilities, strict=True):
            expected = np.zeros(len(options))
            expected[options] = p
            np.testing.assert_allclose(np.bincount(choice, minlength=len(options)) / count, expected, atol=0.01)
    legal = np.tile(mask, (1000, 1))
    parameters = head.parameters(np.tile(output.astype(np.float32), (1000, 1)), [])
    sizes = (10.0 ** rng.uniform(0, 37, (len(legal), 1))).astype(np.float32)
    for noise in (sizes * rng.normal(size=legal.shape), sizes * np.where(legal, -1, 1), np.zeros(legal.shape)):
        sample = head.legal_sample(parameters, noise.astype(np.float32), legal).numpy().reshape(len(legal), -1)
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        assert np.take_along_axis(legal, starts + sample, axis=1).all()


@pytest.mark.parametrize("kind", MASKED)
def test_without_a_legal_action_all_is_finite_and_the_first_is_chosen(kind):
    head = head_of(kind)
    output, none = np.full((1, head.inputs), 3.0, np.float32), np.zeros((1, head.inputs), bool)
    noise = draw_noise(head.noise, 1, np.random.default_rng(0))
    assert not head.legal_sample(head.parameters(output, []), noise, none).numpy().any()
    parameters = head.parameters(head.mask(output, none), [])
    uniform = np.sum(np.log(option_counts(ACTIONS[kind])))
    np.testing.assert_allclose(head.distribution(parameters).entropy(), [uniform], rtol=1e-6)


@pytest.mark.parametrize("kind", MASKED)
def test_legal_samples_take_each_legal_option_about_as_often(kind):
    head, mask, _ = drawn(kind, rows=30)
    counts, rng = option_counts(ACTIONS[kind]), np.random.default_rng(0)
    mask[1] = False  # an episode's last observation
    sample = head.options.legal(mask, 12, rng).reshape(30, 12, -1)
    splits = np.split(mask, np.cumsum(counts)[:-1], axis=1)
    for choice, options in zip(np.moveaxis(sample, -1, 0), splits, strict=True):
        for row in np.delete(np.arange(30), 1):
            times = np.bincount(choice[row], minlength=options.shape[1])
            np.testing.assert_array_equal(times > 0, options[row])
            assert times[options[row]].max() - times[options[row]].min() <= 1


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_algorithm_updates_a_masked_policy(algo):
    config = Config("unused", algo=algo, inner=InnerConfig(policy_batch_size=32, policy_epochs=5))
    policy, rows = make_policy("masked", "float32"), make_rows("masked", "float32", count=64)
    theta, zero = make_theta(policy, "float32"), np.zeros((), np.float32)
    update = compile_update(policy, config, xla=False)
    adapted = np.float32(ALGORITHMS[algo].initial(config))
    done = update(theta, rows, adapted, minibatches(np.random.default_rng(0), 64, 32, 5), EntropyTerm(zero, zero))
    assert done.status == UpdateStatus.ACCEPTED
    problem = LocalProblem(policy, tf.constant(theta), rows)
    assert problem.surrogate(done.theta) > problem.surrogate(tf.constant(theta))
    assert np.isfinite([done.mean_kl, done.entropy]).all()


def test_a_mask_is_neither_standardised_nor_an_input_nor_kept_in_a_history():
    parts = (ArraySpec("action_mask", "int8", (3,), 0, 1), ArraySpec("obs", "float32", (2,)))
    spaces = Spaces(parts, ("ActionMask", "Box"), ArraySpec("action", "int64", (), 0, 2))
    assert spaces.mask == "action_mask"
    assert Spaces.from_json(spaces.to_json()) == spaces
    memory = make_memory(spaces, history=3)
    assert memory is not None
    assert [(spec.name, spec.shape) for spec in memory.observation] == [("action_mask", (3,)), ("obs", (3, 2))]
    assert [(spec.name, spec.shape) for spec in memory.state] == [("history", (2, 2))]
    encoder = make_encoder(memory.kinds, memory.observation, normalize=True)
    assert [spec.shape.as_list() for spec in encoder.inputs] == [[None, 6]]
    observation = {"action_mask": np.array([[0, 1, 0]], np.int8), "obs": np.ones((1, 2), np.float32)}
    seen = memory.observe(observation, {"history": np.zeros((1, 2, 2), np.float32)}, np.array([False]))
    encoded = encoder(encoder.normalizer(Moments.empty((6,))), seen)
    assert isinstance(encoded, MaskedInputs)
    np.testing.assert_array_equal(encoded.inputs, [[0, 0, 0, 0, 1, 1]])
    np.testing.assert_array_equal(encoded.legal, [[False, True, False]])
    following = memory.advance(seen, {"history": np.zeros((1, 2, 2), np.float32)}, np.array([1]))
    assert list(following) == ["history"]


def test_a_mask_makes_choices_of_bits_and_other_heads_refuse_it():
    bits = ArraySpec("action", "int8", (3,), 0, 1)
    assert isinstance(make_head(bits, masked=True), MultiCategoricalHead)
    assert isinstance(make_head(action_spec(Discrete(4)), masked=True), CategoricalHead)
    with pytest.raises(UserError, match="head bernoulli takes no action mask; choose auto, or action_mask off"):
        make_head(bits, PolicyConfig(head="bernoulli"), masked=True)


def test_the_space_of_a_mask_has_its_own_kind():
    assert ActionMask(3, np.bool_).contains(np.array([True, False, True]))
    assert isinstance(ActionMask(3, np.int8), Box)
