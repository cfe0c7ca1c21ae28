"""Protobuf's wire format, walked field by field without making messages: https://protobuf.dev/programming-guides/encoding."""

from collections.abc import Iterator
from typing import NamedTuple

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


class WireError(ValueError):
    """Bytes that are no Protobuf message."""


class Field(NamedTuple):
    """One field of a message.

    Attributes:
        wire_type: how it is written; groups are not known.
        value: an integer for a varint, otherwise the bytes.
        start: where it begins in the message, with its tag.
        end: where it ends.
    """

    number: int
    wire_type: int
    value: int | memoryview
    start: int
    end: int


def fields_of(content: memoryview) -> Iterator[Field]:
    """The fields of a message, in their order. Raises `WireError`."""
    start, end = 0, len(content)
    while start < end:
        tag, place = _varint(content, start)
        number, wire_type = tag >> 3, tag & 7
        # A parser that keeps 32 bits of the tag would see another field.
        if number == 0 or tag >= 1 << 32:
            raise WireError
        if wire_type == VARINT:
            value, place = _varint(content, place)
            yield Field(number, wire_type, value, start, place)
            start = place
            continue
        if wire_type == BYTES:
            size, place = _varint(content, place)
        elif wire_type in (FIXED64, FIXED32):
            size = 8 if wire_type == FIXED64 else 4
        else:
            raise WireError
        if size > end - place:
            raise WireError
        yield Field(number, wire_type, content[place : place + size], start, place + size)
        start = place + size


def encoded(number: int, value: bytes) -> bytes:
    """A field of bytes, as it is written."""
    return written(number << 3 | BYTES) + written(len(value)) + value


def written(value: int) -> bytes:
    """A number of 64 bits at most, 7 in a byte."""
    written = bytearray()
    while value >= 0x80:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*written, value))


def _varint(content: memoryview, place: int) -> tuple[int, int]:
    """A number of at most 64 bits, 7 in a byte, and the place behind it."""
    value = 0
    for index, byte in enumerate(content[place : place + 10]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, place + index + 1
    raise WireError
