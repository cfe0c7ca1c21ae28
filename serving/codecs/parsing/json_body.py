"""Parsing of JSON bodies within bounded memory and time, whatever they hold.

As Python objects JSON can take eighty times its size. So a large body is split first: long arrays of numbers, where a
request may have them, stay text, which `json_numbers` reads. The rest must be small, and is parsed.
"""

import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from trpo_tf.serving.codecs.parsing.body_limits import MAX_DEPTH, SMALL, STRING, check_depth
from trpo_tf.serving.errors import RequestError

Document = dict[str, Any]
Text = bytes | bytearray

_LONG = 1024
"""Size in bytes beyond which an array of numbers stays text."""

_MOST_STRINGS = 4096
_BLANKS = b" \t\r\n"

_BEFORE_ARRAY = re.compile(rb"\s*:\s*\[")
_BEFORE_OBJECTS = re.compile(rb"\s*:\s*\[\s*\{")
_AFTER_OBJECTS = re.compile(rb"\}\s*\]")
_MARK = os.urandom(8).hex()
"""Random prefix of the placeholders for arrays in the rest of the body; clients can't guess it."""


class JsonArray(NamedTuple):
    """Text of an array that has not been parsed, with its brackets."""

    text: bytes


def parse_object(body: Text) -> Document:
    """Parse a JSON object; in a large body, long `data` of inputs becomes `JsonArray`. Raises `RequestError`."""
    if len(body) <= SMALL:
        return _parse(body)
    document, arrays = parse_large(body, b"data")
    inputs = document.get("inputs")
    for tensor in inputs if isinstance(inputs, list) else []:
        if isinstance(tensor, dict) and (array := _taken(tensor.get("data"), arrays)):
            tensor["data"] = array
    _check_all_taken(arrays)
    return document


def parse_instances(body: Text, max_batch: int) -> Document:
    """Parse a JSON object; in a large body, long `instances` become `JsonArray`. Raises `RequestError`."""
    if len(body) <= SMALL:
        return _parse(body)
    if max(body.count(b"{"), body.count(b"}")) > max_batch + MAX_DEPTH:
        raise RequestError(f"there may be {max_batch} instances at most")
    document, arrays = parse_large(body, b"instances")
    if array := _taken(document.get("instances"), arrays):
        document["instances"] = array
    _check_all_taken(arrays)
    return document


def parse_large(body: Text, key: bytes) -> tuple[Document, dict[str, JsonArray]]:
    """Parse an object in which placeholders replace the long arrays under `key`; return it with the arrays.

    The arrays are returned by placeholder. The rest may have `SMALL` bytes at most. Raises `RequestError`.
    """
    arrays: dict[str, JsonArray] = {}
    rest: list[bytes | bytearray] = []
    size = strings = place = 0
    name = b""  # the last string
    while place < len(body):
        quote = body.find(b'"', place)
        end = quote if quote >= 0 else len(body)
        start, stop = _find_array(body, place, end, name) if name == key else (0, 0)
        if stop:
            mark = f"{_MARK}{len(arrays)}"
            arrays[mark] = JsonArray(bytes(memoryview(body)[start:stop]))
            rest.append(body[place:start] + f'"{mark}"'.encode())
            size += len(rest[-1])
            place, name = stop, b""
            continue
        match = STRING.match(body, end, end + SMALL)
        after = match.end() if match else end
        rest.append(body[place:end].strip(_BLANKS) + body[end:after])
        size += len(rest[-1])
        strings += 1
        if size > SMALL or strings > _MOST_STRINGS:
            raise RequestError(
                f"besides its inputs' numbers a request may have {SMALL} bytes of JSON and {_MOST_STRINGS} strings"
            )
        place, name = after, unescaped(bytes(body[end + 1 : after - 1]))
    return _parse(b"".join(rest)), arrays


def _find_array(content: Text, place: int, end: int, name: bytes) -> tuple[int, int]:
    """Return start and end of the array that follows key `name` at `place`; 0 and 0 if there is no long one.

    An array of numbers holds no string, so it ends before `end`, where the next string starts. Only `instances` may
    hold objects, whose values are such arrays. Raises `RequestError` if those have no end. An error avoids a search for
    the end after each key, which could take minutes.
    """
    if name == b"instances" and _BEFORE_OBJECTS.match(content, place):
        if last := _AFTER_OBJECTS.search(content, place):
            return content.find(b"[", place), last.end()
        raise RequestError("instances that begin with an object must end with one")
    if not _BEFORE_ARRAY.match(content, place) or end - place <= _LONG:
        return 0, 0
    for brace in (b"{", b"}"):
        end = found if (found := content.find(brace, place, end)) >= 0 else end
    return content.find(b"[", place, end), content.rfind(b"]", place, end) + 1


def unescaped(string: bytes) -> bytes:
    """Return a JSON string, given without quotes, with its escapes decoded; unchanged if an escape is invalid."""
    if b"\\" not in string:
        return string
    try:
        return str(orjson.loads(b'"%b"' % string)).encode()
    except orjson.JSONDecodeError:
        return string


def _taken(value: Any, arrays: dict[str, JsonArray]) -> JsonArray | None:
    return arrays.pop(value, None) if isinstance(value, str) else None


def _check_all_taken(arrays: Mapping[str, JsonArray]) -> None:
    if arrays:
        raise RequestError("only the inputs of a request may have long arrays, and each of them one")


def _parse(text: Text) -> Document:
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the body is not JSON: {error}") from None
    check_depth(text)
    if not isinstance(document, dict):
        raise RequestError("the body must be a JSON object")
    return document
