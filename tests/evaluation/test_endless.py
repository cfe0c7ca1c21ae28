"""Environments whose episodes do not end: evaluations are bounded, say so, show where they are, and can be stopped."""

import contextlib
import json
import os
import signal
import time

import pytest

from tests.support.environments import Endless
from tests.support.processes import command_line
from trpo_tf.cli.main import main
from trpo_tf.evaluation.evaluate import longest_episode
from trpo_tf.exporting.run_bundle import export_run
from trpo_tf.training.train import train

ENDLESS = "tests.support.environments:Endless-v0"
SETTINGS = ("--preset", "default", "--total-steps", "4096", "--num-envs", "4", "--batch-size", "512")


@pytest.fixture(scope="module")
def run(small_config, tmp_path_factory):
    Endless.steps = 0
    return train(small_config(ENDLESS, total_steps=400, eval_episodes=2), tmp_path_factory.mktemp("runs") / "run")


def test_an_evaluation_takes_no_more_steps_than_training_and_says_what_it_cut(run):
    assert Endless.steps <= 3 * 400 + 4  # and one for each environment that is built anew
    for stage in ("untrained", "trained"):
        evaluation = run.summary[stage]
        assert (evaluation["episodes_cut"], evaluation["longest_episode"]) == (2, 200)
        assert evaluation["mean_length"] is None


def test_the_commands_say_it_too(run, tmp_path, capsys):
    main(["evaluate", str(run.folder), "--episodes", "5"])
    out = capsys.readouterr().out
    assert "5 of 5 episodes did not end within 80 steps and were cut there" in out
    export_run(run, tmp_path / "bundle", targets=["onnx"], episodes=1)
    for source in (run.folder, tmp_path / "bundle"):
        main(["evaluate", str(source), "--episodes", "4", "--longest-episode", "7", "--json"])
        assert json.loads(capsys.readouterr().out)["longest_episode"] == 7
    main(["evaluate", str(tmp_path / "bundle"), "--episodes", "4", "--json"])
    assert json.loads(capsys.readouterr().out)["longest_episode"] == 100


def test_periodic_evaluations_take_no_more_steps_than_training(small_config, tmp_path):
    config = small_config(ENDLESS, total_steps=640, eval_interval=128, periodic_eval_episodes=4)
    metrics = []
    run = train(config, tmp_path / "run", observer=metrics.append)
    assert 0 < run.summary["eval_steps"] <= 640
    assert {entry["eval_episodes_cut"] for entry in metrics if entry["eval_return"] is not None} == {4}


@pytest.mark.parametrize(
    ("env_id", "steps"),
    [("Endless-v0", 50), ("NearlyEndless-v0", 1000), ("Thousand-v0", 1000), ("Walk-v0", 50)],
)
def test_a_limit_of_a_thousand_steps_is_played_whole_and_a_longer_one_is_not(env_id, steps):
    assert longest_episode(f"tests.support.environments:{env_id}", 1000, 20) == steps


def start(folder, *arguments):
    return command_line.start(folder, *arguments, environment={**os.environ, "ENDLESS_SECONDS": "0.004"})


def stop_when(process, text, number):
    """Send the signal once `text` is on standard error: exit status, what came after, and how long that took."""
    try:
        for line in process.stderr:
            if text in line:
                break
        sent = time.monotonic()
        process.send_signal(number)
        _, rest = process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    return process.returncode, rest, time.monotonic() - sent


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_first_signal_stops_the_evaluation_before_training(number, tmp_path):
    status, rest, seconds = stop_when(
        start(tmp_path, "train", ENDLESS, *SETTINGS, "--out", "run"), "evaluating: ", number
    )
    assert status == 130
    assert "stopped after 0 steps; go on with --resume run" in rest
    assert seconds < 20
    assert (tmp_path / "run" / "checkpoints").is_dir()


def test_a_first_signal_stops_a_periodic_evaluation(tmp_path):
    trials = ("--eval-episodes", "0", "--eval-interval", "1000", "--periodic-eval-episodes", "4")
    status, rest, _ = stop_when(
        start(tmp_path, "train", ENDLESS, *SETTINGS, *trials, "--out", "run"),
        "periodic evaluation: 0 of 4 episodes",
        signal.SIGTERM,
    )
    assert status == 130
    assert "steps; go on with --resume run" in rest


def test_a_first_signal_stops_the_evaluation_after_training_which_resuming_does_again(tmp_path):
    settings = (*SETTINGS[:3], "1024", *SETTINGS[4:])
    process = start(tmp_path, "train", ENDLESS, *settings, "--eval-episodes", "1", "--out", "run")
    for line in process.stderr:
        if "1,024 of 1,024 steps" in line or "4 environments" in line:
            break
    status, rest, _ = stop_when(process, "evaluating: 0 of 1 episodes", signal.SIGINT)
    assert status == 130
    assert "stopped after 1,024 steps" in rest
    resumed = start(tmp_path, "train", "--resume", "run")
    resumed.communicate(timeout=100)
    assert resumed.returncode == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["steps"], summary["trained"]["episodes_cut"]) == (1024, 1)
