"""What a body must not be, found before it is parsed: too large once decompressed, too deep."""

import re
import zlib

import numpy as np

from trpo_tf.serving.errors import RequestError

SMALL = 64 * 1024
"""Bytes of a message, or of what it has beside its tensors' numbers, that may be parsed whatever they are.

As Python objects or Protobuf messages they take a few megabytes and milliseconds at most.
"""

MAX_DEPTH = 32
"""Most objects and lists inside one another. A request needs three, and one for each dimension of an observation."""

ENCODINGS = {b"gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}
"""Content codings that a request may have, with zlib's name for each."""

# A string that doesn't end reaches to the end of the body, so that none is looked at twice.
STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)

_STEPS = np.zeros(256, np.int8)
_STEPS[list(b"[{")] = 1
_STEPS[list(b"]}")] = -1


class TooLargeError(Exception):
    """A body that is larger than the server takes."""


def decompress(body: bytes | bytearray, encoding: bytes, limit: int) -> bytes:
    """The body as it was before `encoding`, one of `ENCODINGS`; no more than `limit` bytes are ever made of it.

    Raises `TooLargeError`, or `RequestError` if it is damaged.
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


def check_depth(text: bytes | bytearray | memoryview) -> None:
    """Raise `RequestError` if JSON text has more than `MAX_DEPTH` objects and lists inside one another.

    It takes eight times the memory of the text: give it a small one.
    """
    text = bytes(text)
    if text.count(b"[") + text.count(b"{") <= MAX_DEPTH:
        return
    steps = _STEPS[np.frombuffer(STRING.sub(b"", text), np.uint8)]
    if np.cumsum(steps, dtype=np.int64).max(initial=0) > MAX_DEPTH:
        raise RequestError(f"the JSON is nested more than {MAX_DEPTH} deep")
