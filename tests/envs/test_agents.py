"""Agents that share a policy: each agent's life is an episode, and nothing of the dead is learnt."""

import json

import numpy as np
import pytest

from trpo_tf.cli import main as cli
from trpo_tf.config.environment import Environment
from trpo_tf.config.settings import VineConfig
from trpo_tf.envs.make import make_env
from trpo_tf.envs.vector.backends import make_vector_env
from trpo_tf.errors import UserError
from trpo_tf.learning.learner import build_learner
from trpo_tf.policies.running_stats import Normalizer
from trpo_tf.runs.folder import load_run
from trpo_tf.sampling.sampler import Experience
from trpo_tf.support.phase_timer import PhaseClock
from trpo_tf.training.train import train

VINE = VineConfig(rollout_states=4, branch_length=2)
MORTAL = "tests.support.agents:Mortal-v0"


@pytest.fixture(scope="module")
def run(small_config, tmp_path_factory):
    config = small_config(
        MORTAL, num_envs=6, batch_size=96, total_steps=3000, max_kl=0.1, eval_interval=1500, eval_episodes=2
    )
    return train(config, tmp_path_factory.mktemp("agents") / "run", progress=False)


def test_rows_are_agents_and_those_of_the_dead_count_for_nothing(small_config):
    """Lives of 2, 3 and 4 steps; the world is reset in the fifth row."""
    config = small_config(MORTAL, num_envs=6, batch_size=6 * 10)
    learner = build_learner(config)
    state = learner.initial_state(6)
    with Experience(config, learner.policy) as experience:
        experience.restart()
        experience.load(state.theta, Normalizer.of(state.observation_moments))
        batch, episodes, _ = experience.collect(np.random.default_rng(0), PhaseClock())
    once = np.array([[1, 1, 1], [1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0]])
    np.testing.assert_array_equal(batch.weight, np.tile(once, (2, 2)))
    live = batch.weight > 0
    np.testing.assert_array_equal(batch.reward[live], (batch.sample * (1 + np.arange(6) % 3))[live])
    assert (batch.reward[~live] == 0).all()
    ends = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0]], bool)
    np.testing.assert_array_equal((batch.terminated & live), np.tile(ends, (2, 2)))
    assert np.argwhere(batch.truncated & live).tolist() == [[3, 2], [3, 5], [8, 2], [8, 5]]
    assert sorted(episodes.lengths) == [2] * 4 + [3] * 4 + [4] * 4
    assert sum(episodes.returns) == batch.reward.sum()
    np.testing.assert_array_equal(batch.observation[:6, 3], [[0, 0], [1, 0], [2, 0], [2, 0], [2, 0], [0, 0]])


def test_one_policy_learns_for_all_agents_and_is_evaluated_as_they_act_in_turn(run, tmp_path, capsys):
    """The best mean return of an agent is (1 x 2 + 2 x 3 + 3 x 4) / 3; a third of the lives succeeds."""
    best = 20 / 3
    assert run.summary["trained"]["mean_return"] == pytest.approx(best)
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["eval_return"] == pytest.approx(best)
    assert json.loads(lines[-1])["info/is_success"] == pytest.approx(1 / 3, abs=0.1)
    cli.main(["record", str(run.folder), "--out", str(tmp_path / "agents.gif"), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert (told["steps"], told["episode_return"]) == (9, pytest.approx(best))
    assert load_run(run.folder).learner.spaces.observation[0].shape == (2,)


def test_arguments_reach_every_world():
    made = Environment(MORTAL, env_kwargs='{"pay": 5.0}')
    envs = make_vector_env(made, 3)
    envs.reset(seed=0)
    assert envs.step(np.ones(3, int))[1].tolist() == [5, 10, 15]
    env = make_env(made)
    env.reset(seed=0)
    assert [env.step(1)[1] for _ in range(3)] == [0, 0, 10]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"num_envs": 4}, "num_envs must be a multiple of 3, .* it is 4"),
        ({"num_envs": 6, "shards": 4}, "num_envs must be a multiple of 3, .* it is 1"),
        ({"num_envs": 3, "max_episode_steps": 5}, "agents that share a policy take no max_episode_steps, .*SuperSuit"),
        ({"num_envs": 3, "history": 2}, "agents that share a policy can't have memory"),
        (
            {"vine": VINE, "num_envs": 3, "sampler": "vine"},
            "the state of AgentsInTurn can't be restored",
        ),
        ({"num_envs": 3, "env_id": "tests.support.agents:Uneven-v0"}, "need one action space: .*pad_action_space_v0"),
    ],
)
def test_what_agents_can_not_have_is_one_line(settings, reason, small_config, tmp_path):
    with pytest.raises(UserError, match=reason):
        train(small_config(**({"env_id": MORTAL} | settings), eval_episodes=0), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
