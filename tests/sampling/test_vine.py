import numpy as np
import pytest
import tensorflow as tf

from tests.support.training.problems import make_policy, make_rows, make_theta
from trpo_tf.config.settings import Config, PolicyConfig, SamplingConfig, VineConfig
from trpo_tf.errors import UserError
from trpo_tf.estimation.targets import estimate
from trpo_tf.estimation.vine_targets import vine_rows
from trpo_tf.learning.learner import build_learner
from trpo_tf.policies.running_stats import Normalizer
from trpo_tf.sampling.sampler import Experience
from trpo_tf.support.phase_timer import PhaseClock
from trpo_tf.updates.local_problem import LocalProblem, Rows


def sampled(env_id: str, *, batches: int = 1, seed: int = 0, **vine):
    config = Config(
        env_id,
        sampling=SamplingConfig(sampler="vine", num_envs=4, batch_size=256),
        policy=PolicyConfig(hidden_sizes=(8,)),
        vine=VineConfig(**({"rollout_states": 20, "branch_length": 10} | vine)),
    )
    learner = build_learner(config)
    state = learner.initial_state(4)
    with Experience(config, learner.policy) as experience:
        experience.restart()
        experience.load(state.theta, Normalizer.of(state.observation_moments))
        rng = np.random.default_rng(seed)
        collected = [experience.collect(rng, PhaseClock()) for _ in range(batches)]
    return config, learner, state, collected


def test_all_actions_of_a_small_set_are_tried_once_from_each_state():
    _, _, _, [(_, _, branches)] = sampled("tests.support.environments:Ring-v0")
    np.testing.assert_array_equal(branches.sample, np.tile([0, 1], (20, 1)))


def test_a_rollout_starts_from_its_state_with_its_first_action():
    """One step long, so that the ring tells where each led; the trunk goes on as if nothing had happened."""
    _, _, _, [(batch, _, branches)] = sampled("tests.support.environments:Ring-v0", branch_length=1)
    start = branches.observation.argmax(axis=-1)
    led_to = branches.final_observation.argmax(axis=-1)
    np.testing.assert_array_equal(led_to, (start[:, None] + np.array([-1, 1])) % 6)
    np.testing.assert_array_equal(branches.length, 1)
    place = batch.observation.argmax(axis=-1)
    step = np.where(batch.sample == 1, 1, -1)
    counted = batch.weight > 0
    np.testing.assert_array_equal(place[1:][counted], ((place[:-1] + step) % 6)[counted])


def test_rollouts_of_one_state_share_their_random_numbers():
    """Of three actions two are drawn: where it is the same one twice, the two rollouts are the same."""
    _, _, _, [(_, _, branches)] = sampled("Acrobot-v1", branch_actions=2, rollout_states=60)
    twice = branches.sample[:, 0] == branches.sample[:, 1]
    assert 5 < twice.sum() < 55
    finals = branches.final_observation
    np.testing.assert_array_equal(finals[twice, 0], finals[twice, 1])
    assert (finals[~twice, 0] != finals[~twice, 1]).any(axis=1).all()


def test_rollouts_of_one_state_share_the_environment_s_generator_too():
    """Both actions of a state meet the same noise, which is far larger than any reward; other states another."""
    _, _, _, [(_, _, branches)] = sampled("tests.support.environments:NoisyRing-v0")
    left, right = branches.reward[:, 0], branches.reward[:, 1]
    assert np.abs(left - right).max() <= 3.0
    assert np.std(left[:, 0]) > 50.0


def test_states_where_an_episode_has_just_ended_weigh_nothing_and_cost_nothing():
    _, _, _, collected = sampled("CartPole-v1", batches=4, rollout_states=200)
    weights = np.concatenate([branches.weight for _, _, branches in collected])
    lengths = np.concatenate([branches.length for _, _, branches in collected])
    assert 0 < (weights == 0).sum() < 100
    np.testing.assert_array_equal(lengths[weights == 0], 0)
    assert (lengths[weights > 0] >= 1).all()
    assert lengths.max() == 10


def test_q_estimates_are_discounted_rewards_and_the_critic_s_value_of_the_rest():
    config, learner, state, [(batch, _, branches)] = sampled("CartPole-v1")
    sampling, networks = config.sampling, learner.frozen(state)
    moments = estimate(sampling, networks, batch, state.return_moments, state.carried_returns).return_moments
    rows = vine_rows(sampling, networks, branches, state.return_moments, moments)
    n, k, length = 3, 1, branches.length[3, 1]
    reward = np.clip(branches.reward * moments.scale, -10, 10)
    finals = learner.encode(Normalizer.of(state.observation_moments), branches.final_observation[n])
    value = learner.value_function.values(state.value_theta, finals).numpy()
    q = [
        sum(0.99**t * reward[n, j, t] for t in range(branches.length[n, j]))
        + (0.0 if branches.terminated[n, j] else 0.99 ** branches.length[n, j] * value[j])
        for j in range(2)
    ]
    assert length > 0
    weight = rows.weight.reshape(-1, 2)[n]
    advantage = rows.advantage.reshape(-1, 2)[n]
    np.testing.assert_allclose(weight.sum(), 1.0, rtol=1e-5)
    np.testing.assert_allclose(weight @ advantage, 0.0, atol=1e-5)
    everything = rows.advantage.reshape(-1, 2)
    spread = np.sqrt(np.average(everything.ravel() ** 2, weights=rows.weight))
    np.testing.assert_allclose(spread, 1.0, rtol=1e-3)
    np.testing.assert_allclose(np.sign(advantage[k] - advantage[0]), np.sign(q[1] - q[0]))


def grouped(kind: str, weight: np.ndarray, states: int = 6, actions: int = 4):
    policy, rng = make_policy(kind), np.random.default_rng(0)
    rows = make_rows(kind, count=states * actions)
    inputs = np.repeat(rng.normal(size=(states, 3)), actions, axis=0)
    sample = np.tile(np.arange(actions), states) if kind == "categorical" else rows.sample
    return policy, Rows(inputs, sample, rows.advantage, weight)


def test_with_all_actions_the_surrogate_is_the_exact_sum():
    """Equation 49: the mean over states of sum_a pi_theta(a|s) Q(s, a)."""
    policy, rows = grouped("categorical", np.ones(24))
    old = tf.constant(make_theta(policy))
    weight = np.exp(policy.log_prob(old, rows.inputs, rows.sample).numpy())
    problem = LocalProblem(policy, old, rows._replace(weight=weight), branches=4)
    theta = old + 0.3
    new = np.exp(policy.log_prob(theta, rows.inputs, rows.sample).numpy())
    expected = (new * rows.advantage).reshape(6, 4).sum(axis=1).mean()
    np.testing.assert_allclose(problem.surrogate(theta), expected)


def test_otherwise_it_is_self_normalised_importance_sampling():
    """Equation 50, with actions drawn from the old policy."""
    policy, rows = grouped("gaussian", np.full(24, 0.25))
    old = tf.constant(make_theta(policy))
    problem = LocalProblem(policy, old, rows, branches=4)
    theta = old + 0.1
    ratio = problem.ratio(theta).numpy().reshape(6, 4)
    q = rows.advantage.reshape(6, 4)
    np.testing.assert_allclose(problem.surrogate(theta), ((ratio * q).sum(axis=1) / ratio.sum(axis=1)).mean())
    shifted = LocalProblem(policy, old, rows._replace(advantage=rows.advantage + 7.0), branches=4)
    np.testing.assert_allclose(shifted.gradient()[1], problem.gradient()[1], atol=1e-12)


def test_the_vine_s_gradient_varies_less_than_the_single_path_s():
    """At equal numbers of Q estimates: 64 states x 2 actions against 128 rows, on the same policy and critic."""
    config, learner, state, collected = sampled("CartPole-v1", batches=24, rollout_states=64, branch_length=40)

    def gradient(branches):
        @tf.function(autograph=False)
        def of(rows):
            return LocalProblem(learner.policy, tf.constant(state.theta), Rows(*rows), branches).gradient()[1]

        return of

    vine, single = gradient(2), gradient(None)
    vines, singles = [], []
    sampling, networks, before = config.sampling, learner.frozen(state), state.return_moments
    for batch, _, branches in collected:
        estimates = estimate(sampling, networks, batch, before, state.carried_returns)
        vines.append(vine(vine_rows(sampling, networks, branches, before, estimates.return_moments)).numpy())
        chosen = np.random.default_rng(0).choice(256, 128, replace=False)
        singles.append(single(Rows(*(np.asarray(array)[chosen] for array in estimates.rows))).numpy())

    def relative_variance(gradients):
        mean = np.mean(gradients, axis=0)
        return np.sum(np.var(gradients, axis=0)) / np.sum(mean**2)

    assert relative_variance(vines) < 0.7 * relative_variance(singles)


def test_the_vine_needs_environments_that_can_be_restored():
    with pytest.raises(UserError, match="the state of Walk can't be restored"):
        sampled("tests.support.environments:Walk-v0")


def test_the_vine_does_not_go_with_minibatches():
    with pytest.raises(UserError, match="algo must be one without minibatches, for the vine"):
        Config("CartPole-v1", algo="ppo", sampling=SamplingConfig(sampler="vine"))
