"""Training with masks of legal actions: the environment fails at an illegal one, so a run that ends chose none."""

import json

import pytest

from trpo_tf.config.settings import EnvironmentConfig, VineConfig
from trpo_tf.evaluation.evaluate import evaluate
from trpo_tf.exporting.in_process import in_process
from trpo_tf.runs.folder import load_run
from trpo_tf.training.train import resume, train

LEGAL = "tests.support.masked_environments:Legal-v0"
SETTINGS = {
    "plain": {},
    "minibatches of sequences": {"memory": "gru:4", "algo": "ppo"},
    "part of the sequences": {"memory": "lstm:4", "fisher_fraction": 0.5},
    "rollouts of sequences": {
        "vine": VineConfig(rollout_states=16, branch_length=3),
        "memory": "gru:4",
        "sampler": "vine",
        "total_steps": 600,
    },
    "a history": {"history": 3, "previous_action": True, "algo": "kl-penalty", "critic_memory": 2},
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_run_its_evaluation_and_its_sequel_choose_legal_actions_alone(kind, small_config, tmp_path):
    kwargs = json.dumps({"source": "info", "counts": [3, 2]})
    environment = EnvironmentConfig(kwargs, action_mask="info")
    config = small_config(LEGAL, environment=environment, eval_episodes=2 * (kind == "plain"), **SETTINGS[kind])
    run = train(config, tmp_path / "run", progress=False)
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {line["update_status"] for line in logged} == {"accepted"}
    policy = in_process(load_run(tmp_path / "run").policy, "policy")
    assert policy.manifest.mask == "action_mask"
    for deterministic in (True, False):
        played = evaluate(policy, run.config.made_environment, episodes=3, deterministic=deterministic)
        assert played.mean_length == 6
    if kind == "plain":
        assert run.summary["trained"]["mean_length"] == 6
        assert resume(tmp_path / "run", total_steps=256, progress=False).state.steps > run.state.steps
