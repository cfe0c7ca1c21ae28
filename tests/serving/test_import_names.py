"""What is installed is one package, `trpo_tf`: modules of a user's own may be called `export` and `serving`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

BUNDLES = ROOT / "tests" / "serving" / "bundles"

USES_BOTH = """
import trpo_tf.export, trpo_tf.serving, export, serving
print(trpo_tf.serving.load(sys.argv[1]).act([0, 0, 0, 0]) in (0, 1), export.MINE, serving.MINE)
"""


def python(folder: Path, *arguments: str) -> str:
    """What a program prints that is started in `folder`, which so comes first where Python looks for modules."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture
def own_names(tmp_path):
    """A folder with an export.py and a package `serving` that are not ours."""
    (tmp_path / "serving").mkdir()
    for path in (tmp_path / "export.py", tmp_path / "serving" / "__init__.py"):
        path.write_text("MINE = 'mine'\nprint('imported')\n")
    return tmp_path


def test_modules_of_the_same_name_do_not_disturb_the_command_line(own_names):
    assert "imported" not in python(own_names, "-m", "trpo_tf", "--help")
    out = python(own_names, "-m", "trpo_tf", "verify", str(BUNDLES / "wide"))
    assert "golden" in out
    assert "imported" not in out


def test_they_are_found_beside_ours(own_names):
    out = python(own_names, "-c", f"import sys\n{USES_BOTH}", str(BUNDLES / "discrete"))
    assert out == "imported\nimported\nTrue mine mine\n"


@pytest.mark.parametrize(
    "code", ["import trpo_tf", "import trpo_tf.__main__, trpo_tf.serving.__main__, trpo_tf.serving.command_line"]
)
def test_the_package_and_the_servers_start_import_nothing_large(code, tmp_path):
    loaded = python(tmp_path, "-c", f"import sys\n{code}\nprint(*sys.modules)").split()
    assert "trpo_tf" in loaded
    large = {"numpy", "onnxruntime", "tensorflow", "keras", "tyro", "asyncio", "subprocess", "trpo_tf.export"}
    assert not large & set(loaded)
