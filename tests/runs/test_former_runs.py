"""A run and its bundle, written before modules and settings got their present names, still do what they did.

tests/fixtures/former holds both: TRPO on CartPole with networks of eight units, three iterations, periodic evaluation
and a critic memory of two.
"""

import json
import shutil
from pathlib import Path

import numpy as np

import trpo_tf
from tests.support.paths import FORMER
from trpo_tf.serving import load
from trpo_tf.serving.verify import verify


def test_policy_of_a_former_run_is_its_bundle_s() -> None:
    run = trpo_tf.load_run(FORMER / "run")
    observations = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    np.testing.assert_array_equal(
        trpo_tf.in_process(run.policy, "policy").act_batch(observations),
        load(FORMER / "bundle").act_batch(observations),
    )
    assert verify(FORMER / "bundle").golden_cases == 256


def test_former_run_is_evaluated_as_its_summary_says() -> None:
    run = trpo_tf.load_run(FORMER / "run")
    found = trpo_tf.evaluate(trpo_tf.in_process(run.policy, "policy"), "CartPole-v1", episodes=2)
    assert found.mean_return == run.summary["trained"]["mean_return"]


def test_former_run_goes_on_and_is_exported(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(FORMER / "run", folder)
    run = trpo_tf.resume(folder, total_steps=1010, progress=False)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 2, 3, 4]
    assert run.state.steps == lines[-1]["steps"] > 747
    trpo_tf.export_run(run, tmp_path / "bundle", targets=("onnx",), episodes=2)
    assert verify(tmp_path / "bundle").golden_cases == 256
