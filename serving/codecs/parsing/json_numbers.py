"""Converts the text of a JSON array to a NumPy array, without holding a Python object for each number.

A number takes at least 24 bytes as a Python object, but as few as two as text. So the brackets of the whole text are
compared with the shape, and the numbers are parsed in pieces. `request_validation` does the same for short data, which
is parsed as a whole.
"""

import math
import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson

from trpo_tf.serving.errors import RequestError
from trpo_tf.serving.runtime.observations import Array

_PIECE = 32 * 1024
"""Bytes of text that are parsed at a time."""

_SHORT = 4
"""Most digits of an integer of which all fit into 16 bits."""

_BLANKS = b" \t\r\n"
_KINDS = bytes(byte if byte in b"[]," else ord(",") if byte in _BLANKS else ord("1") for byte in range(256))
"""Table for `translate`: brackets stay, blanks and commas become `,`, and bytes of numbers become `1`."""

_NO_STRUCTURE = bytes(byte for byte in range(256) if byte not in b"[],")


class Element(NamedTuple):
    """Limits of JSON data of one datatype: numbers from `least` to `greatest` are in its range."""

    datatype: str
    dtype: np.dtype[Any]
    least: float
    greatest: float


def read_array(text: bytes, shape: Sequence[int], spec: Element, where: str) -> Array:
    """Return the numbers of a JSON array, flat or nested as `shape`, as an array of `shape`. Raises `RequestError`.

    Error messages start with `where`.
    """
    count = text.count(b",") + 1
    if count != math.prod(shape):
        raise RequestError(f"{where} must have {math.prod(shape)} elements of data, not {count}")
    text = _without_blanks(text, where)
    if text == b"[]":
        raise RequestError(f"{where} must have {math.prod(shape)} elements of data, not 0")
    if text[1:2] == b"[":
        _check_nesting(text, shape, where)
    elif not text.count(b"[") == text.count(b"]") == 1:
        raise RequestError(f"{where} must have its data flat, or nested as its shape says")
    try:
        numbers = _read_booleans(text) if spec.dtype.kind == "b" else _read_numbers(text, count, spec)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the body is not JSON: {error.msg} in the data of {where}") from None
    except OverflowError:
        raise RequestError(f"{where} holds a number out of range for {spec.datatype}") from None
    except TypeError:
        raise RequestError(f"{where} must hold nothing but {spec.datatype} data") from None
    return numbers.reshape(shape)


def _without_blanks(text: bytes, where: str) -> bytes:
    if not any(blank in text for blank in (b" ", b"\n", b"\t", b"\r")):
        return text
    bare = text.translate(None, _BLANKS)
    # Blanks inside a number split it in two.
    if _count_numbers(bare) != _count_numbers(text):
        raise RequestError(f"the body is not JSON: a comma is missing in the data of {where}")
    return bare


def _count_numbers(text: bytes) -> int:
    kinds = text.translate(_KINDS)
    return kinds.count(b",1") + kinds.count(b"[1") + kinds.count(b"]1")


def _check_nesting(text: bytes, shape: Sequence[int], where: str) -> None:
    """Check that brackets and commas match the shape, and that numbers are only in the innermost brackets."""
    depth = len(shape)
    is_right = text.startswith(b"[" * depth) and text.endswith(b"]" * depth)
    for axis in range(1, depth):
        between = b"]" * axis + b"," + b"[" * axis
        is_right = is_right and text.count(between) == math.prod(shape[: depth - axis]) - 1
    if not is_right or text.translate(None, _NO_STRUCTURE) != _structure(shape):
        raise RequestError(f"{where} must have its data flat, or nested as its shape says")


def _structure(shape: Sequence[int]) -> bytes:
    """Return the brackets and commas of an array of this shape."""
    structure = b"[%b]" % (b"," * (shape[-1] - 1))
    for size in reversed(shape[:-1]):
        structure = b"[%b%b]" % ((structure + b",") * (size - 1), structure)
    return structure


def _read_booleans(text: bytes) -> Array:
    digits = text.translate(None, b"[]").replace(b"true", b"\1").replace(b"false", b"\0")
    values = np.frombuffer(digits[::2], np.uint8)
    if len(digits) % 2 == 0 or digits[1::2].strip(b",") or values.max() > 1:
        raise TypeError  # the array is empty, ends with a comma, or holds something other than true and false
    return values.astype(bool)


def _read_numbers(text: bytes, count: int, spec: Element) -> Array:
    """Return the numbers of an array. Raises `JSONDecodeError`, `OverflowError` and, for other kinds, `TypeError`."""
    if b"t" in text or b"f" in text:
        raise TypeError  # true and false would pass for 1 and 0
    numbers, place = np.empty(count, spec.dtype), 0
    for piece in _pieces(text):
        values = _read(piece, spec.dtype)
        if not spec.least <= values.min() <= values.max() <= spec.greatest:
            raise OverflowError
        numbers[place : place + len(values)] = values
        place += len(values)
    return numbers


def _pieces(text: bytes) -> Iterator[bytes]:
    """Yield the text in pieces without brackets, split only between numbers."""
    start = 0
    while start < len(text):
        end = found if (found := text.find(b",", start + _PIECE)) >= 0 else len(text)
        # Unlike `translate` this is fast where brackets are few.
        yield text[start:end].replace(b"[", b"").replace(b"]", b"")
        start = end + 1


def _read(piece: bytes, dtype: np.dtype[Any]) -> Array:
    """Return the numbers of a piece: integers, or floats for a float dtype.

    Short integers, if they are most, are read by array operations: that takes a third of the time. The others are
    parsed as Python objects.
    """
    commas = piece.count(b",")
    if commas * 5 < len(piece) or commas < 2 * sum(map(piece.count, (b".", b"-", b"e", b"E"))):
        return _parse(piece, dtype)
    text = np.frombuffer(b"%b," % piece, np.uint8)
    digits = text - np.uint8(ord("0"))
    odd = ends = np.flatnonzero(digits > 9)
    if len(odd) > commas + 1:
        is_end = text[odd] == ord(",")
        ends = odd[is_end]
    lengths = np.diff(ends, prepend=-1) - 1
    is_other = (lengths > 1) & (digits[ends - lengths] == 0)  # leading zeros, which the parser then refuses
    if lengths.min() < 1 or lengths.max() > _SHORT:
        is_other |= (lengths < 1) | (lengths > _SHORT)
    if len(odd) > len(ends):
        is_other[np.searchsorted(ends, odd[~is_end])] = True
    numbers = digits[ends - 1].astype(np.int16)
    for place in range(1, min(int(lengths.max()), _SHORT)):
        numbers += (digits[ends - 1 - place] * (lengths > place)).astype(np.int16) * np.int16(10**place)
    if not is_other.any():
        return numbers
    parsed = _parse(text[np.repeat(is_other, lengths + 1)][:-1].tobytes(), dtype)
    values = numbers.astype(parsed.dtype)
    values[is_other] = parsed
    return values


def _parse(piece: bytes, dtype: np.dtype[Any]) -> Array:
    """Return the numbers of a piece, parsed as JSON: 64-bit integers, or floats for a float dtype."""
    if not piece:
        raise TypeError  # an empty list inside, or nothing after the last comma
    values = orjson.loads(b"[%b]" % piece)
    is_whole = not (b"." in piece or b"e" in piece or b"E" in piece)
    if dtype.kind != "f" and not is_whole:
        raise TypeError
    if is_whole and (whole := _packed(values, "q")) is not None:  # twice as fast as packing them as floats
        return whole.astype(np.float64) if dtype.kind == "f" else whole  # rounded as Python rounds integers
    if dtype.kind == "f":
        numbers = _packed(values, "d")
    else:
        numbers = _packed(values, "Q")
        if numbers is None and {int}.issuperset(map(type, values)):
            raise OverflowError
    if numbers is None:
        raise TypeError
    return numbers


def _packed(values: list[Any], form: str) -> Array | None:
    """Return the values packed in this format of `struct`; None if it can't hold one of them."""
    try:
        return np.frombuffer(struct.pack(f"{len(values)}{form}", *values), form)
    except struct.error:
        return None
