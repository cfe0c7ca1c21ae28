"""The golden cases of a bundle, an .npz archive, read within bounds that the manifest sets.

The sizes in a zip file and in a NumPy header may be wrong. So nothing is unpacked or allocated on their word alone.
"""

import io
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trpo_tf.serving.bundle.available_memory import golden_bytes, has_memory
from trpo_tf.serving.bundle.files import GOLDEN_FILE
from trpo_tf.serving.bundle.manifest import Manifest, read_checked
from trpo_tf.serving.bundle.specs import ArraySpec, NoiseSpec, next_outputs
from trpo_tf.serving.errors import BundleError

MOST_CASES = 10_000
"""Most golden cases in an archive; an export writes some hundreds."""

STEPS = 16
"""Steps of a golden sequence: so many rows, one after another, of a policy with state."""

_MOST_MEMBERS = 1000
_MEMBER_BYTES = 4096
"""Bytes of a member's NumPy header and zip headers, at most."""

_COPIES = 3
"""Copies of the cases that are in memory while they are replayed."""


def read_golden_file(bundle: Path, manifest: Manifest) -> bytes:
    """Return the bundle's archive of golden cases, after a check of its size and checksum. Raises `BundleError`."""
    entry, most = manifest.files.get(GOLDEN_FILE), _most_bytes(manifest)
    if entry is not None and entry.size > most:
        raise BundleError(f"{bundle / GOLDEN_FILE} has {entry.size:,} bytes, more than {most:,}; export it again")
    return read_checked(bundle, manifest, GOLDEN_FILE)


def _most_bytes(manifest: Manifest) -> int:
    """Return the largest size in bytes of the archive, both packed and unpacked."""
    return golden_bytes(manifest, MOST_CASES) + _MEMBER_BYTES * (len(manifest.step_inputs) + 1 + len(manifest.outputs))


def read_golden(content: bytes, manifest: Manifest) -> dict[str, NDArray[Any]]:
    """Return the inputs, the action and the further outputs of an archive, each [case, ...], by the manifest's names.

    Further outputs may be missing. Raises `BundleError` if the archive can't be read, or an array differs in dtype or
    shape from the manifest.
    """
    specs: list[ArraySpec | NoiseSpec] = [*manifest.step_inputs, manifest.noise, manifest.action]
    specs += next_outputs(manifest.state)
    try:
        # zipfile makes an object for each entry: a directory of millions would cost more memory than its content.
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
    except Exception as error:  # zipfile, zlib and NumPy each raise their own types
        raise BundleError(f"{GOLDEN_FILE} can't be read ({error}); export the bundle again") from error
    if len({len(array) for array in cases.values()}) != 1 or not len(cases[manifest.action.name]):
        raise BundleError(f"{GOLDEN_FILE} must have as many rows of each array, and one at least; export it again")
    if manifest.state and len(cases[manifest.action.name]) % STEPS:
        raise BundleError(f"{GOLDEN_FILE} must have whole sequences of {STEPS} steps each; export it again")
    return cases


def _check_memory(archive: zipfile.ZipFile, manifest: Manifest, specs: list[ArraySpec | NoiseSpec]) -> None:
    """Check the sizes that the archive states against the bounds; `_read_array` reads no more of a member."""
    unpacked = sum(archive.getinfo(f"{spec.name}.npy").file_size for spec in specs)
    most = _most_bytes(manifest)
    if unpacked > most:
        raise BundleError(f"{GOLDEN_FILE} unpacks to {unpacked:,} bytes, more than {most:,}; export it again")
    if not has_memory(_COPIES * unpacked):
        raise BundleError(f"{GOLDEN_FILE} unpacks to {unpacked:,} bytes, for which there is no memory")


def _read_array(archive: zipfile.ZipFile, spec: ArraySpec | NoiseSpec) -> NDArray[Any]:
    member = archive.getinfo(f"{spec.name}.npy")
    # zipfile limits how much it unpacks at once only for these two methods.
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
