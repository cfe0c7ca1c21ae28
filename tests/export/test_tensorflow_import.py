"""What a process that imports TensorFlow by way of this project shows on standard error."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

START = "All log messages before absl::InitializeLog"

TRAIN = """
import importlib.util
import sys
import trpo_tf
sys.ps1 = ">>> "  # as in a notebook, where TensorFlow's logger says more
assert importlib.util.find_spec("tensorflow")  # a look for the package is no import of it
config = trpo_tf.Config.for_env(
    "CartPole-v1", total_steps=256, batch_size=256, num_envs=4, critic_batch_size=32, eval_episodes=1
)
run = trpo_tf.train(config, "run", progress=False)
assert run.state.steps > 0
import tensorflow
tensorflow.saved_model.save(tensorflow.Module(), "saved")
"""


def python(code: str, folder: Path, *first: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in `folder` with the user's own environment, and `first` before other packages."""
    variables = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    paths = os.pathsep.join(map(str, [*first, ROOT]))
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**variables, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_training_from_python_logs_nothing(tmp_path):
    done = python(TRAIN, tmp_path)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")


@pytest.mark.parametrize(("level", "shown"), [("0", True), ("1", False)])
def test_a_level_of_the_users_own_is_heeded(level, shown, tmp_path):
    """Also by what TensorFlow logs before it reads the level itself."""
    done = python("import trpo_tf, tensorflow", tmp_path, TF_CPP_MIN_LOG_LEVEL=level)
    assert (done.returncode, "This TensorFlow binary is optimized" in done.stderr) == (0, shown)
    assert shown or done.stderr == ""


def test_tensorflow_is_left_alone_by_whoever_only_serves(tmp_path):
    """A process that also has TensorFlow on a GPU keeps it."""
    (tmp_path / "tensorflow.py").write_text("")
    code = "import os, {}, tensorflow; print(os.environ.get('CUDA_VISIBLE_DEVICES'))"
    kept = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    said = [
        subprocess.run(
            [sys.executable, "-c", code.format(module)],
            cwd=tmp_path,
            env={**kept, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "0"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for module in ("trpo_tf.serving.runtime.policy", "trpo_tf.export", "trpo_tf")
    ]
    assert said == ["None\n", "-1\n", "-1\n"]


BROKEN = {
    "os.write(2, b'E0000 12:00 port.cc:1] no memory for a thread\\n')": (0, "no memory for a thread"),
    "os.write(2, b'F0000 12:00 cpu.cc:1] this processor lacks AVX\\n'); os.abort()": (-6, "this processor lacks AVX"),
    "raise ImportError('libfoo.so is missing')": (1, "libfoo.so is missing"),
}


@pytest.mark.parametrize("failure", BROKEN)
def test_errors_of_the_import_are_shown(failure, tmp_path):
    """With a package in TensorFlow's place that logs as TensorFlow does, and then fails."""
    package = tmp_path / "packages" / "tensorflow"
    package.mkdir(parents=True)
    start = f"import os, types\nos.write(2, b'WARNING: {START}\\nI0000 12:00 port.cc:1] oneDNN is on\\n')\n"
    devices = "config = types.SimpleNamespace(list_physical_devices=list)"
    logger = "from logging import getLogger as get_logger"
    (package / "__init__.py").write_text(f"{start}{devices}\n{logger}\n{failure}\n")
    status, shown = BROKEN[failure]
    done = python("import trpo_tf, tensorflow", tmp_path, package.parent)
    assert done.returncode == status
    assert shown in done.stderr
    assert START not in done.stderr
    assert "oneDNN" not in done.stderr
