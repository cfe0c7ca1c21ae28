"""Writes that no longer fit: a limit on the size of files stands for a full disk, so that no test needs one."""

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.support.processes import command_line
from tests.support.processes.full_disk import largest_file
from trpo_tf.cli import main as cli
from trpo_tf.cli.terminal import FAILED, WRONG_USE
from trpo_tf.training.train import resume

FILLING = """
import os, resource, sys
from pathlib import Path
import gymnasium
from tests.support import environments

class Filling(environments.Walk):
    total = 0

    def step(self, action):
        Filling.total += 1
        if Filling.total == 150 and "NEXT_TO_FAIL" in os.environ:
            sizes = [file.stat().st_size for file in Path("run", os.environ["NEXT_TO_FAIL"]).glob("*")]
            sys.dont_write_bytecode = True
            resource.setrlimit(resource.RLIMIT_FSIZE, (max(sizes, default=2) - 1, resource.RLIM_INFINITY))
        return super().step(action)

gymnasium.register("Filling-v0", Filling, max_episode_steps=10)
"""
TRAIN = [
    *("train", "filling:Filling-v0", "--out", "run", "--total-steps", "600", "--batch-size", "64", "--num-envs", "4"),
    *("--checkpoint-steps", "100", "--hidden-sizes", "64", "--critic-batch-size", "32", "--critic-epochs", "1"),
    *("--eval-episodes", "2"),
]


def start(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "filling.py").write_text(FILLING)
    return command_line.run(folder, *TRAIN, environment={**os.environ, **environment})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    done = start(folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture
def command(capfd, monkeypatch, tmp_path):
    """Runs a command in an empty folder with a limit: exit status, stdout, and the last line of stderr."""
    monkeypatch.chdir(tmp_path)

    def run(size: int, *arguments) -> tuple[int, str, str]:
        status = 0
        with largest_file(size):
            try:
                cli.main(list(map(str, arguments)))
            except SystemExit as end:
                status = end.code or 0
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return status, out, err.splitlines()[-1]

    return run


@pytest.mark.parametrize("writer", ["metrics.jsonl", "tensorboard", "checkpoints"])
def test_training_ends_with_one_line_and_goes_on_to_the_same_weights(writer, undisturbed, tmp_path, monkeypatch):
    done = start(tmp_path, NEXT_TO_FAIL=writer)
    assert done.returncode == WRONG_USE
    assert "Traceback" not in done.stderr
    *_, line = done.stderr.splitlines()
    run = re.escape(str(tmp_path / "run"))
    assert re.fullmatch(rf"error: File too large: '{run}/{writer}.*'; go on with --resume run", line)

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    run = resume("run", progress=False)
    from trpo_tf.runs.folder import load_run

    np.testing.assert_array_equal(run.state.theta, load_run(undisturbed).state.theta)
    assert not list(tmp_path.rglob(".*npz*"))


def test_a_run_that_does_not_fit_leaves_nothing(command, tmp_path):
    status, out, line = command(2000, "train", "tests.support.environments:Walk-v0")
    assert (status, out) == (WRONG_USE, "")
    assert line.endswith(f"File too large: '{tmp_path}/runs/tests-support-environments-walk-v0-seed0'")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["onnx", "savedmodel", "ort", "litert", "c"])
def test_an_export_that_does_not_fit_leaves_nothing(target, trained, command, tmp_path):
    """`onnx` alone is written by Python itself; the others' libraries have exceptions of their own."""
    pytest.importorskip("ai_edge_litert")
    size = 1000 if target in ("onnx", "c") else 5000
    status, out, line = command(size, "export", trained.run.folder, "--out", "bundle", "--target", target)
    assert (status, out) == (WRONG_USE, "")
    assert re.match("error: .*File too large", line), line
    assert list(tmp_path.iterdir()) == []


def test_a_benchmark_names_the_run_that_does_not_fit_and_goes_on(command, tmp_path):
    steps = ["--steps", "4096", "--out", "benchmark"]
    status, _, line = command(3000, "benchmark", "CartPole-v1", "--seeds", "1", *steps)
    assert status == FAILED
    assert line == "error: runs failed: 1; the same command tries them again"
    log = (tmp_path / "benchmark" / "runs" / "CartPole-v1-seed0" / "log.txt").read_text().splitlines()
    assert re.match(r"OSError: .*File too large: '.*seed0/run'", log[-1])
    assert not (tmp_path / "benchmark" / "runs" / "CartPole-v1-seed0" / "run").exists()
