"""Reading and writing fields in Protobuf's wire format, without making messages.

The format: https://protobuf.dev/programming-guides/encoding.
"""

from collections.abc import Iterator
from typing import NamedTuple

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


class WireError(ValueError):
    """The bytes are not a Protobuf message."""


class Field(NamedTuple):
    """One field of a message.

    Attributes:
        wire_type: encoding of the value; groups are not supported.
        value: integer of a varint, otherwise the bytes.
        start: index in the message of the first byte of its tag.
        end: index in the message after its last byte.
    """

    number: int
    wire_type: int
    value: int | memoryview
    start: int
    end: int

    @property
    def content(self) -> memoryview | None:
        """The bytes of a message or a text; None for a number."""
        return self.value if self.wire_type == BYTES and isinstance(self.value, memoryview) else None


def fields_of(content: memoryview) -> Iterator[Field]:
    """Yield the fields of a message in order. Raises `WireError`."""
    start, end = 0, len(content)
    while start < end:
        tag, place = _varint(content, start)
        number, wire_type = tag >> 3, tag & 7
        # A parser that keeps only 32 bits of a longer tag would see another field.
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
            return value, place + index + 1
    raise WireError
