"""A target of another package, found by its entry point in a process of its own."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from trpo_tf.export.parity.verify import verify_targets
from trpo_tf.serving.bundle.manifest import read_manifest

ROOT = Path(__file__).parents[2]

# The same policy as ONNX, in a file of another name: what a package would convert that graph to.
COPY = """
import onnxruntime
from trpo_tf.export import ExportInputs, Target

def write(inputs, folder):
    (folder / "policy.copy").write_bytes(inputs.action_graph)

def open_copy(folder, manifest):
    session = onnxruntime.InferenceSession((folder / "policy.copy").read_bytes())
    return lambda observations, noise: session.run(["action"], {"obs": observations, "noise": noise})[0]

COPY = Target("copy", "policy.copy", write, open_copy, lambda manifest: ("text", "run policy.copy\\n"), "tests")
"""
EXPORT = """
import sys
sys.path.insert(0, sys.argv[1])
from hand_made import Continuous
from trpo_tf.export import write_bundle
policy = Continuous()
write_bundle(policy.function, policy.spec, sys.argv[2], targets=["copy"])
"""


def run(folder: Path, code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run code where a package in `folder` is installed."""
    paths = os.pathsep.join(map(str, [folder, ROOT]))
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )


def install(folder: Path, value: str) -> None:
    """Write a package as pip would install it, with one entry point."""
    (folder / "copy_target.py").write_text(textwrap.dedent(COPY))
    metadata = folder / "copy_target-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: copy-target\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(f"[trpo_tf.targets]\ncopy = {value}\n")


def test_a_target_of_another_package_is_written_compared_and_verified(tmp_path):
    site, bundle = tmp_path / "site", tmp_path / "bundle"
    site.mkdir()
    install(site, "copy_target:COPY")
    done = run(site, EXPORT, Path(__file__).parent, bundle)
    assert done.returncode == 0, done.stderr
    figures = read_manifest(bundle).parity["copy"]
    assert figures["cases_equal"] == figures["cases"] > 0
    assert "copy, for tests:\n\n```text\nrun policy.copy\n```" in (bundle / "MODEL_CARD.md").read_text()
    verify = "import sys; from trpo_tf.cli.main import main; main(['verify', sys.argv[1]])"
    shown = run(site, verify, bundle)
    assert shown.returncode == 0, shown.stderr
    assert "\ncopy " in shown.stdout

    found = verify_targets(bundle)  # here, where the package is not installed
    assert found.parity.keys() == {"onnx"}
    assert found.skipped == {"copy": "no such target is known here; install the package that adds it"}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("copy_target:open_copy", "must be a trpo_tf.export.Target, not <function open_copy"),
        ("copy_target:ABSENT", "can't be loaded: module 'copy_target' has no attribute 'ABSENT'; mend or uninstall"),
    ],
)
def test_an_entry_point_that_is_no_target_is_named(tmp_path, value, reason):
    install(tmp_path, value)
    failed = run(tmp_path, "import trpo_tf.export.targets.table")
    assert failed.returncode == 1
    assert f"entry point 'copy' ({value}) of group trpo_tf.targets {reason}" in failed.stderr
