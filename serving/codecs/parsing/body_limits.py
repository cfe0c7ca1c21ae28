"""Limits of request bodies that are checked before parsing: decompressed size and nesting."""

import re
import zlib

import numpy as np

from trpo_tf.serving.errors import RequestError

SMALL = 64 * 1024
"""Most bytes that are parsed without further checks: a whole message, or a larger one without its tensors' numbers.

As Python objects or Protobuf messages they take a few megabytes and milliseconds at most.
"""

MAX_DEPTH = 32
"""Deepest nesting of objects and lists. A request needs three levels, and one for each dimension of an observation."""

ENCODINGS = {b"gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}
"""Content codings that a request may have, with zlib's `wbits` for each."""

# An unterminated string matches up to the end of the body, so that no byte is scanned twice.
STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)

_STEPS = np.zeros(256, np.int8)
_STEPS[list(b"[{")] = 1
_STEPS[list(b"]}")] = -1


class TooLargeError(Exception):
    """The body is larger than the server accepts."""


def decompress(body: bytes | bytearray, encoding: bytes, limit: int) -> bytes:
    """Decompress a body whose encoding is one of `ENCODINGS`, to at most `limit` bytes.

    Raises `TooLargeError` if there are more, or `RequestError` if the body is damaged.
    """
    stream = zlib.decompressobj(ENCODINGS[encoding])
    try:
        content = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise RequestError(f"the body is not {encoding.decode()}: {error}") from None
    if len(content) > limit:
        raise TooLargeError
    if not stream.eof or stream.unused_data:
        raise RequestError(f"the body is not one whole {encoding.decode()} stream")
    return content


def check_depth(text: bytes | bytearray) -> None:
    """Raise `RequestError` if objects and lists in JSON text are nested more than `MAX_DEPTH` deep.

    The check takes eight times the memory of the text, so the text should be small.
    """
    if text.count(b"[") + text.count(b"{") <= MAX_DEPTH:
        return
    steps = _STEPS[np.frombuffer(STRING.sub(b"", text), np.uint8)]
    if np.cumsum(steps, dtype=np.int64).max(initial=0) > MAX_DEPTH:
        raise RequestError(f"the JSON is nested more than {MAX_DEPTH} deep")
