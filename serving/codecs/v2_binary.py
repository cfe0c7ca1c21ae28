"""Codec of the binary tensor extension of the Open Inference Protocol v2.

A body consists of a JSON part, whose length is in a header, and the little-endian bytes of the tensors in its order.
"""

import math
import sys
from collections.abc import Mapping

import numpy as np
import orjson

from trpo_tf.serving.bundle.manifest import Manifest
from trpo_tf.serving.codecs.parsing.json_body import Document, parse_object
from trpo_tf.serving.codecs.request_validation import InferRequest, array_from_bytes, check_batch, validate_request
from trpo_tf.serving.codecs.v2_json import output_document, response_document
from trpo_tf.serving.errors import RequestError
from trpo_tf.serving.runtime.observations import Array

HEADER_NAME = "Inference-Header-Content-Length"
HEADER = HEADER_NAME.lower().encode()


def decode_binary(
    body: bytes | bytearray, json_length: bytes, manifest: Manifest, *, max_batch: int = sys.maxsize
) -> InferRequest:
    """Decode a request with `json_length` bytes of JSON and then tensors; 0 means a raw request.

    Raises `RequestError`.
    """
    length = int(json_length) if json_length.isdigit() and len(json_length) < 20 else -1
    if not 0 <= length <= len(body):
        raise RequestError(f"{HEADER_NAME} must be a length in bytes, of the body at most")
    tail = memoryview(body)[length:]
    if length == 0:
        return _raw_request(tail, manifest, max_batch)
    document = parse_object(body[:length])
    attach_tensors(document, tail)
    return validate_request(document, manifest, max_batch=max_batch)


def attach_tensors(document: Document, tail: memoryview) -> None:
    """Set `data` of each input that has a `binary_data_size` to its bytes. Raises `RequestError`."""
    inputs = document.get("inputs")
    for tensor in inputs if isinstance(inputs, list) else []:
        parameters = tensor.get("parameters") if isinstance(tensor, dict) else None
        if not isinstance(parameters, dict) or "binary_data_size" not in parameters:
            continue
        size = parameters["binary_data_size"]
        if type(size) is not int or not 0 <= size <= len(tail):
            raise RequestError(
                f"binary_data_size must be a number of bytes that the body has left, {len(tail)} at most"
            )
        if "data" in tensor:
            raise RequestError("an input has binary_data_size or data, not both")
        tensor["data"], tail = tail[:size], tail[size:]
    if len(tail):
        raise RequestError(f"the body has {len(tail)} bytes more than its binary tensors")


def encode_binary(
    answers: Mapping[str, Array], wanted: Mapping[str, bool], manifest: Manifest, version: str, request_id: str | None
) -> tuple[bytes, int]:
    """Return the response body, with binary outputs where `wanted`, and the length of its JSON part.

    `answers` are the outputs [batch, ...] by name.
    """
    outputs, tail = [], []
    for name, values in answers.items():
        output = output_document(name, values)
        if wanted[name]:
            tail.append(bytes_of(values))
            output["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            output["data"] = values.ravel()
        outputs.append(output)
    document = response_document(outputs, manifest, version, request_id)
    head = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    return b"".join((head, *tail)), len(head)


def bytes_of(values: Array) -> bytes:
    """Return the bytes of an array, little-endian and in row-major order."""
    return (values if sys.byteorder == "little" else values.byteswap()).tobytes()


def _raw_request(data: memoryview, manifest: Manifest, max_batch: int) -> InferRequest:
    """Decode a raw request: its body is the only input, and its length gives the batch size."""
    if manifest.state:
        raise RequestError("a raw request has no place for a state or a sequence_id; send a JSON part that gives one")
    spec, *others = manifest.step_inputs
    if others:
        raise RequestError("a raw request has one input, this policy takes several; send a JSON part that names them")
    row = math.prod(spec.shape) * np.dtype(spec.dtype).itemsize
    batch, rest = divmod(len(data), row)
    if rest or batch == 0:
        raise RequestError(f"a raw request must have {row} bytes for each observation, not {len(data)} in all")
    if batch > max_batch:
        raise RequestError(f"input {spec.name!r} has a batch of {batch}; send {max_batch} at most at a time")
    observations = array_from_bytes(data, [batch, *spec.shape], spec)
    check_batch(observations, manifest)
    return InferRequest(observations, dict.fromkeys(manifest.output_names, True))
