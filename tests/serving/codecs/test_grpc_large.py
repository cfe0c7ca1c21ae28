"""Large messages: they mean what small ones mean, and what they may not hold is refused before it is built."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("grpc")
pytest.importorskip("hypothesis")

from hypothesis import given
from hypothesis import strategies as st

from tests.support.serving.examples import examples
from trpo_tf.serving import ArraySpec, Manifest, NoiseSpec
from trpo_tf.serving.bundle.specs import DTYPES
from trpo_tf.serving.codecs import v2_grpc as grpc_codec
from trpo_tf.serving.codecs.datatypes import DATATYPES
from trpo_tf.serving.codecs.grpc_messages import HEALTH_CHECK, MODEL_INFER, MODEL_METADATA
from trpo_tf.serving.codecs.parsing.body_limits import SMALL
from trpo_tf.serving.codecs.parsing.grpc_large import LONGEST_NAME, MOST_FIELDS
from trpo_tf.serving.codecs.v2_grpc import LargeRequest, decode_infer, parse
from trpo_tf.serving.errors import RequestError
from trpo_tf.serving.support.protobuf_wire import encoded, written

MANIFEST = Manifest(
    "policy", (ArraySpec("obs", "float32", (2,)),), ArraySpec("action", "float32", (2,)), NoiseSpec("normal", (2,))
)
NUMBERS = {"bool_contents": 1, "int_contents": 2, "int64_contents": 3, "uint_contents": 4, "uint64_contents": 5}
FLOATS = {"fp32_contents": (6, "<f4"), "fp64_contents": (7, "<f8")}
GROUP = b"\x4b\x28\x01\x13" + encoded(5, b"xy") + b"\x14\x4c"
"""An unknown group with another in it; inside, field 5 has nothing to do with the message's."""
VALUES = st.one_of(
    st.integers(0, 1), st.integers(0, 300), st.integers(0, 2**64 - 1), st.integers(2**64 - 200, 2**64 - 1)
)


@st.composite
def contents(draw, dtype, count):
    """The contents of a tensor as they may be written: packed or not, in parts, here and there another field."""
    field = grpc_codec._CONTENTS.get(DATATYPES[dtype], "uint_contents")
    parts = []
    while count > 0:
        size = draw(st.integers(1, count))
        count -= size
        if field in NUMBERS:
            values = [written(draw(VALUES)) for _ in range(size)]
            number, tag = NUMBERS[field], 0
        else:
            number, kind = FLOATS[field]
            values = [np.array(draw(st.floats(width=32)), kind).tobytes() for _ in range(size)]
            tag = {"<f4": 5, "<f8": 1}[kind]
        if draw(st.booleans()):
            parts.append(encoded(number, b"".join(values)))
        else:
            parts.extend(written(number << 3 | tag) + value for value in values)
        if draw(st.integers(0, 5)) == 0:
            parts.append(
                draw(st.sampled_from([encoded(8, b"x"), encoded(9, b"x"), b"\x08\x01", b"\x35\0\0\0\0", GROUP]))
            )
    return b"".join(parts)


@st.composite
def messages(draw):
    dtype = draw(st.sampled_from(DTYPES))
    count = 2 + draw(st.sampled_from([0, 0, 0, 0, 2, -1, -2]))
    inputs = encoded(1, b"obs") + encoded(2, DATATYPES[dtype].encode()) + encoded(3, b"\1\2")
    raw = b""
    if draw(st.integers(0, 3)) == 0:
        raw = encoded(7, draw(st.binary(min_size=2 * np.dtype(dtype).itemsize, max_size=2 * np.dtype(dtype).itemsize)))
    else:
        whole = draw(contents(dtype, count))
        inputs += encoded(5, whole)
        if draw(st.integers(0, 3)) == 0:
            inputs += encoded(5, draw(contents(dtype, 1)))
    fields = [encoded(1, b"policy"), encoded(3, b"id"), encoded(5, inputs), raw]
    fields = [
        *draw(st.permutations(fields)),
        draw(st.sampled_from([b"", b"", encoded(6, encoded(1, b"action")), b"\x48\1", GROUP])),
    ]
    return b"".join(fields), replace(MANIFEST, observation=(ArraySpec("obs", dtype, (2,)),))


def outcome(content, manifest, *, large):
    before = grpc_codec.SMALL
    grpc_codec.SMALL = -1 if large else before
    try:
        message = parse(MODEL_INFER, content)
        assert isinstance(message, LargeRequest) == large
        request = decode_infer(message, manifest, max_batch=4)
    except RequestError:
        return RequestError
    finally:
        grpc_codec.SMALL = before
    names = message.model_name, message.model_version, message.id
    return names, request.observations.dtype, request.observations.tolist(), request.outputs


@given(messages())
@examples(1000)
def test_a_large_message_means_what_a_small_one_means(asked):
    assert outcome(*asked, large=True) == outcome(*asked, large=False)


@given(st.data())
@examples(500)
def test_large_messages_damaged_anywhere_are_refused_as_small_ones(drawn):
    content, manifest = drawn.draw(messages())
    damaged = bytearray(content)
    at = drawn.draw(st.integers(0, len(damaged) - 1))
    damaged[at : at + drawn.draw(st.integers(0, 2))] = drawn.draw(st.binary(max_size=2))
    assert outcome(bytes(damaged), manifest, large=True) == outcome(bytes(damaged), manifest, large=False)


@pytest.mark.parametrize("odd", [b"\x2d\x1a\x02id", b"\x3d1234", b"\x3912345678", b"\x28\1"])
def test_a_field_of_another_wire_type_is_none_that_is_known(odd):
    """Such as inputs or raw contents of 32 bits, which Protobuf skips."""
    tensor = encoded(1, b"obs") + encoded(2, b"FP32") + encoded(3, b"\1\2")
    raw = encoded(7, np.float32([1, 2]).tobytes())
    for inputs in (tensor, tensor + odd, tensor + encoded(5, encoded(6, b""))):
        content = odd + encoded(5, inputs) + raw
        assert outcome(content, MANIFEST, large=True) == outcome(content, MANIFEST, large=False) != RequestError


@pytest.mark.parametrize(
    ("odd", "is_message"),
    [
        (GROUP, True),
        (b"\x4b" * 90 + b"\x4c" * 90, True),
        (b"\x4b" * 101 + b"\x4c" * 101, False),
        (b"\x4b", False),
        (b"\x4c", False),
        (b"\x4b\x44", False),
        (b"\x4b\x2a\x05\x4c", False),
        (b"\xc8\x80\x80\x80\0\1", True),
        (b"\xc8\x80\x80\x80\x80\0\1", False),
        (b"\x48" + b"\xff" * 9 + b"\x7f", True),
        (b"\x4f", False),
    ],
)
def test_odd_fields_are_read_or_refused_as_protobuf_does(odd, is_message):
    """Groups, which only old formats have, and longer varints than needed: in the message, an input, its contents."""
    tensor = encoded(1, b"obs") + encoded(2, b"FP32") + encoded(3, b"\1\2")
    numbers = encoded(6, np.float32([1, 2]).tobytes())
    for content in (
        odd + encoded(5, tensor + encoded(5, numbers)),
        encoded(5, tensor + odd + encoded(5, numbers)),
        encoded(5, tensor + encoded(5, numbers + odd)),
    ):
        answer = outcome(content, MANIFEST, large=True)
        assert answer == outcome(content, MANIFEST, large=False)
        assert (answer != RequestError) == is_message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (encoded(5, b"") * SMALL, f"{MOST_FIELDS} fields"),
        (encoded(6, b"") * SMALL, f"{MOST_FIELDS} fields"),
        (encoded(7, b"") * SMALL, f"{MOST_FIELDS} fields"),
        (encoded(5, encoded(5, b"") * SMALL), f"{MOST_FIELDS} fields"),
        (encoded(5, encoded(5, b"\x20\1" * SMALL)), f"{MOST_FIELDS} fields"),
        (b"\x4b" + b"\x48\1" * SMALL + b"\x4c", f"{MOST_FIELDS} fields"),
        (encoded(5, encoded(5, b"\x4b" + b"\x48\1" * SMALL + b"\x4c")), f"{MOST_FIELDS} fields"),
        (encoded(5, encoded(3, b"\1" * SMALL)), f"{SMALL} bytes"),
        (encoded(5, encoded(1, b"\1" * SMALL)), f"{SMALL} bytes"),
        (encoded(3, b"x" * SMALL), f"{SMALL} bytes"),
        (encoded(99, b"x" * SMALL), f"{SMALL} bytes"),
        (b"\x4b" * (SMALL + 1), "not a inference.ModelInferRequest"),
    ],
)
def test_what_is_large_beside_the_numbers_is_refused(content, message):
    with pytest.raises(RequestError, match=message):
        parse(MODEL_INFER, content)


def test_small_messages_of_many_parts_are_refused_by_their_count():
    for number in (5, 6):
        with pytest.raises(RequestError, match="at most, not 20000"):
            decode_infer(parse(MODEL_INFER, encoded(number, b"") * 20_000), MANIFEST)


def test_numbers_of_one_byte_may_not_become_eight_times_a_large_message():
    manifest = replace(MANIFEST, observation=(ArraySpec("obs", "int64", (2**22,)),))
    shape = b"\1" + written(2**22)
    tensor = encoded(1, b"obs") + encoded(2, b"INT64") + encoded(3, shape) + encoded(5, encoded(3, bytes(2**22)))
    with pytest.raises(RequestError, match="send raw_input_contents"):
        decode_infer(parse(MODEL_INFER, encoded(5, tensor)), manifest)


@pytest.mark.parametrize("call", [HEALTH_CHECK, MODEL_METADATA, MODEL_INFER], ids=lambda call: call.path)
@pytest.mark.parametrize("name", ["x" * 2**20, "\U0001f600" * 2**18], ids=["ascii", "astral"])
def test_a_name_that_nothing_has_is_cut_not_parsed(call, name):
    message = parse(call, encoded(1, name.encode()))
    cut = message.model_name if call is MODEL_INFER else getattr(message, "service" if call is HEALTH_CHECK else "name")
    assert name.startswith(cut)
    assert LONGEST_NAME // 4 - 1 <= len(cut) <= LONGEST_NAME
