"""Reads files that an operator names. Only regular files, since a pipe would block and a device might never end."""

import errno
import os
import stat
from pathlib import Path

MOST_BYTES = 2**20
"""Largest size of a file: that of some ten thousand keys, or of twice all public certificate authorities."""


def read_regular(path: str | Path, most: int = MOST_BYTES) -> bytes:
    """Return the content of a regular file or a link to one. Raises `OSError`, also for more than `most` bytes."""
    # O_NONBLOCK: opening a FIFO that nobody writes to would block before it can be refused.
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
    """Return stat data that change when a file is changed or replaced; None if it can't be accessed."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
