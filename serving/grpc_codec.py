"""Messages of the Open Inference Protocol to requests, and answers to messages; `serving.codec` has the checks.

Pure functions, which know nothing of connections.
"""

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf.json_format import ParseDict

from serving.binary import bytes_of
from serving.catalog import Model
from serving.codec import InferRequest, RequestError, output_document, read_request
from serving.grpc_messages import MODEL_INFER
from serving.json_body import Document
from serving.manifest import Manifest
from serving.observations import Array

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
"""The field of a tensor's contents that has its numbers, by datatype. FP16 has none."""

_FLOATS = {"FP32": "<f4", "FP64": "<f8"}


def decode_infer(message: Message, manifest: Manifest, *, max_batch: int = sys.maxsize) -> InferRequest:
    """Check an inference request; `outputs` are all binary if its inputs are raw. Raises `RequestError`."""
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise RequestError(f"there must be raw_input_contents for each of the {len(message.inputs)} inputs or none")
    inputs = [_input(tensor, raw[place] if raw else None) for place, tensor in enumerate(message.inputs)]
    parameters = {name: _value(parameter) for name, parameter in message.parameters.items()}
    document: Document = {
        "inputs": inputs,
        "outputs": [{"name": output.name} for output in message.outputs],
        "parameters": parameters | {"binary_data_output": bool(raw)},
    }
    return read_request(document, manifest, max_batch=max_batch)


def encode_infer(answers: Mapping[str, Array], asked: InferRequest, request_id: str, model: Model) -> Message:
    """The response with `answers` [batch, ...] by name, raw or typed as they were asked for."""
    response = MODEL_INFER.response(model_name=model.name, model_version=model.version, id=request_id)
    # FP16 can't be but raw, and a response is one or the other.
    is_raw = any(asked.outputs.values()) or any(values.dtype == np.float16 for values in answers.values())
    for name, values in answers.items():
        tensor = response.outputs.add(**output_document(name, values))
        if is_raw:
            response.raw_output_contents.append(bytes_of(values))
        else:
            getattr(tensor.contents, _CONTENTS[tensor.datatype]).extend(values.ravel().tolist())
    return response


def from_document(kind: Any, document: Document) -> Message:
    """A message of this class, with those fields of a JSON document that it has."""
    return ParseDict(document, kind(), ignore_unknown_fields=True)


def _input(tensor: Message, raw: bytes | None) -> Document:
    return {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": list(tensor.shape),
        "data": _contents(tensor) if raw is None else memoryview(raw),
    }


def _contents(tensor: Message) -> memoryview | list[Any] | None:
    """The numbers of a typed tensor; floats as bytes, since among them there may be NaN."""
    field = _CONTENTS.get(tensor.datatype)
    if field is None:
        return None
    numbers = getattr(tensor.contents, field)
    if tensor.datatype in _FLOATS:
        return memoryview(np.array(numbers, _FLOATS[tensor.datatype]).tobytes())
    return list(numbers)


def _value(parameter: Message) -> Any:
    chosen = parameter.WhichOneof("parameter_choice")
    return None if chosen is None else getattr(parameter, chosen)
