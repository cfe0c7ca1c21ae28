"""Write files atomically."""

import contextlib
import os
from pathlib import Path

from trpo_tf.export.support.new_folder import named_when_full, sync


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to a temporary file next to `path`, flush it to disk, and move it into place.

    A pipe or a device, such as /dev/stdout, is written to as it is, and so is what a symbolic link names.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        path.write_bytes(content)
        return
    path = path.resolve() if path.is_symlink() else path
    # Not a `tempfile`, which only its owner may read.
    scratch = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        with named_when_full(path), scratch.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(scratch, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            scratch.unlink()
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(path), None  # the caller knows nothing of the temporary file
        raise
    sync(path.parent)
