"""Bundles of earlier releases are verified in every target, and shown."""

import json

import numpy as np
import pytest

from tests.support.paths import BUNDLES
from trpo_tf.cli.main import main
from trpo_tf.export.parity.table import proof_rows
from trpo_tf.export.targets.table import TARGETS, target_sizes
from trpo_tf.serving.bundle.manifest import FORMER_TARGETS, read_manifest

FIRST = ["continuous", "discrete"]


@pytest.mark.parametrize("name", FIRST)
def test_the_first_bundles_have_their_targets_by_the_present_names(name):
    written = json.loads((BUNDLES / name / "manifest.json").read_text())["parity"]
    manifest = read_manifest(BUNDLES / name)
    assert written.keys() == FORMER_TARGETS.keys()
    assert manifest.parity == {present: written[former] for former, present in FORMER_TARGETS.items()}
    assert manifest.parity.keys() <= TARGETS.keys()
    for row, target in zip(proof_rows(manifest.parity, target_sizes(manifest)), FORMER_TARGETS.values(), strict=True):
        assert row[:2] == [target, f"{sum(manifest.files[file].size for file in TARGETS[target].files(manifest)):,}"]
        assert row[4] == "-"  # what they do not say is not made up


@pytest.mark.parametrize("name", [*FIRST, "judged", "wide"])
def test_they_verify_with_all_their_targets(name, capsys):
    main(["verify", str(BUNDLES / name), "--json"])
    found = json.loads(capsys.readouterr().out)
    cases = len(np.load(BUNDLES / name / "golden.npz")["action"])
    assert found["verified"]
    assert found["parity"].keys() == found["latencies"].keys() == read_manifest(BUNDLES / name).parity.keys()
    assert [figures["cases_equal"] for figures in found["parity"].values()] == [cases] * len(found["parity"])
    main(["verify", str(BUNDLES / name)])
    shown = capsys.readouterr().out
    assert all(f"\n{target} " in shown for target in found["parity"])
    assert "100.00%" in shown
