"""Real tasks: trained with their presets, judged by playing the exported bundle."""

import dataclasses

import pytest

import serving
from trpo_tf.config import Config, SamplingConfig, load_preset
from trpo_tf.evaluation import evaluate
from trpo_tf.exporting import export_run
from trpo_tf.training import train

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("env_id", "steps", "goal"),
    [
        ("CartPole-v1", 50_000, 475.0),
        ("Acrobot-v1", 100_000, -100.0),
        ("Pendulum-v1", 150_000, -250.0),
        ("InvertedPendulum-v5", 100_000, 950.0),
    ],
)
@pytest.mark.parametrize("seed", [0])
def test_the_preset_solves_the_task(env_id, steps, goal, seed, tmp_path):
    config = load_preset(env_id, env_id)
    assert config.total_steps <= steps
    run = train(dataclasses.replace(config, seed=seed, eval_episodes=0), tmp_path / "run")
    assert run.state.steps <= steps
    export_run(run, tmp_path / "bundle")
    evaluation = evaluate(serving.load(tmp_path / "bundle"), env_id, episodes=20)
    assert evaluation.mean_return >= goal


def test_the_average_reward_objective_trains_a_task_without_end(tmp_path):
    sampling = SamplingConfig(objective="average", batch_size=1024)
    run = train(Config("environments:Ring-v0", total_steps=20_000, sampling=sampling), tmp_path / "run")
    steps = 200
    assert run.summary["untrained"]["mean_return"] / steps < 0.4
    assert run.summary["trained"]["mean_return"] / steps > 0.5


@pytest.mark.parametrize(
    ("env_id", "best"),
    [("EchoDiscrete-v0", 1.0), ("EchoMultiDiscrete-v0", 4.0), ("EchoMultiBinary-v0", 4.0)],
)
def test_every_kind_of_choice_is_learned_and_exported(env_id, best, tmp_path):
    """Observations and actions of one space: the policy must learn to give back what it sees."""
    config = Config(
        f"environments:{env_id}", total_steps=30_000, eval_episodes=0, sampling=SamplingConfig(batch_size=1024)
    )
    run = train(config, tmp_path / "run")
    manifest = export_run(run, tmp_path / "bundle")
    evaluation = evaluate(serving.load(tmp_path / "bundle"), config.env_id, episodes=50)
    assert evaluation.mean_return > 0.95 * best
    assert manifest.parity["policy.onnx"]["max_difference"] == 0
