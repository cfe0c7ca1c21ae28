"""What commands import, and what is refused before TensorFlow is imported."""

import json
import subprocess
import sys

import pytest

from tests.support.paths import BUNDLES, ROOT

TRAINER = ("tensorflow", "keras", "tf_keras", "tensorflow_probability", "tf2onnx", "onnx", "tensorboard", "matplotlib")
SIMULATORS = ("gymnasium", "mujoco", "envpool", "ale_py")
BUNDLE = str(BUNDLES / "discrete")

LIGHT = {
    ("serve", "--help"): (0, (*TRAINER, *SIMULATORS, "onnxruntime", "numpy", "rich", "tyro")),
    ("--version",): (0, (*TRAINER, *SIMULATORS, "onnxruntime", "numpy", "rich")),
    ("--help",): (0, (*TRAINER, *SIMULATORS, "onnxruntime", "numpy", "rich")),
    ("train", "--help"): (0, (*TRAINER, *SIMULATORS, "onnxruntime", "numpy", "rich")),
    ("export", "nowhere", "--out", "bundle"): (2, (*TRAINER, *SIMULATORS, "onnxruntime")),
    ("train", "--resume", "nowhere"): (2, (*TRAINER, *SIMULATORS, "onnxruntime")),
    ("train", "CartPole-v1", "--preset", "none"): (2, (*TRAINER, *SIMULATORS, "onnxruntime")),
    ("train", "NoSuchTask-v0"): (2, (*TRAINER, "mujoco", "envpool", "ale_py", "onnxruntime")),
}
ACTING = {
    ("predict", BUNDLE, "--observation", "[0, 0, 0, 0]"): (0, (*TRAINER, *SIMULATORS, "rich")),
    ("evaluate", BUNDLE, "--env-id", "CartPole-v1", "--episodes", "1"): (
        0,
        (*TRAINER, "mujoco", "envpool", "ale_py", "rich"),
    ),
    ("benchmark", "CartPole-v1", "--steps", "5"): (2, (*TRAINER, "mujoco", "envpool", "ale_py")),
    ("train", "no_such_module:Task-v0"): (2, (*TRAINER, "mujoco", "envpool", "ale_py")),
    ("train", "CartPole-v1", "--env-kwargs", '{"no": 1}'): (2, (*TRAINER, "mujoco", "envpool", "ale_py")),
    ("train", "CartPole-v1", "--out", str(ROOT)): (2, (*TRAINER, "mujoco", "envpool", "ale_py")),
    ("record", "nowhere", "--out", "episode.gif"): (2, (*TRAINER, "mujoco", "envpool")),
    ("train", "ALE/NoSuchGame-v5"): (2, (*TRAINER, "mujoco", "envpool")),
    ("train", "Taxi-v3", "--env-backend", "envpool", "--env-kwargs", '{"is_rainy": true}'): (2, (*TRAINER, "envpool")),
    ("verify", str(BUNDLES / "masked")): (
        0,
        (*(name for name in TRAINER if name != "onnx"), "envpool", "ai_edge_litert"),
    ),
}
"""Exit status of each command, and what it may not have imported: never more than those before it in its process."""

RUNNING = """
import json, sys
from trpo_tf.__main__ import main
sys.argv[0] = "trpo-tf"
for command in json.loads(sys.argv[1]):
    try:
        status = main(command) or 0
    except SystemExit as ended:
        status = ended.code or 0
    print("\\n" + json.dumps([status, sorted(sys.modules)]))
"""


@pytest.mark.parametrize("commands", [LIGHT, ACTING], ids=["light", "acting"])
def test_a_command_imports_what_it_needs(commands, tmp_path):
    done = _python(tmp_path, RUNNING, json.dumps([*commands]))
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    for (command, (status, absent)), (ended, imported) in zip(commands.items(), answers, strict=True):
        assert (ended, {*imported} & {*absent}) == (status, set()), (command, done.stderr)


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
