"""Real processes, killed for real: a resumed run ends where an uninterrupted one does, to the bit."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.processes import command_line
from tests.support.processes.command_line import Command, wait_until
from trpo_tf.runs.checkpoints import load_checkpoint
from trpo_tf.support.graceful_stop import raise_if_interrupted, remembered_interrupts

ITERATIONS = 40
SETTINGS = [
    *("CartPole-v1", "--num-envs", "2", "--batch-size", "64", "--total-steps", str(64 * ITERATIONS)),
    *("--checkpoint-steps", "300", "--eval-episodes", "0", "--hidden-sizes", "8", "--critic-hidden-sizes", "8"),
    *("--critic-batch-size", "32", "--critic-epochs", "2", "--critic-memory", "3", "--policy-batch-size", "32"),
    *("--eval-interval", "150", "--periodic-eval-episodes", "3"),
]
PATIENCE = 300


def start(folder: Path, *arguments: str) -> Command:
    return command_line.start(folder, "train", *arguments)


def finish(process: Command) -> tuple[int, str]:
    """Exit status and stderr."""
    _, err = process.communicate(timeout=PATIENCE)
    return process.returncode, err


def iterations(run: Path) -> list[int]:
    path = run / "metrics.jsonl"
    whole = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line)["iteration"] for line in whole]


def kill_when(process: Command, reached) -> None:
    wait_until(process, reached)
    process.send_signal(signal.SIGKILL)
    assert finish(process)[0] == -signal.SIGKILL


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    status, err = finish(start(folder, *SETTINGS, "--out", "run"))
    assert status == 0, err
    return folder / "run"


def same_weights(one: Path, other: Path) -> None:
    """And moments of optimiser and normalisers, and counters; all but the time it took."""
    a, b = (load_checkpoint(run / "checkpoints").to_arrays() for run in (one, other))
    counters = [json.loads(arrays.pop("counters").tobytes()) for arrays in (a, b)]
    for values in counters:
        del values["seconds"]
    assert counters[0] == counters[1]
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].tobytes() == b[name].tobytes(), name
    assert any(name.startswith("adam.") for name in a)


def metrics(run: Path) -> list[dict]:
    """Without times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if "second" not in name} for line in lines]


def test_a_run_killed_twice_ends_with_the_same_weights(uninterrupted, tmp_path):
    run = tmp_path / "run"
    process = start(tmp_path, *SETTINGS, "--out", "run")
    kill_when(process, lambda: (run / "checkpoints").exists())  # before the first iteration
    assert iterations(run) == []
    process = start(tmp_path, "--resume", "run")
    kill_when(process, lambda: 25 in iterations(run))
    assert max(iterations(run)) < ITERATIONS - 5
    status, err = finish(start(tmp_path, "--resume", "run"))
    assert status == 0, err

    done = len(iterations(uninterrupted))
    assert done > ITERATIONS - 5
    assert iterations(run) == list(range(1, done + 1))
    same_weights(uninterrupted, run)
    assert metrics(uninterrupted) == metrics(run)
    assert "trained" in json.loads((run / "summary.json").read_text())


def test_ctrl_c_finishes_the_iteration_saves_and_says_how_to_go_on(tmp_path):
    run = tmp_path / "run"
    process = start(tmp_path, *SETTINGS, "--out", "run")
    wait_until(process, lambda: 2 in iterations(run))
    process.send_signal(signal.SIGINT)
    status, err = finish(process)
    assert status == 130
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if "stopped" in line]
    assert re.fullmatch(r"stopped after [\d,]+ steps; go on with --resume run", line)
    state = load_checkpoint(run / "checkpoints")
    assert iterations(run) == list(range(1, state.iteration + 1))  # nothing done is lost
    assert 2 <= state.iteration < ITERATIONS - 5

    status, err = finish(start(tmp_path, "--resume", "run"))
    assert status == 0, err
    ended = load_checkpoint(run / "checkpoints")
    assert iterations(run) == list(range(1, ended.iteration + 1))
    assert ended.steps > 64 * (ITERATIONS - 2)


def test_a_stop_before_anything_is_written_leaves_nothing(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "trpo_tf", "train", *SETTINGS, "--out", "deep/run"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) in (130, -signal.SIGINT)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("then", ["pass", "raise RuntimeError('in a class') from None"])
def test_a_stop_that_a_module_catches_while_it_is_imported_is_not_lost(tmp_path, then):
    stopped = "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException:\n    "
    (tmp_path / "catches.py").write_text(stopped + then)
    status, err = finish(start(tmp_path, "catches:CartPole-v1", *SETTINGS[1:], "--out", "run"))
    assert (status, err) == (130, "interrupted\n")
    assert not (tmp_path / "run").exists()


def test_an_interrupt_of_one_command_does_not_stop_the_next():
    """In a notebook, say, which calls the command line's function several times."""
    with pytest.raises(KeyboardInterrupt), remembered_interrupts():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with remembered_interrupts():
        try:
            raise_if_interrupted()
        except KeyboardInterrupt:
            pytest.fail("it does")
