"""The examples, run as a reader would."""

import os
import re
import subprocess
import sys
import time

from tests.support.paths import ROOT
from trpo_tf import serving
from trpo_tf.evaluation.evaluate import evaluate

WALK = "tests.support.environments:Walk-v0"
CONTINUOUS = ROOT / "tests/serving/bundles/continuous"


def run(example: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / example), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_control_loop_keeps_its_pace_and_reports_its_latencies():
    started = time.monotonic()
    out = run("control_loop.py", str(CONTINUOUS), "--hz", "2", "--seconds", "1")
    assert time.monotonic() - started > 1.5  # two periods of warm-up, and two ticks
    assert out.startswith("2 ticks at 2 Hz: 0 missed deadlines (0.00%)\n")
    for line in ("woke late by", "sensed to actuated in"):
        p50, p99, most = map(float, re.search(rf"^{line}, us: p50 (\S+), p99 (\S+), max (\S+)$", out, re.M).groups())
        assert 0 <= p50 <= p99 <= most < 500_000


def test_a_control_loop_that_is_asked_too_much_says_so():
    out = run("control_loop.py", str(CONTINUOUS), "--hz", "1000000", "--seconds", "0.001")
    assert out.startswith("1000 ticks at 1000000 Hz: 1000 missed deadlines (100.00%)\n")


def test_the_evaluation_loop_plays_as_the_command_does(bundle):
    expected = evaluate(serving.load(bundle), WALK, episodes=5, seed=0)
    out = run("evaluate.py", str(bundle), WALK, "--episodes", "5")
    assert out == (
        f"return {expected.mean_return:.2f} on average of 5 episodes, "
        f"{expected.min_return:.2f} to {expected.max_return:.2f}\n"
    )
