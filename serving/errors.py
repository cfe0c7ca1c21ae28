"""Errors whose messages say what to do, and helpers for messages. Imports only the standard library."""

import errno
import reprlib
from typing import Any


class BundleError(ValueError):
    """The bundle is missing, damaged or not supported; the message says what to do."""


class ServeError(OSError):
    """The server can't run with its options; the message says what to do."""


class RequestError(ValueError):
    """The client must change its request; the message says how."""


class NoSequenceError(RequestError):
    """There is no sequence of the id that a request names; the client has to start one."""


class TooManySequencesError(Exception):
    """The server keeps as many sequences as it may; the client may start one later."""


def install(extra: str) -> str:
    """Return how to install an extra: from a checkout, since no package index has this project."""
    return f"pip install '.[{extra}]' in a checkout of trpo-tf"


_FIXES = {
    errno.ENOENT: "; check the path",
    errno.EACCES: "; choose another path, or change its permissions",
    errno.EPERM: "; choose another path, or change its permissions",
    errno.EROFS: "; choose another path",
    errno.EISDIR: "; give the path of a file",
    errno.ENOTDIR: "; choose another path",
    errno.ENOSPC: "; free space, or choose another disk",
    errno.EDQUOT: "; free space, or choose another disk",
}


def message_of(error: BaseException) -> str:
    """Return an error's message, or its type if it has none; of a failed system call the reason, paths and a fix."""
    if isinstance(error, OSError) and error.strerror:
        paths = " to ".join(repr(str(path)) for path in (error.filename, error.filename2) if path)
        return f"{error.strerror}{f': {paths}' if paths else ''}{_FIXES.get(error.errno or 0, '')}"
    return str(error) or type(error).__name__


def reason_of(error: BaseException) -> str:
    """Return the message for an error that ends the start, with a hint if a package is missing or memory ran out."""
    ran_out = isinstance(error, OSError) and error.errno == errno.ENOMEM
    if not (ran_out or isinstance(error, ImportError | MemoryError)):
        return message_of(error)
    while error.__context__ is not None:  # NumPy wraps the cause in pages of advice
        error = error.__context__
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed; {install('serve')}"
    return f"can't start ({str(error) or 'out of memory'}); give the process more memory (the container's, ulimit -v)"


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80


def quoted(value: Any) -> str:
    """Return the repr of a client's value, shortened in the middle to about 80 characters; "none" for None."""
    return "none" if value is None else _short.repr(value)
