"""Environments that do not repeat an episode from its seed: it is not the target that differs, and cases prove it."""

import numpy as np
import pytest

from tests.support.export.hand_made import Discrete
from trpo_tf.export import Evidence, ParityError, write_bundle

RNG = np.random.default_rng()


class Restless:
    """Ten steps whose observations are drawn from the seed, or, from `seeds` on, from a generator that it ignores."""

    def __init__(self, restless_from: int) -> None:
        self._restless_from = restless_from

    def reset(self, *, seed):
        self._rng = RNG if seed >= self._restless_from else np.random.default_rng(seed)
        self._steps = 0
        return self._observation(), {}

    def step(self, action):
        self._steps += 1
        return self._observation(), float(action), self._steps == 10, False, {}

    def _observation(self):
        return self._rng.normal(size=4).astype(np.float32)


def exported(folder, environment, **options):
    policy, said = Discrete(), []
    evidence = Evidence(environment=environment, scores=policy.scores, episodes=4)
    manifest = write_bundle(policy.function, policy.spec, folder, evidence=evidence, observer=said.append, **options)
    return manifest, "\n".join(said)


@pytest.mark.parametrize("restless_from", [0, 2])
def test_cases_prove_what_episodes_can_not(restless_from, tmp_path):
    manifest, said = exported(tmp_path / "bundle", Restless(restless_from))
    assert said.count("plays another episode from the same seed") == 1
    for figures in manifest.parity.values():
        assert figures["repeatable"] is False
        assert "return" not in figures
        assert figures["episode_steps"] == figures["episode_steps_equal"] == 40
    assert "no return was compared" in (tmp_path / "bundle" / "MODEL_CARD.md").read_text()


def test_an_environment_that_repeats_is_not_blamed(tmp_path, monkeypatch):
    manifest, said = exported(tmp_path / "bundle", Restless(100))
    assert "another episode" not in said
    assert all("repeatable" not in figures and figures["episodes"] == 4 for figures in manifest.parity.values())
    monkeypatch.setattr("trpo_tf.export.parity.compare_target.compare_returns", _another_target)
    with pytest.raises(ParityError, match="plays another episode"):
        exported(tmp_path / "other", Restless(100))
    assert not (tmp_path / "other").exists()


def _another_target(actor, reference, environment, episodes, zero_noise):
    from trpo_tf.export.parity.compare import compare_returns

    return compare_returns(lambda *arrays: 2 - actor(*arrays), reference, environment, episodes, zero_noise)
