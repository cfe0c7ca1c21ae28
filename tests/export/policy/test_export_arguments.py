"""What is wrong with an argument of the Python API is said at once, in a line that names it and what to give."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from trpo_tf import serving
from trpo_tf.export import Evidence, ExportError, GraphForm, PolicySpec, convert_policy, write_bundle
from trpo_tf.serving import ArraySpec, BundleError, Manifest, NoiseSpec

OBS, ACTION, NOISE = (
    ArraySpec("obs", "float32", (3,)),
    ArraySpec("torque", "float32", (1,), -2, 2),
    NoiseSpec("normal", (1,)),
)
SPEC = PolicySpec((OBS,), ACTION, NOISE)


def torque(observation, noise):
    return tf.reduce_sum(observation, axis=1, keepdims=True) + noise


def model():
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])


def counting(update):
    """A policy that counts its calls in the variable that `update` changes."""
    steps = tf.Variable(0.0, trainable=False, name="steps")

    def function(observation, noise):
        update(steps)
        return torque(observation, noise) + 0.0 * steps

    return function


def drops_out(observation, noise, layer=keras.layers.Dropout(0.5, seed=1)):  # noqa: B008
    return layer(torque(observation, noise), training=True)


def half(observation, noise):
    product = tf.cast(observation, tf.float16) @ tf.ones((3, 1), tf.float16)
    return tf.cast(product, tf.float32) + noise


def asserting(observation, noise):
    with tf.control_dependencies([tf.debugging.assert_less(observation, 5.0)]):
        return torque(observation, noise)


def through_python(observation, noise):
    return tf.ensure_shape(tf.numpy_function(np.negative, [torque(observation, noise)], tf.float32), (None, 1))


WRONG = {
    r"function is a Keras Sequential.*lambda observation, noise: model\(observation\)": lambda: {"function": model()},
    "function must be a function of two arguments, observation and noise": lambda: {"function": lambda observation: 0},
    "function must be a function of two arguments.*, not 3": lambda: {"function": 3},
    r"function gives float32\[None, 3\], and the spec's action is float32\[None, 1\]": lambda: {
        "function": lambda observation, noise: observation
    },
    r"function answers \d+ rows to \d+ observations; answer each, where tf.boolean_mask": lambda: {
        "function": lambda o, n: tf.boolean_mask(torque(o, n), o[:, 0] > 0)
    },
    r"function fails on an observation within the spec's bounds \(assertion failed.*; declare the bounds": lambda: {
        "function": asserting
    },
    r"not finite within .* as for \[0, .*a division by zero": lambda: {
        "function": lambda o, n: torque(o, n) + 0.0 * (o[:, :1] / o[:, :1])
    },
    "BitwiseAnd can't be expressed in ONNX at opset 17; take opset 18": lambda: {
        "function": lambda o, n: tf.cast(tf.bitwise.bitwise_and(tf.cast(o[:, :1], tf.int32), 1), tf.float32) + 0.0 * n
    },
    "function gives int32": lambda: {"function": lambda observation, noise: tf.ones_like(noise, tf.int32)},
    r"function gives float32\[1, 1\], .* is float32\[None, 1\]": lambda: {"function": lambda *_: tf.zeros((1, 1))},
    "function can't be made a TensorFlow graph": lambda: {"function": lambda observation, noise: np.sum(observation)},
    r"observations of the evidence: .*\[5, 2\]": lambda: {"evidence": Evidence(np.zeros((5, 2), np.float32))},
    "observations of the evidence: .*float64": lambda: {"evidence": Evidence(np.zeros((5, 3)))},
    "observations of the evidence: .*'obs'": lambda: {"evidence": Evidence({"x": np.zeros((5, 3), np.float32)})},
    "observer must be a function": lambda: {"observer": None},
    r"function gives a tensor of as many axes as the batch decides.* float32\[None, 1\]; name the axis": lambda: {
        "function": lambda observation, noise: tf.squeeze(torque(observation, noise))
    },
    r"function updates a variable when it is called \(AssignAddVariableOp of steps\).*training=False": lambda: {
        "function": counting(lambda steps: steps.assign_add(1.0))
    },
    r"function updates a variable when it is called \(AssignVariableOp": lambda: {
        "function": counting(tf.function(lambda steps: steps.assign(2.0)))
    },
    r"function updates a variable .*training=False": lambda: {"function": drops_out},
    "function calls a tf.function made with jit_compile=True.*python_function": lambda: {
        "function": tf.function(torque, jit_compile=True)
    },
    "function computes in bfloat16.*dtype='float32'": lambda: {
        "function": lambda observation, noise: tf.cast(tf.cast(torque(observation, noise), tf.bfloat16), tf.float32)
    },
    r"function computes in float16 \(MatMul\).*dtype='float32'": lambda: {"function": half},
    "function calls Python .*compute it in TensorFlow": lambda: {"function": through_python},
    "function must give one tensor": lambda: {"function": lambda observation, noise: [observation, noise]},
    "spec must be a PolicySpec": lambda: {"spec": OBS},
    "path must be that of the folder to make, not None": lambda: {"path": None},
    "path must be that of the folder to make, not the URL s3:/b/x; give a path on": lambda: {"path": Path("s3://b/x")},
    r"targets must be a list of names.*not 'onnx,c'; choose from onnx, savedmodel": lambda: {"targets": "onnx,c"},
    "targets must be a list of names.*not None": lambda: {"targets": None},
    "target 'flash' is unknown; choose from": lambda: {"targets": ["flash"]},
    "form must be a GraphForm": lambda: {"form": {"opset": 17}},
    "output 'obs' has the name of another array": lambda: {"form": GraphForm(outputs={"obs": torque})},
    "name must be printable text without '/'": lambda: {"name": "a/b"},
    r"evidence must be Evidence\(observations\)": lambda: {"evidence": np.zeros((2, 3), np.float32)},
    "provenance must be JSON": lambda: {"provenance": {"when": {1, 2}}},
    "provenance must be a dict": lambda: {"provenance": "here"},
    "statistics must hold a Statistics": lambda: {"statistics": {"obs": (0.0, 1.0)}},
    r"files\['notes'\] must be bytes": lambda: {"files": {"notes": "text"}},
    "files must have plain names": lambda: {"files": {"../notes": b"text"}},
}


@pytest.mark.parametrize("reason", WRONG)
def test_write_bundle_names_the_argument_before_it_makes_anything(reason, tmp_path):
    given = {"function": torque, "spec": SPEC, "path": tmp_path / "bundle", **WRONG[reason]()}
    with pytest.raises(BundleError if reason.startswith("name") else ExportError, match=reason) as refused:
        write_bundle(**given)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_write_bundle_names_a_keyword_that_it_does_not_know(tmp_path):
    with pytest.raises(TypeError, match="unexpected keyword argument 'licence'"):
        write_bundle(torque, SPEC, tmp_path / "bundle", name="mine", licence="MIT")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["c", "c-int8", "litert-int8"])
def test_a_loop_that_a_target_lacks_is_told_before_anything_is_made(target, tmp_path):
    pytest.importorskip("ai_edge_litert")
    network = keras.Sequential([keras.Input((5, 3)), keras.layers.LSTM(4), keras.layers.Dense(1)])
    window = PolicySpec((ArraySpec("obs", "float32", (5, 3)),), ArraySpec("torque", "float32", (1,)), NOISE)
    steps = []
    with pytest.raises(ExportError, match=rf"target {target} can't carry this policy: .* has no loops; .*unroll=True"):
        write_bundle(
            lambda observation, noise: network(observation) + noise,
            window,
            tmp_path / "bundle",
            targets=[target],
            observer=steps.append,
        )
    assert steps == []
    assert list(tmp_path.iterdir()) == []


def test_more_weights_than_an_onnx_file_holds_are_refused_before_the_conversion(tmp_path, monkeypatch):
    monkeypatch.setattr("trpo_tf.export.policy.traced_graph.MOST_WEIGHT_BYTES", 2**20)
    weights = tf.Variable(tf.zeros((3, 2**17)))
    steps = []
    for function in (
        lambda observation, noise: observation @ weights[:, :1] + noise,
        lambda observation, noise: observation @ tf.constant(np.zeros((3, 2**17), np.float32))[:, :1] + noise,
    ):
        with pytest.raises(ExportError, match=r"function has 0\.0 GiB of weights, and an ONNX file holds 2"):
            write_bundle(function, SPEC, tmp_path / "bundle", observer=steps.append)
    assert steps == []


MADE_WRONG = {
    "observation must be a tuple of ArraySpec": lambda: PolicySpec(OBS, ACTION, NOISE),
    r"observation must be a tuple of ArraySpec.*not \(3,\)|not 3": lambda: PolicySpec((3,), ACTION, NOISE),
    "observation must be a tuple of ArraySpec.*not None": lambda: PolicySpec((), ACTION, NOISE),
    "action must be an ArraySpec": lambda: PolicySpec((OBS,), None, NOISE),
    r"noise must be a NoiseSpec .*noise='none'.*not None": lambda: PolicySpec((OBS,), ACTION, None),
    "every array needs a name of its own": lambda: PolicySpec((OBS, OBS), ACTION, NOISE),
    "outputs must be a dict of functions": lambda: GraphForm(outputs=["value"]),
    "output 'value' is a Keras Sequential": lambda: GraphForm(outputs={"value": model()}),
    "batch must be at least 1": lambda: GraphForm(batch=0),
    "batch must be at least 1, and a whole number, not '8'": lambda: GraphForm(batch="8"),
    "episodes must be at least 1": lambda: Evidence(episodes=-1),
    "environment must be one, with reset and step, not 'CartPole-v1'": lambda: Evidence(environment="CartPole-v1"),
    "observations must be an array": lambda: Evidence([[1.0, 2.0, 3.0]]),
    "scores is a Keras Sequential": lambda: Evidence(scores=model()),
    "spec must be a PolicySpec": lambda: convert_policy(torque, None),
    "function is a Keras": lambda: convert_policy(model(), SPEC),
}


@pytest.mark.parametrize("reason", MADE_WRONG)
def test_descriptions_are_checked_when_they_are_made(reason):
    with pytest.raises(ExportError, match=reason):
        MADE_WRONG[reason]()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (("", "float32", (3,)), "name must be printable text"),
        (("obs", "float", (3,)), "dtype of 'obs' must be one of bool"),
        (("obs", np.complex64, (3,)), "dtype of 'obs' must be one of bool"),
        (("obs", "float32", 3), "shape of 'obs' must be a tuple"),
        (("obs", "float32", (None, 3)), "shape of 'obs' must be a tuple"),
        (("obs", "float32", (3,), (0.0, 1.0)), "low of 'obs' must be a number, or one for each of its 3 elements"),
        (("obs", "float32", (3,), 0.0, "high"), "high of 'obs' must be a number"),
        (("obs", "float32", (3,), np.nan), "low of 'obs' must be a number"),
    ],
)
def test_arrays_that_no_manifest_can_hold_are_refused(fields, reason):
    with pytest.raises(BundleError, match=reason):
        ArraySpec(*fields)


def test_a_noise_law_that_nobody_knows_is_refused():
    with pytest.raises(BundleError, match="noise law 'uniform' is unknown; choose one of normal"):
        NoiseSpec("uniform", (1,))


def test_none_is_no_bound_and_sequences_are_bounds():
    spec = ArraySpec("obs", "float32", [2], None, [None, 3])
    assert spec == ArraySpec("obs", "float32", (2,), -np.inf, (np.inf, 3))
    assert ArraySpec("obs", "float32", (2,), np.float32([0, 1])) == ArraySpec("obs", "float32", (2,), (0, 1))
    low, high = spec.bounds()
    np.testing.assert_array_equal(low, [-np.inf, -np.inf])
    np.testing.assert_array_equal(high, [np.inf, 3])
    written = json.loads(Manifest("policy", (spec,), ACTION, NOISE).to_json())["observation"][0]
    assert (written["low"], written["high"]) == (None, [None, 3])


@pytest.mark.parametrize("bundle", [None, 3, ["bundle"], "bun\0dle"])
def test_load_wants_a_path(bundle):
    with pytest.raises(BundleError, match="bundle must be the path of a bundle's folder, not"):
        serving.load(bundle)
