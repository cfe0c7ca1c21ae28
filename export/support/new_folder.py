"""Make folders that appear whole or not at all."""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def named_when_full(path: Path) -> Iterator[None]:
    """Add `path` to an `OSError` of a full disk, quota or size limit, since writes do not name the file."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL and error.filename is None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Provide a folder to fill. On success it is flushed to disk and moved to `target`, otherwise removed.

    A process killed before that leaves a hidden folder in the deepest existing parent of `target`. Raises
    `FileExistsError` if `target` exists.
    """
    _refuse_existing(target)
    existing = next(parent for parent in target.absolute().parents if parent.is_dir())
    with named_when_full(target), tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=existing) as scratch:
        folder = Path(scratch) / "new"
        folder.mkdir()
        yield folder
        _sync_tree(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        _refuse_existing(target)
        os.rename(folder, target)
    sync(target.parent)


def _refuse_existing(target: Path) -> None:
    if target.exists() or target.is_symlink():
        raise FileExistsError(f"{target} exists; choose another folder or remove it")


def _sync_tree(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        sync(path)


def sync(path: Path) -> None:
    """Flush a file, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
