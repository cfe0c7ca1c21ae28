"""Both backends of environments stepped together must mean the same by an episode."""

import gymnasium as gym
import numpy as np
import pytest

from trpo_tf.config.settings import Config, PolicyConfig, SamplingConfig
from trpo_tf.envs.make import make_env
from trpo_tf.envs.spaces import action_spec, observation_spec
from trpo_tf.envs.vector.backends import choose_backend, make_vector_env
from trpo_tf.errors import UserError
from trpo_tf.learning.learner import build_learner
from trpo_tf.policies.running_stats import Normalizer
from trpo_tf.sampling.acting_graph import acting_graph
from trpo_tf.sampling.actor import Actor
from trpo_tf.sampling.single_path import SinglePath
from trpo_tf.support.phase_timer import PhaseClock
from trpo_tf.training.train import train

BACKENDS = ("gymnasium", "envpool")
LIMITS = {"Pendulum-v1": 200, "CartPole-v1": 500, "Hopper-v5": 1000, "Reacher-v5": 50}


def put_into(env, observation):
    """Put a Gymnasium environment into the state that an observation shows whole."""
    inner = env.unwrapped
    match env.spec.id:
        case "CartPole-v1":
            inner.state = np.array(observation, np.float64)
        case "Pendulum-v1":
            inner.state = np.array([np.arctan2(observation[1], observation[0]), observation[2]], np.float64)
        case "Hopper-v5" | "HalfCheetah-v5" | "Walker2d-v5" | "Ant-v5" | "Swimmer-v5":
            hidden = {"Swimmer-v5": 2, "Ant-v5": 2}.get(env.spec.id, 1)  # the place along the way is not observed
            positions = inner.model.nq - hidden
            qpos = np.concatenate([np.zeros(hidden), observation[:positions]])
            inner.set_state(qpos, observation[positions : positions + inner.model.nv])


@pytest.mark.parametrize(
    "env_id", ["CartPole-v1", "Pendulum-v1", "Hopper-v5", "HalfCheetah-v5", "Walker2d-v5", "Swimmer-v5"]
)
def test_envpool_s_physics_are_gymnasium_s(env_id):
    env = make_env(env_id)
    pool = make_vector_env(env_id, 3, "envpool")
    first, _ = pool.reset(seed=1)
    env.reset(seed=0)
    env.action_space.seed(0)
    put_into(env, first[1])
    for _ in range(10):
        actions = np.stack([env.action_space.sample() for _ in range(3)])
        observations, rewards, terminated, *_ = pool.step(actions)
        expected, reward, over, *_ = env.step(actions[1])
        np.testing.assert_allclose(observations[1], expected, rtol=1e-3, atol=1e-3)
        assert rewards[1] == pytest.approx(reward, rel=1e-3, abs=1e-3)
        assert terminated[1] == over
    pool.close()
    env.close()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("env_id", LIMITS)
def test_observations_fit_the_environment_s_spec_and_follow_the_seed(backend, env_id):
    envs = make_vector_env(env_id, 4, backend)
    env = make_env(env_id)
    (spec,), action = observation_spec(env.observation_space), action_spec(env.action_space)
    starts = [np.array(envs.reset(seed=seed)[0]) for seed in (3, 4, 3)]
    assert starts[0].shape == (4, *spec.shape)
    np.testing.assert_array_equal(starts[0], starts[2])
    assert not np.array_equal(starts[0], starts[1])
    assert len(np.unique(starts[0], axis=0)) == 4
    observations, rewards, terminated, truncated, _ = envs.step(np.zeros((4, *action.shape), action.dtype))
    assert observations.shape == (4, *spec.shape)
    assert (rewards.shape, terminated.dtype, truncated.dtype) == ((4,), bool, bool)
    envs.close()
    env.close()


@pytest.mark.parametrize("env_id", ["Hopper-v5", "Reacher-v5"])
def test_environments_in_two_halves_do_what_each_does_alone(env_id):
    envs, alone = make_vector_env(env_id, 5), [make_env(env_id) for _ in range(5)]
    observations, _ = envs.reset(seed=3)
    np.testing.assert_array_equal(observations, [env.reset(seed=3 + i)[0] for i, env in enumerate(alone)])
    rng, over, ends = np.random.default_rng(0), [False] * 5, 0
    for _ in range(120):
        actions = rng.uniform(-1, 1, (5, *alone[0].action_space.shape)).astype(np.float32)
        observations, *numbers, _ = envs.step(actions)
        for i, env in enumerate(alone):
            expected = (env.reset()[0], 0.0, False, False) if over[i] else env.step(actions[i])[:4]
            np.testing.assert_array_equal(observations[i], expected[0])
            assert tuple(column[i] for column in numbers) == expected[1:]
            over[i] = expected[2] or expected[3]
            ends += over[i]
    assert ends >= 5
    for env in (envs, *alone):
        env.close()


def sampled(env_id, backend, steps, num_envs=2):
    config = Config(env_id, sampling=SamplingConfig(num_envs=num_envs), policy=PolicyConfig(hidden_sizes=(8,)))
    learner = build_learner(config)
    state = learner.initial_state(num_envs)
    actor = Actor(acting_graph(learner.policy), num_envs)
    actor.load(state.theta, Normalizer.of(state.observation_moments))
    sampler = SinglePath(make_vector_env(env_id, num_envs, backend), actor, 0)
    batch, episodes = sampler.collect(steps, np.random.default_rng(0), PhaseClock())
    sampler.close()
    return batch, episodes


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("env_id", ["Pendulum-v1", "Reacher-v5"])
def test_an_episode_is_cut_at_gymnasium_s_limit_and_counted_once(backend, env_id):
    limit = LIMITS[env_id]
    batch, episodes = sampled(env_id, backend, 3 * limit + 10)
    assert episodes.lengths == [limit] * 6
    counted = batch.weight[:, 0] > 0
    ends = np.flatnonzero(batch.truncated[:, 0] & counted)
    assert len(ends) == 3
    assert not batch.terminated.any()
    assert not counted[ends + 1].any()
    # The rows that count make whole episodes, and nothing else does.
    assert counted[: ends[-1] + 1].sum() == 3 * limit
    assert sum(episodes.returns) == pytest.approx((batch.reward * batch.weight)[: ends[-1] + 1].sum(), rel=1e-5)
    # What follows a reset row is near what the row shows; across the reset there is a jump.
    starts = np.flatnonzero(np.diff(counted.astype(int)) == 1) + 1
    assert len(starts) == 3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Hopper-v5"])
def test_a_fall_terminates_and_its_last_observation_is_kept(backend, env_id):
    batch, episodes = sampled(env_id, backend, 200)
    ends = np.argwhere(batch.terminated)
    assert len(episodes.lengths) == len(ends) > 2
    assert not batch.truncated.any()
    for t, i in ends[ends[:, 0] < 199]:
        fallen, after = batch.observation[t + 1, i], batch.observation[t + 2, i]
        if env_id == "CartPole-v1":
            assert max(abs(fallen[0]) / 2.4, abs(fallen[2]) / 0.2095) > 1
        else:
            assert fallen[0] < 0.7 or abs(fallen[1]) > 0.2
        assert np.abs(after).max() < np.abs(fallen).max() + 1.3
        assert batch.weight[t + 1, i] == 0
        assert batch.weight[t, i] == 1


def test_a_fall_at_the_time_limit_is_a_fall():
    """EnvPool alone would call it truncated."""
    env = gym.make("CartPole-v1")
    limit = env.spec.max_episode_steps
    pool = make_vector_env("CartPole-v1", 1, "envpool")
    pool._limit = 8
    pool.reset(seed=0)
    steps = 0
    for _ in range(200):
        _, _, terminated, truncated, _ = pool.step(np.ones(1, np.int64))
        steps += 1
        assert not (terminated[0] and truncated[0])
        if steps == 8 and terminated[0]:
            break
        if terminated[0] or truncated[0]:
            steps = -1  # the next step resets
    else:
        raise AssertionError("no fall came at the eighth step")
    assert limit == 500


def test_auto_takes_the_fastest_that_has_the_environment():
    assert choose_backend("auto", "CartPole-v1") == "gymnasium"  # it has a vector form of its own
    assert choose_backend("auto", "HalfCheetah-v5") == "envpool"
    assert choose_backend("auto", "tests.support.environments:Walk-v0") == "gymnasium"
    with pytest.raises(UserError, match=r"only environments that Gymnasium registers.*Walk-v0 is none; use gymnasium"):
        choose_backend("envpool", "tests.support.environments:Walk-v0")


def test_without_envpool_auto_is_gymnasium(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert choose_backend("auto", "HalfCheetah-v5") == "gymnasium"
    with pytest.raises(UserError, match=r"not installed \(pip install '.\[envpool\]' in a checkout"):
        choose_backend("envpool", "HalfCheetah-v5")


def test_a_run_remembers_its_backend(small_config, tmp_path):
    run = train(small_config("Pendulum-v1", env_backend="auto"), tmp_path / "run")
    assert run.config.sampling.env_backend == "envpool"
