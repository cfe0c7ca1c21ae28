"""Write and read the metadata of an ONNX file, which every ONNX tool shows."""

import copy
import json
from collections.abc import Mapping
from typing import Any

import onnx

from trpo_tf.export.errors import ExportError
from trpo_tf.export.graph.editing import set_field
from trpo_tf.serving import Manifest

PREFIX = "trpo-tf."
"""Prefix of our keys; others belong to other tools."""


def with_metadata(model: onnx.ModelProto, values: Mapping[str, Any]) -> onnx.ModelProto:
    """Replace the model's metadata under `PREFIX` by `values`, any JSON by name.

    Raises `ExportError` for a value that isn't JSON; NaN and infinity aren't.
    """
    described = copy.deepcopy(model)
    foreign = [prop for prop in model.metadata_props if not prop.key.startswith(PREFIX)]
    set_field(described.metadata_props, foreign)
    for name, value in values.items():
        described.metadata_props.add(key=f"{PREFIX}{name}", value=_to_json(name, value))
    return described


def read_metadata(model: onnx.ModelProto) -> dict[str, Any]:
    """Read the values that `with_metadata` wrote. Raises `ExportError` for one that isn't JSON."""
    return {
        prop.key.removeprefix(PREFIX): _from_json(prop.key, prop.value)
        for prop in model.metadata_props
        if prop.key.startswith(PREFIX)
    }


def manifest_metadata(manifest: Manifest) -> dict[str, Any]:
    """Return a bundle's manifest without its files: format and version, arrays with bounds, provenance, parity."""
    document = json.loads(manifest.to_json())
    return {key: value for key, value in document.items() if key != "files"}


def _to_json(name: str, value: Any) -> str:
    try:
        return json.dumps(value, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ExportError(f"metadata {name!r} isn't JSON ({error}); give numbers, texts, lists and dicts") from None


def _from_json(key: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise ExportError(f"metadata {key!r} isn't JSON; it was not written by with_metadata") from None
