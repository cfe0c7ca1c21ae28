"""Paths in commands that a message proposes."""

import shlex
from pathlib import Path


def in_shell(path: Path) -> str:
    """Write a path so that a person can copy it to a shell, whatever blanks it has."""
    return shlex.quote(str(path))
