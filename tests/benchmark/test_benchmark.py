"""Whole benchmarks by the command line, in real processes."""

import csv
import json
import re
import signal
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.processes import command_line
from tests.support.processes.command_line import Command, wait_until
from trpo_tf.cli import main as cli
from trpo_tf.cli import terminal

WALK, FAILING = "tests.support.environments:Walk-v0", "tests.support.environments:FailingWalk-v0"
NAMES = ["tests.support.environments-Walk-v0-seed5", "tests.support.environments-FailingWalk-v0-seed5"]
SETTINGS = [
    *(WALK, FAILING, "--seeds", "1", "--first-seed", "5", "--workers", "1", "--steps", "12000", "--out", "out"),
    *("--peer", "sb3-contrib"),
]
REASON = "the environment's step raised ArithmeticError: the motor is too hot"
PATIENCE = 300


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Commands, and the processes that they start, run in an empty folder."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(*arguments: str) -> Command:
    return command_line.start(Path.cwd(), "benchmark", *arguments)


def finish(process: Command) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def iterations(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


@pytest.mark.slow
def test_a_benchmark_stopped_and_killed_goes_on_does_nothing_twice_and_reports_what_fails(here):
    first, second = (here / "out" / "runs" / name for name in NAMES)
    process = start(*SETTINGS)
    wait_until(process, lambda: iterations(first / "run") >= 1)
    process.send_signal(signal.SIGTERM)
    status, out, err = finish(process)
    assert (status, out) == (terminal.INTERRUPTED, "")
    assert err == "stopped with 0 of 2 runs finished; the same command goes on\n"
    stopped_at = iterations(first / "run")
    assert 1 <= stopped_at < 5

    process = start(*SETTINGS)
    finished = first / "result.json"
    wait_until(process, finished.exists)
    process.send_signal(signal.SIGKILL)
    finish(process)
    kept = finished.read_bytes(), finished.stat().st_mtime_ns

    status, out, err = finish(start(*SETTINGS))
    assert status == terminal.FAILED
    assert re.search(rf"1/2 +{NAMES[0]} +return .* done before\n", err), err
    assert REASON in err
    assert "--resume" not in err  # the same command does that
    assert err.splitlines()[-1] == "error: runs failed: 1; the same command tries them again"
    assert "Traceback" not in err
    assert (finished.read_bytes(), finished.stat().st_mtime_ns) == kept
    assert not (second / "result.json").exists()
    check_report(here / "out", out)


def check_report(folder: Path, printed: str) -> None:
    """Of the run that finished, and of the one that failed."""
    lines = printed.splitlines()
    assert lines[1].split()[:2] == ["Walk-v0", "1"]
    assert lines[-1] == "report written to out/report.html"
    assert sorted(path.name for path in folder.iterdir()) == [
        "report.html",
        "report.png",
        "results.csv",
        "results.json",
        "runs",
    ]
    (run,) = json.loads((folder / "results.json").read_text())["runs"]
    assert run["seed"] == run["config"]["seed"] == 5
    assert run["config"]["total_steps"] == 12_000
    assert 8_000 < run["steps"] <= 12_000
    assert [steps for steps, _ in run["curve"]][-1] == run["steps"]
    assert run["evaluation"]["episodes"] == 20
    assert 0 <= run["evaluation"]["mean_return"] <= 1
    assert 0 <= run["untrained_return"] <= 1
    assert run["versions"]["tensorflow"]
    assert run["machine"]["cores"] >= 1
    assert len(list(csv.DictReader((folder / "results.csv").read_text().splitlines()))) == 1
    page = (folder / "report.html").read_text()
    assert page.count("<details>") == 1
    assert REASON.replace("'", "&#x27;") in page


def wrong_use(capfd, *arguments: str) -> str:
    """The one line that the command answers with."""
    with pytest.raises(SystemExit) as exit_:
        cli.main(["benchmark", *arguments])
    assert exit_.value.code == terminal.WRONG_USE
    out, err = capfd.readouterr()
    assert out == ""
    assert re.fullmatch(r"error: [^\n]+\n", err), err
    return err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "which suite? Name one of classic, mujoco, partial, unseen-training, unseen"),
        (
            ("clasic",),
            "'clasic' is neither a suite (classic, mujoco, partial, unseen-training, unseen) nor",
        ),
        ((WALK, "--seeds", "0"), "seeds must be at least 1"),
        ((WALK, "--first-seed", "-1"), "first_seed must be at least 0"),
        ((WALK, "--workers", "0"), "workers must be at least 1"),
        ((WALK, "--steps", "5"), f"--steps 5 can't work for {WALK}: total_steps must be at least batch_size"),
        ((WALK, "--peer", "nobody"), "peer 'nobody' is unknown; choose one of sb3-contrib"),
    ],
)
def test_wrong_use_is_one_line_and_writes_nothing(arguments, message, here, capfd):
    assert message in wrong_use(capfd, *arguments)
    assert list(here.iterdir()) == []


def test_other_settings_than_those_begun_with_are_one_line(here, capfd):
    folder = here / "out" / "runs" / NAMES[1] / "run"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(f'env_id = "{WALK}"\ntotal_steps = 3000\n')
    told = wrong_use(capfd, *SETTINGS)
    assert f"{NAMES[1]} was begun with other settings" in told
    assert "choose another --out, or remove that folder" in told
    assert [path.name for path in (here / "out" / "runs").iterdir()] == [NAMES[1]]


def test_a_benchmark_without_rliable_says_what_to_install(monkeypatch, capfd):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "rliable" else find(name))
    assert "install it with: pip install '.[benchmark]' in a checkout of trpo-tf" in wrong_use(capfd, "classic")
