"""Requests that take many times their size once a parser has built all that it reads.

There are some that must be refused, and some that are right and must be answered, each of about `size` bytes.
tests/serving/inference/test_amplifying.py holds the server to its bound on them, and fuzz_serve.py sends short ones.
"""

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from trpo_tf.serving.support.protobuf_wire import encoded, written

ROW = 1000
"""Numbers in an observation of the model `wide`, whose action is half their sum."""


class Request(NamedTuple):
    """A request to the model `wide`.

    Attributes:
        path: of HTTP, or the method of gRPC.
        sums: of the numbers in each row, if it is right; None if it must be refused.
    """

    name: str
    path: str
    body: bytes
    headers: Mapping[str, str] = MappingProxyType({})
    sums: list[float] | None = None


INFER, PREDICT, INDEX = "/v2/models/wide/infer", "/v1/models/wide:predict", "/v2/repository/index"
MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"


def http_requests(size: int) -> Iterator[Request]:
    """Yield the requests over HTTP."""
    for name, body in _texts(size):
        for path in (INFER, PREDICT, INDEX):
            yield Request(name, path, body)
    yield Request(
        "gzip", INFER, gzip.compress(b'{"a":[' + b'{"":0},' * (size // 7) + b"0]}"), {"content-encoding": "gzip"}
    )
    yield Request("bomb", INFER, gzip.compress(bytes(16 * size)), {"content-encoding": "gzip"})
    yield Request("empty streams", INFER, gzip.compress(b"") * (size // 20), {"content-encoding": "gzip"})
    yield Request("empty blocks", INFER, b"\x78\x01" + b"\0\0\0\xff\xff" * (size // 5), {"content-encoding": "deflate"})
    yield Request("noise", INFER, np.random.default_rng(0).bytes(size))
    yield Request("noise, raw", INFER, np.random.default_rng(0).bytes(size), {"inference-header-content-length": "0"})
    text = dict(_texts(size))["objects"]
    yield Request("json of a binary request", INFER, text, {"inference-header-content-length": str(len(text))})
    yield from _right(size)


def _texts(size: int) -> Iterator[tuple[str, bytes]]:
    for name, start, part, end in (
        ("objects", b'{"a":[', b'{"":0},', b"0]}"),
        ("empty objects", b'{"inputs":[', b"{},", b"{}]}"),
        ("lists", b'{"a":[', b"[],", b"0]}"),
        ("lists of a number", b'{"a":[', b"[1],", b"0]}"),
        ("lists as data", b'{"inputs":[{"name":"obs","data":[', b"[],", b"[]]}]}"),
        ("pixels", b'{"inputs":[{"name":"obs","datatype":"FP32","shape":[1,1000],"data":[', b"[0,0,0,0],", b"[]]}]}"),
        ("deep", b'{"a":', b'{"a":', b""),
        ("deep lists", b'{"a":', b"[", b""),
        ("strings", b'{"a":[', b'"",', b'""]}'),
        ("letters", b'{"a":[', b'"a",', b'""]}'),
        ("escapes", b'{"id":"', b"\\n", b'"}'),
        ("surrogates", b'{"id":"', b"\\ud83d\\ude00", b'"}'),
        ("astral", b'{"id":"', "\U0001f600".encode(), b'"}'),
        ("one astral", b'{"id":"\xf0\x9f\x98\x80', b"a", b'"}'),
        ("quotes", b'{"id":"', b'\\"', b'"}'),
        ("no end", b'{"id":"', b"\\\\", b""),
        ("base64", b'{"inputs":[{"name":"obs","data":["', b"QUJD", b'"]}]}'),
        ("numbers", b'{"a":[', b"0,", b"0]}"),
        ("halves", b'{"a":[', b".5,", b"0]}"),
        ("floats", b'{"a":[', b"0.1,", b"0]}"),
        ("numbers as data", b'{"inputs":[{"name":"obs","datatype":"FP32","shape":[1,1000],"data":[', b"0,", b"0]}]}"),
        ("shape", b'{"inputs":[{"name":"obs","datatype":"FP32","data":[0],"shape":[', b"1,", b"1]}]}"),
        ("outputs", b'{"outputs":[', b'{"name":"action"},', b"0]}"),
        ("parameters", b'{"parameters":{', b'"a":1,', b'"a":1}}'),
        ("blanks", b'{"a":[', b" ", b"0]"),
        ("commas", b'{"instances":[', b",", b"]}"),
        ("instances", b'{"instances":[', b"{},", b"{}]}"),
        ("rows", b'{"instances":[', b'{"obs":0},', b'{"obs":0}]}'),
        ("data within data", b'{"inputs":[' + b'{"data":[{' * 4000, b"}", b""),
        ("instances within instances", b'{"instances":[' + b'{"instances":[{' * 4000, b"} ", b""),
        ("names of an instance", b'{"instances":[{', b'"obs":[1],', b'"obs":[1]}]}'),
        ("digits", b'{"inputs":[{"name":"obs","datatype":"FP32","shape":[1,1000],"data":[', b"9", b"]}]}"),
    ):
        yield name, start + part * ((size - len(start) - len(end)) // len(part)) + end
    keys = b",".join(b'"%x":0' % number for number in range(size // 10))
    yield "keys", b'{"parameters":{%b}}' % keys


def _right(size: int) -> Iterator[Request]:
    """Yield valid requests, of as many rows as `size` bytes hold."""
    rng = np.random.default_rng(0)
    for name, values in (("0", 0), ("0.1", 0.1), ("7 digits", None)):
        width = len(str(values)) + 1 if values is not None else 10
        rows = (size - 200) // (ROW * width + 10)
        data = np.full((rows, ROW), values) if values is not None else rng.integers(0, 10**7, (rows, ROW)) / 1e7
        data = data.astype(int) if values == 0 else data
        sums = data.astype(np.float32).sum(axis=1).tolist()
        text = json.dumps(data.tolist(), separators=(",", ":")).encode()
        flat = b"[%b]" % text.translate(None, b"[]")
        tensor = b'{"inputs":[{"name":"obs","datatype":"FP32","shape":[%d,1000],"data":%b}]}'
        yield Request(f"{name}, nested", INFER, tensor % (rows, text), sums=sums)
        yield Request(f"{name}, flat", INFER, tensor % (rows, flat), sums=sums)
        yield Request(
            f"{name}, deflated", INFER, zlib.compress(tensor % (rows, flat), 1), {"content-encoding": "deflate"}, sums
        )
        yield Request(f"{name}, instances", PREDICT, b'{"instances":%b}' % text, sums=sums)
        objects = b'{"instances":[%b]}' % text[1:-1].replace(b"[", b'{"obs":[').replace(b"]", b"]}")
        yield Request(f"{name}, objects", PREDICT, objects, sums=sums)
    row = [0.5, *[1] * (ROW - 1)]
    text = json.dumps(row, separators=(",", ":")).encode()[1:-1]
    rows = (size - 200) // (len(text) + 1)
    yield Request(
        "0.5 among ones",
        INFER,
        tensor % (rows, b"[%b]" % b",".join([text] * rows)),
        sums=[sum(row)] * rows,
    )
    rows = size // (4 * ROW) - 1
    data = rng.uniform(-1, 1, (rows, ROW)).astype("<f4")
    sums = data.sum(axis=1).tolist()
    yield Request("raw", INFER, data.tobytes(), {"inference-header-content-length": "0"}, sums)
    head = b'{"inputs":[{"name":"obs","datatype":"FP32","shape":[%d,1000],"parameters":{"binary_data_size":%d}}]}'
    head %= rows, data.nbytes
    yield Request("binary", INFER, head + data.tobytes(), {"inference-header-content-length": str(len(head))}, sums)


def grpc_requests(size: int) -> Iterator[Request]:
    """Yield the requests over gRPC."""
    tensor = encoded(1, b"obs") + encoded(2, b"FP32")
    named = encoded(1, b"wide")
    for name, body in (
        ("inputs", encoded(5, b"") * (size // 2)),
        ("outputs", encoded(6, b"") * (size // 2)),
        ("raw contents", encoded(7, b"") * (size // 2)),
        ("parameters", encoded(4, b"") * (size // 2)),
        ("parameters by name", b"".join(encoded(4, encoded(1, b"%x" % n)) for n in range(size // 10))),
        ("ids", encoded(3, b"a") * (size // 3)),
        ("id", encoded(3, b"a" * size)),
        ("astral id", encoded(3, "\U0001f600".encode() * (size // 4))),
        ("shape", encoded(5, tensor + encoded(3, b"\1" * size))),
        ("unpacked shape", encoded(5, tensor + b"\x18\1" * (size // 2))),
        ("contents", encoded(5, tensor + encoded(5, b"") * (size // 2))),
        *((f"packed {field}", encoded(5, tensor + encoded(5, encoded(field, b"\1" * size)))) for field in range(1, 8)),
        *(
            (f"unpacked {field}", encoded(5, tensor + encoded(5, (written(field << 3) + b"\1") * (size // 2))))
            for field in range(1, 6)
        ),
        ("unpacked floats", encoded(5, tensor + encoded(5, b"\x35\0\0\0\0" * (size // 5)))),
        ("bytes", encoded(5, tensor + encoded(5, encoded(8, b"") * (size // 2)))),
        ("unknown", b"\x78\1" * (size // 2)),
        ("groups", b"\x7b\x7c" * (size // 2)),
        ("deep groups", b"\x7b" * size),
        ("noise", np.random.default_rng(0).bytes(size)),
    ):
        yield Request(name, MODEL_INFER, named + body)
        yield Request(f"{name} of metadata", "/inference.GRPCInferenceService/ModelMetadata", body)
        yield Request(f"{name} of health", "/grpc.health.v1.Health/Check", body)
    rng = np.random.default_rng(0)
    rows = size // (4 * ROW) - 1
    data = rng.uniform(-1, 1, (rows, ROW)).astype("<f4")
    sums = data.sum(axis=1).tolist()
    tensor += encoded(3, written(rows) + written(ROW))
    yield Request("right, raw", MODEL_INFER, named + encoded(5, tensor) + encoded(7, data.tobytes()), sums=sums)
    contents = encoded(5, encoded(6, data.tobytes()))
    yield Request("right, packed", MODEL_INFER, named + encoded(5, tensor + contents), sums=sums)
