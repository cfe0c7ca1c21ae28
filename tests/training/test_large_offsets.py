"""Observations that change little beside an offset that float32 does not see through."""

import json

import numpy as np
import onnx
import pytest

from trpo_tf import serving
from trpo_tf.cli import main as cli
from trpo_tf.config.settings import Config
from trpo_tf.errors import UserError
from trpo_tf.export import ExportError
from trpo_tf.exporting.in_process import in_process
from trpo_tf.exporting.run_bundle import export_run
from trpo_tf.policies.encoders import Encoder
from trpo_tf.policies.running_stats import Moments
from trpo_tf.runs.folder import load_run
from trpo_tf.serving import ArraySpec
from trpo_tf.training.train import train

FAR = "tests.support.environments:FarReach-v0"
"""The observation is 10,000,000 and a target, for each of two actions, which spreads by 1 as float32 does there."""
TARGETS = np.array([[2.0, 2.0], [1.3, 2.9], [3.1, 0.8]])


@pytest.fixture(scope="module")
def far(tmp_path_factory):
    config = Config.for_env(
        FAR,
        total_steps=12_000,
        batch_size=512,
        hidden_sizes=(32,),
        initial_log_std=-1.0,
        max_kl=0.05,
        critic_epochs=1,
    )
    with pytest.warns(UserWarning, match="2 of 2 observed numbers are 8,192 or more at first"):
        return train(config, tmp_path_factory.mktemp("far") / "run", progress=False)


@pytest.fixture(scope="module")
def bundle(far, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles") / "far"
    export_run(far, folder, targets=["onnx", "savedmodel", "ort"], episodes=2)
    return folder


def test_it_learns_as_if_there_were_no_offset(far):
    """A policy that sees float32 of the observation can't get above -1/6: two rounding errors within 1/2."""
    assert far.summary["untrained"]["mean_return"] < -4
    assert far.summary["trained"]["mean_return"] > -0.02


def test_the_run_holds_the_offset(far):
    again = load_run(far.folder)
    assert np.abs(np.array(again.config.sampling.observation_offset) - 1e7 - 2).max() < 5
    policy = in_process(again.policy, "far")
    np.testing.assert_allclose([policy.act(row + 1e7) for row in TARGETS], TARGETS, atol=0.2)


def test_the_bundle_is_served_with_it(far, bundle, capsys):
    policy = serving.load(bundle)
    actions = np.array([policy.act(row + 1e7) for row in TARGETS])
    np.testing.assert_allclose(actions, TARGETS, atol=0.2)
    cli.main(["predict", str(bundle), "--observation", json.dumps((TARGETS[1] + 1e7).tolist())])
    assert json.loads(capsys.readouterr().out) == pytest.approx(actions[1].tolist())


def test_statistics_in_the_manifest_are_the_environments_own(bundle):
    (statistics,) = serving.load(bundle).manifest.statistics.values()
    np.testing.assert_allclose(np.array(statistics.mean) - 1e7, 2.0, atol=0.1)
    np.testing.assert_allclose(statistics.stddev, 1.0, atol=0.1)


@pytest.mark.parametrize("target", ["litert", "c"])
def test_what_computes_in_float32_alone_is_refused(target, far, tmp_path):
    with pytest.raises(ExportError, match=f"target {target} can't carry this policy: .* in float32, and a large"):
        export_run(far, tmp_path / "bundle", targets=[target])


def test_other_policies_have_no_such_step(small_config, tmp_path):
    run = train(small_config("tests.support.environments:Reach-v0"), tmp_path / "near", progress=False)
    assert run.config.sampling.observation_offset == ()
    export_run(run, tmp_path / "bundle", targets=["onnx"], episodes=1)
    graph = onnx.load(tmp_path / "bundle" / "policy.onnx").graph
    assert not [tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.DOUBLE]


@pytest.mark.parametrize(
    ("dtype", "first", "needed"),
    [
        ("float64", 8191.9, False),
        ("float64", 8192.0, True),
        ("float64", -1e300, True),
        ("float32", 1e7, False),
        ("int64", 2**40 + 1, True),
        ("uint64", 2**63, True),
        ("int32", 2**24 + 1, True),
        ("int16", 30_000, False),
    ],
)
def test_large_numbers_of_wide_types_are_centred(dtype, first, needed):
    encoder = Encoder(normalized=[ArraySpec("obs", dtype, (2,))])
    offset = encoder.needed_offset(np.array([first, 1], dtype))
    assert offset == ((float(first), 0.0) if needed else ())


def test_numbers_of_several_parts_have_their_own_offsets():
    specs = [ArraySpec("a", "float64", (1, 2)), ArraySpec("b", "int64", ())]
    encoder = Encoder(normalized=specs[:1], plain=specs[1:], offset=(0.0, 1e9, 2.0**52))
    observations = {"a": np.array([[[0.5, 1e9 + 0.25]]]), "b": np.array([2**52 + 3])}
    seen = encoder(encoder.normalizer(Moments.empty((2,))), observations)
    np.testing.assert_array_equal(seen, [[0.5, 0.25, 3.0]])


def test_an_offset_of_another_length_is_refused(small_config, tmp_path):
    with pytest.raises(UserError, match="observation_offset must be 2 numbers, or none"):
        train(small_config("tests.support.environments:Reach-v0", observation_offset=(1.0,)), tmp_path / "run")
