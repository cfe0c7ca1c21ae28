"""Responses and refusals, before they are written to a connection."""

from http import HTTPStatus
from typing import NamedTuple

import orjson

from trpo_tf.serving.metrics.series import KINDS, Series

NO_CONTENT = 204
JSON = b"application/json"

RETRY_SECONDS = 1
"""Value of the Retry-After header of a 503 response."""

RETRY = b"retry-after: %d\r\n" % RETRY_SECONDS

_STATUS_LINES = {status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}


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


def wire_bytes(response: Response, common: bytes, headers: bytes, *, is_head: bool) -> bytes:
    """Return a response as it is written to a connection.

    `common` are the header lines of every response, `headers` those of this one. A response to HEAD has no body.
    """
    status, body = response.status, response.body
    if status == NO_CONTENT:
        return b"%b%b%b\r\n" % (_STATUS_LINES[status], common, headers)
    return b"%b%b%bcontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (
        _STATUS_LINES[status],
        common,
        headers,
        response.content_type,
        len(body),
        b"" if is_head else body,
    )


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
