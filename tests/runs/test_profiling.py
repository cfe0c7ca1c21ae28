"""Where an iteration's time goes, in metrics, in the trace and in the table."""

import contextlib
import io
import json
import os
import re
import signal
import time
from collections import Counter
from pathlib import Path

import keras
import pytest
from tensorflow.tsl.profiler.protobuf.xplane_pb2 import XSpace

from tests.support import environments
from trpo_tf.cli import main as cli
from trpo_tf.config.settings import VineConfig
from trpo_tf.support.phase_timer import PHASES, PhaseClock
from trpo_tf.training.train import train

ITERATIONS, BATCH, ENVIRONMENTS = 8, 64, 4
TRACED = 3
SETTINGS = [
    *("train", "tests.support.environments:Ring-v0", "--total-steps", ITERATIONS * BATCH, "--eval-episodes", "0"),
    *("--num-envs", ENVIRONMENTS, "--batch-size", BATCH, "--hidden-sizes", "8", "--critic-hidden-sizes", "8"),
    *("--critic-batch-size", "32", "--policy-batch-size", "32"),
]


def traces(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted(folder.rglob("*.xplane.pb"))


def regions(trace: Path) -> list[Counter]:
    """How often each name occurs, for each thread."""
    space = XSpace.FromString(trace.read_bytes())
    return [
        Counter(plane.event_metadata[event.metadata_id].name for event in line.events)
        for plane in space.planes
        for line in plane.lines
    ]


def logged(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def profiled(tmp_path_factory) -> tuple[Path, str]:
    """A run with a profile, and what it printed."""
    folder = tmp_path_factory.mktemp("profiled") / "run"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        cli.main([*map(str, SETTINGS), "--out", str(folder), "--profile"])
    return folder, printed.getvalue()


def test_the_trace_holds_the_phases_of_three_iterations(profiled):
    folder, _ = profiled
    (trace,) = traces(folder)
    assert trace.relative_to(folder).parts[:3] == ("tensorboard", "plugins", "profile")  # where the viewer looks
    threads = regions(trace)
    (main,) = [counts for counts in threads if counts["physics"]]
    assert main["physics"] == main["acting"] == TRACED * BATCH // ENVIRONMENTS
    assert main["advantages"] == TRACED
    assert main["critic"] == TRACED  # waiting for it
    assert main["update"] >= TRACED  # TensorFlow has a region for the function of that name
    assert sum(counts["critic"] for counts in threads) == 2 * TRACED  # and fitting it, on threads beside


def test_the_table_tells_the_mean_of_each_phase_once_all_is_compiled(profiled):
    folder, printed = profiled
    rows = {
        name: (float(ms), float(percent)) for name, ms, percent in re.findall(r"(\w+) +([\d.]+) +([\d.]+)\n", printed)
    }
    assert tuple(rows) == (*PHASES, "iteration")
    lines = logged(folder)[2:]
    for phase in PHASES:
        assert rows[phase][0] == pytest.approx(1000 * sum(m[f"seconds_{phase}"] for m in lines) / len(lines), abs=0.051)
    whole, percent = rows.pop("iteration")
    assert percent == 100
    assert whole == pytest.approx(sum(ms for ms, _ in rows.values()), abs=0.5)
    assert sum(percent for _, percent in rows.values()) == pytest.approx(100, abs=0.5)
    assert f"tensorboard --logdir {folder}" in printed


def test_a_run_without_leaves_no_trace(trained):
    assert traces(trained.run.folder) == []


def test_a_trace_that_is_interrupted_is_written_and_the_resumed_run_has_its_own(small_config, tmp_path, capfd):
    config = small_config("tests.support.environments:Ring-v0", total_steps=ITERATIONS * BATCH, stagger=False)
    asker = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, _: epoch == 2 and os.kill(os.getpid(), signal.SIGINT)
    )
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(config, folder, callbacks=[asker], profile=True)
    (interrupted,) = traces(folder)
    assert max(counts["advantages"] for counts in regions(interrupted)) == 1
    cli.main(["train", "--resume", str(folder), "--profile"])
    assert "physics" in capfd.readouterr().out
    _, trace = traces(folder)
    assert max(counts["advantages"] for counts in regions(trace)) == TRACED


@pytest.mark.parametrize("sampler", ["single-path", "vine"])
def test_physics_is_the_time_in_environments_and_phases_share_the_iteration(
    sampler, small_config, tmp_path, monkeypatch
):
    nap, step = 0.001, environments.Ring.step
    monkeypatch.setattr(environments.Ring, "step", lambda *given: time.sleep(nap) or step(*given))
    vine = VineConfig(rollout_states=8, branch_length=4)
    branch_steps = 8 * 2 * 4 if sampler == "vine" else 0
    settings = {"vine": vine, "sampler": sampler, "total_steps": BATCH + branch_steps, "eval_episodes": 0}
    run = train(small_config("tests.support.environments:Ring-v0", stagger=False, **settings), tmp_path / "run")
    (metrics,) = logged(run.folder)
    assert metrics["steps"] == BATCH + branch_steps
    assert metrics["seconds_physics"] >= nap * metrics["steps"]
    assert metrics["seconds_acting"] > 0
    assert metrics["seconds_physics"] + metrics["seconds_acting"] < metrics["seconds_sampling"]
    whole = sum(metrics[f"seconds_{phase}"] for phase in PHASES)
    assert whole == pytest.approx(metrics["steps"] / metrics["steps_per_second"])
    assert metrics["seconds_sampling"] < whole < run.state.seconds


def test_the_clock_gives_each_moment_to_the_phase_that_is_on(monkeypatch):
    ticks = iter([0.0, 1.0, 3.0, 7.0, 15.0])
    monkeypatch.setattr("trpo_tf.support.phase_timer.time.perf_counter", lambda: next(ticks))
    clock = PhaseClock()
    for phase in ("acting", "physics", "acting"):
        clock.enter(phase)
    assert clock.stop() == dict.fromkeys(PHASES, 0.0) | {"rest": 1.0, "acting": 2.0 + 8.0, "physics": 4.0}


def test_seconds_of_another_process_are_taken_from_the_present_phase(monkeypatch):
    ticks = iter([0.0, 8.0, 9.0])
    monkeypatch.setattr("trpo_tf.support.phase_timer.time.perf_counter", lambda: next(ticks))
    clock = PhaseClock()
    clock.share({"physics": 5.0, "acting": 2.0})
    assert clock.stop() == dict.fromkeys(PHASES, 0.0) | {"rest": 2.0, "physics": 5.0, "acting": 2.0}
