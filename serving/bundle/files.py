"""The files of a bundle: their names and checksums, and reading of regular files with no more bytes than expected."""

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from trpo_tf.serving.errors import BundleError

MANIFEST_FILE = "manifest.json"
MODEL_FILE = "policy.onnx"
GOLDEN_FILE = "golden.npz"
EPISODE_FILES = ("episode.mp4", "episode.gif")
LATENCY_FILE = "latency.json"
SIGNATURE_FILE = "model.sig"

UNLISTED_FILES = {MANIFEST_FILE, LATENCY_FILE, SIGNATURE_FILE}
"""Files that a manifest does not list: itself, and files that differ between two exports of the same run."""

_CHUNK = 2**20


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and SHA-256 of one file of the bundle."""

    size: int
    sha256: str

    @classmethod
    def of(cls, content: bytes) -> "FileEntry":
        """Return the size and checksum of `content`."""
        return cls(len(content), hashlib.sha256(content).hexdigest())


@contextmanager
def open_regular(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file, or a link to one, for reading, and yield it with its size in bytes.

    A FIFO would block and a device might never end. Raises `OSError`, and `BundleError` if it is not a regular file.
    """
    # O_NONBLOCK: opening a FIFO that nobody writes to would block before it can be refused.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise BundleError(f"{path} is no regular file; export the bundle again")
    with open(descriptor, "rb", buffering=0) as file:
        yield file, found.st_size


def read_at_most(path: Path, most: int) -> bytes:
    """Return the content of a regular file. Raises `OSError`, and `BundleError` for more than `most` bytes."""
    with open_regular(path) as (file, size):
        content = b"" if size > most else _read(file, most + 1)
    if max(size, len(content)) > most:
        raise BundleError(f"{path} has {max(size, len(content)):,} bytes, more than {most:,}; export the bundle again")
    return content


def read_exactly(path: Path, size: int) -> bytes:
    """Return the content of a regular file. Raises `OSError`, and `BundleError` unless it has `size` bytes."""
    with open_regular(path) as (file, found):
        content = _read(file, size + 1) if found == size else b""
    if found != size or len(content) != size:
        raise _other_size(path, found if found != size else len(content), size)
    return content


def sha256_of_file(path: Path, size: int) -> str:
    """Return the SHA-256 of a regular file of `size` bytes, read in chunks. Raises as `read_exactly` does."""
    digest, count = hashlib.sha256(), 0
    with open_regular(path) as (file, found):
        if found != size:
            raise _other_size(path, found, size)
        while count <= size and (chunk := file.read(_CHUNK)):
            digest.update(chunk)
            count += len(chunk)
    if count != size:
        raise _other_size(path, count, size)
    return digest.hexdigest()


def copy_regular(source: Path, target: Path, most: int) -> int:
    """Copy a regular file and return its size in bytes. Raises `OSError`, and `BundleError` beyond `most` bytes."""
    count = 0
    with open_regular(source) as (file, _), target.open("wb") as copy:
        while chunk := file.read(_CHUNK):
            count += len(chunk)
            if count > most:
                raise BundleError(f"{source} grows while it is copied; put whole files into the bundle")
            copy.write(chunk)
    return count


def _read(file: BinaryIO, most: int) -> bytes:
    """Return up to `most` bytes. The file may grow meanwhile, and `fstat` tells another size for files in /proc."""
    chunks, left = [], most
    while left and (chunk := file.read(left)):
        chunks.append(chunk)
        left -= len(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _other_size(path: Path, found: int, size: int) -> BundleError:
    return BundleError(
        f"{path} is not what was exported (it has {found:,} bytes, not {size:,}); copy it again (with `git lfs pull` "
        "if Git LFS holds it), or export it again"
    )
