"""Write files atomically."""

import os
from pathlib import Path

from trpo_tf.export.support.new_folder import named_when_full, sync


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to a temporary file next to `path`, flush it to disk, and move it into place."""
    # Not a `tempfile`, which only its owner may read.
    scratch = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        with named_when_full(path), scratch.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    sync(path.parent)
