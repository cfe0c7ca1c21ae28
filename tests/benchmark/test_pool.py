"""Processes side by side, with commands that do next to nothing."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from trpo_tf.benchmark.pool import Job, run_jobs

STUBBORN = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"


def python(folder: Path, name: str, code: str) -> Job:
    return Job(folder / name, ("-c", code), folder / f"{name}.txt")


@pytest.fixture
def ended():
    return {}


@pytest.fixture
def run(ended):
    def run_all(jobs, workers, watch=lambda running: None):
        run_jobs(jobs, workers, ended=lambda job, reason: ended.update({job.folder.name: reason}), watch=watch)

    return run_all


def test_a_failure_stops_no_other(run, ended, tmp_path):
    jobs = [
        python(tmp_path, "bad", "import sys; sys.exit('too\\nhot')"),
        python(tmp_path, "killed", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"),
        python(tmp_path, "silent", "import sys; sys.exit(3)"),
        python(tmp_path, "good", "print('fine')"),
    ]
    run(jobs, 2)
    reasons = {"bad": "hot", "killed": "killed by SIGKILL", "silent": "exit status 3"}
    logs = {name: tmp_path / f"{name}.txt" for name in reasons}
    assert ended == {name: f"{reason} (log: {logs[name]})" for name, reason in reasons.items()} | {"good": None}
    assert (tmp_path / "good.txt").read_text() == "fine\n"


def test_so_many_run_at_a_time(run, ended, tmp_path):
    seen = []
    run(
        [python(tmp_path, str(n), "import time; time.sleep(0.3)") for n in range(5)],
        2,
        watch=lambda running: seen.append(len(running)),
    )
    assert len(ended) == 5
    assert max(seen) == 2


def up(log: Path) -> bool:
    return log.exists() and "up" in log.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_those_running_and_starts_no_more(number, run, ended, tmp_path):
    code = "import time\ntry:\n    print('up', flush=True); time.sleep(60)\nexcept KeyboardInterrupt: print('saved')"
    jobs = [python(tmp_path, name, code) for name in "abc"]
    sent = []

    def watch(running):
        if not sent and all(up(tmp_path / f"{name}.txt") for name in "ab"):
            sent.append(os.kill(os.getpid(), number))

    with pytest.raises(KeyboardInterrupt):
        run(jobs, 2, watch)
    assert [(tmp_path / f"{name}.txt").read_text() for name in "ab"] == ["up\nsaved\n"] * 2
    assert not (tmp_path / "c.txt").exists()
    assert ended == {}


def test_a_second_signal_kills(run, tmp_path):
    started = time.monotonic()
    log = tmp_path / "a.txt"

    def interrupt_twice():
        while not up(log):
            time.sleep(0.02)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)

    thread = threading.Thread(target=interrupt_twice)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run([python(tmp_path, "a", STUBBORN)], 1)
    thread.join()
    assert time.monotonic() - started < 30
