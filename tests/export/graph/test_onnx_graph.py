"""From function to graph: what runtimes are promised, and what is refused."""

import keras
import numpy as np
import onnx
import pytest
import tensorflow as tf
from onnx import TensorProto, checker, helper, numpy_helper

from tests.support.export.hand_made import Continuous, Discrete, observations
from trpo_tf.export import ExportError, PolicySpec, convert_policy, to_onnx, write_bundle
from trpo_tf.export.graph.check import check_graph
from trpo_tf.serving import ArraySpec, NoiseSpec
from trpo_tf.serving.bundle import onnx_check as model_check
from trpo_tf.serving.bundle.onnx_check import OPERATORS
from trpo_tf.serving.runtime.onnx_runtime import open_session

SIGNATURE = (tf.TensorSpec((None, 3), tf.float32, "obs"), tf.TensorSpec((None, 2), tf.float32, "noise"))
WEIGHTS = np.arange(6, dtype=np.float32).reshape(3, 2)


@pytest.fixture(scope="module")
def policy():
    return Continuous()


@pytest.fixture(scope="module")
def converted(policy):
    return convert_policy(policy.function, policy.spec)


def run(model, **feeds):
    content = model if isinstance(model, bytes) else model.SerializeToString()
    return open_session(content).run(None, feeds)[0]


def test_the_graph_is_what_runtimes_are_promised(converted):
    model = onnx.load_from_string(converted)
    checker.check_model(model, full_check=True)
    assert model.ir_version == 8
    assert [(opset.domain, opset.version) for opset in model.opset_import if opset.domain == ""] == [("", 17)]
    assert {opset.domain for opset in model.opset_import} <= {"", "ai.onnx.ml"}


def test_the_same_policy_makes_the_same_bytes_whatever_was_traced_before(policy, converted):
    other = Discrete()
    convert_policy(other.function, other.spec)
    assert convert_policy(policy.function, policy.spec) == converted


def test_no_weight_is_kept_that_nothing_reads():
    """ONNX Runtime would warn of it at each load."""
    normalization = keras.layers.Normalization(mean=np.arange(3.0), variance=np.ones(3))
    model = to_onnx(lambda obs, noise: {"action": normalization(obs)[:, :2] + noise}, SIGNATURE)
    read = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= read


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize(("pixels", "size"), [((210, 160, 1), (84, 84)), ((12, 12, 3), (25, 1))])
def test_images_are_resized_to_the_size_that_is_asked_for(interpolation, pixels, size):
    resize = keras.layers.Resizing(*size, interpolation=interpolation)
    model = to_onnx(lambda x: {"y": resize(x)}, (tf.TensorSpec((None, *pixels), tf.float32, "x"),))
    images = np.random.default_rng(0).random((2, *pixels), np.float32)
    np.testing.assert_allclose(run(model, x=images), resize(images), atol=5e-5)
    (found,) = [node for node in model.graph.node if node.op_type == "Resize"]
    assert found.input[2] == "", "factors are rounded, and runtimes round the size that they make in two ways"


def test_inputs_and_output_have_the_spec_s_names_types_and_a_free_batch(converted):
    session = open_session(converted)
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [("obs", "tensor(float)", ["batch", 3])]
    assert [(i.name, i.shape) for i in session.get_overridable_initializers()] == [("noise", ["batch", 2])]
    assert [(o.name, o.type, o.shape) for o in session.get_outputs()] == [("action", "tensor(float)", ["batch", 2])]


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_absent_noise_is_zero_noise_at_any_batch(policy, converted, batch):
    obs = observations(policy.spec.observation, batch)
    zeros = np.zeros((batch, 2), np.float32)
    absent = run(converted, obs=obs)
    np.testing.assert_allclose(absent, policy.function(obs, zeros).numpy(), atol=1e-6)
    np.testing.assert_array_equal(absent, run(converted, obs=obs, noise=zeros))


def test_each_row_has_its_own_noise(policy, converted):
    obs = np.repeat(observations(policy.spec.observation, 1), 3, axis=0)
    noise = np.array([[-1, -1], [-2, -3], [-3, -2]], np.float32)
    actions = run(converted, obs=obs, noise=noise)
    np.testing.assert_allclose(actions, policy.function(obs, noise).numpy(), atol=1e-6)
    assert len(np.unique(actions, axis=0)) == 3


def test_a_policy_that_ignores_its_noise_keeps_the_input(policy):
    model = convert_policy(lambda obs, noise: policy.model(obs), policy.spec)
    obs = observations(policy.spec.observation)
    np.testing.assert_array_equal(run(model, obs=obs), run(model, obs=obs, noise=np.ones((5, 2), np.float32)))


@pytest.mark.parametrize("kind", ["eager tensor", "variable", "array"])
def test_what_the_function_closes_over_becomes_a_weight(kind):
    weights = {"eager tensor": tf.constant, "variable": tf.Variable, "array": np.asarray}[kind](WEIGHTS)
    model = to_onnx(lambda obs, noise: {"action": obs @ weights + noise}, SIGNATURE)
    assert [i.name for i in model.graph.input] == ["obs", "noise"]
    obs, noise = np.eye(3, dtype=np.float32), np.ones((3, 2), np.float32)
    np.testing.assert_array_equal(run(model, obs=obs, noise=noise), WEIGHTS + 1)


def test_the_graph_holds_the_weights_as_they_were_when_converted():
    weights = tf.Variable(WEIGHTS)
    model = to_onnx(lambda obs, noise: {"action": obs @ weights + noise}, SIGNATURE)
    weights.assign(weights * 0)
    np.testing.assert_array_equal(
        run(model, obs=np.eye(3, dtype=np.float32), noise=np.zeros((3, 2), np.float32)), WEIGHTS
    )


def test_two_outputs_keep_their_names():
    model = to_onnx(lambda obs, noise: {"low": obs @ WEIGHTS, "high": noise * 2.0}, SIGNATURE)
    assert {o.name for o in model.graph.output} == {"low", "high"}


LACKING = {
    "BesselI0": lambda obs, noise: tf.math.bessel_i0(obs @ WEIGHTS) + noise,
    "PyFunc": lambda obs, noise: tf.numpy_function(lambda x: x, [obs @ WEIGHTS], tf.float32) + noise,
    "Digamma": lambda obs, noise: tf.cond(
        tf.reduce_sum(obs) > 0, lambda: tf.math.digamma(obs @ WEIGHTS) + noise, lambda: noise
    ),
}


@pytest.mark.parametrize("operation", LACKING)
def test_an_operation_that_onnx_lacks_is_named_in_one_line(operation):
    with pytest.raises(ExportError, match=rf"^{operation} can't be expressed in ONNX; [^\n]+$"):
        to_onnx(lambda obs, noise: {"action": LACKING[operation](obs, noise)}, SIGNATURE)


def test_nothing_is_written_for_an_operation_that_onnx_lacks(policy, tmp_path):
    with pytest.raises(ExportError, match="BesselI0"):
        write_bundle(lambda obs, noise: tf.math.bessel_i0(noise), policy.spec, tmp_path / "new" / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_convolution_of_several_groups_is_told_from_others():
    def grouped(x, noise):
        return keras.ops.conv(tf.reshape(x, (-1, 2, 2)), tf.ones((1, 1, 2)))[:, 0] + noise

    with pytest.raises(ExportError, match="a Keras convolution of several groups"):
        convert_policy(
            grouped,
            PolicySpec(
                (ArraySpec("obs", "float32", (4,)),), ArraySpec("a", "float32", (2,)), NoiseSpec("normal", (2,))
            ),
        )


def test_a_random_operation_is_refused():
    with pytest.raises(ExportError, match="RandomNormal would draw in the graph"):
        to_onnx(lambda obs, noise: {"action": noise + tf.random.normal((2,))}, SIGNATURE)


def graph_of(*nodes, **fields):
    """A graph from x to y."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in "xy")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(helper.make_graph(nodes, "g", [x], [y], **fields), opset_imports=opsets, ir_version=8)


def branch(node):
    return helper.make_graph([node], "branch", [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)])


FOREIGN = helper.make_node("Gelu", ["x"], ["z"], domain="com.microsoft")
"""ONNX Runtime knows it; no other runtime does."""


def test_a_graph_of_standard_operators_passes():
    check_graph(graph_of(helper.make_node("Relu", ["x"], ["y"])))


def test_a_foreign_domain_is_refused():
    with pytest.raises(ExportError, match=r"com\.microsoft\.Gelu"):
        check_graph(graph_of(helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")))


def test_a_foreign_domain_is_refused_inside_a_branch():
    standard = helper.make_node("Relu", ["x"], ["z"])
    always = numpy_helper.from_array(np.array(True), "always")
    node = helper.make_node("If", ["always"], ["y"], then_branch=branch(standard), else_branch=branch(FOREIGN))
    with pytest.raises(ExportError, match=r"com\.microsoft\.Gelu"):
        check_graph(graph_of(node, initializer=[always]))


def test_weights_in_other_files_are_refused():
    weights = numpy_helper.from_array(np.ones(2, np.float32), "w")
    weights.data_location = TensorProto.EXTERNAL
    weights.ClearField("raw_data")
    weights.external_data.add(key="location", value="weights.bin")
    with pytest.raises(ExportError, match="external files"):
        check_graph(graph_of(helper.make_node("Add", ["x", "w"], ["y"]), initializer=[weights]))


def test_a_graph_that_breaks_the_rules_is_refused_in_one_line():
    with pytest.raises(ExportError, match=r"^the converted graph is not valid ONNX: [^\n]+$"):
        check_graph(graph_of(helper.make_node("Relu", ["absent"], ["y"])))


def test_a_discrete_policy_takes_the_largest_noisy_score():
    policy = Discrete()
    obs = observations(policy.spec.observation, 1)
    noise = np.zeros((3, 3), np.float32) + 100 * np.eye(3, dtype=np.float32)
    actions = run(convert_policy(policy.function, policy.spec), obs=np.repeat(obs, 3, axis=0), noise=noise)
    assert actions.dtype == np.int64
    np.testing.assert_array_equal(actions, [0, 1, 2])


def test_serving_admits_standard_deterministic_operators_only():
    assert all(onnx.defs.has(operator) for operator in OPERATORS)
    assert not [name for name in OPERATORS if name.startswith(("Random", "Sequence", "Optional", "String"))]
    assert not OPERATORS & {"Bernoulli", "Multinomial", "Dropout", "TfIdfVectorizer", "ImageDecoder"}


def test_serving_reads_the_fields_that_onnx_defines():
    for name, inner in model_check._MESSAGES_IN.items():
        fields = getattr(onnx, name).DESCRIPTOR.fields_by_number
        nested = {number: field.message_type.name for number, field in fields.items() if field.message_type}
        held = {number: kind for number, kind in nested.items() if kind in model_check._MESSAGES_IN}
        left_out = {"training_info", "functions"} if name == "ModelProto" else set()
        assert {number: kind for number, kind in held.items() if fields[number].name not in left_out} == inner
    numbers = {
        onnx.ModelProto: {
            "graph": model_check._MODEL_GRAPH,
            "training_info": model_check._MODEL_TRAINING,
            "functions": model_check._MODEL_FUNCTIONS,
        },
        onnx.NodeProto: {"op_type": model_check._NODE_OPERATOR, "domain": model_check._NODE_DOMAIN},
        onnx.TensorProto: {
            "name": model_check._TENSOR_NAME,
            "external_data": model_check._TENSOR_EXTERNAL,
            "data_location": model_check._TENSOR_LOCATION,
        },
    }
    for message, expected in numbers.items():
        defined = message.DESCRIPTOR.fields_by_name
        assert {name: defined[name].number for name in expected} == expected
