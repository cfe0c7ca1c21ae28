"""The steps left as an observation: counted right, the end of the task, and of use to who learns and who acts."""

import json

import gymnasium as gym
import numpy as np
import pytest

from trpo_tf.cli.main import main
from trpo_tf.envs.make import make_env
from trpo_tf.envs.remaining_time import LOG_STEPS_LEFT
from trpo_tf.envs.spaces import observation_kinds, observation_spec
from trpo_tf.errors import UserError
from trpo_tf.evaluation.evaluate import evaluate
from trpo_tf.exporting.in_process import in_process
from trpo_tf.exporting.run_bundle import export_run
from trpo_tf.learning.learner import build_learner
from trpo_tf.policies.encoders import make_encoder
from trpo_tf.policies.policy import Policy, TrainedPolicy
from trpo_tf.policies.running_stats import Normalizer
from trpo_tf.sampling.sampler import Experience
from trpo_tf.serving import load
from trpo_tf.support.phase_timer import PhaseClock
from trpo_tf.training.train import resume, train

DEADLINE = "tests.support.environments:Deadline-v0"


def collected(config):
    """One batch as training samples it, and what branches off it if the sampler is the vine."""
    learner = build_learner(config)
    state = learner.initial_state(config.sampling.num_envs)
    with Experience(config, learner.policy) as experience:
        experience.restart()
        experience.load(state.theta, Normalizer.of(state.observation_moments))
        return experience.collect(np.random.default_rng(0), PhaseClock())


def steps_left(observation):
    return np.expm1(np.asarray(observation[LOG_STEPS_LEFT], np.float64))[..., 0]


def test_an_environment_that_counts_its_steps_agrees(small_config):
    """Of five; the walk's own observation is how many it has taken, and its place, which is its end at 3."""
    batch, episodes, _ = collected(small_config(time_feature=True, stagger=False))
    taken, place = np.moveaxis(batch.observation["obs"], -1, 0)
    np.testing.assert_allclose(steps_left(batch.observation), 5 - taken, atol=1e-5)
    counted = batch.weight > 0
    np.testing.assert_array_equal(batch.terminated[counted], ((taken == 5) | (place == 3))[1:][counted])
    assert not batch.truncated.any()
    assert set(episodes.lengths) == {3, 5}


@pytest.mark.parametrize(
    ("env_id", "backend", "limit"),
    [
        ("Reacher-v5", "gymnasium", 50),
        ("Reacher-v5", "envpool", 50),
        ("CartPole-v1", "gymnasium", 500),
        ("CartPole-v1", "envpool", 500),
    ],
)
def test_each_backend_counts_down_from_the_limit_in_every_episode(env_id, backend, limit, small_config):
    """CartPole falls long before its limit, and Reacher never ends but at it."""
    batch, episodes, _ = collected(
        small_config(env_id, total_steps=520, batch_size=520, env_backend=backend, time_feature=True, stagger=False)
    )
    left, counted = steps_left(batch.observation), batch.weight > 0
    for i in range(4):
        expected, ended = float(limit), False
        for t in np.flatnonzero(counted[:, i]):
            expected = float(limit) if ended else expected
            assert left[t, i] == pytest.approx(expected, abs=1e-3)
            ended = batch.terminated[t, i]
            expected -= 1
            assert left[t + 1, i] == pytest.approx(expected, abs=1e-3)
            assert not batch.truncated[t, i]
    assert set(episodes.lengths) == {50} if limit == 50 else max(episodes.lengths) < 200
    assert len(episodes.lengths) >= 8


def test_a_rollout_of_the_vine_goes_on_from_its_state_s_time(small_config):
    config = small_config("Pendulum-v1", total_steps=20_000, batch_size=800, sampler="vine", time_feature=True)
    _, _, branches = collected(config)
    real = branches.weight > 0
    begun, ended = steps_left(branches.observation)[real], steps_left(branches.final_observation)[real]
    np.testing.assert_allclose(ended, begun[:, None] - branches.length[real], atol=1e-3)
    at_limit = np.isclose(ended, 0, atol=1e-3)
    assert 0 < at_limit.sum() < at_limit.size
    np.testing.assert_array_equal(branches.terminated[real], at_limit)


@pytest.fixture(scope="module")
def on_time(small_config, tmp_path_factory):
    """A run that learns when to act from nothing but the steps left."""
    config = small_config(
        DEADLINE, total_steps=8192, batch_size=512, max_kl=0.05, time_feature=True, eval_interval=4096, eval_episodes=2
    )
    return train(config, tmp_path_factory.mktemp("runs") / "deadline")


def test_a_policy_acts_when_the_time_has_come(on_time, small_config, tmp_path, capsys):
    """To act in the last three steps of ten pays 3; who can't see the time does best to do nothing."""
    assert on_time.summary["trained"]["mean_return"] == 3
    assert on_time.state.best.mean_return == 3

    blind = train(
        small_config(DEADLINE, total_steps=8192, batch_size=512, max_kl=0.05, eval_episodes=2), tmp_path / "blind"
    )
    assert blind.summary["trained"]["mean_return"] == 0

    main(["evaluate", str(on_time.folder), "--episodes", "2", "--json"])
    assert json.loads(capsys.readouterr().out)["mean_return"] == 3


def test_its_bundle_counts_the_steps_itself(on_time, tmp_path):
    """Beyond the limit no time is left; a reset gives it all again."""
    export_run(on_time, tmp_path / "bundle", episodes=2)
    policy = load(tmp_path / "bundle")
    assert [spec.name for spec in policy.manifest.observation] == ["obs"]
    session, nothing = policy.start(), np.zeros(1, np.float32)
    assert [int(session.act(nothing)) for _ in range(13)] == [0] * 7 + [1] * 6
    assert session.state["steps"] == 10
    session.reset()
    assert [int(session.act(nothing)) for _ in range(8)] == [0] * 7 + [1]
    assert evaluate(policy, DEADLINE, episodes=2).mean_return == 3


def former(run):
    """The run's policy as it was before policies had state: the same weights, and the time as an input."""
    env = make_env(DEADLINE, time_feature=True)
    kinds, specs = observation_kinds(env.observation_space), observation_spec(env.observation_space)
    env.close()
    now = run.functions
    encoder = make_encoder(kinds, specs, normalize=True, least_deviation=run.config.sampling.least_deviation)
    policy = Policy(encoder, now.network.network, now.head, specs, now.spec.action)
    return TrainedPolicy(policy, run.state.theta, encoder.normalizer(run.state.observation_moments))


def test_a_policy_of_a_former_release_is_given_the_time_as_an_input(on_time):
    """So it is evaluated as ever, and its weights are the same policy in a run of this release."""
    policy = in_process(former(on_time), "former")
    assert {spec.name for spec in policy.manifest.observation} == {"obs", LOG_STEPS_LEFT}
    left = np.log1p(np.arange(10, 0, -1)[:, np.newaxis], dtype=np.float32)
    acted = policy.act_batch({"obs": np.zeros((10, 1), np.float32), LOG_STEPS_LEFT: left})
    np.testing.assert_array_equal(acted, [0] * 7 + [1] * 3)
    assert evaluate(policy, DEADLINE, episodes=2).mean_return == 3


def test_a_resumed_run_is_the_uninterrupted_one(small_config, tmp_path):
    """Environments start anew with a checkpoint, and their clocks with them."""
    settings = {"env_id": DEADLINE, "checkpoint_steps": 64, "eval_episodes": 0, "time_feature": True}
    whole = train(small_config(**settings, total_steps=256), tmp_path / "whole")

    class Stop(BaseException):
        """As a kill: no checkpoint is saved for it."""

    def stop(metrics):
        if metrics["steps"] >= 128:
            raise Stop

    with pytest.raises(Stop):
        train(small_config(**settings, total_steps=256), tmp_path / "part", observer=stop)
    np.testing.assert_array_equal(resume(tmp_path / "part").state.theta, whole.state.theta)


def test_what_can_t_be_is_said_in_a_line(small_config):
    with pytest.raises(UserError, match=r"time_feature must be off: the environment has no time limit"):
        build_learner(small_config("tests.support.environments:Signals-dict-v0", time_feature=True))
    with pytest.raises(UserError, match="objective must be discounted"):
        small_config(time_feature=True, objective="average")
    clocked = gym.spaces.Dict({LOG_STEPS_LEFT: gym.spaces.Box(0, 1, (1,)), "place": gym.spaces.Discrete(3)})
    gym.register("Clocked-v0", lambda: Fixed(clocked), max_episode_steps=5)
    with pytest.raises(UserError, match=r"has an observation 'log_steps_left', which is the name of an array"):
        build_learner(small_config("Clocked-v0", time_feature=True))


@pytest.mark.parametrize("form", ["dict", "tuple"])
def test_an_observation_of_several_parts_keeps_them(form):
    env = make_env(
        f"tests.support.environments:Signals-{form}-v0", time_feature=True, max_episode_steps=5, checked=False
    )
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    assert (
        set(env.observation_space)
        == {"dict": {"arm", "choice", LOG_STEPS_LEFT}, "tuple": {"obs", LOG_STEPS_LEFT}}[form]
    )
    env.close()


class Fixed(gym.Env):
    """Nothing but spaces."""

    def __init__(self, observation_space):
        self.observation_space, self.action_space = observation_space, gym.spaces.Discrete(2)
