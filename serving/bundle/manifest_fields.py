"""Read the fields of a manifest's JSON, which may come from anyone: each is checked, and named when it is wrong."""

import json
import math
import sys
from pathlib import PurePosixPath
from typing import Any

from trpo_tf.serving.bundle.files import MANIFEST_FILE, MODEL_FILE, FileEntry
from trpo_tf.serving.bundle.specs import (
    DTYPES,
    MOST_STATISTICS,
    NOISE_INPUTS,
    NOISE_LAWS,
    ArraySpec,
    Bound,
    GraphSpec,
    NoiseSpec,
    StateSpec,
    Statistics,
    is_text,
    mask_fault,
)
from trpo_tf.serving.errors import BundleError

MOST_MANIFEST_BYTES = 4 * 2**20
MOST_MANIFEST_VALUES = 250_000
"""Most values in a manifest, estimated by its commas and opening brackets. A parsed value takes up to 200 bytes."""
MOST_MANIFEST_DEPTH = 64
MOST_DIMENSIONS = 32
_MOST_COUNT = 2**63 - 1
"""Largest size of an array or a file: JSON's integers are of any size, but those of NumPy and of files are not."""
MOST_NAME = 255
"""Most characters of a name or version; the names of folders are limited to as many bytes."""


def parsed_json(text: bytes) -> Any:
    """Parse JSON, whose size and number of values are limited: that bounds the memory it takes."""
    try:
        if len(text) > MOST_MANIFEST_BYTES or sum(map(text.count, (b",", b"[", b"{"))) > MOST_MANIFEST_VALUES:
            raise ValueError(f"more than {MOST_MANIFEST_BYTES:,} bytes or {MOST_MANIFEST_VALUES:,} values")
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{MANIFEST_FILE} is not JSON ({error}); export the bundle again") from None


def any_json(document: dict[str, Any], key: str) -> dict[str, Any]:
    """Return an object of which every value can be written as JSON again: no infinite number, no lone surrogate."""
    value = _object(document, key)
    try:
        _check_depth(value, MOST_MANIFEST_DEPTH)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise BundleError(f"{MANIFEST_FILE}: {key} is not JSON ({error}); export the bundle again") from None
    return value


def _check_depth(value: Any, most: int) -> None:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if most == 0 and inner:
        raise ValueError(f"objects and lists are nested more than {MOST_MANIFEST_DEPTH} deep")
    for each in inner:
        if isinstance(each, dict | list):
            _check_depth(each, most - 1)


def check(condition: bool, where: str, expected: str) -> None:
    """Raise `BundleError` that names the field `where`, unless the condition holds."""
    if not condition:
        raise BundleError(f"{MANIFEST_FILE}: {where} must be {expected}; export the bundle again")


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _is_name(value: Any) -> bool:
    return is_text(value) and "/" not in value and len(value) <= MOST_NAME


def _object(document: dict[str, Any], key: str) -> dict[str, Any]:
    value = document.get(key)
    check(isinstance(value, dict), key, "an object")
    return dict(value)  # type: ignore[arg-type]


def model_name(document: dict[str, Any]) -> str:
    """Read the model's name."""
    name = document.get("name")
    check(_is_name(name), "name", f"printable text without '/', of at most {MOST_NAME} characters")
    return str(name)


def array_specs(document: dict[str, Any], key: str) -> tuple[ArraySpec, ...]:
    """Read a list of arrays."""
    parts = document.get(key)
    check(isinstance(parts, list), key, "a list of objects, one for each array")
    named = {f"{key}[{place}]": part for place, part in enumerate(parts)}  # type: ignore[arg-type]
    return tuple(array_spec(named, name) for name in named)


def array_spec(document: dict[str, Any], key: str) -> ArraySpec:
    """Read one array."""
    value = _object(document, key)
    check(is_text(value.get("name")), f"{key}.name", "printable text")
    return ArraySpec(
        name=value["name"],
        dtype=_dtype(value, key),
        shape=(shape := _shape(value, key)),
        low=_bound_from_json(value.get("low"), -math.inf, shape, f"{key}.low"),
        high=_bound_from_json(value.get("high"), math.inf, shape, f"{key}.high"),
    )


def noise_spec(document: dict[str, Any]) -> NoiseSpec:
    """Read the noise input."""
    value = _object(document, "noise")
    check(is_text(value.get("name")), "noise.name", "printable text")
    check(value.get("law") in NOISE_LAWS, "noise.law", f"one of {', '.join(NOISE_LAWS)}")
    return NoiseSpec(value["law"], _shape(value, "noise"), value["name"], _dtype(value, "noise"))


def state_specs(document: dict[str, Any]) -> tuple[StateSpec, ...]:
    """Read the arrays that the policy carries from step to step; there must be at least one."""
    parts = document.get("state")
    check(isinstance(parts, list) and len(parts) > 0, "state", "a list of objects, one for each array")
    named = {f"state[{place}]": part for place, part in enumerate(parts)}  # type: ignore[arg-type]
    return tuple(_state_spec(named, key) for key in named)


def _state_spec(document: dict[str, Any], key: str) -> StateSpec:
    value = _object(document, key)
    check(is_text(value.get("name")), f"{key}.name", "printable text")
    dtype, shape, initial = _dtype(value, key), _shape(value, key), value.get("initial")
    several = isinstance(initial, list) and len(initial) == math.prod(shape)
    numbers = initial if several else [initial]
    check(
        all(type(number) is bool if dtype == "bool" else _is_number(number) for number in numbers),  # type: ignore[union-attr]
        f"{key}.initial",
        f"a finite number of {dtype} (true or false for bool), or a list with one for each element of shape",
    )
    return StateSpec(value["name"], dtype, shape, tuple(initial) if several else initial)  # type: ignore[arg-type]


def mask(document: dict[str, Any], observation: tuple[ArraySpec, ...], action: ArraySpec) -> str | None:
    """Read the name of the input that tells which actions are legal; None if the manifest has no such field."""
    value = document.get("mask")
    fault = mask_fault(value, observation, action)
    check(fault is None, "mask", str(fault))
    return value


def graph_spec(document: dict[str, Any]) -> GraphSpec:
    """Read the properties of the graph."""
    value = _object(document, "graph")
    noise, batch = value.get("noise"), value.get("batch")
    check(noise in NOISE_INPUTS, "graph.noise", f"one of {', '.join(NOISE_INPUTS)}")
    check(batch is None or _is_count(batch), "graph.batch", "a positive integer or null")
    return GraphSpec(str(noise), batch, array_specs(value, "outputs"))


def statistics(document: dict[str, Any], observation: tuple[ArraySpec, ...]) -> dict[str, Statistics]:
    """Read the training statistics of the inputs; none if the manifest has no such field."""
    if "statistics" not in document:
        return {}
    values, sizes = _object(document, "statistics"), {spec.name: math.prod(spec.shape) for spec in observation}
    for name in values:
        known = sizes.get(name, math.inf) <= MOST_STATISTICS
        check(known, f"statistics[{name!r}]", f"of an input, of {MOST_STATISTICS} elements at most")
    return {name: _input_statistics(values, name, sizes[name]) for name in values}


def _input_statistics(values: dict[str, Any], name: str, size: int) -> Statistics:
    value = _object(values, name)
    for key in ("mean", "stddev"):
        numbers = value.get(key)
        check(
            isinstance(numbers, list)
            and len(numbers) == size
            and all(_is_number(number) and (key == "mean" or number > 0) for number in numbers),
            f"statistics[{name!r}].{key}",
            f"a list of {size} finite numbers{'' if key == 'mean' else ' above 0'}",
        )
    return Statistics(tuple(value["mean"]), tuple(value["stddev"]))


def provenance(document: dict[str, Any]) -> dict[str, Any]:
    """Read where the policy comes from."""
    value = any_json(document, "provenance")
    version = value.get("model_version", 1)
    check(type(version) is int or _is_name(version), "provenance.model_version", "an integer, or text as a name is")
    return value


def _dtype(value: dict[str, Any], key: str) -> str:
    dtype = value.get("dtype")
    check(dtype in DTYPES, f"{key}.dtype", f"one of {', '.join(DTYPES)}")
    return str(dtype)


def _shape(value: dict[str, Any], key: str) -> tuple[int, ...]:
    shape = value.get("shape")
    check(
        isinstance(shape, list)
        and len(shape) <= MOST_DIMENSIONS
        and all(map(_is_count, shape))
        and math.prod(shape) <= _MOST_COUNT,
        f"{key}.shape",
        f"a list of at most {MOST_DIMENSIONS} positive integers",
    )
    return tuple(shape)  # type: ignore[arg-type]


def bound_to_json(bound: Bound) -> float | list[float | None] | None:
    """Return a bound as JSON has it: null for an infinite one."""
    if isinstance(bound, tuple):
        return [b if math.isfinite(b) else None for b in bound]
    return bound if math.isfinite(bound) else None


def _bound_from_json(value: Any, infinite: float, shape: tuple[int, ...], where: str) -> Bound:
    if not isinstance(value, list):
        check(value is None or _is_number(value), where, "a finite number, a list of them, or null")
        return infinite if value is None else value
    check(
        len(value) == math.prod(shape) and all(b is None or _is_number(b) for b in value),
        where,
        "one finite number (or null) for each element of shape",
    )
    return tuple(infinite if b is None else b for b in value)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value <= _MOST_COUNT


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def files(document: dict[str, Any]) -> dict[str, FileEntry]:
    """Read the list of files, by relative POSIX path."""
    value = document.get("files")
    check(isinstance(value, dict) and MODEL_FILE in value, "files", f"an object with {MODEL_FILE!r}")
    return {path: _file_entry(path, entry) for path, entry in value.items()}  # type: ignore[union-attr]


def _file_entry(path: str, value: Any) -> FileEntry:
    parts = PurePosixPath(path).parts
    check(
        bool(parts) and path.isprintable() and ".." not in parts and not path.startswith("/") and "\\" not in path,
        f"files[{path!r}]",
        "a relative path inside the bundle",
    )
    check(
        isinstance(value, dict)
        and type(value.get("size")) is int
        and 0 <= value["size"] <= _MOST_COUNT
        and isinstance(value.get("sha256"), str),
        f"files[{path!r}]",
        "an object with size and sha256",
    )
    return FileEntry(value["size"], value["sha256"])
