"""TensorFlow Serving's REST: `{"instances": [...]}` to observations, and actions to `{"predictions": [...]}`.

Pure functions, as in `serving.codec`.
"""

import sys
from typing import Any

import numpy as np
import orjson

from serving.codec import DATATYPES, Document, InferRequest, RequestError, parse_object, read_request
from serving.manifest import Manifest
from serving.observations import Array

SIGNATURE = "serving_default"


def decode_instances(body: bytes | bytearray, manifest: Manifest, *, max_batch: int = sys.maxsize) -> InferRequest:
    """A request in rows: each instance is an observation, or an object of its parts by name. Raises `RequestError`."""
    document = parse_object(body)
    instances = document.get("instances")
    if not isinstance(instances, list) or not instances:
        raise RequestError("instances must be a list with an observation for each row")
    if document.get("signature_name", SIGNATURE) != SIGNATURE:
        raise RequestError(f"the only signature_name is {SIGNATURE!r}")
    parts = {
        spec.name: [_part(instance, spec.name, manifest) for instance in instances] for spec in manifest.observation
    }
    inputs = [
        {
            "name": spec.name,
            "datatype": DATATYPES[spec.dtype],
            "shape": [len(instances), *spec.shape],
            "data": parts[spec.name],
        }
        for spec in manifest.observation
    ]
    asked = {
        "inputs": inputs,
        "parameters": document.get("parameters", {}),
        "outputs": [{"name": manifest.action.name}],
    }
    return read_request(asked, manifest, max_batch=max_batch)


def encode_predictions(actions: Array) -> bytes:
    """The response with one prediction for each instance."""
    return orjson.dumps({"predictions": np.ascontiguousarray(actions)}, option=orjson.OPT_SERIALIZE_NUMPY)


def model_status(*versions: str) -> Document:
    """TensorFlow Serving's description of versions that are ready."""
    status = {"error_code": "OK", "error_message": ""}
    return {
        "model_version_status": [{"version": version, "state": "AVAILABLE", "status": status} for version in versions]
    }


def _part(instance: Any, name: str, manifest: Manifest) -> Any:
    if not isinstance(instance, dict):
        if len(manifest.observation) > 1:
            names = " and ".join(repr(spec.name) for spec in manifest.observation)
            raise RequestError(f"an instance must be an object with {names}")
        return instance
    if name not in instance or len(instance) != len(manifest.observation):
        names = " and ".join(repr(spec.name) for spec in manifest.observation)
        raise RequestError(f"an instance must have {names} and nothing else")
    return instance[name]
