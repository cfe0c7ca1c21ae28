"""Wrong types in calls of the trainer from Python: one line, before anything is made."""

import gymnasium as gym
import pytest
import tensorflow as tf

from trpo_tf.config.settings import Config, PolicyConfig
from trpo_tf.errors import UserError
from trpo_tf.evaluation.evaluate import evaluate
from trpo_tf.exporting.in_process import in_process
from trpo_tf.exporting.run_bundle import export_run
from trpo_tf.runs.folder import load_run
from trpo_tf.training.train import resume, train

WRONG = {
    "config must be a Config": lambda _: train({"env_id": "CartPole-v1"}),
    "config must be a Config.*not 'CartPole-v1'": lambda _: train("CartPole-v1"),
    "out must be the path": lambda trained: train(trained.run.config, 3),
    "out must be the path.*not 'a.x00b'": lambda trained: train(trained.run.config, "a\0b"),
    "init_from must be the path": lambda trained: train(trained.run.config, init_from=trained.run),
    "observer must be a function": lambda trained: train(trained.run.config, observer="print"),
    "policy_network must be a keras.Model": lambda trained: train(trained.run.config, policy_network="mlp"),
    "the run must be the path of its folder, not None": lambda _: load_run(None),
    "the run must be the path of its folder, not Run": lambda trained: resume(trained.run),
    "run must be a Run": lambda trained: export_run(trained.run.folder, "bundle"),
    "out must be the path of the folder to make, not None": lambda trained: export_run(trained.run, None),
    "targets must be a list of names": lambda trained: export_run(trained.run, "bundle", targets="onnx"),
    "policy must be a serving.Policy: .*in_process": lambda trained: evaluate(trained.run.policy, "CartPole-v1"),
    "environment must be the id of a registered": lambda trained: evaluate(
        in_process(trained.run.policy, "walk"), gym.make("CartPole-v1")
    ),
    "policy must be that of a run, as in in_process": lambda trained: in_process(trained.run, "walk"),
    "episodes must be at least 1": lambda trained: evaluate(in_process(trained.run.policy, "walk"), "x", episodes=-2),
    "episodes must be .* whole number": lambda trained: evaluate(
        in_process(trained.run.policy, "w"), "x", episodes=2.0
    ),
    "seed must be at least 0": lambda trained: evaluate(in_process(trained.run.policy, "walk"), "x", seed=-1),
    "env_id must be the id of a registered environment; gymnasium.register": lambda _: Config(gym.make("CartPole-v1")),
    "total_steps must be of type int, not '1e5'": lambda _: Config("CartPole-v1", total_steps="1e5"),
    "total_steps must be of type int, not 100000.5": lambda _: Config("CartPole-v1", total_steps=100000.5),
    "seed must be of type int, not None": lambda _: Config("CartPole-v1", seed=None),
    "sampling must be of type SamplingConfig": lambda _: Config("CartPole-v1", sampling={"num_envs": 2}),
    "hidden_sizes must be a tuple of int, not 64": lambda _: PolicyConfig(hidden_sizes=64),
    "squash must be of type bool, not 1": lambda _: PolicyConfig(squash=1),
}


@pytest.mark.parametrize("reason", WRONG)
def test_the_argument_is_named(reason, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError if "targets" not in reason else RuntimeError, match=reason) as refused:
        WRONG[reason](trained)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_functions_that_run_eagerly_are_refused(trained, tmp_path):
    tf.config.run_functions_eagerly(True)
    try:
        with pytest.raises(UserError, match="TensorFlow runs functions eagerly"):
            train(trained.run.config, tmp_path / "run", progress=False)
    finally:
        tf.config.run_functions_eagerly(False)
    assert list(tmp_path.iterdir()) == []


def test_a_misspelt_argument_is_named_before_a_folder_is_made(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, meant in {
        "profle": "did you mean profile",
        "num_envs": r"it is a setting: Config.for_env\(..., num_envs=...\)",
        "gamma": "here it is discount",
        "verbose": r"see help\(trpo_tf.train\)",
    }.items():
        with pytest.raises(UserError, match=f"argument '{name}' is unknown; {meant}"):
            train(trained.run.config, "run", **{name: True})
    assert list(tmp_path.iterdir()) == []


def test_paths_may_be_text(trained, tmp_path):
    assert load_run(str(trained.run.folder)).config == trained.run.config
