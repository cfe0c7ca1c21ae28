"""A request with its answer, as access log and traces see it."""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from serving.routes import Response
from serving.traceparent import TraceParent

_SANE_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")


class Exchange(NamedTuple):
    """What was asked, and what was answered.

    Attributes:
        method: empty if the head never came whole; and so is what comes after it.
        target: as the client sent it.
        headers: by name in small letters.
        is_known: whether there is such a route, and the request was let through to it.
        response: the answer.
        seconds: from the request's first byte until the answer was written.
        request_id: the client's own, empty if there is none or it is not a sane one.
        parent: the client's place in a trace.
    """

    method: bytes
    target: bytes
    headers: Mapping[bytes, bytes]
    is_known: bool
    response: Response
    seconds: float
    request_id: bytes
    parent: TraceParent | None


Observer = Callable[[Exchange], None]


def sane_id(given: bytes) -> bytes:
    """An `x-request-id` that the answer may repeat: up to 128 letters, digits and `._:/+=@-`. Empty for another one."""
    return given if _SANE_ID.fullmatch(given) else b""
