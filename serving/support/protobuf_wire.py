"""Reading and writing fields in Protobuf's wire format, without making messages.

The format: https://protobuf.dev/programming-guides/encoding.
"""

from collections.abc import Iterator
from typing import NamedTuple

VARINT, FIXED64, BYTES, START_GROUP, END_GROUP, FIXED32 = range(6)

_SIZES = {FIXED64: 8, FIXED32: 4, START_GROUP: 0, END_GROUP: 0}

_LONGEST_TAG = 5
"""Most bytes of a tag, with zeros in front."""

_DEEPEST = 100
"""Deepest nesting of groups; Protobuf has the same limit."""


class WireError(ValueError):
    """The bytes are not a Protobuf message."""


class Field(NamedTuple):
    """One field of a message, or of a group in it. The start and the end of a group are fields of their own.

    Attributes:
        wire_type: encoding of the value.
        value: integer of a varint, otherwise the bytes; none for the start or end of a group.
        start: index in the message of the first byte of its tag.
        end: index in the message after its last byte.
        depth: number of groups that the field is in.
    """

    number: int
    wire_type: int
    value: int | memoryview
    start: int
    end: int
    depth: int

    @property
    def content(self) -> memoryview | None:
        """The bytes of a message or a text; None for a number, and for what is in a group."""
        return self.value if self.wire_type == BYTES and not self.depth and isinstance(self.value, memoryview) else None


def fields_of(content: memoryview) -> Iterator[Field]:
    """Yield the fields of a message in order, with those in groups. Raises `WireError`."""
    start, groups = 0, list[int]()
    while start < len(content):
        tag, place = _varint(content, start)
        number, wire_type = tag >> 3, tag & 7
        # A parser that keeps only 32 bits of a longer tag would see another field.
        if number == 0 or tag >= 1 << 32 or place - start > _LONGEST_TAG:
            raise WireError
        if wire_type == END_GROUP and (not groups or groups.pop() != number):
            raise WireError
        value, end = _value(content, place, wire_type)
        yield Field(number, wire_type, value, start, end, len(groups))
        if wire_type == START_GROUP:
            groups.append(number)
            if len(groups) > _DEEPEST:
                raise WireError
        start = end
    if groups:
        raise WireError


def _value(content: memoryview, place: int, wire_type: int) -> tuple[int | memoryview, int]:
    """Return the value at `place`, and the index after it. Raises `WireError`."""
    if wire_type == VARINT:
        return _varint(content, place)
    if wire_type == BYTES:
        size, place = _varint(content, place)
    elif wire_type in _SIZES:
        size = _SIZES[wire_type]
    else:
        raise WireError
    if size > len(content) - place:
        raise WireError
    return content[place : place + size], place + size


def encoded(number: int, value: bytes) -> bytes:
    """Return the encoding of a field of bytes."""
    return written(number << 3 | BYTES) + written(len(value)) + value


def written(value: int) -> bytes:
    """Return the varint of a number of at most 64 bits."""
    written = bytearray()
    while value >= 0x80:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*written, value))


def _varint(content: memoryview, place: int) -> tuple[int, int]:
    """Return the number of the varint at `place`, and the index after it. Raises `WireError`."""
    value = 0
    for index, byte in enumerate(content[place : place + 10]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, place + index + 1
    raise WireError
