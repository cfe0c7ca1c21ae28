"""A short run of benchmarks/serving/fuzz.py, whose long one is `make fuzz`."""

import importlib.util
import json
import subprocess
import sys

from tests.support.paths import ROOT


def test_malformed_requests_do_no_harm():
    command = [sys.executable, "-m", "benchmarks.serving.fuzz", "--requests", "2500", "--seed", "7"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    statuses = json.loads(done.stdout)
    assert statuses["400"] > 500
    assert statuses["200"] > 50
    assert statuses["409"] > 5, "steps of sequences that are not there"
    if importlib.util.find_spec("grpc"):
        assert statuses["INVALID_ARGUMENT"] > 100
        assert statuses["OK"] > 10
        assert statuses["in a stream"] > 50
        assert statuses["FAILED_PRECONDITION"] > 2
