"""Options from the environment and from a TOML file.

`kinds` has the type of each option by its name: str, int, float, bool, or tuple for a list of strings.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from trpo_tf.serving.errors import ServeError, quoted
from trpo_tf.serving.support.regular_file import read_regular

PREFIX = "TRPO_TF_"

CONFIG = f"{PREFIX}CONFIG"

_SWITCHES = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}

_EXPECTED = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "1, 0, true or false",
    tuple: "a list of texts",
}

# Kubernetes sets such variables for every service, and the name of one may start with trpo-tf.
_OF_A_SERVICE = re.compile(rf"{PREFIX}(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)")
_SERVICE_URL = re.compile(r"(tcp|udp|sctp)://")


class Setting(NamedTuple):
    """Value of an option, and its source in the words of an error message."""

    value: Any
    source: str


def from_environment(kinds: Mapping[str, type], environment: Mapping[str, str]) -> dict[str, Setting]:
    """Return the options set by variables such as TRPO_TF_MAX_BODY. Empty ones are ignored. Raises `ServeError`."""
    known = {PREFIX + name.upper(): name for name in kinds}
    settings = {}
    for variable, text in environment.items():
        if not variable.startswith(PREFIX) or variable == CONFIG or _is_of_a_service(variable, text):
            continue
        source = f"{variable} in the environment"
        if variable not in known:
            raise ServeError(f"there is no option {source}; the nearest is {_nearest(variable, [*known, CONFIG])}")
        if text:
            name = known[variable]
            settings[name] = Setting(_converted(text, kinds[name], source), source)
    return settings


def from_file(kinds: Mapping[str, type], path: str | Path) -> dict[str, Setting]:
    """Return the options set in a TOML file, with `-` or `_` in their names. Raises `ServeError`."""
    import tomllib

    try:
        document = tomllib.loads(read_regular(path).decode("utf-8-sig"))
    except OSError as error:
        raise ServeError(f"can't read --config {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise ServeError(f"--config {path} is not TOML: {error}") from None
    settings: dict[str, Setting] = {}
    for key, value in document.items():
        name, source = key.replace("-", "_"), f"{key} in {path}"
        if isinstance(value, dict) and name not in kinds:
            raise ServeError(f"there is no table {source}; put its options at the top, before any [table]")
        if name not in kinds:
            nearest = _nearest(name, kinds).replace("_", "-")
            raise ServeError(f"there is no option {source}; the nearest is {nearest}")
        if name in settings:
            raise ServeError(f"{source} is there twice; remove one of the two")
        settings[name] = Setting(_checked(value, kinds[name], source), source)
    return settings


def split_list(text: str) -> tuple[str, ...]:
    """Split a list written as text at commas and blanks."""
    return tuple(re.split(r"[,\s]+", text.strip(", \t\r\n"))) if text.strip(", \t\r\n") else ()


def _is_of_a_service(variable: str, text: str) -> bool:
    is_url = variable.endswith("_PORT") and _SERVICE_URL.match(text)
    return bool(is_url or _OF_A_SERVICE.fullmatch(variable))


def _converted(text: str, kind: type, source: str) -> Any:
    try:
        if kind is bool:
            return _SWITCHES[text.strip().lower()]
        return split_list(text) if kind is tuple else kind(text)
    except (KeyError, ValueError):
        raise ServeError(f"{source} must be {_EXPECTED[kind]}, not {quoted(text)}") from None


def _checked(value: Any, kind: type, source: str) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    if kind is tuple and isinstance(value, list) and all(isinstance(part, str) for part in value):
        return tuple(value)
    if type(value) is not kind:
        raise ServeError(f"{source} must be {_EXPECTED[kind].removeprefix('1, 0, ')}, not {quoted(value)}")
    return value


def _nearest(name: str, known: Iterable[str]) -> str:
    import difflib

    return difflib.get_close_matches(name, list(known), 1, 0.0)[0]
