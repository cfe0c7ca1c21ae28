"""Codec of TensorFlow Serving's REST API: `{"instances": [...]}` requests and `{"predictions": [...]}` responses."""

import math
import re
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from trpo_tf.serving.bundle.manifest import Manifest
from trpo_tf.serving.bundle.specs import ArraySpec
from trpo_tf.serving.codecs.datatypes import DATATYPES
from trpo_tf.serving.codecs.parsing.json_body import Document, JsonArray, parse_instances, unescaped
from trpo_tf.serving.codecs.request_validation import InferRequest, validate_request
from trpo_tf.serving.errors import RequestError
from trpo_tf.serving.runtime.observations import Array

SIGNATURE = "serving_default"

_OBJECTS, _LISTS = re.compile(rb"\[\s*\{"), re.compile(rb"\[\s*\[")
_ROW, _NAME, _ROW_END = (
    re.compile(rb"\s*\{"),
    re.compile(rb'\s*"((?:[^"\\{}]|\\[^{}])*+)"\s*:'),
    re.compile(rb"\}\s*[],]"),
)


def decode_instances(body: bytes | bytearray, manifest: Manifest, *, max_batch: int = sys.maxsize) -> InferRequest:
    """Decode a request in row format: each instance is an observation, or an object of its parts by name.

    Raises `RequestError`.
    """
    document = parse_instances(body, max_batch)
    parameters = document.get("parameters", {})
    if manifest.state and not (isinstance(parameters, dict) and parameters.get("sequence_id")):
        raise RequestError(
            "predictions hold no next state, which this policy has: give parameters.sequence_id, whose state the "
            "server keeps, or send the state to /v2/models/NAME/infer"
        )
    if document.get("inputs") is not None:  # null is what is left out
        raise RequestError("inputs, which would hold columns, is not served; send instances, which hold rows")
    instances = document.get("instances")
    parts: Mapping[str, Any]
    if isinstance(instances, JsonArray):
        rows, parts = _columns(instances.text, manifest, max_batch)
    elif isinstance(instances, list) and instances:
        rows = len(instances)
        parts = {
            spec.name: [_part(instance, spec.name, manifest) for instance in instances] for spec in manifest.observation
        }
    else:
        raise RequestError("instances must be a list with an observation for each row")
    if document.get("signature_name") not in (None, SIGNATURE):
        raise RequestError(f"the only signature_name is {SIGNATURE!r}")
    inputs = [
        {
            "name": spec.name,
            "datatype": DATATYPES[spec.dtype],
            "shape": [rows, *spec.shape],
            "data": parts[spec.name],
        }
        for spec in manifest.observation
    ]
    asked = {
        "inputs": inputs,
        "parameters": parameters,
        "outputs": [{"name": manifest.action.name}],
    }
    return validate_request(asked, manifest, max_batch=max_batch)


def encode_predictions(actions: Array) -> bytes:
    """Return the response body with one prediction for each instance."""
    return orjson.dumps({"predictions": np.ascontiguousarray(actions)}, option=orjson.OPT_SERIALIZE_NUMPY)


def model_status(name: str, *versions: str) -> Document:
    """Return the status of a model with versions that are ready, as TensorFlow Serving and KServe have it."""
    status = {"error_code": "OK", "error_message": ""}
    return {
        "name": name,
        "ready": True,
        "model_version_status": [{"version": version, "state": "AVAILABLE", "status": status} for version in versions],
    }


def _part(instance: Any, name: str, manifest: Manifest) -> Any:
    if not isinstance(instance, dict):
        if len(manifest.observation) > 1:
            raise RequestError(f"an instance must be an object with {_names(manifest)}")
        return instance
    if name not in instance or len(instance) != len(manifest.observation):
        raise _unlike(manifest)
    return instance[name]


def _columns(text: bytes, manifest: Manifest, max_batch: int) -> tuple[int, dict[str, JsonArray]]:
    """Return the number of instances in a text and, for each part of the observation, the text of its rows."""
    specs = manifest.observation
    if _OBJECTS.match(text):
        return _columns_of_objects(text, manifest, max_batch)
    if len(specs) > 1:
        raise RequestError(f"an instance must be an object with {_names(manifest)}")
    return _count_rows(text, specs[0]), {specs[0].name: JsonArray(text)}


def _count_rows(text: bytes, spec: ArraySpec) -> int:
    numbers = text.count(b",") + 1
    if not _LISTS.match(text):
        return numbers
    rows, rest = divmod(numbers, math.prod(spec.shape))
    if rest:
        raise RequestError(f"input {spec.name!r} must have its data nested as its shape says")
    return rows


def _columns_of_objects(text: bytes, manifest: Manifest, max_batch: int) -> tuple[int, dict[str, JsonArray]]:
    columns: dict[str, list[bytes]] = {spec.name: [] for spec in manifest.observation}
    place, rows = text.index(b"[") + 1, 0
    while match := _ROW.match(text, place):
        place, rows = match.end(), rows + 1
        if rows > max_batch:
            raise RequestError(f"there are more than {max_batch} instances; send {max_batch} at most at a time")
        close = text.find(b"}", place)
        while match := _NAME.match(text, place, close):
            end = quote if (quote := text.find(b'"', match.end(), close)) >= 0 else close
            value = text[match.end() : end].rstrip()
            if value.endswith(b",") == (end == close):
                raise _unlike(manifest)
            column = columns.get(unescaped(match[1]).decode(errors="replace"))
            if column is None or len(column) == rows:
                raise _unlike(manifest)
            column.append(value.removesuffix(b","))
            place = end
        match = _ROW_END.match(text, place)
        if place != close or not match or any(len(column) != rows for column in columns.values()):
            raise _unlike(manifest)
        place = match.end()
    if place != len(text):
        raise _unlike(manifest)
    return rows, {name: JsonArray(b"[%b]" % b",".join(column)) for name, column in columns.items()}


def _unlike(manifest: Manifest) -> RequestError:
    return RequestError(f"an instance must have {_names(manifest)} and nothing else")


def _names(manifest: Manifest) -> str:
    return " and ".join(repr(spec.name) for spec in manifest.observation)
