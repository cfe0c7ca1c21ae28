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

    A process killed before that leaves a hidden folder in the deepest existing parent of `target`. Raises as
    `check_new` does.
    """
    existing = check_new(target)
    try:
        temporary = tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=existing)
    except OSError as error:
        error.filename = str(target)  # the caller knows nothing of the temporary folder
        raise
    with named_when_full(target), temporary as scratch:
        folder = Path(scratch) / "new"
        folder.mkdir()
        yield folder
        _sync_tree(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        _refuse_existing(target)
        os.rename(folder, target)
    sync(target.parent)


def check_new(target: Path) -> Path:
    """Return the deepest existing parent of a folder that is to be made.

    Raises `FileExistsError` if `target` exists, and `NotADirectoryError` if that parent is no folder.
    """
    _refuse_existing(target)
    existing = next(parent for parent in target.absolute().parents if os.path.lexists(parent))
    if not existing.is_dir():
        raise NotADirectoryError(f"{existing} is no folder, so {target} can't be made; choose another folder")
    return existing


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
