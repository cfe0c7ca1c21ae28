"""Converts Protobuf varints to a NumPy array, without a Python object for each number."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from trpo_tf.serving.codecs.parsing.json_numbers import Element
from trpo_tf.serving.errors import RequestError
from trpo_tf.serving.runtime.observations import Array

_PIECE = 32 * 1024
"""Bytes that are read at a time: the arrays for them fit into the processor's cache."""

_LONGEST = 10
"""Most bytes of a varint: those of a 64-bit number."""

_HARMLESS = 16 * 2**20
"""Most bytes of an array that a message of any size may be converted to."""

_MOST_GROWTH = 4
"""Most bytes of a larger array per byte of its message. A number of one byte may become eight bytes."""


class Varints(NamedTuple):
    """Numbers in Protobuf's wire format, in parts.

    Attributes:
        field: field of InferTensorContents that held them, which determines their type.
        message_size: size of the message in bytes.
    """

    parts: Sequence[memoryview]
    field: str
    message_size: int


def read_varints(varints: Varints, shape: Sequence[int], element: Element, where: str) -> Array:
    """Return the numbers as an array of `shape`. Raises `RequestError`, with messages that start with `where`."""
    parts, count, dtype = [np.frombuffer(part, np.uint8) for part in varints.parts], math.prod(shape), element.dtype
    given = sum(np.count_nonzero(part < 0x80) for part in parts)
    if given != count:
        raise RequestError(f"{where} must have {count} elements of data, not {given}")
    if count * dtype.itemsize > max(_HARMLESS, _MOST_GROWTH * varints.message_size):
        raise RequestError(f"{where} has too much data for a message of its size; send raw_input_contents")
    numbers, place = np.empty(count, dtype), 0
    for piece in (piece for part in parts for piece in _pieces(part)):
        values = _interpreted(_read(piece), varints.field)
        if not element.least <= values.min() <= values.max() <= element.greatest:
            raise RequestError(f"{where} holds a number out of range for {element.datatype}")
        numbers[place : place + len(values)] = values
        place += len(values)
    return numbers.reshape(shape)


def _pieces(part: Array) -> Iterator[Array]:
    """Yield the bytes in pieces, split only between numbers. Raises `RequestError`."""
    start = 0
    while start < len(part):
        end = min(start + _PIECE, len(part))
        last = np.flatnonzero(part[max(start, end - _LONGEST) : end] < 0x80)
        if not len(last) or (end == len(part) and part[-1] >= 0x80):
            raise _broken()
        end = max(start, end - _LONGEST) + int(last[-1]) + 1
        yield part[start:end]
        start = end


def _read(piece: Array) -> Array:
    """Return the numbers of a piece as unsigned integers: uint8 if each has one byte, otherwise uint32 or uint64."""
    ends = np.flatnonzero(piece < 0x80)
    if len(ends) == len(piece):
        return piece
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    longest = int(lengths.max())
    if longest > _LONGEST:
        raise _broken()
    low = piece & 0x7F
    dtype = np.dtype(np.uint32 if longest <= 4 else np.uint64)
    values: Array = low[starts].astype(dtype)
    for index in range(1, longest):
        longer = np.flatnonzero(lengths > index)
        values[longer] += low[starts[longer] + index].astype(dtype) << dtype.type(7 * index)
    return values


def _interpreted(values: Array, field: str) -> Array:
    match field:
        case "bool_contents":
            return np.asarray(values != 0)
        case "int_contents":
            return values.astype(np.uint32).view(np.int32)
        case "int64_contents":
            return values.astype(np.uint64).view(np.int64)
        case "uint_contents":
            return values.astype(np.uint32)
    return values


def _broken() -> RequestError:
    return RequestError("the message is not an inference.ModelInferRequest")
