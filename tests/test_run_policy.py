"""A run's policy acts where neither its environment nor its critic can be had."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from trpo_tf.envs.make import make_env
from trpo_tf.envs.spaces import Spaces
from trpo_tf.errors import UserError
from trpo_tf.exporting.in_process import in_process
from trpo_tf.runs.folder import load_run

ROOT = Path(__file__).parents[1]
ACT = """
import json, sys
import numpy as np
import trpo_tf
policy = trpo_tf.in_process(trpo_tf.load_run(sys.argv[1]).policy, "walk")
print(json.dumps(policy.act_batch(np.array([[1, 1], [3, -1]], np.float32)).tolist()))
"""


def test_a_policy_acts_without_its_environment_and_its_critic(trained, tmp_path):
    folder = shutil.copytree(trained.run.folder, tmp_path / "run")
    (folder / "value_network.json").unlink()
    done = subprocess.run(
        [sys.executable, "-c", ACT, folder],
        env={**os.environ, "PYTHONPATH": str(ROOT)},  # where the module of the environment is not
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    expected = in_process(trained.run.policy, "walk").act_batch(np.array([[1, 1], [3, -1]], np.float32))
    assert json.loads(done.stdout) == expected.tolist()
    with pytest.raises(UserError, match=r"value_network.json can't be read"):
        load_run(folder).learner  # noqa: B018


@pytest.mark.parametrize("name", ["Walk", "Reach", "IntegerWalk"])
def test_spaces_come_back(name):
    env = make_env(f"environments:{name}-v0")
    spaces = Spaces.of(env)
    env.close()
    assert Spaces.from_json(spaces.to_json()) == spaces


def test_spaces_of_many_kinds_and_endless_bounds_come_back():
    class Everything(gym.Env):
        observation_space = gym.spaces.Dict(
            camera=gym.spaces.Box(0, 255, (16, 16, 3), np.uint8),
            choice=gym.spaces.Discrete(3, start=2),
            several=gym.spaces.MultiDiscrete([2, 3]),
            bits=gym.spaces.MultiBinary(4),
            numbers=gym.spaces.Box(np.array([-np.inf, 0.0]), np.array([1.0, np.inf]), dtype=np.float64),
        )
        action_space = gym.spaces.Box(-np.inf, np.inf, (2,))

    spaces = Spaces.of(Everything())
    assert dict(zip([spec.name for spec in spaces.observation], spaces.kinds, strict=True)) == {
        **{"bits": "MultiBinary", "camera": "Box", "choice": "Discrete", "numbers": "Box", "several": "MultiDiscrete"},
    }
    assert Spaces.from_json(spaces.to_json()) == spaces


def test_a_damaged_file_of_spaces_is_named(trained, tmp_path):
    folder = shutil.copytree(trained.run.folder, tmp_path / "run")
    (folder / "spaces.json").write_text("{}")
    with pytest.raises(UserError, match=r"spaces.json can't be read: 'observation'; restore it, or train again"):
        load_run(folder)
