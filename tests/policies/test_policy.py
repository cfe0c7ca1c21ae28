import numpy as np
import pytest
import tensorflow as tf

from tests.support.training.problems import ACTIONS, head_of
from trpo_tf.exporting.in_process import in_process
from trpo_tf.policies.encoders import Encoder
from trpo_tf.policies.networks import PureNetwork, mlp
from trpo_tf.policies.policy import Policy, TrainedPolicy
from trpo_tf.policies.running_stats import Moments, Normalizer
from trpo_tf.sampling.acting_graph import acting_graph
from trpo_tf.sampling.actor import Actor
from trpo_tf.serving import ArraySpec
from trpo_tf.serving.runtime.noise import draw_noise


def policy_and_parameters(kind, *, dtype="float32", normalize=True):
    head = head_of(kind)
    observation = ArraySpec("obs", dtype, (3,))
    network = mlp(3, (7,), head.inputs, last_layer_scale=1.0)
    encoder = Encoder(**{"normalized" if normalize else "plain": (observation,)})
    policy = Policy(encoder, network, head, (observation,), ACTIONS[kind])
    rng = np.random.default_rng(0)
    theta = (policy.initial_theta() + 0.1 * rng.normal(size=policy.network.size)).astype(np.float32)
    normalizer = Normalizer.of(Moments.empty((3,)).updated(rng.normal(5.0, 3.0, (100, 3))))
    return policy, theta, normalizer


@pytest.mark.parametrize("kind", list(ACTIONS))
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
def test_sampler_and_export_act_alike(kind, dtype):
    """Two conversions of one function, with bound and with constant weights, and TensorFlow itself."""
    policy, theta, normalizer = policy_and_parameters(kind, dtype=dtype)
    rng = np.random.default_rng(1)
    observations = rng.normal(5.0, 3.0, (16, 3)).astype(dtype)
    noise = draw_noise(policy.spec.noise, 16, rng)
    actor = Actor(acting_graph(policy), 16)
    actor.load(theta, normalizer)
    actor.observation[...], actor.noise[...] = observations, noise
    actor.run()
    expected, sample = policy.act(policy.network.split(theta), normalizer, observations, noise)
    exported = in_process(TrainedPolicy(policy, theta, normalizer), "policy").run(observations, noise)
    np.testing.assert_allclose(actor.action, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(actor.sample, sample, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(actor.action, exported)


def test_actor_follows_its_parameters():
    policy, theta, normalizer = policy_and_parameters("gaussian")
    actor = Actor(acting_graph(policy), 4)
    actions = []
    for scale in (1.0, 0.5, 1.0):
        actor.load((theta * scale).astype(np.float32), normalizer)
        actor.run()
        actions.append(actor.action.copy())
    assert not np.array_equal(actions[0], actions[1])
    np.testing.assert_array_equal(actions[0], actions[2])


def test_observations_are_standardised_and_clipped_inside():
    policy, theta, _ = policy_and_parameters("gaussian")
    normalizer = Normalizer(np.float32([1, 2, 3]), np.float32([2, 2, 2]))
    plain = Normalizer(np.zeros(3, np.float32), np.ones(3, np.float32))
    parts = policy.network.split(theta)
    noise = np.zeros((1, 2), np.float32)
    observation = np.float32([[1.5, 100.0, 3.0]])
    np.testing.assert_array_equal(
        policy.act(parts, normalizer, observation, noise)[0],
        policy.act(parts, plain, np.float32([[1.0, 10.0, 0.0]]), noise)[0],
    )


def test_without_normalisation_the_network_sees_the_observation():
    policy, theta, normalizer = policy_and_parameters("gaussian", normalize=False)
    parts, noise = policy.network.split(theta), np.zeros((1, 2), np.float32)
    observation = np.float32([[0.5, -20.0, 3.0]])
    mean, _ = policy.network.apply(parts, observation)
    np.testing.assert_allclose(policy.act(parts, normalizer, observation, noise)[1], mean)


def test_flat_parameters_are_the_keras_weights_and_back():
    network = mlp(3, (4, 5), 2, seed=3)
    pure = PureNetwork(network, [(2,)])
    theta = pure.flat(np.float32([7.0, 8.0]))
    inputs = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    output, (extra,) = pure.apply(pure.split(tf.constant(theta)), inputs)
    np.testing.assert_allclose(output, network(inputs), rtol=1e-6)
    np.testing.assert_array_equal(extra, [7.0, 8.0])
    pure.assign(2 * theta)
    np.testing.assert_array_equal(pure.flat(np.float32([14.0, 16.0])), 2 * theta)


def test_initial_weights_are_orthogonal_and_follow_the_seed():
    network = mlp(8, (8,), 2, last_layer_scale=0.01, seed=1)
    hidden, last = (layer.kernel.numpy() for layer in network.layers)
    np.testing.assert_allclose(hidden @ hidden.T, 2 * np.eye(8), atol=1e-5)
    np.testing.assert_allclose(last.T @ last, 1e-4 * np.eye(2), atol=1e-8)
    again, other = (mlp(8, (8,), 2, seed=s).layers[0].kernel.numpy() for s in (1, 2))
    np.testing.assert_array_equal(hidden, again)
    assert not np.allclose(hidden, other)
