"""Folders that tests read."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The checkout."""

BUNDLES = ROOT / "tests" / "serving" / "bundles"
"""Small bundles, for tests that also run where TensorFlow is absent."""

FORMER = ROOT / "tests" / "fixtures" / "former"
"""A run and a bundle that an earlier version wrote."""
