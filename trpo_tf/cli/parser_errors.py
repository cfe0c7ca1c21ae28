"""Errors of the command line's parser as one line each, which names the option and says the fix.

tyro draws its errors as boxes of several lines: a title, the error, what was perhaps meant, and where the help is.
"""

import contextlib
import difflib
import io
import itertools
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TypeVar

from trpo_tf.cli.terminal import WRONG_USE, without_colour
from trpo_tf.errors import UserError

_HELP = frozenset(("-h", "--help"))
_SWITCH_VALUES = frozenset(("true", "false", "yes", "no", "on", "off", "1", "0"))
_T = TypeVar("_T")
_WIDE = "10000"
"""Columns of a box that breaks no line."""


def check_command(arguments: Sequence[str], commands: Collection[str]) -> None:
    """Raise `UserError` unless the first of the arguments is a command or asks for help."""
    if not arguments:
        raise UserError(f"give a command: {', '.join(commands)}; trpo-tf --help explains them")
    first = arguments[0]
    if first in commands or first in _HELP or first.startswith("--tyro-"):
        return
    if first.startswith("-"):
        raise UserError(
            f"{first} can't stand before the command, only --help, --version and --debug can; give it after one: "
            f"{', '.join(commands)}"
        )
    close = difflib.get_close_matches(first, commands, n=1)
    fix = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(commands)}; see trpo-tf --help"
    raise UserError(f"{first!r} is no command; {fix}")


def with_one_line(parse: Callable[[list[str]], _T], arguments: list[str]) -> _T:
    """Return what tyro parses. Raises `UserError`, of one line, instead of the box that tyro prints before it exits."""
    said = io.StringIO()
    try:
        with _wide_boxes(arguments), contextlib.redirect_stderr(said):
            parsed = parse(arguments)
    except SystemExit as end:
        if end.code != WRONG_USE:
            raise
        message = _unknown_option(arguments, _options(parse, arguments[0])) or _message(said.getvalue(), arguments)
        see = " See" if message.endswith("?") else "; see"
        raise UserError(f"{message}{see} trpo-tf {arguments[0]} --help") from None
    sys.stderr.write(said.getvalue())
    return parsed


@contextlib.contextmanager
def _wide_boxes(arguments: Sequence[str]) -> Iterator[None]:
    """Take the terminal for a wide one in this block, unless the help is asked for: no line of an error is broken."""
    columns = os.environ.get("COLUMNS")
    if _HELP.isdisjoint(arguments):
        os.environ["COLUMNS"] = _WIDE
    try:
        yield
    finally:
        os.environ.pop("COLUMNS", None)
        if columns is not None:
            os.environ["COLUMNS"] = columns


def _options(parse: Callable[[list[str]], object], command: str) -> list[str]:
    """Return the options that the help of a command shows."""
    shown = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(shown):
        parse([command, "--help"])
    rows = re.findall(r"^\W*((?:--[a-z][\w-]+(?:, )?)+)", without_colour(shown.getvalue()), re.MULTILINE)
    return [option for row in rows for option in row.split(", ")]


def _unknown_option(arguments: Sequence[str], options: Sequence[str]) -> str:
    """Return the error of the first option that is none of the command's; empty if all are."""
    for argument in arguments[1:]:
        option = argument.partition("=")[0].replace("_", "-")
        if re.match(r"--?[a-zA-Z]", option) and option not in (*options, *_HELP):
            close = difflib.get_close_matches(option, options, n=1, cutoff=0.7)
            return f"unknown option {argument.partition('=')[0]}{f'; did you mean {close[0]}?' if close else ''}"
    return ""


def _message(box: str, arguments: Sequence[str]) -> str:
    rows = [line.strip("│╰╯").strip() for line in without_colour(box).splitlines()[1:]]
    text, *others = [row for row in rows if row.strip("─-")] or ["the arguments can't be parsed"]
    if found := re.fullmatch(r"Unrecognized options: (.*)", text):
        return _unexpected(found[1].split(", ")[0], arguments)
    if text == "Unrecognized or misplaced options:":
        return _unexpected(others[0].rpartition(" (applied to ")[0], arguments)
    if found := re.fullmatch(r"Missing value for argument '(.*)'\..*", text):
        return f"{found[1]} needs a value"
    if text.startswith("Missing from "):
        return "; ".join(_missing(others))
    if found := re.fullmatch(r"Error parsing (\S+): Could not find valid parse for arguments: \[(.*)\]", text):
        return f"{found[1]} can't be {found[2]}; a list has blanks between its parts, such as {found[1]} 64 64"
    reasons = [row.partition(">: ")[2] for row in others if row.startswith("- <class")]
    if reasons and (found := re.fullmatch(r"Error parsing (\S+): no type matching .*", text)):  # it may also be None
        return f"{found[1]}: {reasons[-1]}"
    return text.removeprefix("Error parsing ")


def _unexpected(token: str, arguments: Sequence[str]) -> str:
    if token.lower() in _SWITCH_VALUES and (switch := _switch_before(token, arguments)):
        return f"{switch} takes no value, since it is a switch: give {switch} alone, or leave it out"
    return f"unexpected argument {token!r}"


def _switch_before(token: str, arguments: Sequence[str]) -> str:
    """Return the option that has this value, in one argument or two; empty if none has."""
    for before, argument in zip(("", *arguments), (*arguments, ""), strict=True):
        if argument == token and before.startswith("--"):
            return before
        if argument.startswith("--") and argument.endswith(f"={token}"):
            return argument.partition("=")[0]
    return ""


def _missing(rows: Sequence[str]) -> Iterator[str]:
    """Yield what each missing argument is: a row names it, the next one describes it."""
    for name, description in itertools.pairwise(rows):
        if description.endswith("(required)"):
            yield f"{name} is missing: {description.removesuffix('(required)').strip()}"
