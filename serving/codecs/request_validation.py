"""Validate inference requests, whatever their transport, and convert them to arrays."""

import math
import sys
from collections.abc import Mapping
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from trpo_tf.serving.bundle.manifest import Manifest
from trpo_tf.serving.bundle.specs import RESET, ArraySpec, NoiseSpec, carried_inputs
from trpo_tf.serving.codecs.datatypes import DATATYPES
from trpo_tf.serving.codecs.parameters import SequenceStep, check_served, take_sequence
from trpo_tf.serving.codecs.parsing.json_body import Document, JsonArray
from trpo_tf.serving.codecs.parsing.json_numbers import Element, read_array
from trpo_tf.serving.codecs.parsing.varints import Varints, read_varints
from trpo_tf.serving.errors import RequestError as RequestError
from trpo_tf.serving.errors import quoted
from trpo_tf.serving.runtime.noise import draw_noise
from trpo_tf.serving.runtime.observations import Array, Observation, all_finite, batch_size, by_name, structured

Spec = ArraySpec | NoiseSpec

# The Python types that JSON data may hold, by kind of NumPy dtype: 1 may be a float, but true is not a number.
_ELEMENTS: dict[str, set[type]] = {"b": {bool}, "i": {int}, "u": {int}, "f": {int, float}}
_BOOLEANS, _INTEGERS = _ELEMENTS["b"], _ELEMENTS["i"]


def _range(dtype: np.dtype[Any]) -> tuple[float, float]:
    """Return the least and the greatest number in range of a dtype; for a float, those that round to finite values."""
    if dtype.kind == "b":
        return False, True
    if dtype.kind in "iu":
        return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    info = np.finfo(dtype)
    greatest = float(info.max)
    if dtype.itemsize < 8:
        # Numbers less than half a step above the greatest one are rounded down to it.
        half_a_step = 2.0 ** (info.maxexp - info.nmant - 2)
        greatest = math.nextafter(greatest + half_a_step, 0.0)
    return -greatest, greatest


# Limits of JSON data, by name of NumPy dtype.
_ALLOWED = {name: Element(datatype, np.dtype(name), *_range(np.dtype(name))) for name, datatype in DATATYPES.items()}
_LITTLE_ENDIAN = {name: element.dtype.newbyteorder("<") for name, element in _ALLOWED.items()}
_TYPES = {name: _ELEMENTS[element.dtype.kind] for name, element in _ALLOWED.items()}


class InferRequest(NamedTuple):
    """Decoded inference request: observations [batch, ...], and noise [batch, ...] or None to act deterministically.

    Of a policy with state, the observations are all inputs of a step: state and `reset` too. The state is absent in a
    step of a `sequence`, whose state the server keeps. `outputs` maps the name of each requested output, in order, to
    whether it is sent as a binary tensor.
    """

    observations: Observation
    outputs: Mapping[str, bool]
    noise: Array | None = None
    request_id: str | None = None
    sequence: SequenceStep | None = None


def validate_request(document: Document, manifest: Manifest, *, max_batch: int = sys.maxsize) -> InferRequest:
    """Check a parsed request and convert it to arrays. Raises `RequestError`.

    `data` of an input is a list, or unparsed: bytes of a binary tensor, `JsonArray` or `Varints`.
    """
    request_id = document.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise RequestError("id must be a string")
    parameters = document.get("parameters")
    if parameters is None:  # clients with generated classes send null for what they leave out
        parameters = {}
    if not isinstance(parameters, dict):
        raise RequestError("parameters must be an object")
    sequence = None
    if parameters:
        if manifest.state:
            parameters = dict(parameters)
            sequence = take_sequence(parameters)
        check_served(parameters, "the request")
    inputs = _named(document, "inputs", manifest.input_names)
    for spec in manifest.observation:
        if spec.name not in inputs:
            hint = "; instances are for /v1/models/NAME:predict" if "instances" in document else ""
            raise RequestError(f"input {spec.name!r} is missing{hint}")
    observations = join_parts(
        {spec.name: decode_tensor(inputs[spec.name], spec, max_batch=max_batch) for spec in manifest.observation}
    )
    batch = check_batch(observations, manifest)
    if manifest.state:
        observations = _with_state(observations, inputs, batch, manifest, sequence)
    noise = None
    if parameters or manifest.noise.name in inputs:
        noise = _noise(parameters, inputs.get(manifest.noise.name), batch, manifest)
    wanted = _wanted(document, parameters, manifest, is_kept=sequence is not None)
    return InferRequest(observations, wanted, noise, request_id, sequence)


def _with_state(
    observations: Observation, inputs: Document, batch: int, manifest: Manifest, sequence: SequenceStep | None
) -> Observation:
    """Add state and `reset` to the observations, as inputs of a step. Raises `RequestError`.

    Without `reset` no row starts an episode. Only where every row does, the state may be missing. In a step of a
    sequence it must be missing, and every row starts an episode if the step starts the sequence.
    """
    *states, starts = carried_inputs(manifest.state)
    reset = _rows(inputs[RESET], starts, batch) if RESET in inputs else np.zeros(batch, np.bool_)
    parts = by_name(observations, manifest.observation[0].name)
    if sequence is not None:
        for spec in states:
            if spec.name in inputs:
                raise RequestError(f"give input {spec.name!r} or sequence_id, whose state the server keeps, not both")
        return {**parts, RESET: np.ones(batch, np.bool_) if sequence.is_start else reset}
    for spec, state in zip(states, manifest.state, strict=True):
        if spec.name in inputs:
            parts[spec.name] = _rows(inputs[spec.name], spec, batch)
        elif reset.all():
            parts[spec.name] = state.initial_rows(batch)
        else:
            raise RequestError(
                f"input {spec.name!r} is missing; send output {state.next_name!r} of the step before, or input "
                f"{RESET!r} with true in every row to start"
            )
    return {**parts, RESET: reset}


def _rows(tensor: Document, spec: ArraySpec, batch: int) -> Array:
    """Return an input [batch, ...]. Raises `RequestError` if it has other rows than the observations."""
    array = decode_tensor(tensor, spec)
    if len(array) != batch:
        raise RequestError(f"input {spec.name!r} must have the batch size of the observations, {batch}")
    return array


def join_parts(parts: dict[str, Array]) -> Observation:
    """Return the inputs as one observation. Raises `RequestError` if they differ in batch size."""
    if len(parts) > 1 and len({len(part) for part in parts.values()}) > 1:
        raise RequestError(f"inputs {' and '.join(map(repr, parts))} must have one batch size")
    return structured(parts)


def check_batch(observations: Observation, manifest: Manifest) -> int:
    """Return the batch size. Raises `RequestError` if the graph does not accept it."""
    batch = batch_size(observations)
    if manifest.graph.batch is not None and manifest.graph.batch != batch:
        raise RequestError(f"the policy takes batches of {manifest.graph.batch}, not {batch}")
    return batch


def decode_tensor(tensor: Document, spec: Spec, *, max_batch: int = sys.maxsize) -> Array:
    """Return an input tensor as an array [batch, ...] of the declared dtype. Raises `RequestError`.

    No array is allocated before the shape is known to match the length of the data.
    """
    where, expected = f"input {spec.name!r}", DATATYPES[spec.dtype]
    _parameters(tensor, where)
    if tensor.get("datatype") != expected:
        raise RequestError(f"{where} must have datatype {expected}, not {quoted(tensor.get('datatype'))}")
    shape, data = _shape(tensor, spec, max_batch, where), tensor.get("data")
    element = _ALLOWED[spec.dtype]
    match data:
        case list():
            flat = _flat_data(data, shape, where)
        case memoryview():
            return array_from_bytes(data, shape, spec)
        case JsonArray():
            return read_array(data.text, shape, element, where)
        case Varints():
            return read_varints(data, shape, element, where)
        case _:
            raise RequestError(f"{where} must have its data as a list")
    if not _TYPES[spec.dtype].issuperset(map(type, flat)):
        raise RequestError(f"{where} must hold nothing but {expected} data")
    if not element.least <= min(flat) <= max(flat) <= element.greatest:
        raise RequestError(f"{where} holds a number out of range for {expected}")
    return np.array(flat, spec.dtype).reshape(shape)


def array_from_bytes(data: memoryview, shape: list[int], spec: Spec) -> Array:
    """Return an array of `shape` from little-endian, row-major bytes. Raises `RequestError`."""
    where, dtype = f"input {spec.name!r}", _ALLOWED[spec.dtype].dtype
    size = math.prod(shape) * dtype.itemsize
    if len(data) != size:
        raise RequestError(f"{where} must have {size} bytes of data, not {len(data)}")
    if dtype.kind == "b" and np.frombuffer(data, np.uint8).max() > 1:
        raise RequestError(f"{where} must hold nothing but bytes 0 and 1")
    # `astype` copies, since the numbers in a body need not be aligned.
    array: Array = np.frombuffer(data, _LITTLE_ENDIAN[spec.dtype]).reshape(shape).astype(dtype)
    if dtype.kind == "f" and not all_finite(array):
        raise RequestError(f"{where} holds a value that is not finite (NaN or infinity)")
    return array


def _shape(tensor: Document, spec: Spec, max_batch: int, where: str) -> list[int]:
    shape = tensor.get("shape")
    if not (
        isinstance(shape, list)
        and _INTEGERS.issuperset(map(type, shape))
        and shape[1:] == [*spec.shape]
        and len(shape) > 0
        and shape[0] > 0
    ):
        shown = ", ".join(map(str, ("batch", *spec.shape)))
        raise RequestError(f"{where} must have shape [{shown}], not {quoted(shape)}")
    if shape[0] > max_batch:
        raise RequestError(f"{where} has a batch of {shape[0]}; send {max_batch} at most at a time")
    return shape


def _flat_data(data: list[Any], shape: list[int], where: str) -> list[Any]:
    """Return the elements in row-major order; `data` must be flat, or nested as `shape`."""
    if data and isinstance(data[0], list):
        data = _flatten(data, shape, where)
    if len(data) != math.prod(shape):
        raise RequestError(f"{where} must have {math.prod(shape)} elements of data, not {len(data)}")
    return data


def _flatten(data: list[Any], shape: list[int], where: str) -> list[Any]:
    if len(data) != shape[0]:
        raise RequestError(f"{where} must have {shape[0]} rows of data, not {len(data)}")
    for size in shape[1:]:
        if not all(isinstance(row, list) and len(row) == size for row in data):
            raise RequestError(f"{where} must have its data flat, or nested as its shape says")
        data = list(chain.from_iterable(data))
    return data


def _noise(parameters: Document, tensor: Document | None, batch: int, manifest: Manifest) -> Array | None:
    """Return the noise [batch, ...] of a request: its tensor, a sample if it is not deterministic, or None."""
    deterministic, seed = parameters.get("deterministic", True), parameters.get("seed")
    if not isinstance(deterministic, bool):
        raise RequestError("parameters.deterministic must be true or false")
    if seed is not None and (type(seed) is not int or seed < 0 or deterministic):
        raise RequestError("parameters.seed must be an integer, 0 or more, with deterministic: false")
    if not deterministic and manifest.graph.noise == "none":
        raise RequestError("the policy was exported without noise, so it can't sample; leave deterministic: false out")
    name = manifest.noise.name
    if tensor is None:
        return None if deterministic else draw_noise(manifest.noise, batch, np.random.default_rng(seed))
    if not deterministic:
        raise RequestError(f"give input {name!r} or deterministic: false, not both")
    noise = decode_tensor(tensor, manifest.noise)
    if len(noise) != batch:
        raise RequestError(f"input {name!r} must have the batch size of the observations, {batch}")
    return noise


def _wanted(document: Document, parameters: Document, manifest: Manifest, *, is_kept: bool = False) -> dict[str, bool]:
    """Return the requested outputs, by default all, each with whether it is sent as a binary tensor.

    An output's `binary_data` overrides the request's `binary_data_output`. If the server keeps the state, the next
    state is not among the default.
    """
    binary = parameters.get("binary_data_output", False)
    names = manifest.output_names[: -len(manifest.state)] if is_kept else manifest.output_names
    wanted: dict[str, Any] = dict.fromkeys(names, binary)
    if document.get("outputs") is not None and (chosen := _named(document, "outputs", manifest.output_names)):
        wanted = {
            name: _parameters(output, f"output {name!r}").get("binary_data", binary) for name, output in chosen.items()
        }
    if not _BOOLEANS.issuperset(map(type, wanted.values())):
        raise RequestError("binary_data and binary_data_output must be true or false")
    return wanted


def _parameters(tensor: Document, where: str) -> Document:
    """Return the parameters of an input or output, which `where` names. Raises `RequestError`."""
    own = tensor.get("parameters")
    if own is None:  # clients with generated classes send null for what they leave out
        return {}
    if not isinstance(own, dict):
        raise RequestError(f"the parameters of {where} must be an object")
    check_served(own, where)
    return own


def _named(document: Document, key: str, known: tuple[str, ...]) -> Document:
    """Return the objects in list `document[key]` by name. Raises `RequestError` for an unknown or duplicate name."""
    if key not in document:
        return {}
    entries, named = document[key], {}
    if not isinstance(entries, list):
        raise _no_objects(key)
    for entry in entries:
        if not isinstance(entry, dict):
            raise _no_objects(key)
        name = entry.get("name")
        if name not in known:
            raise RequestError(f"{key} may hold {' and '.join(map(repr, known))}, not {quoted(name)}")
        if name in named:
            raise RequestError(f"{key} holds {name!r} twice")
        named[name] = entry
    return named


def _no_objects(key: str) -> RequestError:
    return RequestError(f"{key} must be a list of objects")
