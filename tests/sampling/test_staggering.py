"""Environments start out of step with each other, and are built anew only after they have shown whole episodes."""

import dataclasses

import gymnasium as gym
import numpy as np
import pytest

from trpo_tf.learning.learner import build_learner
from trpo_tf.policies.running_stats import Normalizer
from trpo_tf.sampling.sampler import Experience
from trpo_tf.sampling.single_path import first_cuts
from trpo_tf.support.phase_timer import PhaseClock
from trpo_tf.training.train import resume, train

ENVS = 8


class Clock(gym.Env):
    """The step is observed; the environment ends its own episodes, and no limit is registered."""

    def __init__(self, length: int = 200) -> None:
        self.observation_space = gym.spaces.Box(0, np.inf, (1,), np.float32)
        self.action_space = gym.spaces.Discrete(2)
        self._length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._step = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self._step += 1
        return np.float32([self._step]), float(action), False, self._step >= self._length, {}


gym.register("Clock-v0", Clock)
gym.register("EndlessClock-v0", Clock, kwargs={"length": 10**9})


@pytest.fixture
def staggered(small_config):
    """Makes configs whose environments start out of step."""
    return lambda *arguments, **settings: small_config(*arguments, **{"stagger": True, **settings})


def sampled(config, steps, state_changes=None):
    """One long batch as training samples it, its episodes, and the experience, which is closed."""
    learner = build_learner(config)
    state = learner.initial_state(config.sampling.num_envs)
    state = dataclasses.replace(state, **(state_changes or {}))
    config = dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, batch_size=steps))
    with Experience(config, learner.policy) as experience:
        experience.restart(longest_recent=max(state.recent_lengths, default=0))
        experience.load(state.theta, Normalizer.of(state.observation_moments))
        batch, episodes, _ = experience.collect(np.random.default_rng(0), PhaseClock())
        return batch, episodes, experience.is_over(batch.steps, 0, batch.steps)


def test_cuts_are_one_in_each_part_of_the_longest_episode():
    cuts = first_cuts(ENVS, 800, seed=0)
    steps = sorted(step for step, places in cuts.items() for _ in places)
    assert [step // 100 for step in steps] == list(range(ENVS))
    assert sorted(place for places in cuts.values() for place in places) == list(range(ENVS))
    assert first_cuts(ENVS, 800, seed=1) != cuts


@pytest.mark.parametrize("backend", ["gymnasium", "envpool"])
def test_after_the_cuts_each_step_shows_all_parts_of_an_episode(backend, staggered):
    """Pendulum's episodes have 200 steps, whatever happens in them."""
    config = staggered("Pendulum-v1", num_envs=ENVS, total_steps=8000, env_backend=backend)
    batch, episodes, _ = sampled(config, 600 * ENVS)
    ended = batch.truncated & (batch.weight > 0)  # EnvPool ends an episode once more in the row of its reset
    first = ended.argmax(axis=0)
    assert sorted(first // 25) == list(range(ENVS))
    for i in range(ENVS):
        ends = np.flatnonzero(ended[:, i])
        np.testing.assert_array_equal(
            batch.weight[:, i].cumsum()[ends][1:] - batch.weight[:, i].cumsum()[ends][:-1], 200
        )
        np.testing.assert_array_equal(batch.weight[ends + 1, i], 0.0)
    assert not batch.terminated.any()
    assert set(episodes.lengths) == {200}  # a cut is no episode
    assert len(episodes.lengths) == int(ended.sum()) - ENVS


def test_lockstep_without(staggered):
    batch, _, _ = sampled(staggered("Pendulum-v1", num_envs=ENVS, total_steps=8000, stagger=False), 250 * ENVS)
    np.testing.assert_array_equal(batch.truncated.argmax(axis=0), 199)


def test_an_episode_that_ended_before_its_cut_is_not_cut(staggered):
    """CartPole falls within some 60 steps, and is registered for 500."""
    batch, episodes, _ = sampled(
        staggered("CartPole-v1", num_envs=ENVS, total_steps=8000, env_backend="envpool"), 500 * ENVS
    )
    assert batch.truncated.sum() <= 1
    assert len(episodes.lengths) == int(batch.ended.sum() - batch.truncated.sum())


def test_lengths_that_are_not_registered_are_those_of_the_latest_episodes(staggered):
    config = staggered("Clock-v0", num_envs=4, total_steps=4000)
    batch, _, _ = sampled(config, 4 * 150)
    assert not batch.truncated.any()
    batch, _, _ = sampled(config, 4 * 250, {"recent_lengths": (200,)})
    assert sorted(batch.truncated.argmax(axis=0) // 50) == [0, 1, 2, 3]


@pytest.mark.parametrize("eval_episodes", [0, 1])
def test_the_first_length_that_is_not_registered_is_that_of_episodes_before_training(
    eval_episodes, staggered, tmp_path
):
    steps = 4 * 220
    settings = {"total_steps": steps + 8, "num_envs": 4, "batch_size": steps, "eval_episodes": eval_episodes}
    ended = []
    train(
        staggered("Clock-v0", **settings),
        tmp_path / "run",
        observer=lambda metrics: ended.append(metrics["episodes"]),
    )
    in_lockstep = ended == [4]
    assert in_lockstep == (eval_episodes == 0)


def test_environments_are_not_built_anew_before_each_has_ended_an_episode(staggered):
    config = staggered("Clock-v0", num_envs=4, total_steps=4000)
    assert not sampled(config, 4 * 150)[2]
    assert sampled(config, 4 * 200)[2]


def test_where_no_episode_ends_the_time_given_doubles(staggered):
    config = staggered("EndlessClock-v0", num_envs=4, total_steps=4000)
    with Experience(config, build_learner(config).policy) as experience:
        experience.restart()
        for begun in (0, 100, 1000):
            due = [n for n in range(3000) if experience.is_over(n, begun, 100)]
            assert due[0] == max(500, begun)


class Kill(BaseException):
    """As a kill: no checkpoint is saved for it."""


def test_a_resumed_run_is_the_uninterrupted_one(staggered, tmp_path):
    """Its episodes are longer than the time between checkpoints, so that each waits for their ends."""
    settings = {"env_id": "Clock-v0", "checkpoint_steps": 100, "total_steps": 2560, "eval_episodes": 0}
    whole = train(staggered(**settings), tmp_path / "whole")
    assert 1 < whole.state.checkpoint < 6

    def kill(metrics):
        if metrics["steps"] >= 1600:
            raise Kill

    with pytest.raises(Kill):
        train(staggered(**settings), tmp_path / "part", observer=kill)
    np.testing.assert_array_equal(resume(tmp_path / "part").state.theta, whole.state.theta)
