"""Which inputs a graph has, at every version of the operators."""

import numpy as np
import onnx
import pytest
from onnx import checker

from tests.support.export.zoo import KINDS, agrees, case, converted, onnx_actor
from trpo_tf.export import ExportError, GraphForm, convert_policy
from trpo_tf.export.graph.fixed_batch import with_fixed_batch
from trpo_tf.export.graph.noise_input import with_noise, with_optional_input
from trpo_tf.export.graph.quantize import quantize_static
from trpo_tf.export.policy.opsets import OPSETS
from trpo_tf.serving.runtime.observations import take
from trpo_tf.serving.runtime.onnx_runtime import open_session

IR_VERSIONS = {13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8}
"""The first that has the operators, says ONNX's table of versions."""


def graph(kind):
    return onnx.load_from_string(converted(kind))


def signature(model):
    """Names and shapes of the required and of the optional inputs."""
    session = open_session(model.SerializeToString())
    shapes = [
        {i.name: i.shape for i in inputs} for inputs in (session.get_inputs(), session.get_overridable_initializers())
    ]
    return shapes[0], shapes[1]


def compare(model, kind):
    tested = case(kind)
    return agrees(onnx_actor(model.SerializeToString(), tested.policy.spec), tested)


# Every opset for a choice and for numbers, and the oldest for all kinds; all other tests have the default one.
OPSET_CASES = [(kind, opset) for kind in ("categorical", "gaussian") for opset in OPSETS[1:]]
OPSET_CASES += [(kind, OPSETS[0]) for kind in KINDS]


@pytest.mark.parametrize(("kind", "opset"), OPSET_CASES)
def test_every_opset_acts_as_tensorflow(kind, opset):
    policy = case(kind).policy
    optional = onnx.load_from_string(convert_policy(policy.function, policy.spec, opset=opset))
    for made in (with_noise(optional, "noise", "required"), optional):
        checker.check_model(made, full_check=True)
        onnx.shape_inference.infer_shapes(made, check_type=True, strict_mode=True, data_prop=True)
        assert {entry.version for entry in made.opset_import if entry.domain == ""} == {opset}
        assert made.ir_version == IR_VERSIONS[opset]
    assert compare(optional, kind)


@pytest.mark.parametrize("opset", [12, 19])
def test_another_opset_is_refused(opset):
    policy = case("gaussian").policy
    with pytest.raises(ExportError, match=rf"opset {opset} isn't supported; choose one from 13 to 18"):
        convert_policy(policy.function, policy.spec, opset=opset)


@pytest.mark.parametrize("kind", KINDS)
def test_required_noise_must_be_fed_and_is_used_alike(kind):
    model = with_noise(graph(kind), "noise", "required")
    required, optional = signature(model)
    assert "noise" in required
    assert not optional
    assert compare(model, kind)
    assert not any(node.op_type == "Expand" and "noise" in node.input[0] for node in model.graph.node)


@pytest.mark.parametrize("kind", KINDS)
def test_without_noise_the_action_is_the_deterministic_one_at_any_batch(kind):
    model = with_noise(graph(kind), "noise", "none")
    required, optional = signature(model)
    assert "noise" not in required | optional
    tested = case(kind)
    actor = onnx_actor(model.SerializeToString(), tested.policy.spec)
    assert agrees(actor, tested, noisy=False)


def test_optional_noise_is_as_it_was():
    model = graph("gaussian")
    assert with_noise(model, "noise", "optional") == model


def test_required_and_optional_are_inverse():
    model = graph("dict")
    again = with_optional_input(with_noise(model, "noise", "required"), "noise")
    assert sorted(node.SerializeToString() for node in again.graph.node) == sorted(
        node.SerializeToString() for node in model.graph.node
    )


@pytest.mark.parametrize("choice", ["required", "none"])
def test_noise_that_is_not_optional_can_not_be_changed(choice):
    model = with_noise(graph("gaussian"), "noise", "required")
    with pytest.raises(ExportError, match="the graph has no optional input 'noise'"):
        with_noise(model, "noise", choice)


def test_an_unknown_choice_is_refused():
    with pytest.raises(ExportError, match="noise 'maybe' is unknown; choose one of optional, required, none"):
        with_noise(graph("gaussian"), "noise", "maybe")


@pytest.mark.parametrize("choice", ["optional", "required", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_fixed_batch_takes_that_many_rows_only(kind, choice):
    tested, size = case(kind), 5
    model = with_fixed_batch(with_noise(graph(kind), "noise", choice), size)
    required, optional = signature(model)
    assert {shape[0] for shape in (required | optional).values()} == {size}
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    noise = tested.zero_noise[:size] if choice == "none" else tested.noise[:size]
    actor, rows = onnx_actor(model.SerializeToString(), tested.policy.spec), take(tested.visited, slice(size))
    np.testing.assert_allclose(actor(rows, noise), tested.reference.act(rows, noise), rtol=1e-5, atol=1e-5)
    with pytest.raises(Exception, match="Got: 4 Expected: 5"):
        actor(take(tested.visited, slice(4)), noise[:4])


def test_a_fixed_batch_without_noise_fed_is_deterministic():
    tested = case("gaussian")
    session = open_session(with_fixed_batch(graph("gaussian"), 3).SerializeToString())
    actions = session.run(None, {"obs": tested.visited[:3]})[0]
    np.testing.assert_allclose(actions, tested.reference.act(tested.visited[:3], tested.zero_noise[:3]), rtol=1e-5)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_constants_alone_is_left_to_compute_at_a_fixed_batch(kind, batch):
    model = with_fixed_batch(with_noise(graph(kind), "noise", "none"), batch)
    nodes = model.graph.node
    variable = {i.name for i in model.graph.input} | {name for node in nodes for name in node.output}
    assert all(variable.intersection(node.input) for node in nodes)
    assert not {"Shape", "Size", "Range", "ConstantOfShape"} & {node.op_type for node in nodes}
    read = {name for node in nodes for name in node.input} | {output.name for output in model.graph.output}
    assert {tensor.name for tensor in model.graph.initializer} <= read


def test_weights_of_8_bits_stay_so_at_a_fixed_batch():
    tested = case("gaussian")
    quantized = onnx.load_from_string(
        quantize_static(converted("gaussian"), tested.policy.spec, tested.visited, tested.noise)
    )
    fixed = with_fixed_batch(quantized, 2)
    for kind in ("QuantizeLinear", "DequantizeLinear"):
        assert sum(n.op_type == kind for n in fixed.graph.node) == sum(n.op_type == kind for n in quantized.graph.node)


def test_an_empty_batch_is_refused():
    with pytest.raises(ExportError, match="a batch of 0 rows"):
        with_fixed_batch(graph("gaussian"), 0)


def test_the_graph_given_is_left_as_it_was():
    model = graph("gaussian")
    before = model.SerializeToString()
    for choice in ("required", "none"):
        with_fixed_batch(with_noise(model, "noise", choice), 2)
    assert model.SerializeToString() == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"opset": 12}, "opset 12 isn't supported; choose one from 13 to 18"),
        ({"noise": "some"}, "noise 'some' is unknown; choose one of optional, required, none"),
        ({"batch": 0}, "batch must be at least 1"),
    ],
)
def test_a_form_that_no_graph_can_have_is_refused_when_it_is_asked_for(settings, message):
    with pytest.raises(ExportError, match=message):
        GraphForm(**settings)
