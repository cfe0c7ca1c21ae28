"""Bundles of policies made by hand: complete, proven, usable without us, and never half there."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.support.export.hand_made import Continuous, Discrete, observations
from tests.support.export.replaced_target import replace_target
from tests.support.paths import ROOT
from tests.support.processes import command_line
from trpo_tf import serving
from trpo_tf.export import Evidence, ExportError, GraphForm, ParityError, PolicySpec, write_bundle
from trpo_tf.export.litert.convert import to_litert
from trpo_tf.export.parity.verify import verify_targets
from trpo_tf.export.targets.table import TARGETS
from trpo_tf.serving import ArraySpec, BundleError, NoiseSpec
from trpo_tf.serving.bundle.files import FileEntry
from trpo_tf.serving.bundle.golden import read_golden
from trpo_tf.serving.bundle.manifest import read_manifest
from trpo_tf.serving.verify import verify


@pytest.fixture(scope="module", params=["discrete", "continuous"])
def exported(request, tmp_path_factory):
    """A policy and its bundle."""
    policy = {"discrete": Discrete, "continuous": Continuous}[request.param]()
    scores = policy.scores if request.param == "discrete" else None
    folder = tmp_path_factory.mktemp("bundles") / request.param
    write_bundle(policy.function, policy.spec, folder, name="mine", evidence=Evidence(scores=scores))
    return policy, folder


@pytest.fixture
def run_python(tmp_path):
    """Runs code in an isolated interpreter elsewhere, without the modules named, and returns its stdout."""

    def run(code: str, *blocked: str) -> str:
        block = textwrap.dedent(f"""
            import importlib.abc, sys
            class Blocker(importlib.abc.MetaPathFinder):
                def find_spec(self, name, path=None, target=None):
                    if f"{{name}}.".startswith({tuple(f"{module}." for module in blocked)!r}):
                        raise ModuleNotFoundError(name)
            sys.meta_path.insert(0, Blocker())
        """)
        done = subprocess.run(
            [sys.executable, "-I", "-c", block + textwrap.dedent(code)],
            cwd=tmp_path,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_the_served_policy_acts_as_the_keras_one(exported):
    policy, folder = exported
    obs = observations(policy.spec.observation, 20)
    noise = serving.runtime.noise.draw_noise(policy.spec.noise, 20, np.random.default_rng(1))
    served = serving.load(folder)
    zeros = np.zeros_like(noise)
    np.testing.assert_allclose(served.act_batch(obs), policy.function(obs, zeros).numpy(), atol=1e-6)
    np.testing.assert_allclose(served.run(obs, noise), policy.function(obs, noise).numpy(), atol=1e-6)


def test_all_targets_are_those_that_turn_out_to_carry_the_policy(tmp_path):
    """Which a converter alone finds out: C can't sort, and nothing is there for 8 bits. A named one must be made."""
    spec = Continuous().spec

    def smallest(observation, noise):
        return tf.clip_by_value(tf.sort(observation, axis=1)[:, :2] / 5.0 + noise, -1.0, 1.0)

    said = []
    visited = Evidence(observations(spec.observation, 50))
    bundle = write_bundle(smallest, spec, tmp_path / "all", targets=["all"], evidence=visited, observer=said.append)
    assert bundle.parity.keys() == TARGETS.keys() - {"c", "c-int8", "litert-int8"}
    assert {path.name for path in (tmp_path / "all").iterdir()}.isdisjoint({"c", "c-int8", "policy.int8.tflite"})
    assert "c is left out: the C target has no TopK; use other layers, or the ONNX file" in said
    assert "litert-int8 is left out: the function has no matrix product and no convolution" in "\n".join(said)
    with pytest.raises(ExportError, match="the C target has no TopK"):
        write_bundle(smallest, spec, tmp_path / "named", targets=["all", "c"], evidence=visited)


def test_of_all_targets_one_in_8_bits_that_leaves_the_bounds_is_left_out(tmp_path, monkeypatch):
    """The action is the weight of the input that is chosen, and 8 bits make 0.9016 of the weight 0.9."""
    monkeypatch.setattr(TARGETS, "_built_in", {name: TARGETS._built_in[name] for name in ("onnx", "onnx-int8")})
    weights = np.float32([[0.9], [-1.0], [0.3]])
    spec = PolicySpec(
        (ArraySpec("obs", "float32", (3,)),), ArraySpec("a", "float32", (1,), -1.0, 0.9), NoiseSpec("normal", (1,))
    )

    def chosen(observation, noise):
        return tf.nn.softmax(1000.0 * observation) @ weights + 0.0 * noise

    said, visited = [], Evidence(np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32))
    bundle = write_bundle(chosen, spec, tmp_path / "all", targets=["all"], evidence=visited, observer=said.append)
    assert list(bundle.parity) == ["onnx"]
    assert "onnx-int8 is left out: it answers actions of 0.9" in "\n".join(said)
    assert not (tmp_path / "all" / "policy.int8.onnx").exists()
    with pytest.raises(ExportError, match=r"onnx-int8 answers actions of 0\.9.* outside the declared bounds"):
        write_bundle(chosen, spec, tmp_path / "named", targets=["onnx-int8"], evidence=visited)


def test_of_all_targets_one_that_differs_is_left_out_and_a_named_one_is_an_error(tmp_path, monkeypatch):
    """A runtime may round an operation of a network otherwise, which says nothing of the ONNX file."""
    monkeypatch.setattr(TARGETS, "_built_in", {name: TARGETS._built_in[name] for name in ("onnx", "ort")})
    right = TARGETS["ort"].open

    def opened(folder, manifest):
        actor = right(folder, manifest)
        return lambda observations, noise: 0.9 * actor(observations, noise)

    replace_target(monkeypatch, "ort", open=opened)
    policy, said = Continuous(), []
    act = policy.function
    bundle = write_bundle(act, policy.spec, tmp_path / "all", targets=["all"], observer=said.append)
    assert list(bundle.parity) == ["onnx"]
    assert "ort is left out: it differs from the trained policy by 0." in "\n".join(said)
    assert not (tmp_path / "all" / "ort").exists()
    with pytest.raises(ParityError, match="ort differs from the trained policy by 0"):
        write_bundle(act, policy.spec, tmp_path / "named", targets=["ort"])


def test_the_files_listed_are_the_files_there(exported):
    _, folder = exported
    manifest = json.loads((folder / "manifest.json").read_text())
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(manifest["files"]) | {"manifest.json", "latency.json"} == present
    assert {"policy.onnx", "golden.npz", "saved_model/saved_model.pb", "MODEL_CARD.md"} <= present


def test_the_manifest_says_what_was_compared(exported):
    policy, folder = exported
    manifest = serving.bundle.manifest.read_manifest(folder)
    assert (manifest.observation, manifest.action, manifest.noise) == (
        policy.spec.observation,
        policy.spec.action,
        policy.spec.noise,
    )
    assert set(manifest.parity) == {"onnx", "savedmodel"}
    for figures in manifest.parity.values():
        assert 0 <= figures["max_difference"] <= 1e-5
        assert figures["cases"] > 500


def test_golden_cases_are_the_keras_policy_s_own(exported):
    policy, folder = exported
    golden = read_golden((folder / "golden.npz").read_bytes(), read_manifest(folder))
    expected = policy.function(golden["obs"], golden["noise"]).numpy()
    np.testing.assert_allclose(golden["action"], expected, atol=1e-6)
    still = ~golden["noise"].any(axis=1)
    assert still.any()
    assert not still.all()


def test_verify_needs_no_tensorflow(exported, run_python):
    _, folder = exported
    code = f"""
        sys.path.insert(0, {str(ROOT)!r})
        from trpo_tf.serving.verify import verify
        print(verify({str(folder)!r}).golden_cases)
    """
    blocked = ("tensorflow", "keras", "tf2onnx", "onnx", "trpo_tf.export")
    assert int(run_python(code, *blocked)) == verify(folder).golden_cases > 100


@pytest.mark.parametrize("exported", ["continuous"], indirect=True)
def test_the_saved_model_needs_tensorflow_alone(exported, run_python):
    _, folder = exported
    golden = read_golden((folder / "golden.npz").read_bytes(), read_manifest(folder))
    noisy = golden["noise"].any(axis=1)
    code = f"""
        for name in ("trpo_tf",):
            try:
                __import__(name)
            except ImportError:
                continue
            raise SystemExit(name + " can be imported")
        import numpy as np, tensorflow as tf
        golden = np.load({str(folder / "golden.npz")!r})
        obs, noise = tf.constant(golden["obs"]), tf.constant(golden["noise"])
        signatures = tf.saved_model.load({str(folder / "saved_model")!r}).signatures
        still = signatures["serving_default"](obs=obs)["action"].numpy()
        drawn = signatures["sample"](obs=obs, noise=noise)["action"].numpy()
        print(still.tolist(), drawn.tolist(), sep="\\n")
    """
    still, drawn = map(json.loads, run_python(code, "trpo_tf").splitlines())
    np.testing.assert_allclose(drawn, golden["action"], atol=1e-6)
    np.testing.assert_allclose(np.array(still)[~noisy], golden["action"][~noisy], atol=1e-6)
    assert not np.array_equal(np.array(still)[noisy], golden["action"][noisy])


def test_the_saved_model_takes_any_batch(exported):
    policy, folder = exported
    act = tf.saved_model.load(str(folder / "saved_model")).signatures["serving_default"]
    for batch in (1, 3):
        obs = observations(policy.spec.observation, batch)
        assert act(obs=tf.constant(obs))["action"].shape[0] == batch


@pytest.mark.parametrize("dtype", ["float64", "int64", "uint8"])
def test_observations_of_any_type(dtype, tmp_path):
    policy = Continuous(dtype)
    write_bundle(policy.function, policy.spec, tmp_path / "bundle")
    verify(tmp_path / "bundle")
    obs = observations(policy.spec.observation)
    assert obs.dtype == dtype
    noise = np.zeros((5, 2), np.float32)
    np.testing.assert_allclose(
        serving.load(tmp_path / "bundle").act_batch(obs), policy.function(obs, noise).numpy(), atol=1e-6
    )


def test_more_files_and_provenance_go_along(tmp_path):
    policy = Continuous()
    folder = tmp_path / "bundle"
    write_bundle(policy.function, policy.spec, folder, provenance={"made": "by hand"}, files={"notes.txt": b"mine"})
    assert (folder / "notes.txt").read_bytes() == b"mine"
    verify(folder)
    (folder / "notes.txt").write_bytes(b"yours")
    with pytest.raises(BundleError, match=r"notes\.txt"):
        verify(folder)
    assert serving.bundle.manifest.read_manifest(folder).provenance == {"made": "by hand"}


def test_an_existing_path_is_refused_and_left_alone(tmp_path):
    policy = Continuous()
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "mine.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="bundle exists; choose another folder"):
        write_bundle(policy.function, policy.spec, tmp_path / "bundle")
    assert [path.name for path in tmp_path.rglob("*")] == ["bundle", "mine.txt"]


def test_a_format_that_acts_otherwise_leaves_nothing_behind(tmp_path):
    policy = Continuous()
    calls = iter(range(100))

    def drifting(obs, noise):
        # Traced anew for each format, and another policy each time.
        return policy.function(obs, noise) * (1.0 - 0.01 * next(calls))

    with pytest.raises(ExportError, match="onnx differs from the trained policy"):
        write_bundle(drifting, policy.spec, tmp_path / "a" / "b" / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_an_episode_that_goes_otherwise_leaves_nothing_behind(tmp_path):
    class Broken:
        def reset(self, *, seed=None):
            return np.zeros(3, np.float32), {}

        def step(self, action):
            raise ArithmeticError("the motor is too hot")

    policy = Continuous()
    with pytest.raises(ArithmeticError, match="motor"):
        write_bundle(policy.function, policy.spec, tmp_path / "bundle", evidence=Evidence(environment=Broken()))
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from tests.support.export.hand_made import Continuous
import trpo_tf.export.bundle.make_targets
from trpo_tf.export import write_bundle

compare = trpo_tf.export.bundle.make_targets.compare_target
def killed_at_the_last_target(name, *arguments, **options):
    if name == "savedmodel":
        os.kill(os.getpid(), signal.SIGKILL)
    return compare(name, *arguments, **options)
trpo_tf.export.bundle.make_targets.compare_target = killed_at_the_last_target

policy = Continuous()
write_bundle(policy.function, policy.spec, {target!r})
"""


def test_a_kill_in_the_middle_leaves_no_half_bundle(tmp_path):
    target = tmp_path / "bundle"
    done = command_line.run(tmp_path, code=KILLED.format(target=str(target)))
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not target.exists()
    assert all(path.name.startswith(".") for path in tmp_path.iterdir())  # what a server does not look at
    policy = Continuous()
    write_bundle(policy.function, policy.spec, target)
    verify(target)


@pytest.fixture(scope="module")
def with_targets(tmp_path_factory):
    """A bundle with LiteRT and C."""
    policy, folder = Continuous(), tmp_path_factory.mktemp("targets") / "bundle"
    write_bundle(policy.function, policy.spec, folder, targets=["litert", "c"])
    return folder


def test_a_target_that_differs_on_this_machine_is_found(with_targets, tmp_path):
    folder, other = Path(shutil.copytree(with_targets, tmp_path / "bundle")), Continuous()
    content = to_litert(lambda obs, noise: 0.5 * other.function(obs, noise), other.spec)
    (folder / "policy.tflite").write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["policy.tflite"] = asdict(FileEntry.of(content))
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert verify(folder)  # every checksum holds, and policy.onnx is as it was
    with pytest.raises(BundleError, match=r"litert differs from its golden cases by \d\S+ on this machine"):
        verify_targets(folder)


def test_a_target_that_can_not_run_here_is_left_out(with_targets, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    found = verify_targets(with_targets)
    assert list(found.parity) == ["onnx", "litert"]
    assert found.skipped == {"c": "there is no C compiler to check the C sources with; install gcc or clang, or set CC"}


def test_eight_bits_ask_for_something_to_calibrate_on(tmp_path):
    policy = Continuous()
    with pytest.raises(ExportError, match="calibrated on what the policy visits; give observations, or an environment"):
        write_bundle(policy.function, policy.spec, tmp_path / "bundle", targets=["onnx-int8"])
    assert list(tmp_path.iterdir()) == []


def test_an_output_of_no_fixed_shape_is_refused(tmp_path):
    policy = Continuous()
    form = GraphForm(outputs={"total": lambda obs, noise: tf.reduce_sum(obs)})
    with pytest.raises(ExportError, match=r"output 'total' has shape \(\); rows must have a fixed one"):
        write_bundle(policy.function, policy.spec, tmp_path / "bundle", form=form)


def test_a_name_that_can_not_be_served_is_refused_and_nothing_is_left(tmp_path):
    policy = Continuous()
    with pytest.raises(BundleError, match="name must be"):
        write_bundle(policy.function, policy.spec, tmp_path / "bundle", name="a/b")
    assert list(tmp_path.iterdir()) == []
