"""The protocol's binary tensors, and TensorFlow Serving's rows: requests to arrays, and answers to bytes."""

import json
from dataclasses import replace

import numpy as np
import pytest

from trpo_tf import serving
from trpo_tf.serving import ArraySpec, GraphSpec, Manifest, NoiseSpec
from trpo_tf.serving.bundle.specs import DTYPES
from trpo_tf.serving.codecs.datatypes import DATATYPES
from trpo_tf.serving.codecs.tfserving import decode_instances, encode_predictions
from trpo_tf.serving.codecs.v2_binary import decode_binary, encode_binary
from trpo_tf.serving.errors import RequestError

OBS = ArraySpec("obs", "float32", (3,))
MANIFEST = Manifest("policy", (OBS,), ArraySpec("action", "float32", (2,)), NoiseSpec("normal", (2,)))
TWO = replace(MANIFEST, observation=(OBS, ArraySpec("goal", "uint8", ())))
ROWS = np.arange(6, dtype=np.float32).reshape(2, 3)


def part(name, array, **changes):
    parameters = {"binary_data_size": array.nbytes}
    datatype = DATATYPES[array.dtype.name]
    return {"name": name, "shape": list(array.shape), "datatype": datatype, "parameters": parameters, **changes}


def decode(inputs, tail, manifest=MANIFEST, **document):
    head = json.dumps({"inputs": inputs, **document}).encode()
    return decode_binary(head + tail, b"%d" % len(head), manifest)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_little_endian_at_any_alignment(dtype):
    manifest = replace(MANIFEST, observation=(ArraySpec("obs", dtype, (2,)),))
    array = np.array([[1, 0], [0, 1]], dtype)
    tail = array.astype(array.dtype.newbyteorder("<")).tobytes()
    for padding in ("", "x", "xx", "xxx"):
        decoded = decode([part("obs", array)], tail, manifest, padding=padding).observations
        np.testing.assert_array_equal(decoded, array)
        assert decoded.dtype == dtype
        assert decoded.flags.aligned


def test_tensors_follow_in_the_order_of_the_inputs_and_may_mix_with_json():
    goal = np.array([7, 8], np.uint8)
    for inputs, tail in (
        ([part("goal", goal), part("obs", ROWS)], goal.tobytes() + ROWS.tobytes()),
        ([part("goal", goal, parameters={}, data=[7, 8]), part("obs", ROWS)], ROWS.tobytes()),
    ):
        decoded = decode(inputs, tail, TWO).observations
        np.testing.assert_array_equal(decoded["obs"], ROWS)
        np.testing.assert_array_equal(decoded["goal"], goal)


def test_noise_may_be_binary():
    noise = np.array([[1, 2], [3, 4]], np.float32)
    decoded = decode([part("obs", ROWS), part("noise", noise)], ROWS.tobytes() + noise.tobytes())
    np.testing.assert_array_equal(decoded.noise, noise)


def test_a_raw_request_is_the_input_alone():
    decoded = decode_binary(ROWS.tobytes(), b"0", MANIFEST)
    np.testing.assert_array_equal(decoded.observations, ROWS)
    assert decoded.outputs == {"action": True}
    for manifest, body, message in (
        (MANIFEST, b"", "12 bytes for each"),
        (MANIFEST, bytes(13), "12 bytes for each"),
        (TWO, bytes(13), "takes several"),
        (replace(MANIFEST, graph=GraphSpec(batch=1)), ROWS.tobytes(), "batches of 1, not 2"),
        (MANIFEST, np.full(3, np.nan, np.float32).tobytes(), "not finite"),
    ):
        with pytest.raises(RequestError, match=message):
            decode_binary(body, b"0", manifest)
    with pytest.raises(RequestError, match="send 1 at most"):
        decode_binary(ROWS.tobytes(), b"0", MANIFEST, max_batch=1)


@pytest.mark.parametrize(
    ("changes", "tail", "message"),
    [
        ({}, bytes(23), "number of bytes that the body has left, 23 at most"),
        ({}, bytes(25), "1 bytes more than"),
        ({"parameters": {"binary_data_size": 12}}, bytes(12), "must have 24 bytes of data, not 12"),
        ({"parameters": {"binary_data_size": -1}}, bytes(24), "number of bytes"),
        ({"parameters": {"binary_data_size": 24.0}}, bytes(24), "number of bytes"),
        ({"parameters": {"binary_data_size": True}}, bytes(1), "number of bytes"),
        ({"parameters": {"binary_data_size": 2**70}}, bytes(24), "number of bytes"),
        ({"parameters": {}}, bytes(24), "24 bytes more than"),
        ({"data": [0] * 6}, bytes(24), "not both"),
        ({"shape": [2**62, 3]}, bytes(24), f"{2**62 * 12} bytes of data, not 24"),
        ({"shape": [-2, 3]}, bytes(24), "must have shape"),
        ({"datatype": "FP64"}, bytes(24), "datatype FP32"),
        ({}, np.full(6, np.inf, np.float32).tobytes(), "not finite"),
        ({}, np.full(6, np.nan, np.float32).tobytes(), "not finite"),
    ],
)
def test_a_wrong_tensor_is_refused(changes, tail, message):
    with pytest.raises(RequestError, match=message):
        decode([part("obs", ROWS, **changes)], tail)


def test_a_boolean_is_a_byte_of_0_or_1():
    manifest = replace(MANIFEST, observation=(ArraySpec("obs", "bool", (2,)),))
    with pytest.raises(RequestError, match="bytes 0 and 1"):
        decode([part("obs", np.zeros((1, 2), bool))], b"\1\2", manifest)


@pytest.mark.parametrize("length", [b"", b"-1", b"1.0", b"x", b"3", b"9" * 30, b"\xb2"])
def test_a_wrong_length_of_the_json_is_refused(length):
    with pytest.raises(RequestError, match="must be a length in bytes"):
        decode_binary(b"{}", length, MANIFEST)


@pytest.mark.parametrize("inputs", [None, {}, [1], [None], [{"parameters": 3}]])
def test_inputs_of_another_kind_are_refused(inputs):
    with pytest.raises(RequestError, match="inputs"):
        decode(inputs, b"")


@pytest.mark.parametrize(
    ("document", "binary"),
    [
        ({}, False),
        ({"parameters": {"binary_data_output": True}}, True),
        ({"outputs": [{"name": "action", "parameters": {"binary_data": True}}]}, True),
        ({"outputs": [{"name": "action"}], "parameters": {"binary_data_output": True}}, True),
        (
            {
                "outputs": [{"name": "action", "parameters": {"binary_data": False}}],
                "parameters": {"binary_data_output": True},
            },
            False,
        ),
    ],
)
def test_the_output_is_binary_if_asked_for(document, binary):
    assert decode([part("obs", ROWS)], ROWS.tobytes(), **document).outputs == {"action": binary}


@pytest.mark.parametrize(
    "document",
    [
        {"parameters": {"binary_data_output": 1}},
        {"outputs": [{"name": "action", "parameters": {"binary_data": None}}]},
        {"outputs": [{"name": "action", "parameters": []}]},
    ],
)
def test_a_wrong_wish_is_refused(document):
    with pytest.raises(RequestError, match=r"binary_data|parameters of output 'action'"):
        decode([part("obs", ROWS)], ROWS.tobytes(), **document)


def test_the_answer_is_json_and_then_the_bytes():
    actions = np.array([[1.5, -2], [0, 4]], np.float32)
    body, length = encode_binary({"action": actions}, {"action": True}, MANIFEST, "3", "a")
    assert json.loads(body[:length]) == {
        "model_name": "policy",
        "model_version": "3",
        "id": "a",
        "outputs": [{"name": "action", "datatype": "FP32", "shape": [2, 2], "parameters": {"binary_data_size": 16}}],
    }
    np.testing.assert_array_equal(np.frombuffer(body[length:], "<f4").reshape(2, 2), actions)


def test_a_raw_request_is_answered_raw(server, discrete, golden):
    observations = golden(discrete)["obs"]
    connection = server.connect()
    headers = {"Inference-Header-Content-Length": "0"}
    connection.request("POST", "/v2/models/discrete/infer", observations.tobytes(), headers)
    response = connection.getresponse()
    body, length = response.read(), int(response.headers["inference-header-content-length"])
    connection.close()
    assert response.headers["content-type"] == "application/octet-stream"
    assert json.loads(body[:length])["outputs"][0]["shape"] == [len(observations)]
    np.testing.assert_array_equal(np.frombuffer(body[length:], "<i8"), serving.load(discrete).act_batch(observations))


# Rows


def instances(value, manifest=MANIFEST, **document):
    return decode_instances(json.dumps({"instances": value, **document}).encode(), manifest)


def test_instances_are_observations_or_objects_of_their_parts():
    for given in (ROWS.tolist(), [{"obs": row} for row in ROWS.tolist()]):
        np.testing.assert_array_equal(instances(given).observations, ROWS)
    both = instances([{"obs": row, "goal": 9} for row in ROWS.tolist()], TWO).observations
    np.testing.assert_array_equal(both["obs"], ROWS)
    np.testing.assert_array_equal(both["goal"], np.array([9, 9], np.uint8))
    sampled = instances(ROWS.tolist(), parameters={"deterministic": False, "seed": 3}).noise
    assert sampled.shape == (2, 2)


@pytest.mark.parametrize(
    ("value", "manifest", "message"),
    [
        (None, MANIFEST, "instances must be a list"),
        ([], MANIFEST, "instances must be a list"),
        ([1, 2, 3], MANIFEST, "obs"),
        ([[1, 2]], MANIFEST, "nested as its shape says"),
        ([[1, 2, 3], [1, 2]], MANIFEST, "nested as its shape says"),
        ([[1, 2, "3"]], MANIFEST, "nothing but FP32"),
        ([{"x": [1, 2, 3]}], MANIFEST, "'obs' and nothing else"),
        ([{"obs": [1, 2, 3], "x": 1}], MANIFEST, "nothing else"),
        ([[1, 2, 3]], TWO, "an object with 'obs' and 'goal'"),
        ([{"obs": [1, 2, 3]}], TWO, "'obs' and 'goal' and nothing else"),
        ([{"obs": [1, 2, 3], "goal": 256}], TWO, "out of range"),
    ],
)
def test_wrong_instances_are_refused(value, manifest, message):
    with pytest.raises(RequestError, match=message):
        instances(value, manifest)


def test_there_is_one_signature():
    assert len(instances([[1, 2, 3]], signature_name="serving_default").observations) == 1
    with pytest.raises(RequestError, match="serving_default"):
        instances([[1, 2, 3]], signature_name="other")


def test_null_is_what_is_left_out():
    assert len(instances([[1, 2, 3]], signature_name=None, inputs=None, parameters=None).observations) == 1


def test_columns_are_not_served():
    with pytest.raises(RequestError, match="inputs, which would hold columns, is not served"):
        instances([[1, 2, 3]], inputs={"obs": [[1, 2, 3]]})


def test_predictions_are_rows():
    assert json.loads(encode_predictions(np.arange(4, dtype=np.float32).reshape(2, 2).T)) == {
        "predictions": [[0.0, 2.0], [1.0, 3.0]]
    }
    assert json.loads(encode_predictions(np.array([3, 4]))) == {"predictions": [3, 4]}
