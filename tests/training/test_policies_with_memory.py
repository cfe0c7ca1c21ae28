"""Policies with memory, from training to the exported bundle: tasks that can't be done without it."""

import dataclasses
import json

import numpy as np
import pytest

from tests.support.training.resuming import whole_and_resumed
from trpo_tf.cli.main import main
from trpo_tf.config.settings import VineConfig
from trpo_tf.evaluation.evaluate import evaluate
from trpo_tf.evaluation.latency import ACT, BARE, callers
from trpo_tf.exporting.in_process import in_process
from trpo_tf.exporting.provenance import statistics
from trpo_tf.exporting.run_bundle import export_run, further_outputs
from trpo_tf.serving import load
from trpo_tf.training.best_policy import FIRST_SEED, PeriodicEvaluation
from trpo_tf.training.train import train

RECALL, ALTERNATE = "tests.support.environments:Recall-v0", "tests.support.environments:Alternate-v0"
ALL = {"history": 3, "previous_action": True, "time_feature": True}


@pytest.fixture(scope="module")
def alternating(small_config, tmp_path_factory):
    """A run whose policy must know its previous action, evaluated from time to time."""
    config = small_config(
        ALTERNATE,
        total_steps=6144,
        batch_size=512,
        max_kl=0.05,
        previous_action=True,
        eval_interval=3072,
        eval_episodes=2,
    )
    return train(config, tmp_path_factory.mktemp("runs") / "alternate")


def test_the_previous_action_is_seen_in_training_and_in_evaluations(alternating, small_config, tmp_path):
    """Without it the best that a deterministic policy can have is the first step's 1 of 10."""
    assert alternating.summary["trained"]["mean_return"] == 10
    assert alternating.state.best.mean_return == 10
    blind = train(
        small_config(ALTERNATE, total_steps=2048, batch_size=512, max_kl=0.05, eval_episodes=2), tmp_path / "blind"
    )
    assert blind.summary["trained"]["mean_return"] == 1


def test_a_history_recalls_what_was_seen_two_steps_before(small_config, tmp_path):
    settings = {"env_id": RECALL, "total_steps": 6144, "batch_size": 512, "max_kl": 0.05, "eval_episodes": 20}
    run = train(small_config(**settings, history=3), tmp_path / "recall")
    assert run.summary["trained"]["mean_return"] == 1
    forgetful = train(small_config(**settings, history=2), tmp_path / "forgetful")
    assert 0.1 < forgetful.summary["trained"]["mean_return"] < 0.9


@pytest.mark.parametrize("sampler", ["single-path", "vine"])
def test_a_resumed_run_is_the_uninterrupted_one(sampler, small_config, tmp_path):
    """Environments start anew at a checkpoint, and memories with them; the critic's earlier batches are saved."""
    vine = {"vine": VineConfig(rollout_states=4, branch_length=3), "sampler": "vine"} if sampler == "vine" else {}
    settings = {"env_id": ALTERNATE, "checkpoint_steps": 64, "eval_episodes": 0, "critic_memory": 2, **vine, **ALL}
    whole, again = whole_and_resumed(small_config(**settings, total_steps=512), tmp_path)
    np.testing.assert_array_equal(again.state.theta, whole.state.theta)
    np.testing.assert_array_equal(again.state.value_theta, whole.state.value_theta)


def test_its_bundle_acts_in_sessions_as_it_was_evaluated(alternating, tmp_path, capsys):
    bundle = tmp_path / "bundle"
    export_run(alternating, bundle, episodes=2)
    policy = load(bundle)
    assert [spec.name for spec in policy.manifest.observation] == ["obs"]
    assert [spec.name for spec in policy.manifest.state] == ["previous_action"]
    nothing = np.zeros(1, np.float32)
    first, second = policy.start(), policy.start()
    actions = [int(first.act(nothing)) for _ in range(4)]
    assert actions in ([0, 1, 0, 1], [1, 0, 1, 0])
    assert int(second.act(nothing)) == actions[0]
    first.reset()
    assert int(first.act(nothing)) == actions[0]
    assert evaluate(policy, ALTERNATE, episodes=2).mean_return == 10
    for command in (
        ["evaluate", str(bundle), "--episodes", "2", "--json"],
        ["evaluate", str(alternating.folder), "--json"],
    ):
        main(command)
        assert json.loads(capsys.readouterr().out)["mean_return"] == 10
    calls = callers(bundle)
    assert {ACT, BARE, "TensorFlow SavedModel"} <= set(calls)
    for call in calls.values():
        call()
    main(["predict", str(bundle), "--observation", "[0.0]"])
    assert json.loads(capsys.readouterr().out) == actions[0]


def test_further_outputs_are_of_what_the_network_sees(alternating):
    """Its logits and its value change with the previous action, while the observation is always the same."""
    nothing, reset, noise = np.zeros((2, 1), np.float32), np.zeros(2, bool), np.zeros((2, 2), np.float32)
    outputs = further_outputs(alternating, ["distribution", "value"])
    found = {
        name: output(nothing, {"previous_action": np.eye(2, dtype=np.float32)}, reset, noise).numpy()
        for name, output in outputs.items()
    }
    np.testing.assert_array_equal(found["logits"].argmax(axis=1), [1, 0])
    assert found["value"][0] != found["value"][1]


@pytest.fixture(scope="module")
def swinging(small_config, tmp_path_factory):
    """A run with every kind of memory."""
    config = small_config("Pendulum-v1", total_steps=2048, batch_size=512, max_episode_steps=40, **ALL)
    return train(config, tmp_path_factory.mktemp("runs") / "pendulum")


def test_statistics_are_those_of_the_newest_observation(swinging):
    found = statistics(swinging)
    assert set(found) == {"obs"}
    means = swinging.learner.policy.encoder.by_part(swinging.state.observation_moments.mean)
    assert found["obs"].mean == tuple(means["obs"].reshape(3, 3)[-1].tolist())


def test_a_periodic_evaluation_plays_what_a_session_plays(swinging):
    """Its episodes, side by side, have the same returns as a session's, one after the other."""
    config = dataclasses.replace(swinging.config, eval_interval=1024, periodic_eval_episodes=3)
    evaluation = PeriodicEvaluation(config, swinging.learner.policy)
    _, found = evaluation.run(swinging.state)
    evaluation.close()
    policy = in_process(swinging.policy, "policy")
    played = evaluate(policy, config.made_environment, episodes=3, seed=FIRST_SEED)
    assert found["eval_return"] == pytest.approx(played.mean_return, rel=1e-4)
