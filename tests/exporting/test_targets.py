"""Policies of three kinds, trained a little, in every target that can carry them; tests/export has the other kinds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.support.export.c99_cases import on_the_board
from tests.support.paths import ROOT
from tests.support.processes import command_line
from trpo_tf import serving
from trpo_tf.export import ExportError, GraphForm, PolicySpec
from trpo_tf.export.graph.metadata import read_metadata
from trpo_tf.export.parity.verify import verify_targets
from trpo_tf.export.targets.table import TARGETS, target_sizes
from trpo_tf.exporting.run_bundle import export_run, further_outputs
from trpo_tf.serving.bundle.golden import read_golden
from trpo_tf.serving.bundle.manifest import read_manifest
from trpo_tf.serving.runtime.observations import map_parts, structured, take
from trpo_tf.serving.verify import agree, verify
from trpo_tf.training.train import train

KINDS = {
    "categorical": ("Walk-v0", {}),
    "clipped": ("Reach-v0", {}),
    "dict": ("Signals-dict-v0", {}),
}
CONVOLUTIONAL = {"dict"}
EXACT = ("onnx", "savedmodel", "ort", "litert", "c")


@pytest.fixture(scope="module", params=list(KINDS))
def exported(request, small_config, tmp_path_factory):
    """Kind, its run, and the bundle of all targets."""
    name, settings = KINDS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    env_id = f"tests.support.environments:{name}"
    config = small_config(env_id, total_steps=1_024, num_envs=16, batch_size=512, **settings)
    run = train(config, folder / "run")
    export_run(run, folder / "bundle", targets=["all"], episodes=20)
    return request.param, run, folder / "bundle"


def golden(bundle: Path):
    """Observations, noise, actions."""
    manifest = read_manifest(bundle)
    cases = read_golden((bundle / "golden.npz").read_bytes(), manifest)
    observations = structured({spec.name: cases[spec.name] for spec in manifest.observation})
    return observations, cases[manifest.noise.name], cases[manifest.action.name]


def test_it_is_in_every_target_that_can_carry_it(exported):
    kind, _, bundle = exported
    found = read_manifest(bundle).parity
    assert set(found) == set(TARGETS) - ({"c", "c-int8"} if kind in CONVOLUTIONAL else set())
    assert all(target_sizes(read_manifest(bundle)).values())
    for name, figures in found.items():
        assert figures["exact"] is (name in EXACT)
        assert figures["episodes"] == 20
        if name in EXACT:
            assert figures["episodes_parted"] == 0 or kind == "clipped"
            assert figures["cases_equal"] == figures["cases"] > 400
            assert figures["episode_steps_equal"] == figures["episode_steps"]


def test_it_verifies_and_every_target_runs_again(exported):
    _, _, bundle = exported
    verify(bundle)
    found = verify_targets(bundle)
    assert not found.skipped
    assert set(found.parity) == set(found.latencies) == set(read_manifest(bundle).parity)
    for name, figures in found.parity.items():
        assert figures["cases_equal"] == figures["cases"] or name not in EXACT
        assert 0 < found.latencies[name]["1"]["p50"] <= found.latencies[name]["1"]["p99"]


def test_every_onnx_file_says_what_it_is(exported):
    _, run, bundle = exported
    for name in ("onnx", "onnx-int8", "onnx-int8-dynamic"):
        said = read_metadata(onnx.load(bundle / TARGETS[name].path))
        assert said["provenance"]["environment"] == run.config.env_id
        assert list(said["parity"]) == [name]
        assert said["parity"][name]["cases"] > 400
        assert said["action"]["dtype"] == run.policy.spec.action.dtype


@pytest.mark.parametrize("target", [name for name in TARGETS if not name.startswith("c")])
def test_the_snippets_of_the_model_card_act(exported, target, monkeypatch):
    """Each in the bundle's folder, on a golden case without noise."""
    _, _, bundle = exported
    manifest = read_manifest(bundle)
    _, lines = TARGETS[target].snippet(manifest)
    assert f"```python\n{lines}```" in (bundle / "MODEL_CARD.md").read_text()
    observations, noise, actions = golden(bundle)
    monkeypatch.chdir(bundle)
    still = np.flatnonzero(~noise.reshape(len(noise), -1).any(axis=1))[:5]
    for case in still:
        names = {"observation": map_parts(np.asarray, take(observations, case))}
        exec(lines, names)
        assert np.shape(names["action"]) == manifest.action.shape
        if target in EXACT:  # choices have 32 bits in LiteRT
            assert agree(np.asarray(names["action"], actions.dtype)[None], actions[case][None])


def test_the_c_of_the_model_card_acts_on_the_emulated_board(exported, tmp_path):
    kind, run, bundle = exported
    if kind in CONVOLUTIONAL:
        assert not (bundle / "c").exists()
        return
    spec: PolicySpec = run.policy.spec
    sources = {file.name: file.read_bytes() for file in (bundle / "c").iterdir()}
    observations, noise, actions = golden(bundle)
    chosen = np.arange(0, len(noise), 5)
    answered = on_the_board(sources, spec, take(observations, chosen), noise[chosen], tmp_path)
    assert agree(answered.actions, actions[chosen])
    call = next(
        line for line in TARGETS["c"].snippet(read_manifest(bundle))[1].splitlines() if line.startswith("policy_act")
    )
    assert call == "policy_act(obs, 0, action);"


def test_what_can_not_be_carried_is_told_before_anything_is_converted(exported, tmp_path):
    kind, run, _ = exported
    if kind not in CONVOLUTIONAL:
        with pytest.raises(ExportError, match=r"target 'wasm' is unknown; choose from onnx, .*, c-int8, all"):
            export_run(run, tmp_path / "bundle", targets=["wasm"])
        return
    steps = []
    with pytest.raises(ExportError, match=r"target c can't carry this policy: C has no convolutions \(Conv2D\); leave"):
        export_run(run, tmp_path / "bundle", targets=["onnx", "c"], observer=steps.append)
    assert steps == []
    assert list(tmp_path.iterdir()) == []


FORMS = {
    "required": GraphForm(noise="required"),
    "none": GraphForm(noise="none"),
    "one row": GraphForm(opset=13, batch=1),
    "three rows without noise": GraphForm(opset=18, noise="none", batch=3),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_bundle_of_another_form_is_proven_served_and_verified(trained, form, tmp_path):
    bundle, wanted = tmp_path / "bundle", FORMS[form]
    targets = ["onnx", "onnx-int8", "ort", "litert"]
    export_run(trained.run, bundle, targets=targets, form=wanted, episodes=3, accept_loss=True)
    assert verify(bundle).golden_cases > 50
    verify_targets(bundle)
    model = onnx.load(bundle / "policy.onnx")
    assert model.opset_import[0].version == wanted.opset
    names = {i.name for i in model.graph.input} - {t.name for t in model.graph.initializer}
    assert names == ({"obs", "noise"} if wanted.noise == "required" else {"obs"})
    policy = serving.load(bundle)
    rows = wanted.batch or 5
    observations = np.tile(np.array([[1, 1]], np.float32), (rows, 1))
    still = policy.act_batch(observations)
    assert (still == still[0]).all()
    if wanted.noise == "none":
        with pytest.raises(ValueError, match="exported without noise"):
            policy.act_batch(observations, deterministic=False)
    else:
        assert policy.act_batch(observations, deterministic=False).shape == (rows,)
        decided = [policy.run(observations, np.tile(np.float32([noise]), (rows, 1))) for noise in ([99, 0], [0, 99])]
        assert [set(actions) for actions in decided] == [{0}, {1}]
    if wanted.batch:
        with pytest.raises(ValueError, match=f"exported for batches of {wanted.batch}, not 4"):
            policy.act_batch(np.zeros((4, 2), np.float32))


def test_a_graph_answers_the_distribution_and_the_value_on_request(trained, tmp_path):
    run = trained.run
    outputs = further_outputs(run, ["distribution", "value"])
    export_run(run, tmp_path / "bundle", form=GraphForm(outputs=outputs), episodes=1)
    manifest = read_manifest(tmp_path / "bundle")
    assert [(spec.name, spec.shape) for spec in manifest.graph.outputs] == [("logits", (2,)), ("value", ())]
    from trpo_tf.serving.runtime.onnx_runtime import open_session

    session = open_session((tmp_path / "bundle" / "policy.onnx").read_bytes())
    observations, noise, actions = golden(tmp_path / "bundle")
    still = ~noise.any(axis=1)
    logits, value, action = session.run(["logits", "value", "action"], {"obs": observations[still]})
    np.testing.assert_array_equal(logits.argmax(axis=1), actions[still])
    np.testing.assert_array_equal(action, actions[still])
    # The critic answers in standardised units, its targets' mean and deviation are the environment's.
    learner, state = run.learner, run.state
    inputs = learner.encode(run.policy.normalizer, observations[still])
    answers = learner.value_function.values(state.value_theta, inputs).numpy()
    expected = answers * np.sqrt(state.return_moments.variance) + state.return_moments.mean
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-4)


TWICE = """
from pathlib import Path
from trpo_tf.export.parity import latency
from trpo_tf.exporting.run_bundle import export_run
from trpo_tf.runs.folder import load_run
latency._SECONDS = 0.02
export_run(load_run(Path({run!r})), Path({out!r}), targets=["all"], episodes=2, accept_loss=True)
"""


def test_two_exports_in_fresh_processes_are_the_same_bytes(trained, tmp_path):
    """One of them forks from a process that has imported TensorFlow: each has another seed of hashes."""
    code = {name: TWICE.format(run=str(trained.run.folder), out=str(tmp_path / name)) for name in ("a", "b")}
    forked = command_line.start(tmp_path, code=code["a"])
    command, path = [sys.executable, "-c", code["b"]], {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    _, said = forked.communicate(300)
    assert forked.returncode == 0, said
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    different = [str(f) for f in files if (tmp_path / "a" / f).read_bytes() != (tmp_path / "b" / f).read_bytes()]
    assert different == ["latency.json"]
    json.loads((tmp_path / "a" / "latency.json").read_text())
