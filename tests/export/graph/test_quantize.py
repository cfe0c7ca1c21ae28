"""Policies in 8 bits: nearly the same, wholly quantised, and the same file and actions on every machine."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import tensorflow as tf
from onnx import numpy_helper

from tests.support.export.stateful import STATEFUL, gru_cell, weights
from tests.support.export.zoo import KINDS, case, converted, error, onnx_actor
from trpo_tf.export import ExportError, convert_policy
from trpo_tf.export.graph.check import check_graph
from trpo_tf.export.graph.noise_input import with_noise
from trpo_tf.export.graph.quantize import quantize_dynamic, quantize_static
from trpo_tf.export.litert.convert import to_litert
from trpo_tf.export.litert.interpreter import litert_step
from trpo_tf.serving import StateSpec
from trpo_tf.serving.bundle.manifest import Manifest
from trpo_tf.serving.runtime.onnx_runtime import open_session
from trpo_tf.serving.runtime.policy import Policy

TOLERANCE = 0.05
"""Share of a continuous action's range, or of discrete actions that are others."""
PRODUCTS = {"MatMul", "Gemm", "Conv"}


def static(kind, content):
    tested = case(kind)
    return quantize_static(content, tested.policy.spec, tested.visited, tested.noise)


METHODS = {"dynamic": lambda kind, content: quantize_dynamic(content, case(kind).policy.spec), "static": static}


@pytest.fixture(scope="module", params=METHODS)
def method(request):
    return request.param


@pytest.fixture(scope="module", params=KINDS)
def quantized(request, method):
    """Method, kind of policy, and the quantised graph."""
    return method, request.param, METHODS[method](request.param, converted(request.param))


def test_actions_are_nearly_the_same_with_noise_and_without(quantized):
    _, kind, content = quantized
    tested = case(kind)
    actor = onnx_actor(content, tested.policy.spec)
    assert error(tested, actor, tested.zero_noise) <= TOLERANCE
    assert error(tested, actor, tested.noise) <= TOLERANCE


def test_every_product_is_quantised_and_nothing_else(quantized):
    method, kind, content = quantized
    before, after = onnx.load_from_string(converted(kind)).graph, onnx.load_from_string(content).graph
    products = [node for node in before.node if node.op_type in PRODUCTS]
    made_by = {node.output[0]: node for node in after.node}
    left = [node for node in after.node if node.op_type in PRODUCTS]
    if method == "dynamic":
        weights = {tensor.name for tensor in after.initializer}
        assert not [node for node in left if weights.intersection(node.input)]  # others are of computed numbers alone
        integer = [node for node in after.node if node.op_type in {"MatMulInteger", "ConvInteger"}]
        assert len(integer) + len(left) == len(products)
    else:
        assert len(left) == len(products)
        assert all(made_by[read].op_type == "DequantizeLinear" for node in left for read in node.input)
    assert {"Tanh", "Max", "Expand"} & {n.op_type for n in before.node} <= {n.op_type for n in after.node}


def test_weights_take_seven_bits_lest_products_saturate(quantized):
    _, _, content = quantized
    weights = [numpy_helper.to_array(tensor) for tensor in onnx.load_from_string(content).graph.initializer]
    integers = [array for array in weights if array.dtype == np.int8 and array.ndim > 1]
    assert integers
    assert max(np.abs(array.astype(int)).max() for array in integers) <= 64


def test_the_graph_is_one_that_is_served(quantized):
    _, kind, content = quantized
    check_graph(onnx.load_from_string(content))
    tested = case(kind)
    spec = tested.policy.spec
    policy = Policy(content, Manifest(kind, spec.observation, spec.action, spec.noise))
    absent, zeros = policy.run(tested.visited), policy.run(tested.visited, tested.zero_noise)
    np.testing.assert_array_equal(absent, zeros)
    assert not np.array_equal(absent, policy.run(tested.visited, tested.noise))


def test_the_same_graph_makes_the_same_file(quantized):
    method, kind, content = quantized
    assert METHODS[method](kind, converted(kind)) == content


def test_convolutions_become_smaller(method):
    assert len(METHODS[method]("pixels", converted("pixels"))) < 0.65 * len(converted("pixels"))


@pytest.mark.parametrize("choice", ["required", "none"])
def test_other_noise_inputs_quantise_too(method, choice):
    model = with_noise(onnx.load_from_string(converted("gaussian")), "noise", choice)
    tested = case("gaussian")
    content = METHODS[method]("gaussian", model.SerializeToString())
    inputs = {i.name for i in open_session(content).get_inputs()}
    assert inputs == ({"obs", "noise"} if choice == "required" else {"obs"})
    actor = onnx_actor(content, tested.policy.spec)
    assert error(tested, actor, tested.noise if choice == "required" else tested.zero_noise) <= TOLERANCE


def test_calibration_takes_the_ranges_of_all_observations():
    """The rarest observation sets the range: it is in the last of several batches."""
    tested = case("gaussian")
    spec = tested.policy.spec
    content = convert_policy(lambda o, n: (o @ np.eye(5, 2, dtype=np.float32)) + n, spec)
    small, large = 0.01 * np.ones((130, 5), np.float32), 3 * np.ones((1, 5), np.float32)
    calibration = np.concatenate([small, -large, large])
    noise = np.zeros((len(calibration), 2), np.float32)
    quantized = quantize_static(content, spec, calibration, noise)
    actions = onnx_actor(quantized, spec)(large, noise[:1])
    np.testing.assert_allclose(actions, [[3, 3]], atol=0.05)


def test_no_observations_are_refused():
    tested = case("gaussian")
    with pytest.raises(ExportError, match="observations are empty; give some that the policy visits"):
        quantize_static(converted("gaussian"), tested.policy.spec, tested.visited[:0], tested.noise[:0])


@pytest.mark.parametrize("method", [*METHODS, "litert"])
def test_a_cell_stays_in_floats_beside_a_state_that_is_the_action(method):
    """The previous action depends on all products. It errs as the action does, and the cell sees it."""
    cell, last = gru_cell(5, 8), weights(8, 2)

    def act(observation, state, reset, noise):
        hidden = cell(tf.concat([observation, state["last"]], axis=1), state["hidden"])
        action = tf.tanh(hidden @ last + 0.3 * noise)
        return action, {"last": action, "hidden": hidden}

    spec = replace(
        STATEFUL["gru"].spec, state=(StateSpec("last", "float32", (2,)), StateSpec("hidden", "float32", (8,)))
    )
    rng = np.random.default_rng(0)
    seen = {part.name: rng.uniform(-1, 1, (64, *part.shape)).astype(np.float32) for part in spec.step_inputs[:-1]}
    seen, noise = seen | {"reset": np.zeros(64, bool)}, np.zeros((64, 2), np.float32)
    content, names = convert_policy(act, spec), ["action", "next_hidden"]
    if method == "litert":
        pytest.importorskip("ai_edge_litert")
        found = litert_step(to_litert(act, spec, int8_observations=seen), spec)(seen, noise)
    else:
        static = method == "static"
        made = quantize_static(content, spec, seen, noise) if static else quantize_dynamic(content, spec)
        found = dict(zip(names, open_session(made).run(names, seen | {"noise": noise}), strict=True))
    action, hidden = open_session(content).run(names, seen | {"noise": noise})
    np.testing.assert_allclose(found["next_hidden"], hidden, atol=1e-6)
    assert 1e-4 < abs(found["action"] - action).max() < 0.1
