"""A target of another package, found by its entry point in a process of its own."""

import gzip
import importlib.util
import re

import pytest

from tests.support.processes.added_packages import install, installed, run
from trpo_tf.export import ExportError
from trpo_tf.export.parity.verify import verify_targets
from trpo_tf.serving.bundle.manifest import read_manifest

PAGE = "own-target"
EXPORT = """
import sys
from tests.support.export.hand_made import Continuous
from trpo_tf.export import write_bundle
policy = Continuous()
write_bundle(policy.function, policy.spec, sys.argv[1], targets=["onnx-gz"])
"""


def test_a_target_of_another_package_is_written_compared_and_verified(tmp_path):
    site, bundle = tmp_path / "site", tmp_path / "bundle"
    install(site, PAGE)
    done = run(site, EXPORT, bundle)
    assert done.returncode == 0, done.stderr
    figures = read_manifest(bundle).parity["onnx-gz"]
    assert figures["cases_equal"] == figures["cases"] > 0
    assert gzip.decompress((bundle / "policy.onnx.gz").read_bytes())
    assert "onnx-gz, for slow links:\n\n```sh\ngunzip policy.onnx.gz\n```" in (bundle / "MODEL_CARD.md").read_text()
    verify = "import sys; from trpo_tf.cli.main import main; main(['verify', sys.argv[1]])"
    shown = run(site, verify, bundle)
    assert shown.returncode == 0, shown.stderr
    assert "\nonnx-gz " in shown.stdout

    found = verify_targets(bundle)  # here, where the package is not installed
    assert found.parity.keys() == {"onnx"}
    assert found.skipped == {"onnx-gz": "no such target is known here; install the package that adds it"}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("gzip_target:open_actor", "must be of type Target, not <function open_actor"),
        ("gzip_target:ABSENT", "can't be loaded: module 'gzip_target' has no attribute 'ABSENT'; mend or uninstall"),
    ],
)
def test_an_entry_point_that_is_no_target_is_named(tmp_path, value, reason):
    spec = importlib.util.find_spec("trpo_tf.export.targets.table")
    message = f"entry point 'onnx-gz' ({value}) of group trpo_tf.targets {reason}"
    with installed(tmp_path, PAGE, value), pytest.raises(ExportError, match=re.escape(message)):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
