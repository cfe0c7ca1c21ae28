"""Option types that commands share, and functions to print results and errors."""

import json
import os
import re
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Annotated, Any, NoReturn, TextIO

from tyro.conf import FlagCreatePairsOff, UseAppendAction, arg

from trpo_tf.serving.errors import message_of
from trpo_tf.support.background import is_left_behind

FAILED = 1
WRONG_USE = 2
INTERRUPTED = 130
BROKEN_PIPE = 141

Flag = FlagCreatePairsOff[bool]


def unset(metavar: str, name: str | None = None) -> Any:
    """Return the description of an option whose help says what happens without it, so that no default is shown."""
    return arg(name=name, metavar=metavar, help_behavior_hint="")


OptionalFolder = Annotated[Path | None, unset(metavar="FOLDER")]
Changes = Annotated[UseAppendAction[tuple[str, ...]], unset(name="set", metavar="GROUP.NAME=VALUE")]


_UNBROKEN = frozenset("│╭╰\x1b")
"""Characters of lines that are not broken: boxes fit already, and the width of coloured text is another."""


_LEAST_COLUMNS = 40


def widen() -> None:
    """Take a narrower terminal for one of 40 columns: the help's boxes are never finished in a column or two."""
    if shutil.get_terminal_size().columns < _LEAST_COLUMNS:
        os.environ["COLUMNS"] = str(_LEAST_COLUMNS)


class WrappedText:
    """A text stream that breaks lines wider than the terminal between words, except lines of boxes and of colours."""

    def __init__(self, stream: TextIO) -> None:
        """Write to `stream`."""
        self._stream, self._columns = stream, shutil.get_terminal_size().columns

    def write(self, text: str) -> int:
        """Write a text, and return its length."""
        self._stream.write("\n".join(map(self._broken, text.split("\n"))))
        return len(text)

    def isatty(self) -> bool:
        """Return whether colours may be written: the stream is a terminal, and NO_COLOR is not set."""
        return self._stream.isatty() and not os.environ.get("NO_COLOR")

    def __getattr__(self, name: str) -> Any:
        """Return another attribute of the stream."""
        return getattr(self._stream, name)

    def _broken(self, line: str) -> str:
        if len(line) <= self._columns or not _UNBROKEN.isdisjoint(line):
            return line
        return textwrap.fill(line, self._columns, break_long_words=False, break_on_hyphens=False)


_COLOUR = re.compile(r"\x1b\[[\d;]*m")
"""Escape sequences that set a terminal's colours."""


def without_colour(text: str) -> str:
    """Return a text without the escape sequences that set colours."""
    return _COLOUR.sub("", text)


def say(line: str) -> None:
    """Print a line and flush it."""
    print(line, flush=True)  # noqa: T201


def print_fields(fields: dict[str, Any], *, as_json: bool) -> None:
    """Print names and values, one per line, or all as one line of JSON."""
    if as_json:
        say(json.dumps(fields))
        return
    width = max(map(len, fields))
    for name, value in fields.items():
        say(f"{name:<{width}}  {f'{value:.4g}' if isinstance(value, float) else value}")


def one_line(error: BaseException) -> str:
    """Return an error's message and its notes as one line; of a failed system call, the path and the reason."""
    said = [message_of(error), *getattr(error, "__notes__", ())]
    return " ".join("; ".join(said).split())


def fail(message: str, status: int) -> NoReturn:
    """Print a line on standard error, and exit with `status`, without waiting for a thread in the background."""
    print(message, file=sys.stderr)  # noqa: T201
    if is_left_behind():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
