"""A request with its answer, over HTTP or gRPC, as access log and traces see it."""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from serving.metrics import Series
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


class GrpcExchange(NamedTuple):
    """A gRPC call, and how it ended.

    Attributes:
        method: its path, as in "/grpc.health.v1.Health/Check"; empty if there is no such method.
        code: name of its status, "OK" if all went well.
        number: that status's.
        kind: what went wrong, if something did.
        series: of the model that was found.
        seconds: from when it came until it was answered.
        request_id: as in `Exchange`.
        parent: the client's place in a trace.
        state: its tracestate.
    """

    method: str
    code: str
    number: int
    kind: str
    series: Series | None
    seconds: float
    request_id: bytes
    parent: TraceParent | None
    state: bytes


class Observers(NamedTuple):
    """Who is told of each request, and of each call."""

    http: tuple[Callable[[Exchange], None], ...] = ()
    grpc: tuple[Callable[[GrpcExchange], None], ...] = ()


NOBODY = Observers()


def sane_id(given: bytes) -> bytes:
    """An `x-request-id` that the answer may repeat: up to 128 letters, digits and `._:/+=@-`. Empty for another one."""
    return given if _SANE_ID.fullmatch(given) else b""
