"""The examples of docs/howto/export/own-memory.md, run as a reader would."""

import re

import numpy as np
import pytest

from tests.support.paths import ROOT
from trpo_tf import serving
from trpo_tf.export.targets.table import TARGETS
from trpo_tf.serving.bundle.manifest import read_manifest

PAGE = ROOT / "docs" / "howto" / "export" / "own-memory.md"
KERAS, KALMAN = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_a_network_of_keras_acts_step_by_step_as_over_whole_sequences(tmp_path, monkeypatch):
    pytest.importorskip("ai_edge_litert")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(KERAS, names)
    assert read_manifest(tmp_path / "keras-gru").parity.keys() == TARGETS.keys()
    whole = names["network"](names["recorded"][np.newaxis])[0].numpy()
    assert np.ptp(whole) > 0.1
    np.testing.assert_allclose(names["torques"], whole, atol=1e-5)


def test_a_kalman_filter_s_covariance_solves_its_riccati_equation(tmp_path, monkeypatch):
    """After many steps it stays: with M = F P F' + Q of the covariance P, M - M h h' M / (h' M h + R) is P again."""
    pytest.importorskip("ai_edge_litert")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(KERAS.partition("network =")[0] + KALMAN, names)
    session = serving.load("kalman").start()
    for step in range(300):
        session.act(np.float32([0.3 * step / 10]))
    (cov,), transition = session.state["cov"], names["F"].astype(float)
    predicted = transition @ cov @ transition.T + names["Q"]
    updated = predicted - np.outer(predicted[:, 0], predicted[0]) / (predicted[0, 0] + names["R"])
    np.testing.assert_allclose(cov, updated, rtol=1e-4)
    np.testing.assert_allclose(session.state["mean"][0, 1], 0.3, rtol=0.02)  # the velocity that nobody measured
