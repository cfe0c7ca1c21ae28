"""Writes docs/reference/options.md from the dataclasses that the command line is made of: `make docs`."""

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, get_type_hints

from trpo_tf.cli.main import COMMANDS
from trpo_tf.cli.training import Train
from trpo_tf.config.settings import Config, own_name
from trpo_tf.serving.options import ServeOptions, flag

PAGE = Path(__file__).with_name("options.md")

INTRODUCTION = """\
# Options

`make docs` writes this page from the dataclasses in the code; a test fails if they differ. Every command also takes
`--help`, and `--debug`, which shows a traceback with an error.

`trpo-tf train` starts from the environment's preset where there is one. The defaults below are those of
`--preset default`. In `config.toml`, in `--set` and in `trpo_tf.Config` a setting stands in the group that the heading
names: `--max-kl` is `trust_region.max_kl`, `--critic-epochs` is `critic.epochs`.
"""


def page() -> str:
    """Return the whole page as Markdown."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    yield INTRODUCTION
    for name, command in COMMANDS.items():
        kind = Train if name == "train" else command
        yield f"## `trpo-tf {name}`\n"
        yield f"{inspect.cleandoc(kind.__doc__ or '')}\n"
        if name == "serve":
            yield from _server_options()
            continue
        yield from _table(_rows(kind, ""))
        if name == "train":
            for title, rows in _settings():
                yield f"### {title}\n"
                yield from _table(rows)


def _settings() -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Return the groups of settings, those of no group first."""
    yield "Settings of the run", _rows(Config, "")
    for group in dataclasses.fields(Config):
        if dataclasses.is_dataclass(group.type):
            yield f"Settings of `{group.name}`", _rows(group.type, group.name)


def _server_options() -> Iterator[str]:
    """Return the server's options under the headings of its --help."""
    rows: list[tuple[str, str, str]] = []
    for option in dataclasses.fields(ServeOptions):
        section = option.metadata["section"]
        if section:
            if rows:
                yield from _table(rows)
            rows = []
            yield f"### {section[0].upper()}{section[1:]}\n"
        choices = option.metadata["choices"]
        value = option.metadata["metavar"] or ("\\|".join(choices) if choices else "")
        rows.append(
            (f"`{flag(option.name)}{f' {value}' if value else ''}`", _shown(option.default), option.metadata["help"])
        )
    yield from _table(rows)


def _rows(kind: Any, group: str) -> list[tuple[str, str, str]]:
    """Return option, default and description of each field that is no group itself."""
    hints, texts = get_type_hints(kind, include_extras=True), _texts(kind)
    found = []
    for setting in dataclasses.fields(kind):
        if dataclasses.is_dataclass(setting.type):
            continue
        marks = getattr(hints[setting.name], "__metadata__", ())
        is_positional = any("Positional" in str(mark) for mark in marks)
        given = next((mark.name for mark in marks if getattr(mark, "name", None)), None)
        option = given or own_name(group, setting.name).replace("_", "-")
        metavar = next((mark.metavar for mark in marks if getattr(mark, "metavar", None)), None)
        shown = (metavar or option.replace("-", "_").upper()).replace("|", "\\|") if is_positional else f"--{option}"
        found.append((f"`{shown}`", _default(setting), texts[setting.name]))
    return found


def _texts(kind: Any) -> dict[str, str]:
    """Return the docstring below each field of a class."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    body = tree.body[0].body  # type: ignore[attr-defined]
    return {
        ast.unparse(field.target): inspect.cleandoc(str(text.value.value)).replace("\n", " ")
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }


def _default(setting: dataclasses.Field[Any]) -> str:
    return "" if setting.default is dataclasses.MISSING else _shown(setting.default)


def _shown(value: Any) -> str:
    """Write a default as one types it, and one that stands for "not given" as nothing."""
    match value:
        case None | "" | () | -1:
            return ""
        case bool():
            return "on" if value else "off"
        case tuple():
            return " ".join(map(str, value))
        case float():
            return f"{value:g}"
    return str(value)


def _table(rows: list[tuple[str, str, str]]) -> Iterator[str]:
    yield "| option | default | |\n|---|---|---|"
    yield from (f"| {option} | {default} | {_escaped(text)} |" for option, default, text in rows)
    yield ""


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(page())
