"""What environments tell in `info` beside a transition, among the metrics of an iteration."""

import json

import gymnasium as gym
import numpy as np
import pytest

from trpo_tf.training.train import train

LENGTH = 5


class Telling(gym.Env):
    """Episodes of five steps: step t has reward terms t and -1; every second episode succeeds."""

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, tells: bool = True) -> None:
        self._tells, self._episodes = tells, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._steps, self._episodes = 0, self._episodes + 1
        return np.zeros(1, np.float32), {"is_success": 7.0}

    def step(self, action):
        self._steps += 1
        ended = self._steps == LENGTH
        told = {
            "reward_goal": float(self._steps),
            "reward_terms": {"control": np.float32(-1)},
            "is_success": np.bool_(self._episodes % 2 == 0),
            "distance": 10 * self._steps,
            "episode": {"r": 3.5, "l": self._steps},
            "note": "text",
            "image": np.zeros((2, 2)),
            3: 4,
        }
        return np.zeros(1, np.float32), 1.0, ended, False, told if self._tells else None


@pytest.fixture(params=[False, True], ids=["plain", "with the time"])
def logged(request, small_config, tmp_path):
    gym.register("Telling-v0", Telling, max_episode_steps=50)
    config = small_config("Telling-v0", total_steps=320, time_feature=request.param, stagger=False)
    train(config, tmp_path / "run", progress=False)
    gym.registry.pop("Telling-v0")
    return [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]


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
            "info/is_success": pytest.approx(np.mean([episode % 2 == 0 for episode in episodes])),
            "info/reward_goal": pytest.approx(np.mean(steps)),
            "info/reward_terms.control": -1,
        }
    assert len(logged) > 3


def test_an_environment_that_tells_nothing_has_no_such_metrics(small_config, tmp_path):
    seen = []
    config = small_config("Silent-v0", env_kwargs='{"tells": false}', max_episode_steps=50)
    train(config, tmp_path / "run", make_env=Telling, observer=seen.append, progress=False)
    gym.registry.pop("Silent-v0")
    assert not [name for metrics in seen for name in metrics if name.startswith("info/")]
    assert seen
