"""Every kind of policy in every form of graph, as `act` takes one observation through bound buffers."""

import numpy as np
import onnx
import pytest

from tests.support.export.zoo import KINDS, case, converted
from trpo_tf.export.graph.fixed_batch import with_fixed_batch
from trpo_tf.export.graph.noise_input import with_noise
from trpo_tf.serving import ArraySpec, GraphSpec, Manifest, Policy
from trpo_tf.serving.runtime.noise import draw_noise
from trpo_tf.serving.runtime.observations import leaves_of, take


def served(kind: str, form: GraphSpec) -> Policy:
    spec = case(kind).policy.spec
    model = with_noise(onnx.load_from_string(converted(kind)), spec.noise.name, form.noise)
    if form.batch is not None:
        model = with_fixed_batch(model, form.batch)
    return Policy(model.SerializeToString(), Manifest(kind, spec.observation, spec.action, spec.noise, form))


@pytest.mark.parametrize("batch", [None, 1])
@pytest.mark.parametrize("noise", ["optional", "required", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_observation_through_bound_buffers_is_a_row_of_a_batch(kind, noise, batch):
    tested, policy, plain = case(kind), served(kind, GraphSpec(noise, batch)), served(kind, GraphSpec())
    still, spec = plain.run(tested.visited, tested.zero_noise), policy.manifest.action
    one, other = np.random.default_rng(4), np.random.default_rng(4)
    for row in range(10):
        observation = take(tested.visited, row)
        action = policy.act(observation)
        assert (action.dtype, action.shape) == (spec.dtype, spec.shape)
        np.testing.assert_allclose(action, still[row], rtol=1e-6, atol=1e-6)
        if noise == "none":
            with pytest.raises(ValueError, match="exported without noise"):
                policy.act(observation, deterministic=False)
            continue
        drawn = draw_noise(policy.manifest.noise, 1, other)
        sample = plain.run(take(tested.visited, slice(row, row + 1)), drawn)[0]
        np.testing.assert_allclose(policy.act(observation, deterministic=False, rng=one), sample, rtol=1e-6, atol=1e-6)


def test_parts_that_are_not_just_as_declared_go_the_general_way():
    policy, visited = served("dict", GraphSpec()), take(case("dict").visited, 3)
    expected = policy.act(visited)
    assert list(visited) == ["arm_eye", "arm_place", "choice"]
    nested = {"choice": visited["choice"], "arm": {"place": visited["arm_place"], "eye": visited["arm_eye"]}}
    assert dict(leaves_of(nested)).keys() == visited.keys()
    listed = {**visited, "arm_place": visited["arm_place"].tolist()}
    for observation in (nested, listed, {**visited, "more": 1}):
        np.testing.assert_array_equal(policy.act(observation), expected)
    with pytest.raises(ValueError, match="observation 'arm_place' holds a value that is not finite"):
        policy.act({**visited, "arm_place": np.full_like(visited["arm_place"], np.inf)})
    with pytest.raises(ValueError, match="lacks 'choice'"):
        policy.act({name: part for name, part in visited.items() if name != "choice"})
    with pytest.raises(ValueError, match="observation 'choice' has dtype int32"):
        policy.act({**visited, "choice": visited["choice"].astype(np.int32)})


def test_a_graph_of_fixed_batch_takes_no_single_observation():
    policy, visited = served("gaussian", GraphSpec(batch=4)), case("gaussian").visited
    with pytest.raises(ValueError, match="exported for batches of 4, not 1"):
        policy.act(visited[0])
    expected = served("gaussian", GraphSpec()).act_batch(visited[:4])
    np.testing.assert_allclose(policy.act_batch(visited[:4]), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "uint64", "float16"])
def test_an_observation_of_any_type_is_bound(dtype):
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Cast", ["obs"], ["action"], to=onnx.TensorProto.FLOAT)],
        "cast",
        [_tensor("obs", dtype, 2)],
        [_tensor("action", "float32", 2)],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    spec = case("gaussian").policy.spec
    observation = ArraySpec("obs", dtype, (2,))
    manifest = Manifest(
        "cast", (observation,), ArraySpec("action", "float32", (2,)), spec.noise, GraphSpec(noise="none")
    )
    policy = Policy(model.SerializeToString(), manifest)
    assert policy._bound(np.array([0, 1], dtype), None).tolist() == [0.0, 1.0]


def _tensor(name, dtype, width):
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return onnx.helper.make_tensor_value_info(name, kind, ["batch", width])
