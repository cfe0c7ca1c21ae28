import numpy as np
import pytest
import tensorflow as tf

from tests.support.training.problems import make_policy, make_rows, make_theta
from trpo_tf.config.settings import Config, PolicyConfig, TrustRegionConfig
from trpo_tf.policies.heads.discrete import CategoricalHead
from trpo_tf.policies.heads.gaussian import GaussianHead
from trpo_tf.updates.compiled_update import EntropyTerm, compile_update
from trpo_tf.updates.local_problem import LocalProblem, kl_divergence
from trpo_tf.updates.result import UpdateStatus

KINDS = ["categorical", "gaussian", "state-dependent", "masked-choices"]


def setting(kind):
    policy, rows = make_policy(kind), make_rows(kind)
    theta = tf.constant(make_theta(policy))
    return policy, rows, theta, LocalProblem(policy, theta, rows)


@pytest.mark.parametrize("kind", KINDS)
def test_at_the_old_policy_the_surrogate_is_the_mean_advantage_and_the_kl_is_zero(kind):
    _, rows, theta, problem = setting(kind)
    expected = np.average(rows.advantage, weights=rows.weight)
    np.testing.assert_allclose(problem.surrogate(theta), expected)
    np.testing.assert_allclose(problem.kl(theta), (0.0, 0.0), atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "gain_of_entropy"),
    [
        ("categorical", None),
        ("masked-choices", lambda entropy: 0.3 * entropy),
        ("gaussian", lambda entropy: 0.3 * entropy),
        ("state-dependent", lambda entropy: -((5 - entropy) ** 2)),
    ],
)
def test_gradient_agrees_with_finite_differences(kind, gain_of_entropy):
    policy, rows, theta, _ = setting(kind)
    problem = LocalProblem(policy, theta, rows, gain_of_entropy=gain_of_entropy)
    _, gradient = problem.gradient()
    step, surrogate = 1e-6, tf.function(problem.surrogate, autograph=False)
    differences = [
        (surrogate(theta + step * unit) - surrogate(theta - step * unit)) / (2 * step) for unit in np.eye(len(theta))
    ]
    np.testing.assert_allclose(gradient, differences, atol=1e-8)


def test_entropy_counts_as_gain():
    """A Gaussian's: log(std sqrt(2 pi e)) for each dimension, whatever the observation."""
    policy, rows, theta, problem = setting("gaussian")
    with_entropy = LocalProblem(policy, theta, rows, gain_of_entropy=lambda entropy: 0.3 * entropy)
    other = theta + 0.1
    log_std = policy.parameters(other, rows.inputs)[1][0]
    entropy = np.sum(log_std + 0.5 * np.log(2 * np.pi * np.e))
    np.testing.assert_allclose(with_entropy.surrogate(other), problem.surrogate(other) + 0.3 * entropy)


def update_of(config, rows, entropy):
    """An update where nothing is to be gained but entropy, and how much that rose."""
    policy = make_policy("gaussian")
    nothing_to_gain = rows._replace(advantage=np.zeros_like(rows.advantage))
    update = compile_update(policy, config, xla=False)
    done = update(make_theta(policy), nothing_to_gain, np.float64(0.01), np.zeros((1, 1), np.int32), entropy)
    assert done.status == UpdateStatus.ACCEPTED
    return done, (LocalProblem(policy, done.theta, rows).entropy() - done.entropy).numpy()


def test_an_update_raises_entropy_by_its_weight():
    config = Config("unused", trust_region=TrustRegionConfig(entropy_coefficient=0.2))
    done, rise = update_of(config, make_rows("gaussian"), EntropyTerm(np.float64(0.2), np.float64(0)))
    assert rise > 0
    np.testing.assert_allclose(done.surrogate_gain, 0.2 * rise, rtol=1e-6)


@pytest.mark.parametrize("off", [-1.0, 1.0])
def test_an_update_steers_entropy_to_its_target(off):
    config = Config(
        "unused", policy=PolicyConfig(final_std=0.5), trust_region=TrustRegionConfig(entropy_coefficient=0.2)
    )
    _, _, _, problem = setting("gaussian")
    target = problem.entropy().numpy() + off
    done, rise = update_of(config, make_rows("gaussian"), EntropyTerm(np.float64(0.2), np.float64(target)))
    assert 0 < rise / off < 1
    np.testing.assert_allclose(done.surrogate_gain, 0.1 * (off**2 - (off - rise) ** 2), rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_weight_zero_may_hold_any_advantage(kind):
    policy, rows, theta, problem = setting(kind)
    ignored = rows.weight == 0
    advantage = np.where(ignored, np.nan, rows.advantage)
    poisoned = LocalProblem(policy, theta, rows._replace(advantage=advantage))
    np.testing.assert_allclose(poisoned.gradient()[1], problem.gradient()[1])


def test_largest_kl_is_that_of_a_row_that_counts():
    policy, rows, theta, _ = setting("gaussian")
    other = theta + 0.3
    problem = LocalProblem(policy, theta, rows)
    new, old = (policy.parameters(t, rows.inputs) for t in (other, theta))
    each = kl_divergence(policy.head, old=old, new=new).numpy()
    mean, largest = problem.kl(other)
    np.testing.assert_allclose(mean, np.average(each, weights=rows.weight))
    np.testing.assert_allclose(largest, each[rows.weight > 0].max())


def test_categorical_kl_is_from_old_to_new():
    head = CategoricalHead(make_policy("categorical").spec.action)
    old, new = np.log([[0.97, 0.01, 0.01, 0.01]]), np.log([[0.25, 0.25, 0.25, 0.25]])
    forward = np.sum(np.exp(old) * (old - new))
    np.testing.assert_allclose(kl_divergence(head, old=(old,), new=(new,)), [forward])
    assert abs(forward - np.sum(np.exp(new) * (new - old))) > 0.05


def test_gaussian_kl_is_from_old_to_new():
    head = GaussianHead(make_policy("gaussian").spec.action)
    old = (np.array([[0.0, 1.0]]), np.log([[1.0, 0.5]]))
    new = (np.array([[0.5, 1.0]]), np.log([[2.0, 0.5]]))
    closed_form = np.log(2.0) + (1.0 + 0.25) / (2 * 4.0) - 0.5
    np.testing.assert_allclose(kl_divergence(head, old=old, new=new), [closed_form])
