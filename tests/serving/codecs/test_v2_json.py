import json
from dataclasses import replace

import numpy as np
import pytest

from trpo_tf import serving
from trpo_tf.serving import ArraySpec, GraphSpec, Manifest, NoiseSpec
from trpo_tf.serving.bundle.specs import DTYPES
from trpo_tf.serving.codecs.datatypes import DATATYPES
from trpo_tf.serving.codecs.parameters import NOT_SERVED
from trpo_tf.serving.codecs.request_validation import decode_tensor
from trpo_tf.serving.codecs.v2_json import decode_request, encode_response, model_metadata
from trpo_tf.serving.errors import RequestError
from trpo_tf.serving.runtime.noise import draw_noise

MANIFEST = Manifest(
    "policy",
    observation=(ArraySpec("obs", "float32", (2, 3)),),
    action=ArraySpec("action", "float32", (2,)),
    noise=NoiseSpec("normal", (2,)),
)
FLAT = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
NESTED = [[[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]]


def observation(**changes):
    return {"name": "obs", "shape": [1, 2, 3], "datatype": "FP32", "data": FLAT, **changes}


def noise(**changes):
    return {"name": "noise", "shape": [1, 2], "datatype": "FP32", "data": [0.5, -1], **changes}


def request(**changes):
    return {"inputs": [observation()], **changes}


def decode(document, manifest=MANIFEST):
    return decode_request(json.dumps(document).encode(), manifest)


@pytest.mark.parametrize("data", [FLAT, NESTED, [0, 1, 2.0, 3, 4, 5]])
def test_data_is_row_major_flat_or_nested(data):
    decoded = decode(request(inputs=[observation(data=data)]))
    np.testing.assert_array_equal(decoded.observations, np.arange(6, dtype=np.float32).reshape(1, 2, 3))
    assert decoded.observations.dtype == np.float32
    assert decoded.noise is None
    assert decoded.request_id is None


def test_a_batch_keeps_its_order():
    data = np.arange(24.0).reshape(4, 2, 3)
    for given in (data.tolist(), data.ravel().tolist()):
        decoded = decode(request(inputs=[observation(shape=[4, 2, 3], data=given)]))
        np.testing.assert_array_equal(decoded.observations, data)


def test_noise_may_be_given_in_any_order():
    decoded = decode(request(inputs=[noise(), observation()]))
    np.testing.assert_array_equal(decoded.noise, np.array([[0.5, -1]], np.float32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_has_a_datatype_both_ways(dtype):
    spec = ArraySpec("x", dtype, ())
    data = [True, False] if dtype == "bool" else [1, 0]
    array = decode_tensor({"shape": [2], "datatype": DATATYPES[dtype], "data": data}, spec)
    np.testing.assert_array_equal(array, np.array([1, 0], dtype))
    assert array.dtype == dtype
    manifest = Manifest("policy", MANIFEST.observation, ArraySpec("action", dtype, ()), MANIFEST.noise)
    (output,) = json.loads(encode_response({"action": array}, manifest, "1", None))["outputs"]
    assert output == {"name": "action", "datatype": DATATYPES[dtype], "shape": [2], "data": data}


def test_datatypes_have_the_names_of_the_protocol():
    assert set(DATATYPES.values()) == {
        *("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"),
        *("FP16", "FP32", "FP64"),
    }
    assert DATATYPES["float64"] == "FP64"
    assert DATATYPES["uint8"] == "UINT8"


@pytest.mark.parametrize(
    ("dtype", "data"),
    [
        ("uint8", [256]),
        ("uint8", [-1]),
        ("int64", [2**63]),
        ("uint64", [-1]),
        ("int8", [-129]),
        ("float32", [1e39]),
        ("float16", [70000]),
        ("float16", [2**64 - 1]),
    ],
)
def test_a_number_out_of_range_is_refused(dtype, data):
    with pytest.raises(RequestError, match=f"out of range for {DATATYPES[dtype]}"):
        decode_tensor({"shape": [1], "datatype": DATATYPES[dtype], "data": data}, ArraySpec("x", dtype, ()))


@pytest.mark.parametrize(
    ("dtype", "element"),
    [("int64", 1.0), ("int64", True), ("bool", 1), ("float32", True), ("float32", "1"), ("float32", None)],
)
def test_an_element_of_another_type_is_refused(dtype, element):
    tensor = {"shape": [1], "datatype": DATATYPES[dtype], "data": [element]}
    with pytest.raises(RequestError, match=f"nothing but {DATATYPES[dtype]} data"):
        decode_tensor(tensor, ArraySpec("x", dtype, ()))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b"nan",
        b'{"inputs": NaN}',
        b'{"inputs": [Infinity]}',
        b'{"inputs": [1e999]}',
        b'{"inputs": ' + b"[" * 5000,
        b'{"inputs": []} trailing',
        b"{'inputs': []}",
    ],
)
def test_a_body_that_is_not_json_is_refused(body):
    with pytest.raises(RequestError, match="not JSON"):
        decode_request(body, MANIFEST)


@pytest.mark.parametrize("body", [b"[]", b"null", b"1", b'"text"'])
def test_a_body_that_is_no_object_is_refused(body):
    with pytest.raises(RequestError, match="must be a JSON object"):
        decode_request(body, MANIFEST)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": None}, "inputs must be a list of objects"),
        ({"inputs": {}}, "inputs must be a list of objects"),
        ({"inputs": [1]}, "inputs must be a list of objects"),
        ({"inputs": [[]]}, "inputs must be a list of objects"),
        ({"inputs": []}, "input 'obs' is missing"),
        ({"inputs": [noise()]}, "input 'obs' is missing"),
        ({"inputs": [observation(), observation(name="other")]}, "inputs may hold 'obs' and 'noise', not 'other'"),
        ({"inputs": [observation(name=None)]}, "inputs may hold .* not none"),
        ({"inputs": [observation(name=["obs"])]}, "inputs may hold"),
        ({"inputs": [observation(), observation()]}, "inputs holds 'obs' twice"),
        ({"inputs": [observation(), noise(shape=[2, 2], data=[0, 0, 0, 0])]}, "batch size of the observations, 1"),
        ({"inputs": [observation(), noise(datatype="FP64")]}, "'noise' must have datatype FP32"),
        ({"outputs": {}}, "outputs must be a list of objects"),
        ({"outputs": ["action"]}, "outputs must be a list of objects"),
        ({"outputs": [{"name": "obs"}]}, "outputs may hold 'action', not 'obs'"),
        ({"outputs": [{}]}, "outputs may hold 'action', not none"),
        ({"outputs": [{"name": "action"}] * 2}, "outputs holds 'action' twice"),
        ({"id": 1}, "id must be a string"),
        ({"id": {}}, "id must be a string"),
        ({"parameters": []}, "parameters must be an object"),
        ({"parameters": {"deterministic": 0}}, "true or false"),
        ({"parameters": {"deterministic": None}}, "true or false"),
        ({"parameters": {"seed": 1}}, "with deterministic: false"),
        ({"parameters": {"deterministic": False, "seed": -1}}, "seed must be"),
        ({"parameters": {"deterministic": False, "seed": 1.0}}, "seed must be"),
        ({"parameters": {"deterministic": False, "seed": True}}, "seed must be"),
        ({"parameters": {"deterministic": False}, "inputs": [observation(), noise()]}, "not both"),
    ],
)
def test_a_wrong_request_is_refused(changes, message):
    with pytest.raises(RequestError, match=message):
        decode(request(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"datatype": "FP64"}, "datatype FP32, not 'FP64'"),
        ({"datatype": "fp32"}, "datatype FP32"),
        ({"datatype": "BYTES"}, "datatype FP32"),
        ({"datatype": None}, "datatype FP32, not none"),
        ({"datatype": ["FP32"]}, "datatype FP32"),
        ({"shape": None}, r"shape \[batch, 2, 3\], not none"),
        ({"shape": 6}, r"shape \[batch, 2, 3\], not 6"),
        ({"shape": [6]}, "shape"),
        ({"shape": [2, 3]}, "shape"),
        ({"shape": [1, 3, 2]}, "shape"),
        ({"shape": [1, 2, 3, 1]}, "shape"),
        ({"shape": [0, 2, 3], "data": []}, "shape"),
        ({"shape": [-1, 2, 3]}, "shape"),
        ({"shape": [1.0, 2, 3]}, "shape"),
        ({"shape": [True, 2, 3]}, "shape"),
        ({"shape": ["1", 2, 3]}, "shape"),
        ({"shape": [2, 2, 3]}, "12 elements of data, not 6"),
        ({"shape": [2**62, 2, 3]}, f"{2**62 * 6} elements of data, not 6"),
        ({"data": None}, "data as a list"),
        ({"data": 1}, "data as a list"),
        ({"data": {"0": 1}}, "data as a list"),
        ({"data": "000000"}, "data as a list"),
        ({"data": []}, "6 elements of data, not 0"),
        ({"data": [0] * 7}, "6 elements of data, not 7"),
        ({"data": [[0] * 6]}, "flat, or nested as its shape says"),
        ({"data": [[0, 1, 2], [3, 4, 5]]}, "1 rows of data, not 2"),
        ({"data": [[[0, 1], [2, 3], [4, 5]]]}, "nested as its shape says"),
        ({"data": [[[0, 1, 2], [3, 4]]]}, "nested as its shape says"),
        ({"data": [[[0, 1, 2], 3]]}, "nested as its shape says"),
        ({"data": [0, 1, 2, 3, 4, [5]]}, "nothing but FP32 data"),
        ({"data": [[[0, 1, 2], [3, 4, [5]]]]}, "nothing but FP32 data"),
        ({"data": [0, 1, 2, 3, 4, {}]}, "nothing but FP32 data"),
        ({"parameters": "x"}, "the parameters of input 'obs' must be an object"),
        ({"parameters": [{"classification": 1}]}, "the parameters of input 'obs' must be an object"),
    ],
)
def test_a_wrong_input_is_refused(changes, message):
    with pytest.raises(RequestError, match=message):
        decode(request(inputs=[observation(**changes)]))


@pytest.mark.parametrize("key", ["name", "shape", "datatype", "data"])
def test_an_incomplete_input_is_refused(key):
    tensor = observation()
    del tensor[key]
    with pytest.raises(RequestError, match=r"^inputs? "):
        decode(request(inputs=[tensor]))


def test_a_strangers_value_is_cut_short_in_the_message():
    with pytest.raises(RequestError) as caught:
        decode(request(inputs=[observation(name="x" * 10_000)]))
    assert len(str(caught.value)) < 200


def test_what_the_protocol_leaves_open_is_accepted():
    decoded = decode(
        request(
            id="",
            outputs=[{"name": "action", "parameters": {"binary_data": False}}],
            parameters={"priority": 3, "deterministic": True},
            inputs=[observation(parameters={"content_type": "np"})],
            unknown=1,
        )
    )
    assert decoded.request_id == ""
    assert decode(request(outputs=[])).noise is None


def test_null_is_what_is_left_out():
    """Generated clients, of Java and pydantic say, send each field."""
    blank = observation(parameters=None)
    assert decode(request(id=None, parameters=None, outputs=None, inputs=[blank])).outputs == {"action": False}
    assert decode(request(outputs=[{"name": "action", "parameters": None}])).outputs == {"action": False}


def test_a_sample_draws_the_noise_that_its_seed_says():
    sampled = decode(request(parameters={"deterministic": False, "seed": 7}))
    np.testing.assert_array_equal(sampled.noise, draw_noise(MANIFEST.noise, 1, np.random.default_rng(7)))
    first, second = (decode(request(parameters={"deterministic": False})).noise for _ in range(2))
    assert (first != second).any()


def test_the_response_is_the_protocols():
    answers = {"action": np.array([[0.1, -1.5], [2.0, 3.25]], np.float32)}
    assert json.loads(encode_response(answers, MANIFEST, "3", "abc")) == {
        "model_name": "policy",
        "model_version": "3",
        "id": "abc",
        "outputs": [{"name": "action", "datatype": "FP32", "shape": [2, 2], "data": [0.1, -1.5, 2.0, 3.25]}],
    }
    assert "id" not in json.loads(encode_response(answers, MANIFEST, "3", None))


def test_floats_survive_the_response_exactly():
    actions = np.random.default_rng(0).standard_normal((100, 2), np.float32)
    (output,) = json.loads(encode_response({"action": actions}, MANIFEST, "1", None))["outputs"]
    np.testing.assert_array_equal(np.array(output["data"], np.float32).reshape(actions.shape), actions)


def test_a_response_need_not_be_contiguous():
    actions = np.arange(4, dtype=np.float32).reshape(2, 2).T
    (output,) = json.loads(encode_response({"action": actions}, MANIFEST, "1", None))["outputs"]
    assert output["data"] == [0, 2, 1, 3]


def test_metadata_describes_the_tensors(discrete):
    assert model_metadata(serving.load(discrete).manifest, "1") == {
        "name": "discrete",
        "versions": ["1"],
        "platform": "onnx_onnxv1",
        "inputs": [
            {"name": "obs", "datatype": "FP32", "shape": [-1, 4]},
            {
                "name": "noise",
                "datatype": "FP32",
                "shape": [-1, 2],
                "parameters": {"optional": True, "law": "gumbel"},
            },
        ],
        "outputs": [{"name": "action", "datatype": "INT64", "shape": [-1]}],
    }


def test_a_graph_without_noise_takes_no_sample():
    manifest = replace(MANIFEST, graph=GraphSpec(noise="none"))
    assert decode(request(), manifest).noise is None
    with pytest.raises(RequestError, match="exported without noise, so it can't sample"):
        decode(request(parameters={"deterministic": False}), manifest)
    with pytest.raises(RequestError, match="inputs may hold 'obs', not 'noise'"):
        decode(request(inputs=[observation(), noise()]), manifest)
    assert [tensor["name"] for tensor in model_metadata(manifest, "1")["inputs"]] == ["obs"]


def test_a_graph_of_a_fixed_batch_takes_no_other():
    manifest = replace(MANIFEST, graph=GraphSpec(batch=1))
    assert len(decode(request(), manifest).observations) == 1
    with pytest.raises(RequestError, match="takes batches of 1, not 2"):
        decode(request(inputs=[observation(shape=[2, 2, 3], data=FLAT * 2)]), manifest)
    described = model_metadata(manifest, "1")
    assert [tensor["shape"] for tensor in (*described["inputs"], *described["outputs"])] == [[1, 2, 3], [1, 2], [1, 2]]


@pytest.mark.parametrize("name", NOT_SERVED)
def test_parameters_that_change_the_answer_are_refused_by_name(name):
    """A client that sends them, and is answered all the same, takes the answer for another."""
    for where, asked in (
        ("the request", request(parameters={name: 0})),
        ("input 'obs'", request(inputs=[observation(parameters={name: 0})])),
        ("output 'action'", request(outputs=[{"name": "action", "parameters": {name: 0}}])),
    ):
        with pytest.raises(RequestError, match=f"parameter '{name}' of {where} is not served"):
            decode(asked)


def test_parameters_that_hint_are_ignored():
    hints = {"priority": 3, "timeout": 1000, "triton_enable_empty_final_response": True, "content_type": "np", "x": {}}
    outputs = [{"name": "action", "parameters": hints}]
    asked = request(parameters=hints, inputs=[observation(parameters=hints)], outputs=outputs)
    np.testing.assert_array_equal(decode(asked).observations, NESTED)
