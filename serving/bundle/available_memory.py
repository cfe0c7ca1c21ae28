"""Checks that a bundle fits into the available memory, before any of its files are read."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from trpo_tf.serving.bundle.files import EPISODE_FILES, GOLDEN_FILE, MODEL_FILE
from trpo_tf.serving.bundle.manifest import Manifest
from trpo_tf.serving.bundle.specs import ArraySpec, NoiseSpec
from trpo_tf.serving.errors import BundleError

MODEL_FACTOR = 4
"""Memory to load a graph, as a multiple of its file's size. Measured: 3.1 for a file of 64 MB, mostly one matrix."""

_CASES_FACTOR = 4
"""Memory to replay the golden cases, as a multiple of their file's size: archive, arrays, and the graph's outputs."""

_ELEMENT_BYTES = 32
"""Bytes for one element of an observation, action or noise: two bounds, and the buffers of one row."""


_LITTLE = 2**20
"""Bytes that are available in any case: to read the counters takes as long as to load a bundle of this size."""


_SEQUENCE_BYTES = 2048
"""Bytes for one sequence beside its state: its id, its arrays' headers, and why it is gone."""


def check_memory(manifest: Manifest, share: int = 1, sequences: int = 0, *, only_model: bool = False) -> None:
    """Raise `BundleError` if a bundle and the state of `sequences` need over `1 / share` of the available memory.

    The estimate uses the sizes that the manifest states. Files of another size are refused when they are read.
    """
    needed = MODEL_FACTOR * _listed(manifest, MODEL_FILE)
    if not only_model:
        needed += _CASES_FACTOR * _listed(manifest, GOLDEN_FILE) + sum(
            _listed(manifest, name) for name in EPISODE_FILES
        )
    arrays: list[ArraySpec | NoiseSpec] = [*manifest.step_inputs, *manifest.outputs, manifest.noise]
    needed += sum(_ELEMENT_BYTES * math.prod(array.shape) for array in arrays)
    kept = sequences * (_SEQUENCE_BYTES + state_bytes(manifest)) if manifest.state else 0
    if not has_memory(needed + kept, share):
        available = available_bytes() // share
        of_worker = f" for each of {share} workers" if share > 1 else ""
        of_states = f" and {_megabytes(kept)} for the states of {sequences} sequences (--max-sequences)" if kept else ""
        raise BundleError(
            f"{manifest.name} needs about {_megabytes(needed)} of memory to load{of_states}, and "
            f"{_megabytes(available)} are available{of_worker}; give the server more memory, or export a smaller policy"
        )


def state_bytes(manifest: Manifest) -> int:
    """Return the size in bytes of one row of the state."""
    return sum(np.dtype(spec.dtype).itemsize * math.prod(spec.shape) for spec in manifest.state)


def golden_bytes(manifest: Manifest, cases: int) -> int:
    """Return the size in bytes of the arrays of `cases` golden cases."""
    arrays: list[ArraySpec | NoiseSpec] = [*manifest.step_inputs, manifest.noise, *manifest.outputs]
    return cases * sum(np.dtype(array.dtype).itemsize * math.prod(array.shape) for array in arrays)


def has_memory(needed: int, share: int = 1) -> bool:
    """Return whether `needed` bytes are within `1 / share` of the available memory."""
    return needed <= _LITTLE or needed <= available_bytes() // share


def available_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes that this process may still use: the least that the machine and its control groups have free.

    Inactive file cache counts as available. Without limits, or without /proc, the result is larger than any bundle.
    """
    return max(0, min([_of_machine(proc), *_of_groups(proc, cgroups)]))


# Version 2 of control groups writes "max" for no limit, and version 1 a number just below 2^63.
_UNLIMITED = 1 << 62


def _of_machine(proc: Path) -> int:
    return 1024 * _number(_table(proc / "meminfo").get("MemAvailable:", ""), _UNLIMITED // 1024)


def _of_groups(proc: Path, cgroups: Path) -> Iterator[int]:
    """Yield the free bytes of each control group, from this process's own up to the root (cgroup v1 and v2)."""
    for line in _lines(proc / "self" / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = cgroups, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root, names = cgroups / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = root / path.lstrip("/")
        for folder in (group, *(parent for parent in group.parents if parent.is_relative_to(root))):
            limit, used = (_number("".join(_lines(folder / name)), _UNLIMITED) for name in names[:2])
            if max(limit, used) < _UNLIMITED:
                yield limit - used + _number(_table(folder / "memory.stat").get(names[2], ""), 0)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []


def _table(file: Path) -> dict[str, str]:
    return {words[0]: words[1] for line in _lines(file) if len(words := line.split()) > 1}


def _number(text: str, otherwise: int) -> int:
    return int(text) if text.isdigit() else otherwise


def _listed(manifest: Manifest, name: str) -> int:
    entry = manifest.files.get(name)
    return entry.size if entry else 0


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
