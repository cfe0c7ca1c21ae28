"""Parsing of large gRPC messages within bounded memory and time, whatever they hold.

As Protobuf objects a message can take two hundred times its size. So a large one is split first: its tensors'
numbers stay bytes, which NumPy reads. The rest must be small, and is parsed as usual.
"""

from collections.abc import Iterator

from trpo_tf.serving.codecs.parsing.body_limits import SMALL
from trpo_tf.serving.errors import RequestError
from trpo_tf.serving.support.protobuf_wire import BYTES, FIXED32, FIXED64, VARINT, Field, encoded, fields_of, written

MOST_FIELDS = 4096
"""Most fields of a large message, including those of its inputs."""

LONGEST_NAME = 4096
"""Bytes of a name that are kept: the name of every model, version and service is shorter."""

# Numbers of the protocol's fields.
_REQUEST_NAMES, _INPUTS, _RAW = (1, 2), 5, 7
_INPUT_CONTENTS = 5
_CONTENTS = {
    **dict.fromkeys(("bool_contents", "int_contents", "int64_contents", "uint_contents", "uint64_contents"), VARINT),
    "fp32_contents": FIXED32,
    "fp64_contents": FIXED64,
    "bytes_contents": BYTES,
}
_FIELDS = {number: (name, wire_type) for number, (name, wire_type) in enumerate(_CONTENTS.items(), 1)}

Contents = dict[str, list[memoryview]]
"""Contents of a tensor by field name, each in parts; the bytes of a part are those of a packed field."""


def take_apart(content: bytes) -> tuple[bytes, list[Contents], list[memoryview]]:
    """Split a ModelInferRequest into the message without numbers, the contents of each input, and the raw contents.

    Raises `RequestError`, or `WireError` for bytes that are not a message.
    """
    view, rest = memoryview(content), _Rest()
    contents: list[Contents] = []
    raw: list[memoryview] = []
    for field in rest.counted(view):
        if field.number == _RAW and field.content is not None:
            raw.append(field.content)
        elif field.number == _INPUTS and field.content is not None:
            tensor, own = _take_contents(field.content, rest)
            contents.append(own)
            rest.add(encoded(_INPUTS, tensor))
        elif field.number in _REQUEST_NAMES:
            rest.add(_short(field, view))
        else:
            rest.add(view[field.start : field.end])
    return rest.content(), contents, raw


def with_short_names(content: bytes) -> bytes:
    """Return a message that has only names, with each cut to `LONGEST_NAME` bytes. Raises as `take_apart` does."""
    view, rest = memoryview(content), _Rest()
    for field in rest.counted(view):
        rest.add(_short(field, view))
    return rest.content()


class _Rest:
    """The small part of a message that is left to parse, with counts of its bytes and of all fields read."""

    def __init__(self) -> None:
        self._parts: list[bytes | memoryview] = []
        self._size = self._fields = 0

    def counted(self, content: memoryview) -> Iterator[Field]:
        """Yield the fields of a message. Raises `RequestError` beyond `MOST_FIELDS` fields over all calls."""
        for field in fields_of(content):
            self._fields += 1
            if self._fields > MOST_FIELDS:
                raise RequestError(
                    f"a message of more than {SMALL} bytes may have {MOST_FIELDS} fields; pack the numbers of a "
                    "tensor, or send raw_input_contents"
                )
            yield field

    def add(self, part: bytes | memoryview) -> None:
        self._size += len(part)
        if self._size > SMALL:
            raise RequestError(f"besides its inputs' numbers a message may have {SMALL} bytes")
        self._parts.append(part)

    def content(self) -> bytes:
        return b"".join(self._parts)


def _short(field: Field, message: memoryview) -> bytes | memoryview:
    if isinstance(field.value, memoryview) and len(field.value) > LONGEST_NAME:
        name = bytes(field.value[:LONGEST_NAME]).decode(errors="ignore").encode()
        return encoded(field.number, name)
    return message[field.start : field.end]


def _take_contents(tensor: memoryview, rest: _Rest) -> tuple[bytes, Contents]:
    """Split an input tensor from its contents. A repeated contents field is merged into one, as Protobuf does."""
    parts: list[memoryview] = []
    contents: Contents = {}
    for field in rest.counted(tensor):
        if field.number != _INPUT_CONTENTS or field.content is None:
            parts.append(tensor[field.start : field.end])
            continue
        for inner in rest.counted(field.content):
            name, wire_type = _FIELDS.get(inner.number, ("", VARINT))
            if inner.wire_type in (wire_type, BYTES) and name and not inner.depth:
                # An unpacked number has the same bytes as in a packed field.
                own = memoryview(written(inner.value)) if isinstance(inner.value, int) else inner.value
                contents.setdefault(name, []).append(own)
    return b"".join(parts), contents
