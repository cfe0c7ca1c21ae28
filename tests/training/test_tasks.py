"""Real tasks: trained with their presets, judged by playing the exported bundle."""

import dataclasses
import json
from functools import partial

import keras
import numpy as np
import onnx
import pytest

from trpo_tf import serving
from trpo_tf.config.settings import (
    Config,
    CriticConfig,
    PolicyConfig,
    SamplingConfig,
    VineConfig,
    load_preset,
)
from trpo_tf.evaluation.evaluate import evaluate
from trpo_tf.export import convert_policy
from trpo_tf.exporting.in_process import in_process
from trpo_tf.exporting.run_bundle import export_run
from trpo_tf.training.train import train

pytestmark = pytest.mark.slow

SMALL = {
    "sampling": SamplingConfig(num_envs=32, batch_size=512),
    "policy": PolicyConfig(hidden_sizes=(16,)),
    "critic": CriticConfig(hidden_sizes=(16,)),
}


def logged(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def train_until(goal, config, folder):
    """Train until one of eight periodic evaluations is the goal, or to the end."""

    def look(epoch, logs):
        watcher.model.stop_training = logs["eval_return"] is not None and logs["eval_return"] >= goal

    watcher = keras.callbacks.LambdaCallback(on_epoch_end=look)
    config = dataclasses.replace(config, eval_interval=config.total_steps // 8, periodic_eval_episodes=5)
    return train(config, folder, callbacks=[watcher])


@pytest.mark.parametrize(
    ("env_id", "steps", "goal", "enough"),
    [
        ("CartPole-v1", 50_000, 475.0, np.inf),
        ("Acrobot-v1", 100_000, -100.0, -88.0),
        ("Pendulum-v1", 150_000, -250.0, -200.0),
        ("InvertedPendulum-v5", 100_000, 950.0, 1000.0),
    ],
)
def test_the_preset_solves_the_task(env_id, steps, goal, enough, tmp_path):
    """Cartpole's run goes to its end, annealed; the others end when they have clearly solved it."""
    config = dataclasses.replace(load_preset(env_id, env_id), eval_episodes=0)
    assert config.total_steps <= steps
    run = (train if enough == np.inf else partial(train_until, enough))(config, tmp_path / "run")
    assert run.state.steps <= steps
    export_run(run, tmp_path / "bundle", targets=["onnx"], episodes=2)
    evaluation = evaluate(serving.load(tmp_path / "bundle"), env_id, episodes=20)
    assert evaluation.mean_return >= goal


@pytest.mark.parametrize(
    ("algo", "env_id"),
    [
        *((algo, "Reach-v0") for algo in ("nac", "vpg", "ppo")),
        *((algo, "Walk-v0") for algo in ("nac", "npg", "kl-penalty", "trpo-adaptive")),
    ],
)
def test_an_algorithm_comes_near_the_best_return_that_there_is(algo, env_id, tmp_path):
    """Of numbers, and of a choice whose reward comes after several steps: the best is 0 and 1.

    Each algorithm has the kind of action that no real task below gives it.
    """
    config = Config(f"tests.support.environments:{env_id}", algo=algo, total_steps=10_240, eval_episodes=50, **SMALL)
    summary = train(config, tmp_path / "run").summary
    best = 0.0 if env_id == "Reach-v0" else 1.0
    missing = {when: best - summary[when]["mean_return"] for when in ("untrained", "trained")}
    assert missing["trained"] <= 0.1 * missing["untrained"]


# One real task for each kind of update besides that of the presets: along the gradient, and over minibatches.
@pytest.mark.parametrize("algo", ["vpg", "ppo"])
def test_other_kinds_of_algorithm_solve_cartpole(algo, tmp_path):
    config = dataclasses.replace(load_preset("default", "CartPole-v1"), algo=algo, total_steps=60_000)
    assert train_until(500.0, config, tmp_path / "run").summary["trained"]["mean_return"] >= 475.0


def test_the_vine_solves_cartpole(tmp_path):
    sampling = SamplingConfig(sampler="vine")
    config = Config("CartPole-v1", total_steps=200_000, sampling=sampling)
    assert train_until(500.0, config, tmp_path / "run").summary["trained"]["mean_return"] >= 475.0


# The other kinds: a natural gradient of a fixed size, and a penalty on the divergence.
@pytest.mark.parametrize("algo", ["npg", "kl-penalty"])
def test_other_kinds_of_algorithm_improve_on_pendulum(algo, tmp_path):
    sampling = SamplingConfig(num_envs=32, discount=0.9)
    config = Config("Pendulum-v1", algo=algo, total_steps=150_000, sampling=sampling, eval_episodes=20)
    run = train_until(-500.0, config, tmp_path / "run")
    gain = run.summary["trained"]["mean_return"] - run.summary["untrained"]["mean_return"]
    assert run.state.steps <= 150_000
    assert gain >= 600.0


def test_the_loop_works_on_pixels_and_the_graph_takes_bytes(tmp_path):
    config = load_preset("ALE", "ALE/Pong-v5")
    sampling = dataclasses.replace(config.sampling, num_envs=4, batch_size=256)
    run = train(dataclasses.replace(config, total_steps=512, eval_episodes=0, sampling=sampling), tmp_path / "run")
    assert [metrics["update_status"] for metrics in logged(tmp_path / "run")] == ["accepted", "accepted"]
    policy = in_process(run.policy, "pong")
    (frames,) = policy.manifest.observation
    assert (frames.dtype, frames.shape, frames.low, frames.high) == ("uint8", (4, 84, 84), 0, 255)
    graph = onnx.load_from_string(convert_policy(run.policy.function, run.policy.spec)).graph
    assert {i.name: i.type.tensor_type.elem_type for i in graph.input} == {
        "obs": onnx.TensorProto.UINT8,
        "noise": onnx.TensorProto.FLOAT,
    }
    assert policy.act(np.full((4, 84, 84), 255, np.uint8)) in range(6)
    with pytest.raises(ValueError, match="float32, the policy takes uint8"):
        policy.act(np.ones((4, 84, 84), np.float32))


def test_the_vine_branches_from_pixels(tmp_path):
    config = load_preset("ALE", "ALE/Pong-v5")
    config = dataclasses.replace(
        config,
        total_steps=736,
        eval_episodes=0,
        sampling=dataclasses.replace(config.sampling, sampler="vine", num_envs=4, batch_size=128),
        vine=VineConfig(rollout_states=8, branch_actions=6, branch_length=5),
    )
    run = train(config, tmp_path / "run")
    branch_steps = [
        json.loads(line)["branch_steps"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert branch_steps == [8 * 6 * 5] * 2
    assert run.state.steps == sum(branch_steps) + 128 * 2


def test_the_average_reward_objective_trains_a_task_without_end(tmp_path):
    sampling = SamplingConfig(objective="average", batch_size=1024)
    run = train(Config("tests.support.environments:Ring-v0", total_steps=20_000, sampling=sampling), tmp_path / "run")
    steps = 200
    assert run.summary["untrained"]["mean_return"] / steps < 0.4
    assert run.summary["trained"]["mean_return"] / steps > 0.5


@pytest.mark.parametrize(
    ("env_id", "best"),
    [("EchoDiscrete-v0", 1.0), ("EchoMultiDiscrete-v0", 4.0), ("EchoMultiBinary-v0", 4.0)],
)
def test_every_kind_of_choice_is_learned_and_exported(env_id, best, tmp_path):
    """Observations and actions of one space: the policy must learn to give back what it sees."""
    env_id = f"tests.support.environments:{env_id}"
    config = Config(env_id, total_steps=20_000, eval_episodes=0, sampling=SamplingConfig(batch_size=1024))
    run = train_until(best, config, tmp_path / "run")
    manifest = export_run(run, tmp_path / "bundle", targets=["onnx"], episodes=5)
    evaluation = evaluate(serving.load(tmp_path / "bundle"), config.env_id, episodes=50)
    assert evaluation.mean_return > 0.95 * best
    assert manifest.parity["onnx"]["max_difference"] == 0
