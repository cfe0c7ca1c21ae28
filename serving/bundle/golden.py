"""The golden cases of a bundle: NumPy's archive format, read within the bounds that the manifest sets.

A zip file says of itself how large its members are, and NumPy's header how large its array is. Either may lie, so
nothing is unpacked or allocated by what they say.
"""

import io
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trpo_tf.serving.bundle.manifest import GOLDEN_FILE, ArraySpec, BundleError, Manifest, NoiseSpec, read_checked
from trpo_tf.serving.bundle.memory import available_bytes, golden_bytes

MOST_CASES = 10_000
"""Golden cases that are read; an export has some hundreds."""

_MOST_MEMBERS = 1000
_MEMBER_BYTES = 4096
"""Beside its array, a member's NumPy header and zip headers."""

_COPIES = 3
"""Of the cases while they are replayed."""


def read_golden_file(bundle: Path, manifest: Manifest) -> bytes:
    """The bundle's archive of golden cases, whose size and checksum are checked. Raises `BundleError`."""
    entry, most = manifest.files.get(GOLDEN_FILE), _most_bytes(manifest)
    if entry is not None and entry.size > most:
        raise BundleError(f"{bundle / GOLDEN_FILE} has {entry.size:,} bytes, more than {most:,}; export it again")
    return read_checked(bundle, manifest, GOLDEN_FILE)


def _most_bytes(manifest: Manifest) -> int:
    """The largest that the archive may be, and what it unpacks to."""
    return golden_bytes(manifest, MOST_CASES) + _MEMBER_BYTES * (len(manifest.observation) + 1 + len(manifest.outputs))


def read_golden(content: bytes, manifest: Manifest) -> dict[str, NDArray[Any]]:
    """The inputs, the action, and those further outputs that it has, each [case, ...], by the manifest's names.

    Raises `BundleError` for what can't be read, and for an array of another dtype or shape than the manifest's.
    """
    specs: list[ArraySpec | NoiseSpec] = [*manifest.observation, manifest.noise, manifest.action]
    try:
        # zipfile makes an object of each entry, so that a list of millions would cost more than what they hold.
        if content.count(b"PK\x01\x02") > _MOST_MEMBERS:
            raise BundleError(f"{GOLDEN_FILE} has more than {_MOST_MEMBERS:,} members; export the bundle again")
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
            if len(set(names)) < len(names):
                raise BundleError(f"{GOLDEN_FILE} has two members of one name; export the bundle again")
            specs += [spec for spec in manifest.graph.outputs if f"{spec.name}.npy" in names]
            _check_memory(archive, manifest, specs)
            cases = {spec.name: _read_array(archive, spec) for spec in specs}
    except BundleError:
        raise
    except Exception as error:  # each kind of damage has another, of zipfile, zlib and NumPy
        raise BundleError(f"{GOLDEN_FILE} can't be read ({error}); export the bundle again") from error
    if len({len(array) for array in cases.values()}) != 1 or not len(cases[manifest.action.name]):
        raise BundleError(f"{GOLDEN_FILE} must have as many rows of each array, and one at least; export it again")
    return cases


def _check_memory(archive: zipfile.ZipFile, manifest: Manifest, specs: list[ArraySpec | NoiseSpec]) -> None:
    """By the sizes that the archive states; `_read_array` takes no more of a member."""
    unpacked = sum(archive.getinfo(f"{spec.name}.npy").file_size for spec in specs)
    most = _most_bytes(manifest)
    if unpacked > most:
        raise BundleError(f"{GOLDEN_FILE} unpacks to {unpacked:,} bytes, more than {most:,}; export it again")
    if _COPIES * unpacked > available_bytes():
        raise BundleError(f"{GOLDEN_FILE} unpacks to {unpacked:,} bytes, for which there is no memory")


def _read_array(archive: zipfile.ZipFile, spec: ArraySpec | NoiseSpec) -> NDArray[Any]:
    member = archive.getinfo(f"{spec.name}.npy")
    # zipfile bounds what it unpacks only of these.
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BundleError(f"{GOLDEN_FILE} is packed otherwise than by deflate; export the bundle again")
    with archive.open(member) as file:
        content = file.read(member.file_size + 1)
    if len(content) != member.file_size:
        raise BundleError(f"{GOLDEN_FILE}: {spec.name} has another size than the archive says; export it again")
    stream = io.BytesIO(content)
    major, _ = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read_header(stream)
    rows = shape[0] if shape else 0
    if dtype != spec.dtype or shape != (rows, *spec.shape) or not 0 <= rows <= MOST_CASES:
        raise BundleError(
            f"{GOLDEN_FILE}: {spec.name} must be {spec.dtype}, one of shape {list(spec.shape)} for each of at most "
            f"{MOST_CASES:,} cases; export the bundle again"
        )
    values = np.frombuffer(content, spec.dtype, math.prod(shape), stream.tell())
    return values.reshape(shape, order="F" if is_fortran else "C").copy()
