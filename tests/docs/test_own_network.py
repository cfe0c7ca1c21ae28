"""The examples of docs/howto/extend/own-network.md, run as a reader would, but for fewer steps."""

import re

import numpy as np
import pytest

from tests.support.paths import ROOT
from trpo_tf import serving
from trpo_tf.export import write_bundle
from trpo_tf.learning.learner import build_learner

PAGE = ROOT / "docs" / "howto" / "extend" / "own-network.md"
PLAIN, GATED, ATTENDING = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """What the example of a gated network defines."""
    found: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("reader"))
        assert "total_steps=100_000" in GATED
        exec(GATED.replace("100_000", "2_048"), found)
    return found


def test_networks_for_policy_and_critic_are_trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec(PLAIN.replace("20_000", "2_048, eval_episodes=0"), found)
    assert len(found["run"].state.theta) == (4 + 1) * 128 + (128 + 1) * 2


def test_a_gated_network_is_trained(names):
    run = names["run"]
    assert [spec.name for spec in run.policy.spec.state] == ["hidden"]
    assert np.abs(names["network"].get_weights()[-1]).max() > 0  # a bias, which starts at 0


def test_a_ring_and_an_average_are_kept_in_the_bundle_s_state(names, tmp_path):
    """The average is the sum of what the ring holds, the weights falling by a twentieth a step."""
    exec(ATTENDING, names)
    learner = build_learner(names["config"], names["network"], policy_state=names["state"])
    policy = learner.trained(learner.initial_state(32))
    write_bundle(policy.function, policy.spec, tmp_path / "bundle", targets=["onnx", "c"])
    session = serving.load(tmp_path / "bundle").start()
    for place in (0.3, -0.2, 0.5):
        session.act(np.float32([place, place / 10]))
    ring, slow = session.state["ring"][0], session.state["slow"][0]
    np.testing.assert_allclose(slow, 0.05 * 0.95 ** np.arange(2, -1, -1) @ ring[-3:], rtol=1e-5)
    np.testing.assert_allclose(ring[-3:, 0], [0.3, -0.2, 0.5], rtol=1e-6)  # nothing was seen that it is measured by
    np.testing.assert_array_equal(ring[:-3], 0)
