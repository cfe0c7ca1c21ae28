"""Paths and options in what a message proposes: as a shell takes them or, outside of a command, as Python does."""

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_in_command = False


@contextlib.contextmanager
def in_command() -> Iterator[None]:
    """Let `option` be for the command line in this block; elsewhere it is for a caller in Python."""
    global _in_command
    before, _in_command = _in_command, True
    try:
        yield
    finally:
        _in_command = before


def is_in_command() -> bool:
    """Return whether messages are for the command line."""
    return _in_command


def option(name: str, *values: Any) -> str:
    """Return an option with its values as the caller gives it: `--num-envs 4` in a command, `num_envs=4` in Python."""
    values = tuple(str(value) if isinstance(value, Path) else value for value in values)
    if _in_command:
        return " ".join((f"--{name.replace('_', '-')}", *(shlex.quote(str(value)) for value in values)))
    return f"{name}={', '.join(map(repr, values))}" if values else name


def in_shell(path: Path) -> str:
    """Write a path so that a person can copy it to a shell, whatever blanks it has."""
    return shlex.quote(str(path))
