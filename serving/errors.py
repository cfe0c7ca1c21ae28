"""Errors with a message for who can mend them, and what it may repeat of a client's values. Imports nothing heavy."""

import reprlib
from typing import Any


class BundleError(ValueError):
    """A bundle that is missing, damaged or not understood; the message says what to do."""


class ServeError(OSError):
    """The server can't run as it was told to; the message says what to do."""


class RequestError(ValueError):
    """A request that its sender must change; the message says how."""


def install(extra: str) -> str:
    """How to get the packages of an extra: from a checkout, since no package index has this project."""
    return f"pip install '.[{extra}]' in a checkout of trpo-tf"


def reason_of(error: BaseException) -> str:
    """What to tell the operator of an error that ends the start: its message, or what a start without memory lacks."""
    if not isinstance(error, ImportError | MemoryError):
        return str(error)
    while error.__context__ is not None:  # NumPy puts pages of advice around the cause
        error = error.__context__
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed; {install('serve')}"
    return f"can't start ({str(error) or 'out of memory'}); give the process more memory (the container's, ulimit -v)"


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80


def quoted(value: Any) -> str:
    """The repr of a value that a client sent, cut in its middle to 80 characters; "none" for None."""
    return "none" if value is None else _short.repr(value)
