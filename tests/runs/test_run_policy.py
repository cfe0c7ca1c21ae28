"""A run's policy acts where neither its environment nor its critic can be had."""

import pickle
import re
import shutil

import gymnasium as gym
import numpy as np
import pytest

from trpo_tf.envs.make import make_env
from trpo_tf.envs.spaces import Spaces
from trpo_tf.errors import UserError
from trpo_tf.exporting.in_process import converted, in_process
from trpo_tf.reporting.run_report import read_story
from trpo_tf.runs.folder import load_run
from trpo_tf.serving import Manifest


def test_a_policy_acts_without_its_environment_and_its_critic(trained, tmp_path):
    folder = shutil.copytree(trained.run.folder, tmp_path / "run")
    (folder / "value_network.json").unlink()
    config = folder / "config.toml"
    config.write_text(re.sub('env_id = ".*"', 'env_id = "a_module_that_is_gone:Walk-v0"', config.read_text()))
    run, observations = load_run(folder), np.array([[1, 1], [3, -1]], np.float32)
    actions = in_process(run.policy, "walk").act_batch(observations)
    np.testing.assert_array_equal(actions, in_process(trained.run.policy, "walk").act_batch(observations))
    with pytest.raises(UserError, match=r"value_network.json can't be read"):
        run.learner  # noqa: B018
    shutil.copy(trained.run.folder / "value_network.json", folder)
    with pytest.raises(UserError, match="a_module_that_is_gone"):
        run.learner  # noqa: B018


def test_the_manifest_of_an_environment_with_a_namespace_can_be_read(trained):
    """As a video's process reads it."""
    _, manifest = converted(trained.run.policy, "shimmy:dm_control/walker-v0")
    assert Manifest.from_json(manifest.to_json()).name == "dm_control-walker-v0"


@pytest.mark.parametrize("name", ["Walk", "Reach", "IntegerWalk"])
def test_spaces_come_back(name):
    env = make_env(f"tests.support.environments:{name}-v0")
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


@pytest.mark.parametrize("content", [b"", b"\0" * 8, b'{"trained": ', b"[1]", b"\xff"])
def test_a_damaged_summary_is_named(content, trained, tmp_path):
    folder = shutil.copytree(trained.run.folder, tmp_path / "run")
    (folder / "summary.json").write_bytes(content)
    for read in (load_run, read_story):
        with pytest.raises(UserError, match=r"summary.json can't be read: .*; remove it, or restore it"):
            read(folder)


def test_a_run_is_pickled_as_its_folder(trained):
    again = pickle.loads(pickle.dumps(trained.run))
    assert again.summary == trained.run.summary
    assert (again.state.theta == trained.run.state.theta).all()


def test_a_damaged_file_of_spaces_is_named(trained, tmp_path):
    folder = shutil.copytree(trained.run.folder, tmp_path / "run")
    (folder / "spaces.json").write_text("{}")
    with pytest.raises(UserError, match=r"spaces.json can't be read: 'observation'; restore it, or train again"):
        load_run(folder)
