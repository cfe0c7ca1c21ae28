"""The examples of docs/howto/export/export.md, run as a reader would."""

import re

import keras
import numpy as np
import onnx
import tensorflow as tf

from tests.support.export.zoo import case
from tests.support.paths import ROOT
from trpo_tf import serving
from trpo_tf.export.graph.metadata import read_metadata
from trpo_tf.serving.verify import verify

PAGE = ROOT / "docs" / "howto" / "export" / "export.md"
ANY_POLICY, ELSEWHERE, ONE_BY_ONE = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_a_policy_made_by_hand_and_one_made_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(ANY_POLICY, names)
    archive = keras.export.ExportArchive()
    network = names["network"]
    act = tf.function(lambda obs: {"torque": tf.tanh(network(obs))}, autograph=False)
    act.get_concrete_function(obs=tf.TensorSpec((None, 3), tf.float32, "obs"))
    archive.track(network)
    archive.add_endpoint("serving_default", act)
    archive.write_out("elsewhere", verbose=False)
    exec(ELSEWHERE, names)
    visited = names["visited"]
    for folder, function in (("hand-made", names["torque"]), ("adopted", lambda obs, _: tf.tanh(network(obs)))):
        assert verify(folder).golden_cases > 100
        expected = function(tf.constant(visited), tf.zeros((256, 1))).numpy()
        np.testing.assert_allclose(serving.load(folder).act_batch(visited), expected, atol=1e-6)


def test_one_target_at_a_time():
    tested = case("gaussian")
    policy = tested.policy
    names = {"function": policy.function, "spec": policy.spec, "visited": tested.visited, "noise": tested.noise}
    exec(ONE_BY_ONE, names)
    expected = tested.reference.act(tested.visited, tested.noise)
    assert np.abs(names["actions"] - expected).max() < 0.2
    assert read_metadata(onnx.load_from_string(names["described"])) == {"environment": "Pendulum-v1"}
    assert "FusedGemm" in names["required_operators"]
