"""Recurrent policies, from training to the exported bundle: tasks that only a state of their own can hold."""

import keras
import numpy as np
import pytest

from tests.support.training.resuming import whole_and_resumed
from tests.support.training.sampled_states import assert_states_are_those_of_the_update
from trpo_tf.cli.main import main
from trpo_tf.config.settings import VineConfig
from trpo_tf.errors import UserError
from trpo_tf.evaluation.evaluate import evaluate
from trpo_tf.export import GraphForm
from trpo_tf.exporting.run_bundle import export_run, further_outputs
from trpo_tf.learning.learner import build_learner
from trpo_tf.runs.folder import load_run
from trpo_tf.serving import load
from trpo_tf.training.train import train

RECALL, ALTERNATE = "tests.support.environments:Recall-v0", "tests.support.environments:Alternate-v0"


@pytest.fixture(scope="module")
def recalling(small_config, tmp_path_factory):
    """A run whose policy must say what it saw two steps before."""
    config = small_config(RECALL, total_steps=12_288, batch_size=512, max_kl=0.05, memory="gru:12", eval_episodes=20)
    return train(config, tmp_path_factory.mktemp("runs") / "recall")


def test_a_cell_recalls_what_was_seen_two_steps_before(recalling):
    """A policy that does not scores at most 0.9: see `tests/training/test_policies_with_memory.py`."""
    assert recalling.summary["trained"]["mean_return"] > 0.95


def test_its_bundle_acts_in_sessions_as_it_was_evaluated(recalling, tmp_path):
    bundle = tmp_path / "bundle"
    form = GraphForm(outputs=further_outputs(recalling, ["distribution", "value"]))
    export_run(recalling, bundle, episodes=2, form=form)
    policy = load(bundle)
    assert [(spec.name, spec.shape) for spec in policy.manifest.state] == [("hidden", (12,))]
    assert evaluate(policy, RECALL, episodes=5).mean_return > 0.95


@pytest.mark.parametrize(("memory", "names"), [("gru:5", {"hidden"}), ("lstm:5", {"hidden", "cell"})])
def test_the_sampler_s_states_are_those_of_the_update(memory, names, small_config):
    config = small_config(
        "CartPole-v1", total_steps=1000, batch_size=256, num_envs=4, memory=memory, previous_action=True, history=2
    )
    learner = build_learner(config)
    assert_states_are_those_of_the_update(config, learner, names | {"history", "previous_action"})


@pytest.mark.parametrize(
    "settings",
    [
        {"algo": "trpo", "memory": "lstm:4", "time_feature": True, "critic_memory": 2, "fisher_fraction": 0.3},
        {"algo": "ppo", "memory": "gru:4", "history": 2, "previous_action": True},
        {"memory": "lstm:4", "sampler": "vine", "previous_action": True, "fisher": "score-covariance"},
    ],
    ids=["trpo", "ppo", "vine"],
)
def test_a_resumed_run_is_the_uninterrupted_one(settings, small_config, tmp_path):
    vine = {"vine": VineConfig(rollout_states=4, branch_length=3)} if "sampler" in settings else {}
    settings = {"env_id": ALTERNATE, "checkpoint_steps": 64, "eval_episodes": 0, **vine, **settings}
    whole, again = whole_and_resumed(small_config(**settings, total_steps=512), tmp_path)
    np.testing.assert_array_equal(again.state.theta, whole.state.theta)
    np.testing.assert_array_equal(again.state.value_theta, whole.state.value_theta)
    assert not np.array_equal(whole.state.theta, whole.learner.policy.initial_theta())


@pytest.mark.parametrize("memory", ["gru", "gru:0", "gru:-1", "rnn:8", "gru:8.5", "gru:99999", "8", "GRU:8", "gru:8:8"])
def test_other_memories_are_refused(memory, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "CartPole-v1", "--memory", memory])
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert "memory must be gru:N or lstm:N" in told
    assert len(told.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"fisher": "double-backprop"}, "fisher must be gauss-newton or score-covariance"),
        ({"env_id": "tests.support.environments:Signals-picture-v0"}, "the observation 'obs' is an image"),
    ],
)
def test_what_a_cell_can_not_do_is_said_at_once(settings, told, small_config, tmp_path):
    with pytest.raises(UserError, match=told):
        train(small_config(**{"env_id": "CartPole-v1", "memory": "gru:4"} | settings), tmp_path / "run")


def test_a_network_of_one_s_own_sees_the_cell_s_numbers_too(small_config, tmp_path):
    """Its shape is checked; its derivatives are TensorFlow's, and the run is read back."""
    config = small_config("CartPole-v1", total_steps=512, memory="lstm:3", eval_episodes=1)
    wrong = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(UserError, match=r"policy_network doesn't take inputs of shape \(None, 7\)"):
        train(config, tmp_path / "wrong", policy_network=wrong)
    entry = keras.Input((7,))
    both = keras.layers.Concatenate()([entry, keras.layers.Dense(5, "tanh")(entry)])
    run = train(config, tmp_path / "own", policy_network=keras.Model(entry, keras.layers.Dense(2)(both)))
    again = load_run(tmp_path / "own")
    np.testing.assert_array_equal(again.state.theta, run.state.theta)
    assert not np.array_equal(run.state.theta[-63:], run.policy.policy.initial_theta()[-63:])
