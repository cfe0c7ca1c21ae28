"""One process at a time trains a run."""

import contextlib
import errno
import fcntl
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from trpo_tf.errors import UserError

LOCK_FILE = ".lock"

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold the run's lock, which the system releases when the process ends in any way.

    On NFS it works between machines if the server supports locks. Where locks are not supported, it only warns. Raises
    `UserError` if another process holds it.
    """
    with (run / LOCK_FILE).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "another one"
            raise UserError(f"{run} is being trained by process {owner}; wait for it, or stop it") from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            warnings.warn(f"{run} can't be locked here; let only one process train it", stacklevel=3)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
