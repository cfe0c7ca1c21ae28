"""Checks of arguments from Python callers; an error names the argument and says what it must be."""

import os
import re
import reprlib
from typing import Any

_URL = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)
"""The beginning of a URL, also of one whose second slash pathlib dropped. One letter would be a drive of Windows."""

COPY_URL = "give a path on this machine, and copy to or from the URL"


def expect(value: Any, kinds: Any, wanted: str, error: type[Exception]) -> None:
    """Raise `error` unless `value` is an instance of `kinds`; `wanted` names the argument and says what it must be."""
    if not isinstance(value, kinds):
        raise error(f"{wanted}, not {reprlib.repr(value)}")


def expect_path(value: Any, wanted: str, error: type[Exception]) -> None:
    """Raise `error` unless `value` is a path that a system can have; `wanted` as in `expect`."""
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str) or "\0" in path:
        raise error(f"{wanted}, not {reprlib.repr(value)}")
    if is_url(path):
        raise error(f"{wanted}, not the URL {path}; {COPY_URL}")


def is_url(path: str) -> bool:
    """Return whether it is a URL, which a path would make a folder called `s3:`."""
    return _URL.match(path) is not None


def expect_count(value: Any, name: str, least: int, error: type[Exception]) -> None:
    """Raise `error` unless `value` is an integer, and at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise error(f"{name} must be at least {least}, and a whole number, not {reprlib.repr(value)}")
