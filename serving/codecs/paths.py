"""Paths of requests: the encoding of model names in them, and error messages for unknown paths.

Paths are not normalized: `..` and an empty part are names like others. Each part is percent-decoded separately, so
that `%2F` belongs to a name and does not separate parts.
"""

import re
from collections.abc import Container
from urllib.parse import unquote

import httptools

from trpo_tf.serving.codecs.not_offered import instead_of
from trpo_tf.serving.errors import quoted

PREDICT = ":predict"
"""Suffix of TensorFlow Serving's prediction paths. A model whose own name ends with it has no such path."""

_KEPT = re.compile("%(25|2F)", re.IGNORECASE)

_PERCENT, _QUERY, _FRAGMENT = b"%?#"  # as integers: Python looks for an integer in bytes several times as fast


def part_of(name: str) -> str:
    """Return a name as a part of a path in the form of `decoded_path`: only `/` and `%` are encoded."""
    return name.replace("%", "%25").replace("/", "%2F")


def name_in(part: str) -> str:
    """Return the name in a part of a path; the inverse of `part_of`."""
    return part.replace("%2F", "/").replace("%25", "%")


def decoded_path(target: bytes) -> str:
    """Return the decoded path of a request target: a path or a URL. Raises `ValueError` if it is neither."""
    is_plain = target.startswith(b"/") and target.isascii()
    if is_plain and not (_PERCENT in target or _QUERY in target or _FRAGMENT in target):
        return target.decode()
    try:
        path = (httptools.parse_url(target).path or b"/").decode("utf-8", "replace")
    except httptools.HttpParserInvalidURLError:
        raise ValueError("the request's target is not a URL or a path") from None
    return unquote(_KEPT.sub(lambda found: f"%25{found[1].upper()}", path), errors="replace")


def no_version(model: str, version: str) -> str:
    """Return the error message for a version of a model that is not loaded."""
    return f"model {quoted(model)} has no version {quoted(version)} that is loaded"


def not_found(path: str, paths: Container[str]) -> str:
    """Return the error message for a path that is not among the server's `paths`."""
    hint = instead_of(path)
    return f"{_not_found(path, paths)}; {hint}" if hint else _not_found(path, paths)


def _not_found(path: str, paths: Container[str]) -> str:
    if path.startswith("/v2/repository/") and "/v2/repository/index" not in paths:
        return "clients may not load or unload models; the server has --repository-api to let them"
    parts = [part.removesuffix(PREDICT) if path.startswith("/v1/") else part for part in path.split("/")]
    match parts:
        case ["", _, "models", name, *rest] if name:
            model = quoted(name_in(name))
            if f"/v2/models/{name}/ready" not in paths:
                return f"there is no model {model}"
            if f"/v2/models/{name}" not in paths:
                return f"model {model} is not loaded"
            match rest:
                case ["versions", version, *_] if f"/v2/models/{name}/versions/{version}" not in paths:
                    return no_version(name_in(name), name_in(version))
    return f"there is nothing at {quoted(path)[1:-1]}"
