"""What a policy must show by itself: policies that no target can act like are refused, and say why."""

import re
from dataclasses import replace

import keras
import numpy as np
import onnx
import pytest
import tensorflow as tf
from onnx import helper

from tests.support.export.hand_made import Continuous
from tests.support.export.mutations import FLOAT, inserted
from trpo_tf import serving
from trpo_tf.export import Evidence, ExportError, GraphForm, ParityError, PolicySpec, write_bundle
from trpo_tf.export.parity.verify import verify_targets
from trpo_tf.serving import ArraySpec, BundleError, NoiseSpec
from trpo_tf.serving.bundle.files import FileEntry
from trpo_tf.serving.bundle.manifest import read_manifest
from trpo_tf.serving.verify import verify

OBSERVATION = ArraySpec("obs", "float32", (3,), -5.0, 5.0)
SPEC = PolicySpec((OBSERVATION,), ArraySpec("action", "float32", (2,), -1, 1), NoiseSpec("normal", (2,)))
CHOICES = PolicySpec((OBSERVATION,), ArraySpec("action", "int64", (), 0, 3), NoiseSpec("gumbel", (4,)))
WEIGHTS = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
SEEN = np.random.default_rng(1).uniform(-5, 5, (256, 3)).astype(np.float32)


def torque(observation, noise):
    return tf.tanh(observation @ WEIGHTS[:, :2]) + 0.0 * noise


def logits(observation, noise):
    return observation @ WEIGHTS + noise


def choose(scores):
    return lambda observation, noise: tf.argmax(scores(observation, noise), axis=-1)


def refusal(function, spec=SPEC, folder=None, **options):
    with pytest.raises(ExportError) as refused:
        write_bundle(function, spec, folder, **options)
    assert "\n" not in str(refused.value)
    assert not folder.exists()
    return str(refused.value)


def normalised(observation, noise):
    layer = keras.layers.BatchNormalization()
    layer.build((None, 3))
    return torque(layer(observation, training=True), noise)


COUPLED = {
    "a norm without axes": lambda o, n: tf.clip_by_norm(torque(o, n), 0.5),
    "a mean without axis": lambda o, n: torque(o - tf.reduce_mean(o), n),
    "a softmax over the rows": lambda o, n: torque(tf.nn.softmax(o, axis=0), n),
    "the largest of the batch": lambda o, n: torque(o, n) * tf.reduce_max(tf.abs(o)) / 10,
    "the row before": lambda o, n: torque(tf.roll(o, 1, axis=0), n),
    "the batch's own moments": lambda o, n: torque((o - tf.reduce_mean(o, 0)) / (0.1 + tf.math.reduce_std(o, 0)), n),
    "noise of the batch": lambda o, n: tf.tanh(torque(o, n) + tf.reduce_sum(n)),
}


@pytest.mark.parametrize("how", COUPLED)
def test_an_observation_s_action_may_not_depend_on_the_others_of_its_batch(how, tmp_path):
    said = refusal(COUPLED[how], folder=tmp_path / "bundle")
    assert "'action' for an observation depends on the others of its batch" in said
    assert "a mean, norm or softmax without its axis" in said


def rows(observation):
    return tf.shape(observation)[0]


SIZED = {
    "a branch at one size": lambda o, n: tf.cond(rows(o) == 1000, lambda: torque(o, n) / 2, lambda: torque(o, n)),
    "a choice by size": lambda o, n: torque(o, n) * tf.where(rows(o) > 2000, 0.5, 1.0),
    "arithmetic": lambda o, n: torque(o, n) * (1 - tf.cast(rows(o) // 10**6, tf.float32)),
    "the size of all": lambda o, n: torque(o, n) * tf.cast(tf.size(o) < 9999, tf.float32),
}


@pytest.mark.parametrize("how", SIZED)
def test_an_action_may_not_depend_on_how_many_rows_its_batch_has(how, tmp_path):
    """At a size that no comparison meets."""
    assert "'action' is computed of the number of rows of its batch" in refusal(SIZED[how], folder=tmp_path / "bundle")


SHAPED = {
    "reshaped": lambda o, n: tf.reshape(torque(o, n), (rows(o), 2)),
    "zeros of as many rows": lambda o, n: tf.concat([torque(o, n)[:, :1], tf.zeros((rows(o), 1))], 1),
    "repeated": lambda o, n: torque(o, n) * tf.tile([[0.5]], (rows(o), 2)),
    "numbered": lambda o, n: tf.gather_nd(torque(o, n), tf.stack([tf.range(rows(o)), tf.range(rows(o))], 1)[:, :1]),
    "divided by its width": lambda o, n: torque(o / tf.cast(tf.shape(o)[1], tf.float32), n),
}


@pytest.mark.parametrize("how", SHAPED)
def test_a_shape_of_as_many_rows_is_none_of_that(how, tmp_path):
    manifest = write_bundle(SHAPED[how], SPEC, tmp_path / "bundle", targets=["onnx"])
    assert manifest.parity["onnx"]["cases_equal"] == manifest.parity["onnx"]["cases"]


def test_choices_are_coupled_by_their_scores(tmp_path):
    scores = lambda o, n: logits(o, n) - 1e-3 * tf.reduce_mean(o, axis=0)[:1]  # noqa: E731
    said = refusal(choose(scores), CHOICES, tmp_path / "bundle", evidence=Evidence(scores=scores))
    assert "depends on the others of its batch" in said


def test_batch_normalisation_in_training_mode_is_refused(tmp_path):
    layer = keras.layers.BatchNormalization()
    layer.build((None, 3))
    right = lambda o, n: torque(layer(o), n)  # noqa: E731
    write_bundle(right, SPEC, tmp_path / "right", targets=["onnx"])
    said = refusal(lambda o, n: torque(layer(o, training=True), n), folder=tmp_path / "bundle")
    assert "function updates a variable when it is called" in said


def test_a_further_output_may_not_depend_on_other_rows_either(tmp_path):
    form = GraphForm(outputs={"value": lambda o, n: o[:, :1] - tf.reduce_mean(o)})
    assert "'value' for an observation depends" in refusal(torque, folder=tmp_path / "bundle", form=form)


def test_a_policy_that_draws_by_itself_is_refused(tmp_path):
    said = refusal(lambda o, n: torque(o, n) * tf.random.uniform(()), folder=tmp_path / "bundle")
    assert "RandomUniform" in said or "another each time" in said


@pytest.mark.parametrize(("high", "is_written"), [(np.inf, True), (1000.0, False)])
def test_a_policy_that_overflows_is_refused_where_it_is_declared_to_act(high, is_written, tmp_path):
    """Its standard deviation is infinite from 89 on, and infinity times no noise is no number.

    Evidence names the observation here, as the dicts of several parts do.
    """
    spec = replace(SPEC, observation=(ArraySpec("obs", "float32", (3,), -high, high),))
    function = lambda o, n: tf.tanh(o[:, :2] + tf.exp(o[:, 1:]) * n)  # noqa: E731
    if is_written:
        write_bundle(function, spec, tmp_path / "bundle", targets=["onnx"], evidence=Evidence({"obs": SEEN}))
    else:
        said = refusal(function, spec, tmp_path / "bundle", targets=["onnx"])
        assert "not finite within its observations' bounds" in said


FALSE_BOUNDS = {
    "an action that is not clipped": (lambda o, n: o @ WEIGHTS[:, :2], SPEC, r"of -\d.* to \d.* outside .*-1 to 1"),
    "noise that is not clipped": (lambda o, n: 0.5 * torque(o, n) + 0.1 * n, SPEC, "outside the declared bounds"),
    "one observation in a hundred": (
        lambda o, n: torque(o, n) + tf.nn.relu(o[:, :1] - 4.9),
        SPEC,
        "outside the declared bounds",
    ),
    "numbers in micrometres": (
        lambda o, n: 2e-6 * torque(o, n),
        replace(SPEC, action=ArraySpec("action", "float32", (2,), -1e-6, 1e-6)),
        "of -2e-06 to 2e-06 outside the declared bounds",
    ),
    "choices counted from another start": (
        lambda o, n: choose(logits)(o, n) + 7,
        CHOICES,
        r"of 7 to 10 outside the declared bounds \(0 to 3\)",
    ),
}


@pytest.mark.parametrize("what", FALSE_BOUNDS)
def test_declared_bounds_hold(what, tmp_path):
    function, spec, reason = FALSE_BOUNDS[what]
    said = refusal(function, spec, tmp_path / "bundle")
    assert re.search(reason, said), said


def test_bounds_that_are_reached_but_for_rounding_hold(tmp_path):
    third = np.float32(1 / 3)
    spec = PolicySpec((OBSERVATION,), ArraySpec("action", "float32", (2,), -1 / 3, 1 / 3), NoiseSpec("normal", (2,)))
    write_bundle(lambda o, n: third * tf.tanh(99 * o[:, :2]) + 0 * n, spec, tmp_path / "bundle", targets=["onnx"])


@pytest.mark.parametrize("with_scores", [True, False])
@pytest.mark.parametrize("weight", [np.nan, np.inf])
def test_choices_of_weights_that_are_not_finite_are_refused(with_scores, weight, tmp_path):
    scores = lambda o, n: logits(o * weight, n)  # noqa: E731
    evidence = Evidence(scores=scores if with_scores else None)
    said = refusal(choose(scores), CHOICES, tmp_path / "bundle", evidence=evidence)
    assert (
        "scores are not finite" if with_scores else "ArgMax in the policy compares numbers of which some are NaN"
    ) in said


def test_masked_choices_have_scores_of_minus_infinity(tmp_path):
    mask = np.float32([0, -np.inf, 0, 0])
    scores = lambda o, n: logits(o, n) + mask  # noqa: E731
    write_bundle(choose(scores), CHOICES, tmp_path / "bundle", evidence=Evidence(scores=scores), targets=["onnx"])
    assert 1 not in serving.load(tmp_path / "bundle").act_batch(SEEN)


def test_scores_of_another_policy_are_refused(tmp_path):
    evidence = Evidence(scores=lambda o, n: -logits(o, n))
    said = refusal(choose(logits), CHOICES, tmp_path / "bundle", evidence=evidence)
    assert "scores are not what the actions maximise" in said
    evidence = Evidence(scores=lambda o, n: logits(o, n)[:, 0])
    said = refusal(choose(logits), CHOICES, tmp_path / "other", evidence=evidence)
    assert "scores must be [batch, n]" in said


def test_nearly_equal_scores_prove_nothing(tmp_path):
    """Of a thousand choices within 1e-6 of each other each machine would take another."""
    count = 1000
    spec = PolicySpec((OBSERVATION,), ArraySpec("action", "int64", (), 0, count - 1), NoiseSpec("gumbel", (count,)))
    weights = 1e-6 * np.random.default_rng(0).normal(size=(3, count)).astype(np.float32)
    scores = lambda o, n: tf.tanh(o) @ weights + n  # noqa: E731
    said = refusal(choose(scores), spec, tmp_path / "bundle", evidence=Evidence(scores=scores), targets=["onnx"])
    assert "onnx can't be compared: in 100% of the cases several actions are as good but for rounding" in said
    manifest = write_bundle(
        choose(scores), spec, tmp_path / "taken", evidence=Evidence(scores=scores), targets=["onnx"], accept_loss=True
    )
    assert manifest.parity["onnx"]["decided"] == 0
    assert verify(tmp_path / "taken").golden_cases >= 16


def test_a_wide_policy_is_not_refused_for_the_order_of_its_sums(tmp_path):
    """At corners far beyond what it visits, sums of 4,000 numbers differ by more than 1e-5 however they are right."""
    width = 4000
    spec = PolicySpec(
        (ArraySpec("obs", "float32", (width,)),), ArraySpec("action", "float32", (2,), -1, 1), NoiseSpec("normal", (2,))
    )
    rng = np.random.default_rng(0)
    first, last = rng.normal(size=(width, 8)) / np.sqrt(width), rng.normal(size=(8, 2))
    first, last = first.astype(np.float32), last.astype(np.float32)
    seen = rng.normal(size=(64, width)).astype(np.float32)

    def act(observation, noise):
        return tf.clip_by_value(tf.nn.relu(observation @ first) @ last + 0.1 * noise, -1.0, 1.0)

    manifest = write_bundle(act, spec, tmp_path / "bundle", targets=["onnx", "c"], evidence=Evidence(seen))
    assert all(figures["decided"] > 0.5 for figures in manifest.parity.values())
    verify(tmp_path / "bundle")
    verify_targets(tmp_path / "bundle", 3)
    wrong = lambda o, n: act(o, n) + 1e-3 * tf.cast(tf.shape(o)[0] > 1, tf.float32)  # noqa: E731
    assert "depends on the others" in refusal(
        wrong, spec, tmp_path / "wrong", targets=["onnx"], evidence=Evidence(seen)
    )


RUINED = np.concatenate(
    [np.random.default_rng(0).normal(0, 1e-4, (1, 8)), np.random.default_rng(1).normal(0, 10, (1, 8))]
)


@pytest.mark.parametrize("target", ["onnx-int8", "onnx-int8-dynamic", "litert-int8"])
def test_8_bits_that_lose_the_policy_are_refused_without_an_environment(target, tmp_path):
    """One input in millimetres, the other in radians: in steps of the first there is nothing left of the second."""
    spec = PolicySpec(
        (ArraySpec("obs", "float32", (2,)),), ArraySpec("action", "float32", (1,), -2, 2), NoiseSpec("normal", (1,))
    )
    rng = np.random.default_rng(2)
    seen = np.stack([rng.uniform(0, 4000, 256), rng.uniform(-0.1, 0.1, 256)], axis=1).astype(np.float32)
    first, last = RUINED.astype(np.float32), rng.normal(size=(8, 1)).astype(np.float32)

    def act(observation, noise):
        return tf.clip_by_value(tf.tanh(observation @ first) @ last + 0.1 * noise, -2.0, 2.0)

    def scaled(observation, noise):
        inputs = tf.clip_by_value(observation / np.float32([2000, 0.1]), -5.0, 5.0)
        return tf.clip_by_value(tf.tanh(inputs @ (first[1:].repeat(2, 0) / 20)) @ last, -2.0, 2.0) + 0.0 * noise

    with pytest.raises(
        ParityError, match=rf"{target} loses the policy in 8 bits: its 'action' errs by .* allowed are 0\.2"
    ):
        write_bundle(act, spec, tmp_path / "bundle", targets=[target], evidence=Evidence(seen))
    manifest = write_bundle(scaled, spec, tmp_path / "scaled", targets=[target], evidence=Evidence(seen))
    assert 0 < manifest.parity[target]["error"] < 0.1


def test_8_bits_need_two_episodes(tmp_path):
    class Still:
        def reset(self, *, seed=None):
            return np.zeros(3, np.float32), {}

        def step(self, action):
            return np.zeros(3, np.float32), 0.0, True, False, {}

    evidence = Evidence(environment=Still(), episodes=1)
    said = refusal(torque, folder=tmp_path / "bundle", targets=["onnx-int8"], evidence=evidence)
    assert "onnx-int8 is compared by its return, for which 1 episode shows nothing; play 2 or more" in said


def further(**outputs):
    return {"form": GraphForm(outputs=outputs), "evidence": Evidence(SEEN), "targets": ["onnx"]}


def test_further_outputs_are_compared(tmp_path):
    said = refusal(torque, folder=tmp_path / "a", **further(places=lambda o, n: tf.cast(o * 100, tf.uint8)))
    assert "'places'" in said
    said = refusal(torque, folder=tmp_path / "b", **further(value=lambda o, n: o[:, :1] * np.nan))
    assert "output 'value' is not finite" in said


def test_further_outputs_are_golden_and_what_leaves_them_out_says_so(tmp_path):
    said, folder = [], tmp_path / "bundle"
    options = further(value=lambda o, n: tf.sqrt(o[:, 0]), twice=lambda o, n: 2 * o) | {
        "targets": ["onnx", "savedmodel", "c"],
        "evidence": Evidence(np.abs(SEEN)),
    }
    manifest = write_bundle(torque, SPEC, folder, observer=said.append, **options)
    assert "c answers the action alone, without value, twice" in said
    assert [name for name, figures in manifest.parity.items() if "without" in figures] == ["c"]
    assert "c answers the action alone, without value, twice." in (folder / "MODEL_CARD.md").read_text()
    verify(folder)
    verify_targets(folder)
    with np.load(folder / "golden.npz") as golden:
        defined = golden["obs"][:, 0] >= 0
        np.testing.assert_allclose(golden["value"][defined], np.sqrt(golden["obs"][defined, 0]), rtol=1e-6)
        np.testing.assert_array_equal(golden["twice"], 2 * golden["obs"])
        np.testing.assert_array_equal(np.isnan(golden["value"]), ~defined)
        assert 0 < defined.sum() < len(defined)


def test_targets_are_compared_anew_from_any_seed(tmp_path):
    policy = Continuous()
    write_bundle(policy.function, policy.spec, tmp_path / "bundle", targets=["onnx", "savedmodel", "c"])
    assert {verify_targets(tmp_path / "bundle", seed).new_cases for seed in range(3)} == {107 + 64 + 4}
    assert verify_targets(tmp_path / "bundle").new_cases == 0


def rewritten(bundle, change):
    """A bundle whose graph is changed, with the checksum that goes with it."""
    model = onnx.load(bundle / "policy.onnx")
    change(model.graph)
    content = model.SerializeToString()
    (bundle / "policy.onnx").write_bytes(content)
    manifest = read_manifest(bundle)
    manifest = replace(manifest, files={**manifest.files, "policy.onnx": FileEntry.of(content)})
    (bundle / "manifest.json").write_text(manifest.to_json())


def test_a_graph_that_answers_single_observations_otherwise_is_found_without_tensorflow(tmp_path):
    write_bundle(torque, SPEC, tmp_path / "bundle", targets=["onnx"])
    verify(tmp_path / "bundle")
    change = inserted(
        "action",
        helper.make_node("Shape", ["in"], ["rows"], start=0, end=1),
        helper.make_node("Equal", ["rows", "single"], ["is_single"]),
        helper.make_node("Cast", ["is_single"], ["shift"], to=FLOAT),
        helper.make_node("Add", ["in", "shift"], ["out"]),
        single=np.int64([1]),
    )
    rewritten(tmp_path / "bundle", change)
    with pytest.raises(BundleError, match="differs from its golden cases by 1, asked by itself"):
        verify(tmp_path / "bundle")


def test_new_cases_find_what_golden_ones_do_not(tmp_path):
    """The first number counts as 0 where no golden case is: from 1.1 to 2.9."""
    bundle = tmp_path / "bundle"
    write_bundle(torque, SPEC, bundle, targets=["onnx", "savedmodel"])
    with np.load(bundle / "golden.npz") as golden:
        kept = np.abs(golden["obs"][:, 0] - 2.0) > 1.0
        arrays = {name: golden[name][kept] for name in golden.files}
    np.savez(bundle / "golden.npz", **arrays)
    manifest = read_manifest(bundle)
    entry = FileEntry.of((bundle / "golden.npz").read_bytes())
    (bundle / "manifest.json").write_text(replace(manifest, files={**manifest.files, "golden.npz": entry}).to_json())
    change = inserted(
        "obs",
        helper.make_node("Sub", ["in", "centre"], ["shifted"]),
        helper.make_node("Abs", ["shifted"], ["distance"]),
        helper.make_node("Greater", ["distance", "width"], ["is_outside"]),
        helper.make_node("Where", ["is_outside", "in", "zero"], ["out"]),
        centre=np.float32([2, 99, 99]),
        width=np.float32(0.9),
        zero=np.float32(0),
    )
    rewritten(bundle, change)
    verify(bundle)
    verify_targets(bundle)
    with pytest.raises(BundleError, match=r"savedmodel differs from policy\.onnx by .*, on new cases of seed 5"):
        verify_targets(bundle, 5)
