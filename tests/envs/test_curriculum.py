"""Environments that change over a run: what they are told and when, in one process, in workers and in the vine."""

import contextlib
import functools
import json
import os
import re
import signal
import subprocess

import gymnasium as gym
import numpy as np
import pytest

from tests.support.environments import Course
from tests.support.paths import ROOT
from tests.support.training.resuming import whole_and_resumed
from trpo_tf.cli import main as cli
from trpo_tf.config.environment import Environment
from trpo_tf.config.reset_options import options_at
from trpo_tf.config.settings import Config, EnvironmentConfig, VineConfig
from trpo_tf.envs import curriculum
from trpo_tf.envs.make import make_env
from trpo_tf.errors import EnvironmentFailure, UserError
from trpo_tf.learning.learner import build_learner
from trpo_tf.policies.running_stats import Normalizer
from trpo_tf.sampling.sampler import Experience
from trpo_tf.sampling.workers import Workers
from trpo_tf.support.phase_timer import PhaseClock
from trpo_tf.training.train import train

COURSE = "tests.support.environments:Course-v0"
OPTIONS = {"level": {"from": 0, "to": 4}, "range": {"from": [1.0, 1.0], "to": [0.5, 3.0]}}
PROGRESSES = (0.0, 0.25, 0.5)


@pytest.fixture(autouse=True)
def told():
    Course.told.clear()
    return Course.told


@pytest.fixture
def config(small_config):
    return small_config(COURSE, reset_options=OPTIONS, num_envs=4, shards=4, batch_size=32, stagger=False)


learner_for = functools.cache(build_learner)


def sampled(config, workers, before=lambda iteration: None):
    """What three iterations sample, each of 8 steps from an environment, at `PROGRESSES`."""
    learner, collected = learner_for(config), []
    state = learner.initial_state(config.sampling.num_envs)
    with Experience(config, learner.policy, Workers.of(workers, config)) as experience:
        experience.load(state.theta, Normalizer.of(state.observation_moments))
        for iteration, progress in enumerate(PROGRESSES):
            experience.set_progress(progress)
            if iteration == 0:
                experience.restart()
            before(iteration)
            collected.append(experience.collect(np.random.default_rng(iteration), PhaseClock()))
    return collected


@pytest.mark.parametrize(
    ("schedule", "progress", "options"),
    [
        ({"a": {"from": 2.0, "to": 4.0}}, 0.25, {"a": 2.5}),
        ({"a": {"from": 0, "to": 3}}, 0.5, {"a": 2}),
        ({"a": {"from": 0, "to": 3.0}}, 0.5, {"a": 1.5}),
        ({"a": {"from": [0, 1.0], "to": [10, 0.0]}}, 0.1, {"a": [1, 0.9]}),
        ({"a": 3, "b": {"of": [1]}, "c": {"from": 5, "to": 1}}, 1.0, {"a": 3, "b": {"of": [1]}, "c": 1}),
        ({"a": {"b": [7, {"from": 0.0, "to": 1.0}]}}, 0.5, {"a": {"b": [7, 0.5]}}),
    ],
)
def test_options_are_interpolated(schedule, progress, options):
    found = options_at(schedule, progress)
    assert found == options
    assert [type(value) for value in found.values()] == [type(value) for value in options.values()]


def test_steps_and_resets_of_an_iteration_have_its_progress(config):
    """Eight steps of an environment are four, a reset and three, so the second reset of an iteration is in the next."""
    for sample, progress in zip(sampled(config, 0), PROGRESSES, strict=True):
        seen = sample.batch.observation[1:]
        assert (seen[..., 1] == progress).all()
        first = seen[seen[..., 0] == 0]
        np.testing.assert_array_equal(first[:, 2], round(4 * progress))
        np.testing.assert_array_equal(first[:, 3], 1 + 2 * progress)
        assert len(first)


def test_workers_sample_the_same_also_after_one_is_killed(config):
    def kill(iteration):
        if iteration == 2:
            children = ["pgrep", "-P", str(os.getpid()), "-f", "trpo_tf.sampling"]
            os.kill(int(subprocess.check_output(children).split()[0]), signal.SIGKILL)

    with pytest.warns(UserWarning, match="was killed by SIGKILL; a new one repeats"):
        found = sampled(config, 2, kill)
    for (batch, episodes, _), (batch_, episodes_, _) in zip(found, sampled(config, 0), strict=True):
        assert episodes == episodes_
        for array, array_ in zip(batch, batch_, strict=True):
            np.testing.assert_array_equal(array, array_)


def test_trunk_and_rollouts_of_the_vine_have_the_progress(small_config):
    vine = VineConfig(rollout_states=8, branch_length=2)
    config = small_config(COURSE, reset_options=OPTIONS, vine=vine, sampler="vine", batch_size=32, stagger=False)
    for sample, progress in zip(sampled(config, 0), PROGRESSES, strict=True):
        rows = sample.branches.weight > 0
        assert (sample.batch.observation[1:, :, 1] == progress).all()
        assert (sample.branches.final_observation[rows][..., 1] == progress).all()
        if progress == 0:
            np.testing.assert_array_equal(sample.batch.observation[0], [[0, 0, 0, 1]] * 4)


def test_a_resumed_run_is_told_the_same(small_config, tmp_path, told):
    """Evaluations are told 1. A checkpoint after the last iteration makes environments that take no step."""
    config = small_config(COURSE, reset_options=OPTIONS, total_steps=320, checkpoint_steps=64, eval_interval=200)
    whole, resumed = whole_and_resumed(config, tmp_path)
    np.testing.assert_array_equal(whole.state.theta, resumed.state.theta)
    np.testing.assert_array_equal(whole.state.value_theta, resumed.state.value_theta)
    lines = (whole.folder / "metrics.jsonl").read_text().splitlines()
    shares = [0.0, *(json.loads(line)["steps"] / 320 for line in lines)]
    assert {*shares[:-1], 1.0} <= set(told) <= {*shares, 1.0}


def test_whatever_is_no_training_meets_the_end(told):
    with make_env(Environment(COURSE, reset_options=json.dumps(OPTIONS))) as env:
        observation = env.reset(seed=0)[0]
        np.testing.assert_array_equal(observation, [0, 1, 4, 3])
        np.testing.assert_array_equal(env.reset(options={"level": 7})[0], [0, 1, 7, 3])
    assert told == [1.0]


def test_an_exception_of_the_protocol_ends_the_run_with_its_name(small_config, tmp_path):
    config = small_config(COURSE, env_kwargs={"fails_from": 0.3}, eval_episodes=0)
    with pytest.raises(EnvironmentFailure, match=r"Course-v0.*set_options\(0\.[345].*\) raised ArithmeticError"):
        train(config, tmp_path / "run", progress=False)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("{3", "reset_options has arguments that are not JSON"),
        ({"a": {"from": "low", "to": 3}}, "from a number to a number.* a is"),
        ({"a": {"from": [1, 2], "to": [3]}}, "lists of equally many"),
        ({"a": {"from": True, "to": 3}}, "from a number to a number"),
        ({"a": {"from": 0}}, 'with both ends, {"from": A, "to": B}; a is'),
        ({"a": {"from": 0, "to": 1, "by": 2}}, "with both ends.*; a is"),
        ({"a": [1, {"b": {"to": 0}}]}, r"both ends.*; a\.1\.b is"),
    ],
)
def test_a_schedule_that_can_not_be_is_refused(options, reason):
    with pytest.raises(UserError, match=reason):
        EnvironmentConfig(reset_options=options)


@pytest.mark.parametrize(
    ("parameters", "is_told"),
    [("progress", True), ("progress, /, *_, **__", True), ("progress, unit=1", True)]
    + [(other, False) for other in ("options", "progress, unit", "", "*values", "*, progress", "**options")],
)
def test_a_method_of_another_kind_is_left_alone_and_told_of(parameters, is_told):
    made = {"told": None}
    exec(f"def set_options(self, {parameters}):\n    self.told = True", made)
    env = gym.Wrapper(type("Mine", (Course,), {"set_options": made["set_options"], "told": None})())
    curriculum.set_progress(env, 0.5)
    assert env.unwrapped.told is (True if is_told else None)
    with contextlib.nullcontext() if is_told else pytest.warns(UserWarning, match="Mine.set_options is not called"):
        curriculum.warn_of_others(env)


def test_the_wrapper_of_the_page_widens_as_it_says(tmp_path, monkeypatch):
    """The strength of the motor is 10 times a number within 1 +- progress / 2, another in each episode."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/howto/train/curriculum.md").read_text(), re.DOTALL)
    (tmp_path / "any_motor.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    env = make_env(Environment("CartPole-v1", env_wrapper=("any_motor:AnyMotor",)))
    for progress in (0.0, 0.5, 1.0):
        env.env.set_options(progress)
        strengths = [env.reset(seed=seed)[0] is None or env.unwrapped.force_mag for seed in range(50)]
        assert np.ptp(strengths) == pytest.approx(10 * progress, rel=0.15)
        assert abs(np.mean(strengths) - 10) < 1
    env.close()


def test_the_settings_are_those_of_the_command_line_and_of_a_bundle(capsys):
    text = json.dumps(OPTIONS)
    config = cli.parse(["train", "CartPole-v1", "--reset-options", text]).config
    assert config.environment.reset_options == text
    assert Config.from_dict(config.to_dict()) == config
    assert Environment.recorded({"environment": "CartPole-v1", "config": config.to_dict()}) == config.made_environment
