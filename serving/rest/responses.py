"""Responses and refusals, before they are written to a connection."""

from typing import NamedTuple

import orjson

from trpo_tf.serving.metrics.series import KINDS, Series

NO_CONTENT = 204

RETRY_SECONDS = 1
"""When to come back, in a 503's Retry-After."""


class Response(NamedTuple):
    """What is answered.

    Attributes:
        headers: whole lines, each with its line end.
        series: where the request is counted, if it reached a model.
        error: what kind of error it is, if it is one.
    """

    status: int
    body: bytes
    headers: bytes = b""
    content_type: bytes = b"application/json"
    series: Series | None = None
    error: str = ""


class HttpError(Exception):
    """A request that is answered with {"error": message}. If it has a cause, that is the server's own fault."""

    def __init__(
        self, status: int, message: str, headers: bytes = b"", series: Series | None = None, kind: str = ""
    ) -> None:
        super().__init__(message)
        kind = kind or KINDS.get(status, "internal" if status >= 500 else "bad_request")
        body = orjson.dumps({"error": message})
        self.response = Response(status, body, headers, series=series, error=kind)


def too_large(limit: int, series: Series | None = None) -> HttpError:
    """The answer to a body that is too large, as it came or decompressed."""
    return HttpError(413, f"the body is larger than {limit} bytes; send fewer observations at a time", series=series)


def busy(what: str) -> HttpError:
    """The answer to one too many."""
    return HttpError(503, f"too many {what} at a time; come again", b"retry-after: %d\r\n" % RETRY_SECONDS)
