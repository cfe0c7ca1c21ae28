"""JSON bodies, parsed within a bound of memory and time whatever they hold.

As Python objects JSON can take eighty times its size. So a large body is taken apart first: long arrays of numbers,
where a request may have them, stay text, which `serving.codecs.json_numbers` reads. The rest must be small, and is
parsed.
"""

import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from trpo_tf.serving.codecs.body_limits import MAX_DEPTH, SMALL, STRING, check_depth
from trpo_tf.serving.errors import RequestError

Document = dict[str, Any]
Text = bytes | bytearray | memoryview

_LONG = 1024
"""Bytes of an array of numbers from which it stays text."""

_MOST_STRINGS = 4096
_BLANKS = b" \t\r\n"

_BEFORE_ARRAY = re.compile(rb"\s*:\s*\[")
_BEFORE_OBJECTS = re.compile(rb"\s*:\s*\[\s*\{")
_AFTER_OBJECTS = re.compile(rb"\}\s*\]")
_MARK = os.urandom(8).hex()
"""Begins what stands for an array in the rest of the body; no client can guess it."""


class JsonArray(NamedTuple):
    """The text of an array, its brackets included, which has not been parsed."""

    text: bytes


def parse_object(body: Text) -> Document:
    """A JSON object; of a large body, the long `data` of its inputs as `JsonArray`. Raises `RequestError`."""
    if len(body) <= SMALL:
        return _parse(body)
    document, arrays = parse_large(body, b"data")
    inputs = document.get("inputs")
    for tensor in inputs if isinstance(inputs, list) else []:
        if isinstance(tensor, dict) and (array := _taken(tensor.get("data"), arrays)):
            tensor["data"] = array
    _check_all_taken(arrays)
    return document


def parse_instances(body: bytes | bytearray, max_batch: int) -> Document:
    """A JSON object; of a large body, its `instances` as `JsonArray`. Raises `RequestError`."""
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
    """The object with a string in the place of each long array that is a value of `key`, and the arrays by string.

    What is left besides them must be `SMALL`. Raises `RequestError`.
    """
    content = bytes(body) if isinstance(body, memoryview) else body
    arrays: dict[str, JsonArray] = {}
    rest: list[bytes | bytearray] = []
    size = strings = place = 0
    name = b""  # the last string
    while place < len(content):
        quote = content.find(b'"', place)
        end = quote if quote >= 0 else len(content)
        start, stop = _find_array(content, place, end, name) if name == key else (0, 0)
        if stop:
            mark = f"{_MARK}{len(arrays)}"
            arrays[mark] = JsonArray(bytes(memoryview(content)[start:stop]))
            rest.append(content[place:start] + f'"{mark}"'.encode())
            size += len(rest[-1])
            place, name = stop, b""
            continue
        match = STRING.match(content, end, end + SMALL)
        after = match.end() if match else end
        rest.append(content[place:end].strip(_BLANKS) + content[end:after])
        size += len(rest[-1])
        strings += 1
        if size > SMALL or strings > _MOST_STRINGS:
            raise RequestError(
                f"beside the numbers of its inputs a request may have {SMALL} bytes of JSON and {_MOST_STRINGS} strings"
            )
        place, name = after, unescaped(bytes(content[end + 1 : after - 1]))
    return _parse(b"".join(rest)), arrays


def _find_array(content: bytes | bytearray, place: int, end: int, name: bytes) -> tuple[int, int]:
    """Where the array begins and ends that is the value of key `name` before `place`; 0 and 0 if it has no numbers.

    It has no strings, so that it ends before `end`, where the next one is. Only `instances` may be objects whose values
    are such arrays. Raises `RequestError` if these have no end, which is looked for once: behind each key again it
    could take minutes.
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
    """What a JSON string stands for, without its quotes; as it is if that is nothing."""
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
