"""A request with its answer, over HTTP or gRPC, as access log and traces see it."""

import ipaddress
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote

from trpo_tf.serving.metrics.series import Series
from trpo_tf.serving.tracing.trace_context import TraceParent

_SANE_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")


class RequestRecord(NamedTuple):
    """What was asked, and what was answered.

    Attributes:
        method: empty if the head never came whole; and so is what comes after it.
        target: as the client sent it.
        headers: by name in small letters.
        is_known: whether there is such a route, and the request was let through to it.
        status, body_bytes: of the response.
        series: of the model that answered, if one did.
        error: what kind of error it is, if it is one.
        seconds: from the request's first byte until the answer was written.
        request_id: the client's own, empty if there is none or it is not a sane one.
        parent: the client's place in a trace.
        client: its address, or "unix"; of a proxy's client the proxy's.
        key: the name of its key, empty if it gave none that is in force.
    """

    method: bytes
    target: bytes
    headers: Mapping[bytes, bytes]
    is_known: bool
    status: int
    body_bytes: int
    series: Series | None
    error: str
    seconds: float
    request_id: bytes
    parent: TraceParent | None
    client: str
    key: str


class CallRecord(NamedTuple):
    """A gRPC call, and how it ended.

    Attributes:
        method: its path, as in "/grpc.health.v1.Health/Check"; empty if there is no such method.
        code: name of its status, "OK" if all went well.
        number: that status's.
        kind: what went wrong, if something did.
        series: of the model that was found.
        seconds: from when it came until it was answered.
        request_id: as in `RequestRecord`.
        parent: the client's place in a trace.
        state: its tracestate.
        client, key: as in `RequestRecord`.
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
    client: str
    key: str


class Observers(NamedTuple):
    """Who is told of each request, and of each call."""

    http: tuple[Callable[[RequestRecord], None], ...] = ()
    grpc: tuple[Callable[[CallRecord], None], ...] = ()


NO_OBSERVERS = Observers()


def sane_id(given: bytes) -> bytes:
    """An `x-request-id` that the answer may repeat: up to 128 letters, digits and `._:/+=@-`. Empty for another one."""
    return given if _SANE_ID.fullmatch(given) else b""


def http_client(transport: Any) -> str:
    """The address of who is connected, or "unix"; empty if it has left already."""
    peer = transport.get_extra_info("peername")
    if isinstance(peer, tuple):
        return _address(peer[0])
    return "" if isinstance(transport.get_extra_info("sockname"), tuple) else "unix"


def grpc_client(peer: str) -> str:
    """The address in what gRPC calls a peer: `ipv4:127.0.0.1:5000`, `ipv6:%5B::1%5D:5000` or `unix:`."""
    family, _, address = unquote(peer).partition(":")
    return _address(address.rpartition(":")[0].strip("[]")) if family in ("ipv4", "ipv6") else "unix"


def _address(shown: str) -> str:
    """An IPv4 address as such, also where it came by a socket of both families."""
    mapped = ipaddress.ip_address(shown) if shown.startswith("::ffff:") else None
    return str(mapped.ipv4_mapped or mapped) if isinstance(mapped, ipaddress.IPv6Address) else shown
