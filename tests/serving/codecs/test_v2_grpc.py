"""Messages to requests and answers to messages, and that the messages are the protocol's."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("grpc")

from trpo_tf import serving
from trpo_tf.serving import ArraySpec, GraphSpec, Manifest, NoiseSpec
from trpo_tf.serving.bundle.specs import DTYPES
from trpo_tf.serving.codecs.datatypes import DATATYPES
from trpo_tf.serving.codecs.grpc_messages import MODEL_INFER, MODEL_METADATA, SERVER_METADATA
from trpo_tf.serving.codecs.parameters import NOT_SERVED
from trpo_tf.serving.codecs.v2_grpc import decode_infer, encode_infer, parse
from trpo_tf.serving.errors import RequestError
from trpo_tf.serving.repository.catalog import Model

PROTOCOL = Path(serving.__file__).parent / "codecs" / "protocol"
TYPED = {
    **{"BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents"},
    **{"INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents"},
    **{"UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents"},
}


def manifest_of(dtype="float32", shape=(2,), **graph):
    return Manifest(
        "policy",
        (ArraySpec("obs", dtype, shape),),
        ArraySpec("action", dtype, shape),
        NoiseSpec("normal", (2,)),
        GraphSpec(**graph),
    )


MANIFEST = manifest_of()


def message(values, *, raw=False, outputs=(), **fields):
    request = MODEL_INFER.request(model_name="policy", **fields)
    add_input(request, "obs", values, raw=raw)
    for name in outputs:
        request.outputs.add(name=name)
    return request


def add_input(request, name, values, *, raw=False):
    tensor = request.inputs.add(name=name, datatype=DATATYPES[values.dtype.name], shape=values.shape)
    if raw:
        request.raw_input_contents.append(values.tobytes())
    else:
        getattr(tensor.contents, TYPED[tensor.datatype]).extend(values.ravel().tolist())


ROWS = np.float32([[0.5, -1], [2, 1e-30]])


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_comes_and_goes_typed_and_raw(dtype, raw):
    kind = np.dtype(dtype).kind
    ends = [0, 1] if kind == "b" else [getattr(np, "finfo" if kind == "f" else "iinfo")(dtype).max, 0]
    values, manifest = np.array([ends], dtype), manifest_of(dtype)
    if dtype == "float16" and not raw:
        return
    asked = decode_infer(message(values, raw=raw), manifest)
    np.testing.assert_array_equal(asked.observations, values)
    assert asked.observations.dtype == dtype
    answer = encode_infer({"action": values}, asked, "7", Model("policy", "3", None))
    assert (answer.model_name, answer.model_version, answer.id) == ("policy", "3", "7")
    (output,) = answer.outputs
    assert (output.name, output.datatype, output.shape) == ("action", DATATYPES[dtype], [1, 2])
    if raw:
        assert answer.raw_output_contents == [values.tobytes()]
        assert not output.HasField("contents")
    else:
        assert list(getattr(output.contents, TYPED[output.datatype])) == values.ravel().tolist()
        assert not answer.raw_output_contents


def test_half_floats_are_raw_whichever_way_they_are_asked_for():
    request = MODEL_INFER.request()
    tensor = request.inputs.add(name="obs", datatype="FP16", shape=[1, 2])
    tensor.contents.fp32_contents.extend([1, 2])
    with pytest.raises(RequestError, match="data as a list"):
        decode_infer(request, manifest_of("float16"))
    asked = decode_infer(message(ROWS), MANIFEST)
    halves = np.float16([[1, 2]])
    assert encode_infer({"action": halves}, asked, "", Model("p", "1", None)).raw_output_contents == [halves.tobytes()]


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint8", "uint16"])
def test_a_number_beyond_the_type_is_refused(dtype):
    request = MODEL_INFER.request()
    tensor = request.inputs.add(name="obs", datatype=DATATYPES[dtype], shape=[1, 2])
    getattr(tensor.contents, TYPED[tensor.datatype]).extend([0, np.iinfo(dtype).max + 1])
    with pytest.raises(RequestError, match="out of range"):
        decode_infer(request, manifest_of(dtype))


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_not_finite_is_refused_wherever_it_is(dtype, place, bad, raw):
    values = np.ones((2, 2), dtype)
    values.flat[place] = bad
    with pytest.raises(RequestError, match="not finite"):
        decode_infer(message(values, raw=raw), manifest_of(dtype))


def changed(change):
    request = message(ROWS)
    change(request)
    return request


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda r: r.ClearField("inputs"), "'obs' is missing"),
        (lambda r: r.inputs.append(r.inputs[0]), "twice"),
        (lambda r: setattr(r.inputs[0], "name", "other"), "not 'other'"),
        (
            lambda r: setattr(r.inputs[0], "datatype", "FP64"),
            "numbers in fp32_contents; those of FP64 belong in fp64_con",
        ),
        (lambda r: setattr(r.inputs[0], "datatype", "BYTES"), "datatype FP32"),
        (lambda r: r.inputs[0].shape.__setitem__(0, -2), "shape"),
        (lambda r: r.inputs[0].shape.__setitem__(0, 0), "shape"),
        (lambda r: r.inputs[0].shape.__setitem__(0, 2**62), "batch of 4611686018427387904"),
        (lambda r: r.inputs[0].shape.__setitem__(0, 5), "batch of 5"),
        (lambda r: r.inputs[0].shape.append(1), "shape"),
        (lambda r: r.inputs[0].ClearField("shape"), "shape"),
        (lambda r: r.inputs[0].ClearField("contents"), "16 bytes of data, not 0"),
        (lambda r: r.inputs[0].contents.fp32_contents.append(1), "16 bytes of data, not 20"),
        (lambda r: r.raw_input_contents.extend([b"", b""]), "raw_input_contents for each of the 1 inputs"),
        (lambda r: r.raw_input_contents.append(b"12"), "not both"),
        (lambda r: (r.inputs[0].ClearField("contents"), r.raw_input_contents.append(b"12")), "16 bytes of data, not 2"),
        (lambda r: r.outputs.add(name="other"), "not 'other'"),
        (lambda r: [r.outputs.add(name="action") for _ in range(2)], "twice"),
        (lambda r: setattr(r.parameters["deterministic"], "int64_param", 1), "must be true or false"),
        (lambda r: r.parameters["deterministic"].SetInParent(), "must be true or false"),
        (lambda r: setattr(r.parameters["seed"], "int64_param", 1), "with deterministic: false"),
    ],
)
def test_a_wrong_request_is_refused(change, part):
    with pytest.raises(RequestError, match=part):
        decode_infer(changed(change), MANIFEST, max_batch=4)


@pytest.mark.parametrize("size", [2, 20_000])
@pytest.mark.parametrize("right", [True, False])
def test_numbers_in_the_field_of_another_datatype_are_refused(size, right):
    """They were ignored beside those in the right field, and were nothing without."""
    request = message(np.ones((1, size), np.float32))
    if not right:
        request.inputs[0].contents.Clear()
    request.inputs[0].contents.fp64_contents.extend([1.0] * size)
    manifest = replace(MANIFEST, observation=(ArraySpec("obs", "float32", (size,)),))
    with pytest.raises(RequestError, match="'obs' has numbers in fp64_contents; those of FP32 belong in fp32_contents"):
        decode_infer(parse(MODEL_INFER, request.SerializeToString()), manifest)


@pytest.mark.parametrize("size", [2, 20_000])
def test_numbers_that_are_given_both_raw_and_typed_are_refused(size):
    """Only one of them could be acted on, and the client would not know which."""
    values = np.ones((1, size), np.float32)
    request = message(values)
    request.raw_input_contents.append(values.tobytes())
    manifest = replace(MANIFEST, observation=(ArraySpec("obs", "float32", (size,)),))
    with pytest.raises(RequestError, match="raw_input_contents or contents, not both"):
        decode_infer(parse(MODEL_INFER, request.SerializeToString()), manifest)
    request.inputs[0].contents.Clear()
    decode_infer(parse(MODEL_INFER, request.SerializeToString()), manifest)


def test_a_sample_and_noise_are_those_of_json():
    request = message(ROWS)
    request.parameters["deterministic"].bool_param = False
    request.parameters["seed"].uint64_param = 7
    noise = serving.runtime.noise.draw_noise(MANIFEST.noise, 2, np.random.default_rng(7))
    np.testing.assert_array_equal(decode_infer(request, MANIFEST).noise, noise)
    for raw in (True, False):
        given = message(ROWS, raw=raw)
        add_input(given, "noise", noise, raw=raw)
        np.testing.assert_array_equal(decode_infer(given, MANIFEST).noise, noise)
    with pytest.raises(RequestError, match="exported without noise"):
        decode_infer(request, replace(MANIFEST, graph=GraphSpec("none")))


@pytest.mark.parametrize("name", NOT_SERVED)
def test_parameters_that_change_the_answer_are_refused_by_name(name):
    for where, owner in (
        ("the request", lambda request: request),
        ("input 'obs'", lambda request: request.inputs[0]),
        ("output 'action'", lambda request: request.outputs[0]),
    ):
        request = message(ROWS, outputs=["action"])
        owner(request).parameters[name].int64_param = 1
        with pytest.raises(RequestError, match=f"parameter '{name}' of {where} is not served"):
            decode_infer(request, MANIFEST)
        del owner(request).parameters[name]
        owner(request).parameters["priority"].uint64_param = 1
        decode_infer(request, MANIFEST)


def test_outputs_are_chosen_in_their_order():
    manifest = manifest_of(outputs=(ArraySpec("value", "float32", ()),))
    assert list(decode_infer(message(ROWS), manifest).outputs) == ["action", "value"]
    assert list(decode_infer(message(ROWS, outputs=["value", "action"]), manifest).outputs) == ["value", "action"]


def test_the_messages_compile_to_what_is_installed(tmp_path):
    pytest.importorskip("grpc_tools")
    made = tmp_path / "compiled.binpb"
    files = ("open_inference.proto", "health.proto", "reflection.proto")
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTOCOL}", f"--descriptor_set_out={made}", *files],
        check=True,
        timeout=60,
    )
    assert made.read_bytes() == (PROTOCOL / "compiled.binpb").read_bytes(), "run `make protocol`"


def fields_of(descriptor, seen=None):
    """Every field of a message and of those inside it: name, number, type, and whether there are several."""
    seen = set() if seen is None else seen
    for field in descriptor.fields:
        entry = (descriptor.full_name, field.name, field.number, field.type, field.is_repeated)
        if entry not in seen:
            seen.add(entry)
            if field.message_type is not None:
                fields_of(field.message_type, seen)
    return seen


@pytest.mark.parametrize("call", [MODEL_INFER, MODEL_METADATA, SERVER_METADATA], ids=lambda call: call.path)
def test_fields_are_those_of_tritonclient(call):
    stubs = pytest.importorskip("tritonclient.grpc.service_pb2")
    for ours in (call.request, call.response):
        theirs = getattr(stubs, ours.DESCRIPTOR.name)
        assert fields_of(ours.DESCRIPTOR) == fields_of(theirs.DESCRIPTOR)


def test_health_is_grpcs_own():
    health = pytest.importorskip("grpc_health.v1.health_pb2")
    from trpo_tf.serving.codecs.grpc_messages import HEALTH_CHECK, HEALTH_WATCH

    for call in (HEALTH_CHECK, HEALTH_WATCH):
        assert fields_of(call.request.DESCRIPTOR) == fields_of(health.HealthCheckRequest.DESCRIPTOR)
        assert fields_of(call.response.DESCRIPTOR) == fields_of(health.HealthCheckResponse.DESCRIPTOR)
    names = HEALTH_CHECK.response.DESCRIPTOR.enum_types_by_name["ServingStatus"].values_by_name
    theirs = health.HealthCheckResponse.ServingStatus
    assert {name: value.number for name, value in names.items()} == dict(theirs.items())
