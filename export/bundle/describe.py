"""Write the files of a bundle that describe its targets: metadata, golden cases, model card, manifest."""

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from trpo_tf.export.bundle.model_card import CARD_FILE, model_card
from trpo_tf.export.graph.convert_policy import serialized
from trpo_tf.export.graph.metadata import manifest_metadata, with_metadata
from trpo_tf.export.parity.reference.answers import Answered, flat
from trpo_tf.export.parity.reference.reference_cases import ReferenceCases
from trpo_tf.export.parity.reference.rounding import along_sequences
from trpo_tf.export.parity.reference.soundness import outputs_of
from trpo_tf.export.targets.target import Target
from trpo_tf.serving import Manifest
from trpo_tf.serving.bundle.files import GOLDEN_FILE, MANIFEST_FILE, FileEntry
from trpo_tf.serving.bundle.golden import STEPS
from trpo_tf.serving.runtime.observations import Array, by_name
from trpo_tf.serving.verify import ABSOLUTE_TOLERANCE

_LEAST_GOLDEN, _MOST_GOLDEN = 16, 128
"""Golden cases without noise, and as many with it."""

_FIRM = ABSOLUTE_TOLERANCE / 2
"""Absolute and relative change that rounding may make in a golden sequence."""


def describe(folder: Path, manifest: Manifest, targets: Mapping[str, Target], reference_cases: ReferenceCases) -> None:
    """Write the files about the targets: metadata inside of ONNX files, golden cases, model card, manifest."""
    for name, target in targets.items():
        file = folder / target.path
        if file.suffix == ".onnx":
            described = replace(manifest, parity={name: manifest.parity[name]})
            model = with_metadata(onnx.load_from_string(file.read_bytes()), manifest_metadata(described))
            file.write_bytes(serialized(model))
    (folder / GOLDEN_FILE).write_bytes(_golden(reference_cases, manifest))
    (folder / CARD_FILE).write_text(model_card(replace(manifest, files=_entries(folder))), "utf-8")
    (folder / MANIFEST_FILE).write_text(replace(manifest, files=_entries(folder)).to_json())


def _entries(folder: Path) -> dict[str, FileEntry]:
    return {
        file.relative_to(folder).as_posix(): FileEntry.of(file.read_bytes())
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def _golden(reference_cases: ReferenceCases, manifest: Manifest) -> bytes:
    """Serialize golden cases with zero noise, then golden cases with noise.

    Only cases whose action no rounding changes are taken. If they are few, those that it changes least are taken. Those
    of a policy with state are whole sequences.
    """
    choose = _firmest_sequences if manifest.state else _firmest
    chosen = [cases.take(choose(cases)) for cases in (reference_cases.golden, reference_cases.noisy_golden)]
    arrays: dict[str, list[Array]] = {}
    for cases in chosen:
        inputs = by_name(cases.observations, manifest.observation[0].name) | {manifest.noise.name: cases.noise}
        for name, array in {**inputs, **outputs_of(cases)}.items():
            arrays.setdefault(name, []).append(array)
    buffer = io.BytesIO()
    np.savez(buffer, **{name: np.concatenate(parts) for name, parts in arrays.items()})  # type: ignore[arg-type]
    return buffer.getvalue()


def _firmest(cases: Answered) -> NDArray[np.int64]:
    (firm,) = np.nonzero(cases.firm)
    least = min(_LEAST_GOLDEN, len(cases))
    if len(firm) < least:
        firm = np.sort(np.argsort(cases.fragility, kind="stable")[:least])
    return np.asarray(firm[np.unique(np.linspace(0, len(firm) - 1, _MOST_GOLDEN).astype(int))])


def _firmest_sequences(cases: Answered) -> NDArray[np.int64]:
    """Choose sequences that rounding changes far less than is allowed, or else the one that it changes least."""
    along = along_sequences(cases)
    moved = [along.fragility]
    for name, expected in cases.further.items():
        if along.margins is not None:
            shares = along.margins[name] / (1 + np.abs(expected.astype(np.float64)))
            moved.append(flat(shares).max(axis=1, initial=0.0))
    fragility = np.max(moved, axis=0).reshape(-1, STEPS).max(axis=1)
    order = np.argsort(fragility, kind="stable")
    firm = order[: max(1, int((fragility <= _FIRM).sum()))][: _MOST_GOLDEN // STEPS]
    return np.asarray((np.sort(firm)[:, np.newaxis] * STEPS + np.arange(STEPS)).ravel())
