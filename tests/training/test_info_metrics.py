"""What environments tell in `info` beside a transition, among the metrics of an iteration."""

import contextlib
import json
import re

import gymnasium as gym
import numpy as np
import pytest

from trpo_tf.cli import main as cli
from trpo_tf.learning.learner import build_learner
from trpo_tf.reporting.run_report import html_report, read_story
from trpo_tf.training.best_policy import PeriodicEvaluation
from trpo_tf.training.train import train

LENGTH = 5


class Telling(gym.Env):
    """Episodes of five steps: step t has reward terms t and -1; every second episode succeeds.

    With `uneven`, episodes after a reset with an odd seed have twelve.
    """

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, tells: bool = True, uneven: bool = False) -> None:
        self._tells, self._uneven, self._episodes, self._length = tells, uneven, 0, LENGTH
        print("a simulator's greeting, which is no JSON")

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None and self._uneven:
            self._length = 12 if seed % 2 else LENGTH
        self._steps, self._episodes = 0, self._episodes + 1
        return np.zeros(1, np.float32), {"is_success": 7.0}

    def step(self, action):
        self._steps += 1
        ended = self._steps == self._length
        told = {
            "reward_goal": float(self._steps),
            "reward_terms": {"control": np.float32(-1)},
            "is_success": np.bool_(self._episodes % 2 == 0),
            "distance": 10 * self._steps,
            "episode": {"r": 3.5, "l": self._steps},
            "note": "text",
            "height": np.array(2.5, np.float32),
            "lost": np.nan,
            "image": np.zeros((2, 2)),
            3: 4,
        }
        told["terms"] = {"whole": told}
        return np.zeros(1, np.float32), 1.0, ended, False, told if self._tells else None


@pytest.fixture(scope="module")
def telling():
    gym.register("Telling-v0", Telling, max_episode_steps=50)
    yield "Telling-v0"
    gym.registry.pop("Telling-v0")


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "with the time"])
def run(request, telling, small_config, tmp_path_factory):
    config = small_config(telling, total_steps=320, eval_episodes=2, time_feature=request.param, stagger=False)
    return train(config, tmp_path_factory.mktemp("telling") / "run", progress=False).folder


@pytest.fixture
def logged(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_numbers_are_means_of_ends_and_reward_terms_of_steps(logged):
    """A row of each environment is five steps and a reset, so that 16 rows do not end with an episode."""
    for number, metrics in enumerate(logged):
        rows = range(16 * number, 16 * number + 16)
        steps = [row % 6 + 1 for row in rows if row % 6 < LENGTH]
        episodes = [row // 6 + 1 for row in rows if row % 6 == LENGTH - 1]
        told = {name: value for name, value in metrics.items() if name.startswith("info/")}
        assert told == {
            "info/3": 4,
            "info/distance": 50,
            "info/episode.l": LENGTH,
            "info/episode.r": 3.5,
            "info/height": 2.5,
            "info/lost": None,
            "info/is_success": pytest.approx(np.mean([episode % 2 == 0 for episode in episodes])),
            "info/reward_goal": pytest.approx(np.mean(steps)),
            "info/reward_terms.control": -1,
        }
    assert len(logged) > 3


def test_an_evaluation_tells_the_same_numbers(run, capsys):
    """Of two episodes with rewards from 1 to 5, the second succeeds."""
    cli.main(["evaluate", str(run), "--episodes", "2", "--json"])
    told = json.loads(capsys.readouterr().out)["info"]
    assert told == json.loads((run / "summary.json").read_text())["trained"]["info"]
    assert (told["is_success"], told["reward_goal"], told["distance"], told["lost"]) == (0.5, 3.0, 50.0, None)
    cli.main(["evaluate", str(run), "--episodes", "2"])
    assert re.search(r"^info/is_success +0\.5$", capsys.readouterr().out, re.MULTILINE)
    page = html_report(read_story(run))
    assert "<td>is_success</td><td>0.5</td><td>0.5</td>" in page
    assert "<figcaption>reward_terms.control" in page


def test_a_periodic_evaluation_counts_each_environment_s_first_episode(telling, small_config):
    """One ends after 5 steps and plays on, the other after 12."""
    config = small_config(telling, env_kwargs='{"uneven": true}', periodic_eval_episodes=2)
    learner = build_learner(config)
    with contextlib.closing(PeriodicEvaluation(config, learner.policy)) as evaluation:
        found = evaluation.run(learner.initial_state(4))[1]
    assert (found["eval_info/is_success"], found["eval_info/distance"]) == (0, (50 + 120) / 2)
    assert found["eval_info/reward_goal"] == pytest.approx((sum(range(6)) + sum(range(13))) / 17)


def test_an_environment_that_tells_nothing_has_no_such_metrics(small_config, tmp_path):
    seen = []
    config = small_config("Silent-v0", env_kwargs='{"tells": false}', max_episode_steps=50)
    train(config, tmp_path / "run", make_env=Telling, observer=seen.append, progress=False)
    gym.registry.pop("Silent-v0")
    assert not [name for metrics in seen for name in metrics if name.startswith("info/")]
    assert seen
