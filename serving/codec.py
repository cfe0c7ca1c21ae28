"""Open Inference Protocol v2: a JSON request to arrays, and arrays to a JSON response.

Pure functions, which know nothing of HTTP. The protocol: https://github.com/kserve/open-inference-protocol.
"""

import math
import reprlib
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import orjson

from serving.manifest import ArraySpec, Manifest, NoiseSpec
from serving.observations import Array, Observation, batch_size, structured
from serving.policy import draw_noise

Document = dict[str, Any]
Spec = ArraySpec | NoiseSpec

# The protocol's name of each NumPy type.
DATATYPES = {
    "bool": "BOOL",
    **{f"{kind}{bits}": f"{kind}{bits}".upper() for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"FP{bits}" for bits in (16, 32, 64)},
}

# The Python types that JSON data may hold, by kind of NumPy type: 1 is a float, true is no number.
_ELEMENTS: dict[str, set[type]] = {"b": {bool}, "i": {int}, "u": {int}, "f": {int, float}}


class RequestError(ValueError):
    """A request that its sender must change; the message says how."""


class InferRequest(NamedTuple):
    """What to run: observations [batch, ...], noise [batch, ...] or None for the deterministic action."""

    observations: Observation
    noise: Array | None
    request_id: str | None


def decode_request(body: bytes | bytearray, manifest: Manifest) -> InferRequest:
    """Parse and check the body of an inference request. Raises `RequestError`."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the body is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise RequestError("the body must be a JSON object")
    request_id = document.get("id")
    if not isinstance(request_id, str | None):
        raise RequestError("id must be a string")
    # A policy has one output, so choosing it changes nothing; no choice means all of them.
    _named(document, "outputs", (manifest.action.name,))
    inputs = _named(document, "inputs", tuple(spec.name for spec in _inputs(manifest)))
    observations = _observations(inputs, manifest)
    batch = batch_size(observations)
    if manifest.graph.batch not in (None, batch):
        raise RequestError(f"the policy takes batches of {manifest.graph.batch}, not {batch}")
    return InferRequest(observations, _noise(document, inputs, batch, manifest), request_id)


def encode_response(actions: Array, manifest: Manifest, version: str, request_id: str | None) -> bytes:
    """The JSON response with `actions` [batch, ...], which must be finite, in flat row-major data."""
    document: Document = {"model_name": manifest.name, "model_version": version}
    if request_id is not None:
        document["id"] = request_id
    document["outputs"] = [
        {
            "name": manifest.action.name,
            "datatype": DATATYPES[actions.dtype.name],
            "shape": actions.shape,
            "data": actions.ravel(),
        }
    ]
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def model_metadata(manifest: Manifest, version: str) -> Document:
    """The protocol's description of the model; -1 stands for a batch of any size. `noise` is marked as optional."""
    batch = manifest.graph.batch or -1
    return {
        "name": manifest.name,
        "versions": [version],
        "platform": "onnx_onnxv1",
        "inputs": [tensor_metadata(spec, batch) for spec in _inputs(manifest)],
        "outputs": [tensor_metadata(manifest.action, batch)],
    }


def tensor_metadata(spec: Spec, batch: int) -> Document:
    """Name, datatype and shape of one tensor."""
    document: Document = {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": [batch, *spec.shape]}
    if isinstance(spec, NoiseSpec):
        document["parameters"] = {"optional": True, "law": spec.law}
    return document


def _inputs(manifest: Manifest) -> list[Spec]:
    """What a request may give; without noise the policy acts deterministically, however the graph takes it."""
    return [*manifest.observation, *([] if manifest.graph.noise == "none" else [manifest.noise])]


def decode_tensor(tensor: Document, spec: Spec) -> Array:
    """One input tensor as an array [batch, ...] of the declared type. Raises `RequestError`.

    No array is made before the declared shape is known to agree with the length of the data.
    """
    where, expected = f"input {spec.name!r}", DATATYPES[spec.dtype]
    if tensor.get("datatype") != expected:
        raise RequestError(f"{where} must have datatype {expected}, not {_shown(tensor.get('datatype'))}")
    flat, shape = _flat_data(tensor, spec, where)
    if not set(map(type, flat)) <= _ELEMENTS[np.dtype(spec.dtype).kind]:
        raise RequestError(f"{where} must hold nothing but {expected} data")
    try:
        with np.errstate(over="ignore"):  # an infinity is refused next
            array = np.array(flat, spec.dtype).reshape(shape)
    except OverflowError:
        raise RequestError(f"{where} holds a number out of range for {expected}") from None
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise RequestError(f"{where} holds a number out of range for {expected}")
    return array


def _flat_data(tensor: Document, spec: Spec, where: str) -> tuple[list[Any], list[int]]:
    """Elements in row-major order, of data that is flat or nested just as `shape` says, and that shape."""
    shape, data = tensor.get("shape"), tensor.get("data")
    if (
        not isinstance(shape, list)
        or not all(type(size) is int and size > 0 for size in shape)
        or len(shape) != 1 + len(spec.shape)
        or shape[1:] != list(spec.shape)
    ):
        shown = ", ".join(map(str, ("batch", *spec.shape)))
        raise RequestError(f"{where} must have shape [{shown}], not {_shown(shape)}")
    if not isinstance(data, list):
        raise RequestError(f"{where} must have its data as a list")
    if data and isinstance(data[0], list):
        data = _flatten(data, shape, where)
    if len(data) != math.prod(shape):
        raise RequestError(f"{where} must have {math.prod(shape)} elements of data, not {len(data)}")
    return data, shape


def _flatten(data: list[Any], shape: list[int], where: str) -> list[Any]:
    if len(data) != shape[0]:
        raise RequestError(f"{where} must have {shape[0]} rows of data, not {len(data)}")
    for size in shape[1:]:
        if not all(isinstance(row, list) and len(row) == size for row in data):
            raise RequestError(f"{where} must have its data flat, or nested as its shape says")
        data = list(chain.from_iterable(data))
    return data


def _observations(inputs: Document, manifest: Manifest) -> Observation:
    parts = {}
    for spec in manifest.observation:
        if spec.name not in inputs:
            raise RequestError(f"input {spec.name!r} is missing")
        parts[spec.name] = decode_tensor(inputs[spec.name], spec)
    if len({len(part) for part in parts.values()}) > 1:
        raise RequestError(f"inputs {' and '.join(map(repr, parts))} must have one batch size")
    return structured(parts)  # type: ignore[no-any-return]


def _noise(document: Document, inputs: Document, batch: int, manifest: Manifest) -> Array | None:
    """The noise [batch, ...] as given, or drawn for `parameters: {"deterministic": false, "seed": ...}`."""
    parameters = document.get("parameters", {})
    if not isinstance(parameters, dict):
        raise RequestError("parameters must be an object")
    deterministic, seed = parameters.get("deterministic", True), parameters.get("seed")
    if not isinstance(deterministic, bool):
        raise RequestError("parameters.deterministic must be true or false")
    if seed is not None and (type(seed) is not int or seed < 0 or deterministic):
        raise RequestError("parameters.seed must be an integer, 0 or more, beside deterministic: false")
    if not deterministic and manifest.graph.noise == "none":
        raise RequestError("the policy was exported without noise, so it can't sample; leave deterministic: false out")
    name = manifest.noise.name
    if name not in inputs:
        return None if deterministic else draw_noise(manifest.noise, batch, np.random.default_rng(seed))
    if not deterministic:
        raise RequestError(f"give input {name!r} or deterministic: false, not both")
    noise = decode_tensor(inputs[name], manifest.noise)
    if len(noise) != batch:
        raise RequestError(f"input {name!r} must have the batch size of the observations, {batch}")
    return noise


def _named(document: Document, key: str, known: tuple[str, ...]) -> Document:
    """The objects of list `document[key]`, by name: each known, none twice. Raises `RequestError`."""
    entries = document.get(key, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise RequestError(f"{key} must be a list of objects")
    named = {}
    for entry in entries:
        name = entry.get("name")
        if name not in known:
            raise RequestError(f"{key} may hold {' and '.join(map(repr, known))}, not {_shown(name)}")
        if name in named:
            raise RequestError(f"{key} holds {name!r} twice")
        named[name] = entry
    return named


def _shown(value: Any) -> str:
    """A stranger's value in a message, cut short."""
    return "none" if value is None else reprlib.repr(value)
