"""Codec of the gRPC messages of the Open Inference Protocol v2; `serving.codecs.request_validation` checks requests."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError

from trpo_tf.serving.bundle.manifest import Manifest
from trpo_tf.serving.codecs.grpc_messages import MODEL_INFER, Call
from trpo_tf.serving.codecs.parameters import SequenceStep, take_sequence
from trpo_tf.serving.codecs.parsing.body_limits import SMALL
from trpo_tf.serving.codecs.parsing.grpc_large import Contents, take_apart, with_short_names
from trpo_tf.serving.codecs.parsing.json_body import Document
from trpo_tf.serving.codecs.parsing.varints import Varints
from trpo_tf.serving.codecs.request_validation import InferRequest, validate_request
from trpo_tf.serving.codecs.v2_binary import bytes_of
from trpo_tf.serving.codecs.v2_json import output_document
from trpo_tf.serving.errors import RequestError, quoted
from trpo_tf.serving.repository.catalog import Model
from trpo_tf.serving.runtime.observations import Array
from trpo_tf.serving.support.protobuf_wire import WireError

Message = Any

_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
"""Field of a tensor's contents with its numbers, by datatype. FP16 has none in the protocol."""

_FLOATS = {"FP32": "<f4", "FP64": "<f8"}


class LargeRequest(NamedTuple):
    """Fields of a ModelInferRequest that was split, and the unparsed contents of each input."""

    model_name: str
    model_version: str
    id: str
    parameters: Mapping[str, Message]
    inputs: Sequence[Message]
    outputs: Sequence[Message]
    raw_input_contents: Sequence[memoryview]
    contents: Sequence[Contents]
    size: int


def parse(call: Call, content: bytes) -> Message | LargeRequest:
    """Parse the request message of a call. Raises `RequestError`."""
    try:
        if len(content) <= SMALL:
            return call.request.FromString(content)
        if call is not MODEL_INFER:
            return call.request.FromString(with_short_names(content))
        rest, contents, raw = take_apart(content)
        message = call.request.FromString(rest)
    except (DecodeError, TypeError, WireError):  # gRPC passes a marker, not bytes, if a call ends without a message
        raise broken_message(call) from None
    fields = {name: getattr(message, name) for name in LargeRequest._fields[:6]}
    return LargeRequest(**fields, raw_input_contents=raw, contents=contents, size=len(content))


def broken_message(call: Call) -> RequestError:
    """Return the error for bytes that are not a message of this call."""
    return RequestError(f"the message is not a {call.request.DESCRIPTOR.full_name}")


def decode_infer(message: Message | LargeRequest, manifest: Manifest, *, max_batch: int = sys.maxsize) -> InferRequest:
    """Decode and check an inference request; all outputs are binary if its inputs are raw. Raises `RequestError`."""
    raw = message.raw_input_contents
    _check_count("inputs", message.inputs, manifest.input_names)
    _check_count("outputs", message.outputs, manifest.output_names)
    if raw and len(raw) != len(message.inputs):
        raise RequestError(f"there must be raw_input_contents for each of the {len(message.inputs)} inputs or none")
    if raw and _has_typed_contents(message):
        raise RequestError("an input has raw_input_contents or contents, not both")
    data: list[Any]
    if raw:
        data = [memoryview(content) for content in raw]
    elif isinstance(message, LargeRequest):
        data = [_large(*pair, message.size) for pair in zip(message.inputs, message.contents, strict=True)]
    else:
        data = [_typed(tensor) for tensor in message.inputs]
    inputs = [
        {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.shape),
            "parameters": _values(tensor.parameters),
            "data": own,
        }
        for tensor, own in zip(message.inputs, data, strict=True)
    ]
    document: Document = {
        "inputs": inputs,
        "outputs": [{"name": output.name, "parameters": _values(output.parameters)} for output in message.outputs],
        "parameters": _values(message.parameters) | {"binary_data_output": bool(raw)},
    }
    return validate_request(document, manifest, max_batch=max_batch)


def sequence_named(message: Message | LargeRequest) -> SequenceStep | None:
    """Return the step of a sequence that a message names, before the rest is decoded; None if it names none."""
    with suppress(RequestError):
        return take_sequence(_values(message.parameters))
    return None


def _check_count(key: str, given: Sequence[Message], known: Sequence[str]) -> None:
    if len(given) > 2 * len(known):  # up to this number, later errors say which one is unknown or duplicate
        raise RequestError(f"there may be {len(known)} {key} at most, not {len(given)}")


def encode_infer(answers: Mapping[str, Array], asked: InferRequest, request_id: str, model: Model) -> Message:
    """Return the response message; `answers` are the outputs [batch, ...] by name, raw or typed as requested."""
    response = MODEL_INFER.response(model_name=model.name, model_version=model.version, id=request_id)
    # FP16 has no typed field, and the outputs of a response are either all raw or all typed.
    is_raw = any(asked.outputs.values()) or any(values.dtype == np.float16 for values in answers.values())
    for name, values in answers.items():
        tensor = response.outputs.add(**output_document(name, values))
        if is_raw:
            response.raw_output_contents.append(bytes_of(values))
        else:
            getattr(tensor.contents, _CONTENTS[tensor.datatype]).extend(values.ravel().tolist())
    return response


def from_document(kind: Any, document: Document) -> Message:
    """Return a message of class `kind` made of a JSON document; fields unknown to the class are ignored."""
    return ParseDict(document, kind(), ignore_unknown_fields=True)


def _has_typed_contents(message: Message | LargeRequest) -> bool:
    if isinstance(message, LargeRequest):
        return any(map(len, chain.from_iterable(chain.from_iterable(own.values() for own in message.contents))))
    return any(tensor.HasField("contents") and tensor.contents.ListFields() for tensor in message.inputs)


def _field_of(tensor: Message, filled: Iterable[str]) -> str | None:
    """Return the field for a typed tensor's numbers; None if its datatype has none.

    Raises `RequestError` if another of the `filled` fields has numbers, which would be ignored.
    """
    field = _CONTENTS.get(tensor.datatype)
    if field is not None and (others := [name for name in filled if name != field]):
        raise RequestError(
            f"input {quoted(tensor.name)} has numbers in {others[0]}; those of {tensor.datatype} belong in {field}"
        )
    return field


def _typed(tensor: Message) -> memoryview | list[Any] | None:
    """Return the numbers of a typed tensor; floats as bytes, which are checked for NaN when they are decoded."""
    field = _field_of(tensor, (filled.name for filled, _ in tensor.contents.ListFields()))
    if field is None:
        return None
    numbers = getattr(tensor.contents, field)
    if tensor.datatype in _FLOATS:
        return memoryview(np.array(numbers, _FLOATS[tensor.datatype]).tobytes())
    return list(numbers)


def _large(tensor: Message, contents: Contents, message_size: int) -> memoryview | Varints | None:
    """Return the numbers of a typed tensor in a message that was split; floats as bytes."""
    field = _field_of(tensor, (name for name, parts in contents.items() if any(map(len, parts))))
    if field is None:
        return None
    parts = contents.get(field, [])
    if tensor.datatype not in _FLOATS:
        return Varints(parts, field, message_size)
    if any(len(part) % np.dtype(_FLOATS[tensor.datatype]).itemsize for part in parts):
        raise broken_message(MODEL_INFER)
    return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))


def _values(parameters: Mapping[str, Message]) -> dict[str, Any]:
    return {name: _value(parameter) for name, parameter in parameters.items()} if parameters else {}


def _value(parameter: Message) -> Any:
    chosen = parameter.WhichOneof("parameter_choice")
    return None if chosen is None else getattr(parameter, chosen)
