"""What commands import, and what is refused before TensorFlow is imported."""

import subprocess
import sys

import pytest

from tests.support.paths import BUNDLES, ROOT

TRAINER = ("tensorflow", "keras", "tf_keras", "tensorflow_probability", "tf2onnx", "onnx", "tensorboard", "matplotlib")
SIMULATORS = ("gymnasium", "mujoco", "envpool", "ale_py")
BUNDLE = str(BUNDLES / "discrete")

COMMANDS = {
    ("--version",): (0, (*TRAINER, *SIMULATORS, "onnxruntime", "numpy", "rich")),
    ("--help",): (0, (*TRAINER, *SIMULATORS, "onnxruntime", "numpy", "rich")),
    ("train", "--help"): (0, (*TRAINER, *SIMULATORS, "onnxruntime", "numpy", "rich")),
    ("serve", "--help"): (0, (*TRAINER, *SIMULATORS, "onnxruntime", "numpy", "rich", "tyro")),
    ("predict", BUNDLE, "--observation", "[0, 0, 0, 0]"): (0, (*TRAINER, *SIMULATORS, "rich")),
    ("evaluate", BUNDLE, "--env-id", "CartPole-v1", "--episodes", "1"): (0, (*TRAINER, "mujoco", "envpool", "rich")),
    ("export", "nowhere", "--out", "bundle"): (2, (*TRAINER, *SIMULATORS, "onnxruntime")),
    ("record", "nowhere", "--out", "episode.gif"): (2, (*TRAINER, "mujoco", "envpool")),
    ("train", "--resume", "nowhere"): (2, (*TRAINER, *SIMULATORS, "onnxruntime")),
    ("train", "CartPole-v1", "--preset", "none"): (2, (*TRAINER, *SIMULATORS, "onnxruntime")),
    ("train", "NoSuchTask-v0"): (2, (*TRAINER, "mujoco", "envpool", "ale_py")),
    ("train", "ALE/NoSuchGame-v5"): (2, (*TRAINER, "mujoco", "envpool")),
    ("train", "no_such_module:Task-v0"): (2, (*TRAINER, "mujoco", "envpool", "ale_py")),
    ("train", "CartPole-v1", "--env-kwargs", '{"no": 1}'): (2, (*TRAINER, "mujoco", "envpool", "ale_py")),
    ("train", "CartPole-v1", "--out", str(ROOT)): (2, (*TRAINER, "mujoco", "envpool", "ale_py")),
    ("train", "Taxi-v3", "--env-backend", "envpool", "--env-kwargs", '{"is_rainy": true}'): (2, (*TRAINER, "envpool")),
}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command).replace(str(ROOT), ""))
def test_a_command_imports_what_it_needs(command, tmp_path):
    status, absent = COMMANDS[command]
    done = _run(tmp_path, *command)
    assert (done.returncode, _imported(done) & set(absent)) == (status, set()), done.stderr


def test_training_imports_nothing_that_it_does_not_use(tmp_path):
    code = (
        "import gc, sys, trpo_tf.training.train\n"
        "unused = ('mujoco', 'envpool', 'ale_py', 'rich.progress', 'matplotlib.figure', 'trpo_tf.export.targets',\n"
        "    'tensorflow_probability.python.distributions')\n"
        "print(*(name for name in unused if name in sys.modules))\n"
        "import keras, matplotlib.pyplot as plt\n"
        "assert gc.isenabled() and not plt.subplots()[0].get_axes()[0].patches\n"
        "keras.visualization.plot_image_gallery\n"
    )
    done = _python(tmp_path, code)
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr


def _run(folder, *command: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import atexit, sys; sys.argv[0] = 'trpo-tf'; atexit.register(lambda: print('\\n', *sys.modules)); "
        "from trpo_tf.__main__ import main; main()"
    )
    return _python(folder, code, *command)


def _python(folder, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def _imported(done: subprocess.CompletedProcess[str]) -> set[str]:
    return set(done.stdout.splitlines()[-1].split())


def test_a_failed_command_does_not_wait_for_a_thread_in_the_background(tmp_path):
    code = (
        "import time\n"
        "from trpo_tf.cli.terminal import INTERRUPTED, fail\n"
        "from trpo_tf.support.background import in_background\n"
        "try:\n"
        "    with in_background(time.sleep, 3600):\n"
        "        raise KeyboardInterrupt\n"
        "except KeyboardInterrupt:\n"
        "    fail('stopped', INTERRUPTED)\n"
    )
    done = _python(tmp_path, code)
    assert (done.returncode, done.stderr) == (130, "stopped\n")
