"""Reads the files that an operator names: regular ones, since a pipe would block and a device might never end."""

import errno
import os
import stat
from pathlib import Path

MOST_BYTES = 2**20
"""Largest file: some ten thousand keys, or all public authorities twice."""


def read_regular(path: str | Path, most: int = MOST_BYTES) -> bytes:
    """The content of a regular file, or of a link to one, of at most `most` bytes. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file")
    with open(descriptor, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it has more than {most} bytes")
    return content


def fingerprint(path: str) -> tuple[int, ...] | None:
    """What tells a file from the one that was there before, without reading it; None if there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
