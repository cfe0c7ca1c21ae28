"""Option types that commands share, and functions to print results and errors."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

from tyro.conf import FlagCreatePairsOff, arg

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
    """Return an error's message and its notes as one line."""
    said = [str(error) or type(error).__name__, *getattr(error, "__notes__", ())]
    return " ".join("; ".join(said).split())


def fail(message: str, status: int) -> NoReturn:
    """Print a line on standard error, and exit with `status`, without waiting for a thread in the background."""
    print(message, file=sys.stderr)  # noqa: T201
    if is_left_behind():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
