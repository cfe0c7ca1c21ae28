"""The server's command line, and the precedence of the sources of options."""

import argparse
import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from trpo_tf.serving.argument_checks import COPY_URL, is_url
from trpo_tf.serving.errors import ServeError, quoted
from trpo_tf.serving.option_sources import CONFIG, PREFIX, Setting, from_environment, from_file, split_list
from trpo_tf.serving.options import ServeOptions, flag, kinds, no_port
from trpo_tf.serving.support.one_line_parser import OneLineParser

_EPILOG = f"""
Each option can also be set in the environment and in a TOML file: --max-body as {PREFIX}MAX_BODY=1000000, or as
max-body = 1000000 in the file that --config or {CONFIG} names. The command line overrides the environment, and the
environment overrides the file. A switch such as --access-log is 1, 0, true or false there, and has a negative form,
--no-access-log.
"""


def parse_arguments(arguments: Sequence[str] | None, prog: str) -> tuple[Path, ServeOptions]:
    """Return the path to serve and the options. Raises `ServeError`, or `SystemExit` for wrong usage."""
    given = vars(make_parser(prog).parse_args(arguments))
    return given.pop("bundle"), make_options(given, os.environ)


def make_options(given: dict[str, Any], environment: Mapping[str, str]) -> ServeOptions:
    """Combine the options `given` on the command line with environment, file and defaults. Raises `ServeError`."""
    if (file := given.pop("config", None)) == "":
        raise ServeError("--config is empty; give a file, or leave it out")
    file = file or environment.get(CONFIG)
    settings = from_file(kinds(), file) if file else {}
    settings |= from_environment(kinds(), environment)
    settings = {name: setting for name, setting in settings.items() if name not in given}
    if not {"port", "uds"} & {*given, *settings} and environment.get("PORT"):
        settings["port"] = Setting(_port(environment["PORT"]), "PORT in the environment")
    values = {name: setting.value for name, setting in settings.items()}
    values |= {name: given[name] for name in kinds() if name in given}
    try:
        for name in {"port", "grpc_port"} & values.keys():
            if values[name] < 0:  # the default, -1, is to give none
                raise no_port(name, values[name])
        return ServeOptions(**values)
    except ServeError as error:
        raise ServeError(_with_sources(str(error), settings)) from None


_ELSEWHERE = {
    **dict.fromkeys(("--http-port", "--rest-api-port", "--bind-port"), "--port"),
    **dict.fromkeys(("--http-address", "--address", "--bind", "--ip"), "--host"),
    **dict.fromkeys(("--model-repository", "--model-store", "--model-dir", "--model-base-path"), "PATH alone"),
    **dict.fromkeys(("--http-thread-count", "--num-workers", "--parallel-workers"), "--workers"),
    **dict.fromkeys(("--certfile", "--ssl-certfile"), "--tls-cert"),
    **dict.fromkeys(("--keyfile", "--ssl-keyfile"), "--tls-key"),
}
"""Of Triton, TensorFlow Serving, TorchServe, KServe and uvicorn: option there -> what it is here."""


def make_parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of the command line. Options that are not given are absent from its result."""
    from trpo_tf.serving import __version__

    parser = OneLineParser(
        prog=prog,
        usage=f"{prog} PATH [options]",
        description="Serve policies over HTTP, by the Open Inference Protocol, and over gRPC.",
        epilog=_EPILOG,
        argument_default=argparse.SUPPRESS,
        formatter_class=_Formatter,
    )
    parser.elsewhere = _ELSEWHERE
    parser.add_argument(
        "bundle", metavar="PATH", type=_path, help="a bundle, or a folder of bundles: NAME/ or NAME/VERSION/"
    )
    parser.add_argument("--config", metavar="FILE", help="read options from this TOML file")
    parser.add_argument("--debug", action="store_true", help="show a traceback with an error")
    parser.add_argument("--version", action="version", version=f"trpo-tf {__version__}")
    group: Any = parser
    for option in fields(ServeOptions):
        if section := option.metadata["section"]:
            group = parser.add_argument_group(section)
        _add(group, option.name, option.default, **option.metadata)
    return parser


def _add(group: Any, name: str, default: Any, *, help: str, metavar: str, choices: Sequence[str], **_: Any) -> None:  # noqa: A002
    text = help if default in (None, False, -1, (), 0.0) else f"{help}; default: %(default)s"
    if isinstance(default, bool):
        group.add_argument(flag(name), action="store_true", help=text)
        group.add_argument(f"--no-{flag(name)[2:]}", dest=name, action="store_false", help=argparse.SUPPRESS)
    elif isinstance(default, tuple):
        group.add_argument(flag(name), action=_Extend, metavar=metavar, help=text)
    else:
        text = text.replace("%(default)s", f"{default:g}" if isinstance(default, float) else str(default))
        group.add_argument(flag(name), type=kinds()[name], metavar=metavar, choices=choices, help=text)


class _Formatter(argparse.HelpFormatter):
    """Help formatter that does not break lines inside the name of an option."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return textwrap.indent("\n".join(self._split_lines(text, width - len(indent))), indent)


class _Extend(argparse.Action):
    """Action that collects a list, given in one argument or in several."""

    def __call__(self, _parser: Any, namespace: argparse.Namespace, values: Any, _option: str | None = None) -> None:
        setattr(namespace, self.dest, (*getattr(namespace, self.dest, ()), *split_list(values)))


def _with_sources(message: str, settings: Mapping[str, Setting]) -> str:
    """Return an error message with the source of each option that it names, unless that is the command line."""
    found = [
        f"{flag(name)} is {setting.source}"
        for name, setting in settings.items()
        if re.search(rf"{flag(name)}(?![\w-])", message)
    ]
    return f"{message} ({', '.join(found)})" if found else message


def _path(text: str) -> Path:
    """Return the path. An empty one is refused, since it would mean the working directory."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty; give a bundle, or a folder of bundles")
    if is_url(text):
        raise argparse.ArgumentTypeError(f"{text} is a URL; {COPY_URL}")
    return Path(text)


def _port(text: str) -> int:
    if not text.isdecimal():
        raise ServeError(f"$PORT must be a number, not {quoted(text)}")
    return int(text)
