"""The KServe SDK's inference clients, in the environment that `make .venv-kserve/.installed` makes.

Where there is none the test is skipped, unless `KSERVE_PYTHON` names the interpreter, as in CI.
"""

import json
import os
import subprocess

import numpy as np
import pytest

from tests.support.paths import ROOT
from trpo_tf import serving

CLIENT = ROOT / "tests" / "support" / "serving" / "kserve_client.py"


@pytest.mark.slow
def test_the_kserve_sdk_over_rest_and_grpc(grpc_server, discrete):
    python = ROOT / os.environ.get("KSERVE_PYTHON", ".venv-kserve/bin/python")
    if "KSERVE_PYTHON" not in os.environ and not python.exists():
        pytest.skip("there is no .venv-kserve; `make .venv-kserve/.installed` makes it")
    command = [str(python), str(CLIENT), str(grpc_server.port), str(grpc_server.grpc_port)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    actions = serving.load(discrete).act_batch(np.float32(told["rows"])).tolist()
    assert told["v1"] == {"model ready": True, "predictions": actions}
    for protocol in ("rest", "grpc"):
        answers = told[protocol]
        assert answers["live"]
        assert answers["ready"]
        assert answers["model ready"]
        for raw in ("raw True", "raw False"):
            assert answers[raw] == {"model": "discrete", "id": "7", "action": actions}, (protocol, raw)
