"""Large JSON bodies: they mean what small ones mean, and what they may not hold is refused before it is built."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("hypothesis")

from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.serving.examples import examples
from trpo_tf.serving import ArraySpec, Manifest, NoiseSpec
from trpo_tf.serving.bundle.specs import DTYPES
from trpo_tf.serving.codecs.datatypes import DATATYPES
from trpo_tf.serving.codecs.parsing import json_body
from trpo_tf.serving.codecs.parsing.body_limits import SMALL
from trpo_tf.serving.codecs.tfserving import decode_instances
from trpo_tf.serving.codecs.v2_json import decode_request
from trpo_tf.serving.errors import RequestError

MANIFEST = Manifest(
    "policy", (ArraySpec("obs", "float32", (2, 3)),), ArraySpec("action", "float32", (2,)), NoiseSpec("normal", (2,))
)
PADDING = b" " * SMALL
"""Blanks behind a body make it a large one, and nothing else."""

NUMBERS = st.one_of(
    st.integers(0, 9),
    st.integers(-(2**65), 2**65),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(allow_nan=False, allow_infinity=False, width=16),
)
TEXTS = st.one_of(
    NUMBERS.map(json.dumps),
    st.sampled_from(
        ["true", "false", "null", "-0", "-0.0", "1e2", "1E-3", "1e+39", "65520", "65519.9", "3.4028236e38"]
    ),
    st.sampled_from(
        ["", "1 2", *["01", "1.", ".5", "-", "+1", "1e", "NaN", "[1]", "{}", '"1"', "1e999", "0x1", "[", "]"]]
    ),
)
BLANKS = st.sampled_from(["", "", "", " ", "\n  ", "\t\r"])


@pytest.fixture(autouse=True)
def _every_array_is_long(monkeypatch):
    monkeypatch.setattr(json_body, "_LONG", 0)


def outcome(decode, body, manifest):
    """The request as something that can be compared, or the error's class."""
    try:
        request = decode(body, manifest, max_batch=64)
    except RequestError:
        return RequestError
    parts = request.observations if isinstance(request.observations, dict) else {"": request.observations}
    arrays = {name: (part.dtype, part.shape, part.tobytes()) for name, part in parts.items()}
    return arrays, None if request.noise is None else request.noise.tolist(), request.request_id, request.outputs


def assert_same(decode, body, manifest):
    assert outcome(decode, body + PADDING, manifest) == outcome(decode, body, manifest)


def written(draw, values, shape):
    """JSON text of the values, nested as the shape, with blanks here and there."""
    blank = draw(BLANKS)
    if not shape:
        return values[0]
    size = len(values) // shape[0]
    rows = [written(draw, values[i * size : (i + 1) * size], shape[1:]) for i in range(shape[0])]
    return f"[{blank}" + f"{blank},{draw(BLANKS)}".join(rows) + f"{blank}]"


@st.composite
def data(draw, shape, dtype):
    """The text of an input's data: mostly right, flat or nested as `shape`, or as another."""
    one = NUMBERS.map(json.dumps) if draw(st.booleans()) else TEXTS
    if draw(st.booleans()):
        edge = [0, 1] if dtype == "bool" else _edges(dtype)
        one = st.sampled_from(edge).map(lambda x: json.dumps(bool(x)) if dtype == "bool" else json.dumps(x))
    count = math.prod(shape) + draw(st.sampled_from([0, 0, 0, 0, 1, -1]))
    values = draw(st.lists(one, min_size=count, max_size=count))
    if count != math.prod(shape) or draw(st.booleans()):
        return f"[{draw(BLANKS)}{','.join(values)}]"
    return written(draw, values, draw(st.sampled_from([shape, shape, shape, shape[::-1], (*shape, 1), shape[:1]])))


def _edges(dtype):
    if np.dtype(dtype).kind == "f":
        return [0.5, float(np.finfo(dtype).max), -1, 7, 2**53 + 1, 0.1]
    return [0, 1, int(np.iinfo(dtype).max), int(np.iinfo(dtype).min)]


@st.composite
def requests(draw):
    dtype = draw(st.sampled_from(DTYPES))
    spec = ArraySpec("obs", dtype, draw(st.sampled_from([(), (1,), (3,), (2, 3), (1, 1, 2)])))
    shape = (draw(st.integers(1, 3)), *spec.shape)
    members = {
        "name": '"obs"',
        "datatype": json.dumps(DATATYPES[dtype]),
        "shape": json.dumps(shape),
        "data": draw(data(shape, dtype)),
    }
    order = draw(st.permutations(list(members)))
    tensor = "{" + ",".join(f'"{key}"{draw(BLANKS)}:{draw(BLANKS)}{members[key]}' for key in order) + "}"
    extras = [
        "",
        '"id":"x",',
        '"id":"data",',
        '"id":"\\"data\\":[1]",',
        '"parameters":{"data":{}},',
        '"id":"a","id":"\\\\",',
    ]
    extra = draw(st.sampled_from(extras))
    return ("{" + extra + '"inputs":[' + tensor + "]}").encode(), replace(MANIFEST, observation=(spec,))


@given(requests())
@examples(600)
@example(
    (
        b'{"inputs":[{"name":"obs","datatype":"UINT64","shape":[1],"data":[18446744073709551615]}]}',
        replace(MANIFEST, observation=(ArraySpec("obs", "uint64", ()),)),
    )
)
def test_a_large_body_means_what_a_small_one_means(asked):
    assert_same(decode_request, *asked)


@pytest.mark.parametrize("size", [3, 2**14, 2**15, 2**15 + 2, 2**16])
@pytest.mark.parametrize("dtype", ["float32", "uint8", "bool"])
def test_nothing_is_no_number_wherever_the_text_is_cut(dtype, size):
    manifest = replace(MANIFEST, observation=(ArraySpec("obs", dtype, ()),))
    one = "true" if dtype == "bool" else "1"
    for text in ("[[]]", "[[],[]]", f"[{f'{one},' * size}]", f"[,{f'{one},' * size}{one}]"):
        shape = [text.count(",") + 1]
        body = json.dumps({"inputs": [{"name": "obs", "datatype": DATATYPES[dtype], "shape": shape, "data": 0}]})
        with pytest.raises(RequestError):
            decode_request(body.replace('"data": 0', f'"data": {text}').encode() + PADDING, manifest)


@given(st.data())
@examples(300)
def test_large_bodies_damaged_anywhere_are_refused_as_small_ones(drawn):
    body, manifest = drawn.draw(requests())
    damaged = bytearray(body)
    for _ in range(drawn.draw(st.integers(1, 3))):
        at = drawn.draw(st.integers(0, len(damaged) - 1))
        put = drawn.draw(st.sampled_from([b"", *(bytes([byte]) for byte in b',[]"}1 -')]))
        damaged[at : at + drawn.draw(st.integers(0, 2))] = put
    assert_same(decode_request, bytes(damaged), manifest)


@st.composite
def rows(draw):
    dtype = draw(st.sampled_from(["float32", "uint8", "int64", "bool"]))
    spec = ArraySpec("obs", dtype, draw(st.sampled_from([(), (1,), (3,), (2, 2)])))
    goal = ArraySpec("goal", "int8", ())
    specs = draw(st.sampled_from([(spec,), (spec, goal), (goal, spec)]))
    instances, is_bare = [], len(specs) == 1 and draw(st.booleans())
    for _ in range(draw(st.integers(1, 3))):
        parts = {part.name: draw(data(part.shape, part.dtype)) if part.shape else draw(TEXTS) for part in specs}
        if draw(st.integers(0, 9)) == 0:
            parts["x"] = "1"
        keys = draw(st.permutations(list(parts)))
        if is_bare:
            instances.append(parts["obs"])
        else:
            instances.append("{" + ",".join(f'{draw(BLANKS)}"{key}":{draw(BLANKS)}{parts[key]}' for key in keys) + "}")
    text = f"{draw(BLANKS)},".join(instances)
    tails = ["", "", ',"signature_name":"serving_default"', ',"parameters":{"seed":3,"deterministic":false}']
    body = f'{{"instances":{draw(BLANKS)}[{text}]{draw(st.sampled_from(tails))}}}'
    return body.encode(), replace(MANIFEST, observation=specs)


@given(rows())
@examples(600)
def test_large_instances_mean_what_small_ones_mean(asked):
    assert_same(decode_instances, *asked)


@pytest.mark.parametrize(
    "document",
    [
        {"data": [1], "inputs": []},
        {"parameters": {"data": [1]}},
        {"inputs": [{"x": {"data": [1]}}]},
        {"inputs": [{"name": "x" * SMALL}]},
        {"inputs": [{"name": "obs", "shape": [1] * SMALL}]},
        {"inputs": [{}] * SMALL},
        {"x": [0] * SMALL},
    ],
)
def test_what_is_long_beside_the_numbers_of_inputs_is_refused(document):
    with pytest.raises(RequestError, match=r"besides its inputs' numbers|only the inputs"):
        decode_request(json.dumps(document).encode() + PADDING, MANIFEST)


def written_for(text, dtype="float32"):
    """A large request of the rows of four numbers in `text`."""
    rows = (text.count(",") + 1) // 4
    head = json.dumps({"inputs": [{"name": "obs", "datatype": DATATYPES[dtype], "shape": [rows, 4], "data": 0}]})
    manifest = replace(MANIFEST, observation=(ArraySpec("obs", dtype, (4,)),))
    return head.replace('"data": 0', f'"data": [{text}]').encode() + PADDING, manifest


@pytest.mark.parametrize("odd", ["0.25", "-7", "1E3", "12345", "-0", "9007199791611905", "99999999999999999999"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_number_among_short_integers_is_itself(odd, dtype):
    for before in (0, 1, 1000):
        values = [*["1"] * before, odd, *["30", "2"] * 1000, *["4"] * (3 - before % 4)]
        if dtype == "float16" and float(odd) > 65519:
            with pytest.raises(RequestError, match="out of range"):
                decode_request(*written_for(",".join(values), dtype))
            continue
        read = decode_request(*written_for(",".join(values), dtype)).observations
        assert read.tobytes() == np.array([json.loads(value) for value in values], dtype).tobytes()


@pytest.mark.parametrize("odd", ["", "01", "007", "-", "1.", ".5", "+1", "null", "true", "1e", "--1"])
def test_what_is_no_number_among_short_integers_is_refused(odd):
    for values in (
        ["1", odd, "1", *["2"] * 4001],
        [*["1"] * 4000, "1", "1", "1", odd],
        [odd, "1", "12345", "1"] * 1000,
    ):
        with pytest.raises(RequestError):
            decode_request(*written_for(",".join(values)))


def test_names_with_escapes_are_those_that_they_stand_for():
    body, manifest = written_for(",".join(["0.5"] * 4000))
    plain = decode_request(body, manifest).observations
    for name in ("inputs", "data", "obs", "shape"):
        escaped = name.replace("a", "\\u0061").replace("i", "\\u0069").replace("o", "\\u006f")
        spelled = body.replace(f'"{name}"'.encode(), f'"{escaped}"'.encode())
        assert np.array_equal(decode_request(spelled, manifest).observations, plain)
    rows = b'{"instances":[%b{"\\u006fbs":[1,2,3,4]}]}' % (b'{"obs":[1,2,3,4]},' * 999)
    assert decode_instances(rows + PADDING, manifest).observations.shape == (1000, 4)


def test_data_of_an_unknown_member_may_be_objects():
    body, manifest = written_for(",".join(["0.5"] * 4000))
    body = body.replace(b"{", b'{"x":{"data":[{"a":1},2]},', 1)
    assert decode_request(body, manifest).observations.shape == (1000, 4)


def test_an_array_that_is_given_twice_is_refused():
    tensor = b'{"name":"obs","datatype":"FP32","shape":[1,2,3],"data":[0,1,,3,4,5],"data":[0,1,2,3,4,5]}'
    with pytest.raises(RequestError, match="only the inputs"):
        decode_request(b'{"inputs":[%b]}%b' % (tensor, PADDING), MANIFEST)
