"""Make random requests over HTTP and gRPC: damaged, of wrong shapes or types, amplifying, and some valid ones."""

import json
import random
import struct
from contextlib import suppress
from copy import deepcopy
from functools import cache

from benchmarks.serving.amplifying import grpc_requests, http_requests

try:
    from trpo_tf.serving.codecs.grpc_messages import MODEL_INFER
except ImportError:
    MODEL_INFER = None

INPUTS = {
    "discrete": [{"name": "obs", "datatype": "FP32", "shape": [1, 4], "data": [0.1, 0.2, 0.3, 0.4]}],
    "remembering": [
        {"name": "obs", "datatype": "FP32", "shape": [1, 2], "data": [0.1, 0.2]},
        {"name": "history", "datatype": "FP32", "shape": [1, 2, 2], "data": [0.1, 0.2, 0.3, 0.4]},
        {"name": "steps", "datatype": "INT64", "shape": [1], "data": [2]},
        {"name": "reset", "datatype": "BOOL", "shape": [1], "data": [False]},
    ],
    "recurrent": [
        {"name": "obs", "datatype": "FP32", "shape": [1, 2], "data": [0.1, 0.2]},
        {"name": "hidden", "datatype": "FP32", "shape": [1, 8], "data": [0.1] * 8},
        {"name": "reset", "datatype": "BOOL", "shape": [1], "data": [False]},
    ],
    "masked": [
        {"name": "obs", "datatype": "FP32", "shape": [1, 2], "data": [0.1, 0.2]},
        {"name": "action_mask", "datatype": "INT8", "shape": [1, 5], "data": [1, 0, 1, 0, 1]},
    ],
}
"""A good request's inputs, by model; those with `reset` have state."""
CONTENTS = {
    "FP32": ("fp32_contents", "f"),
    "INT64": ("int64_contents", "q"),
    "INT8": ("int_contents", "b"),
    "BOOL": ("bool_contents", "?"),
}
"""Field of a gRPC tensor with its numbers, and `struct`'s letter of one, by datatype."""
AMPLIFYING = 100_000
"""Bytes of the requests that amplify: more than are parsed at once."""
VALUES = [
    *(None, True, -1, 0, 1, 2**31, 2**63, 2**64, 1e300, 0.5, "", "obs", "action", "FP32", "\ud800", "x" * 1000, [], {}),
    *([[]], [1, 4], [2**62, 4], [[0.1, 0.2, 0.3, 0.4]], [1e39] * 4, {"binary_data_size": 16}, {"deterministic": False}),
    *(False, "BOOL", "INT64", "history", "steps", "reset", "next_history", [True], [True, False], [-(2**63)]),
    *(float("nan"), [[0.1, 0.2], [0.3]], [1, 2, 2], [2, 2, 2]),
]
SEQUENCE_IDS = (1, 2, "walk")
"""Ids of sequences: few, so that some steps have a start before them."""
ODD_IDS = [0, "", -7, 2**63, 2**64 - 1, 2**64, 1.5, True, None, "\0", "\ud800", "x" * 129, [], {}, [7]]

FIELD_VALUES = [
    *(True, -1, 0, 1, 7, 2**31, 2**62, 2**63, 1e39, float("nan"), float("-inf")),
    *("", "obs", "action", "noise", "FP32", "FP16", "INT64", "BYTES", "x" * 1000, b"", b"\xff" * 16),
    *("history", "steps", "reset", "BOOL", b"\1"),
]


def inputs_of(model: str, rng: random.Random) -> list[dict]:
    """Return a request's inputs. In four of ten, one is missing or wrong, or they start an episode or lack a state."""
    inputs = deepcopy(INPUTS[model])
    if len(inputs) == 1:
        return inputs
    match rng.randrange(10):
        case 0:
            del inputs[rng.randrange(len(inputs))]
        case 1:
            return inputs[:1]
        case 2 if inputs[-1]["name"] == "reset":
            return [inputs[0], inputs[-1] | {"data": [True]}]
        case 3:
            tensor = rng.choice(inputs)
            tensor |= unfit(tensor, rng)
    return inputs


def unfit(tensor: dict, rng: random.Random) -> dict:
    """Return fields that make a tensor wrong: other rows, numbers or another type."""
    shape, count = tensor["shape"], len(tensor["data"])
    if rng.random() < 0.3:
        rows = rng.choice((0, 2, 5))
        return {"shape": [rows, *shape[1:]], "data": tensor["data"] * rows}
    if rng.random() < 0.3:
        return {"shape": shape[1:], "data": tensor["data"]}
    if rng.random() < 0.5 and tensor["datatype"] == "FP32":
        return {"shape": shape, "datatype": "FP32", "data": [rng.choice((float("nan"), float("-inf"), 3e38))] * count}
    return {"shape": shape, "datatype": rng.choice(list(CONTENTS)), "data": [rng.choice((0, 1, 2))] * count}


def sequence_of(rng: random.Random) -> dict:
    """Return the parameters of a step of a sequence, most of the time valid ones."""
    ids = SEQUENCE_IDS if rng.random() < 0.8 else ODD_IDS
    parameters = {"sequence_id": rng.choice(ids), "sequence_start": rng.random() < 0.4}
    if rng.random() < 0.2:
        parameters["sequence_end"] = rng.choice((True, True, False, None, 1, "true", []))
    return parameters


def infer_path(model: str) -> bytes:
    """Return the path of requests to a model."""
    return b"/v2/models/%b/infer" % model.encode()


def json_body(model: str, rng: random.Random) -> bytes:
    """Make a request, and replace or remove one to three values anywhere in it."""
    inputs = inputs_of(model, rng)
    document = {"id": "a", "inputs": inputs, "outputs": [{"name": "action"}], "parameters": {"seed": 1}}
    if rng.random() < 0.3:
        document = {"inputs": deepcopy(INPUTS[model][:1]), "parameters": sequence_of(rng)}
        if rng.random() < 0.7:
            return json.dumps(document).encode()
    for _ in range(rng.randint(1, 3)):
        place = document
        while (keys := list(place) if isinstance(place, dict) else list(range(len(place)))) and rng.random() < 0.7:
            inner = place[rng.choice(keys)]
            if not isinstance(inner, dict | list) or not inner:
                break
            place = inner
        if not keys:
            continue
        key = rng.choice(keys)
        if rng.random() < 0.2:
            del place[key]
        else:
            place[key] = deepcopy(rng.choice(VALUES))
    return json.dumps(document).encode()


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Return the content with some bytes changed, removed, repeated or inserted."""
    content = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(content) + 1)
        end = min(len(content), start + rng.choice((1, 2, 8, 64)))
        match rng.randrange(4):
            case 0:
                content[start:end] = rng.randbytes(end - start)
            case 1:
                del content[start:end]
            case 2:
                content[start:start] = content[start:end] * rng.choice((1, 2, 100))
            case _:
                content[start:start] = rng.choice((b"\r\n", b"\0", b"[" * 200, b'"', b"\\", b"{", b"\xff", b"9" * 40))
    return bytes(content)


def post(body: bytes, headers: bytes = b"", path: bytes = infer_path("discrete")) -> bytes:
    """Make a well-formed POST request."""
    return b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%b\r\n%b" % (path, len(body), headers, body)


def raw(tensor: dict) -> bytes:
    """Return the numbers of a tensor as bytes."""
    return struct.pack(f"<{len(tensor['data'])}{CONTENTS[tensor['datatype']][1]}", *tensor["data"])


def binary_request(model: str, rng: random.Random) -> bytes:
    """Make a binary request with wrong lengths or bytes."""
    tensors, contents = inputs_of(model, rng), []
    for tensor in tensors:
        content = raw(tensor)
        size, found = len(content), rng.random()
        if found < 0.2:
            content = rng.randbytes(rng.choice((size, 0, max(0, size - 1), 2 * size)))
        if found < 0.4:
            size = rng.choice((size, 0, size - 1, size + 1, -1, 2**63, "16", None))
        del tensor["data"]
        tensor["parameters"] = {"binary_data_size": size}
        contents.append(content)
    head = json.dumps({"inputs": tensors * rng.choice((1, 1, 1, 2))}).encode()
    length = rng.choice((len(head), len(head), 0, len(head) + 1, len(head) - 1, -1, 10**30))
    content = head + b"".join(contents)
    if rng.random() < 0.3:
        content = damaged(content, rng)
    return post(content, b"Inference-Header-Content-Length: %d\r\n" % length, infer_path(model))


@cache
def amplifying() -> list[bytes]:
    """List HTTP requests that take many times their size once they are parsed."""
    made = []
    for request in http_requests(AMPLIFYING):
        headers = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        made.append(post(request.body, headers.encode(), request.path.replace("wide", "discrete").encode()))
    return made


@cache
def amplifying_messages() -> list[bytes]:
    """List gRPC messages that take many times their size once they are parsed."""
    named = MODEL_INFER.request(model_name="discrete").SerializeToString()
    return [request.body + named for request in grpc_requests(AMPLIFYING) if request.path == MODEL_INFER.path]


def malformed(rng: random.Random) -> bytes:
    """Make one HTTP request, malformed most of the time."""
    if rng.random() < 0.05:
        request = rng.choice(amplifying())
        return damaged(request, rng) if rng.random() < 0.5 else request
    model = rng.choice(list(INPUTS))
    path, body = infer_path(model), json_body(model, rng)
    match rng.randrange(8):
        case 0 | 1:
            return post(body, path=path)
        case 2:
            return post(damaged(body, rng), path=path)
        case 3:
            return binary_request(model, rng)
        case 4:
            content = rng.randbytes(rng.choice((0, 1, 16, 200)))
            return post(content, b"Inference-Header-Content-Length: 0\r\n", path)
        case 5:
            return damaged(post(body, path=path), rng)
        case 6:
            encoding = b"Content-Encoding: %b\r\n" % rng.choice((b"gzip", b"deflate", b"br"))
            return post(damaged(body, rng), encoding, path)
        case _:
            chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
            head = b"POST %b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % path
            return damaged(head + chunks, rng) if rng.random() < 0.7 else head + damaged(chunks, rng)


def message(rng: random.Random) -> bytes:
    """Make a gRPC request of which some fields, some bytes or all is replaced."""
    if rng.random() < 0.1:
        return rng.randbytes(rng.choice((0, 1, 16, 200)))
    if rng.random() < 0.1:
        content = rng.choice(amplifying_messages())
        return damaged(content, rng) if rng.random() < 0.5 else content
    model, is_raw = rng.choice(list(INPUTS)), rng.random() < 0.5
    request = MODEL_INFER.request(model_name=model, id="a", model_version="1")
    for tensor in inputs_of(model, rng):
        added = request.inputs.add(name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"])
        if not is_raw:
            getattr(added.contents, CONTENTS[tensor["datatype"]][0]).extend(tensor["data"])
            continue
        content = raw(tensor)
        broken = rng.randbytes(rng.choice((len(content), 0, max(0, len(content) - 1), 2 * len(content))))
        request.raw_input_contents.append(broken if rng.random() < 0.2 else content)
    request.outputs.add(name="action")
    request.parameters["seed"].int64_param = 1
    request.parameters["deterministic"].bool_param = False
    if rng.random() < 0.3:
        name_sequence(request, rng)
        if rng.random() < 0.7:
            return request.SerializeToString()
    for _ in range(rng.randint(0, 2)):
        mutate(request, rng)
    content = request.SerializeToString()
    return damaged(content, rng) if rng.random() < 0.2 else content


def name_sequence(request, rng: random.Random) -> None:
    """Make a request a step of a sequence: its parameters are of the types that the protocol has."""
    request.ClearField("outputs")
    request.parameters.clear()
    del request.inputs[1:], request.raw_input_contents[1:]
    for name, value in sequence_of(rng).items():
        kinds = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
        field = kinds.get(type(value), "uint64_param")
        with suppress(ValueError, UnicodeEncodeError):  # what the field can't hold
            setattr(request.parameters[name], field, value if type(value) in kinds else 7)


def mutate(part, rng: random.Random) -> None:
    """Change, clear or repeat one field of a message, or of one inside it."""
    field = rng.choice(part.DESCRIPTOR.fields)
    value = getattr(part, field.name)
    if rng.random() < 0.3:
        part.ClearField(field.name)
    elif field.message_type is not None and field.message_type.GetOptions().map_entry:
        mutate(value[rng.choice(("seed", "deterministic", "binary_data_output", ""))], rng)
    elif field.message_type is not None:
        mutate(
            (rng.choice(value) if value and rng.random() < 0.7 else value.add()) if field.is_repeated else value, rng
        )
    else:
        new = rng.choice([value for value in FIELD_VALUES if fits(part, field, value)])
        if not field.is_repeated:
            setattr(part, field.name, new)
        elif value and rng.random() < 0.5:
            value[rng.randrange(len(value))] = new
        else:
            value.extend([new] * rng.choice((1, 4)))


def fits(part, field, value) -> bool:
    """Return whether a message's field may hold a value."""
    if isinstance(value, bool) and field.type != field.TYPE_BOOL:
        return False
    try:
        type(part)(**{field.name: [value] if field.is_repeated else value})
    except (TypeError, ValueError, OverflowError):
        return False
    return True
