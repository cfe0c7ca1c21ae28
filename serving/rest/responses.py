"""Responses and refusals, before they are written to a connection."""

from typing import NamedTuple

import orjson

from trpo_tf.serving.metrics.series import KINDS, Series

NO_CONTENT = 204
JSON = b"application/json"

RETRY_SECONDS = 1
"""Value of the Retry-After header of a 503 response."""

RETRY = b"retry-after: %d\r\n" % RETRY_SECONDS


class Response(NamedTuple):
    """An HTTP response.

    Attributes:
        headers: whole lines, each with its line end.
        series: metrics of the model that the request reached, if it reached one.
        error: kind of error; empty if it is none.
    """

    status: int
    body: bytes
    headers: bytes = b""
    content_type: bytes = JSON
    series: Series | None = None
    error: str = ""


class HttpError(Exception):
    """An error that is answered with {"error": message}. A cause is a fault of the server, which is logged."""

    def __init__(
        self, status: int, message: str, headers: bytes = b"", series: Series | None = None, kind: str = ""
    ) -> None:
        super().__init__(message)
        kind = kind or KINDS.get(status, "internal" if status >= 500 else "bad_request")
        body = orjson.dumps({"error": message})
        self.response = Response(status, body, headers, series=series, error=kind)


def too_large(limit: int, series: Series | None = None) -> HttpError:
    """Return the refusal of a body that is too large, as received or decompressed."""
    return HttpError(413, f"the body is larger than {limit} bytes; send fewer observations at a time", series=series)


def busy(what: str) -> HttpError:
    """Return the refusal, with status 503, when there are too many of `what`."""
    return HttpError(503, f"too many {what} at a time; come again", RETRY)
