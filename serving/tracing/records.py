"""Records of HTTP requests and gRPC calls, as the access log and traces use them."""

import ipaddress
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote

from trpo_tf.serving.metrics.series import Series
from trpo_tf.serving.tracing.trace_context import TraceParent

_SANE_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")


class RequestRecord(NamedTuple):
    """An HTTP request and its response.

    Attributes:
        method: empty if the head did not arrive completely; `headers` are then empty too.
        target: the request target as the client sent it.
        headers: values by lower-case name.
        is_known: whether the request was matched to a route and allowed to use it.
        status, body_bytes: status and size of the response.
        series: metrics of the model that answered, if one did.
        error: kind of error; empty if there was none.
        seconds: from the request's first byte until the answer was written.
        request_id: the client's `x-request-id`; empty if it is missing or `sane_id` rejects it.
        parent: the caller's span, if the request has a trace context.
        client: the client's address, or "unix"; behind a proxy, the proxy's address.
        key: name of the client's key; empty without a valid key.
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
    """A gRPC call and its status.

    Attributes:
        method: path such as "/grpc.health.v1.Health/Check"; empty if there is no such method.
        code: name of the status, "OK" without an error.
        number: number of the status.
        kind: kind of error; empty if there was none.
        series: metrics of the model, if one was found.
        seconds: from the start of the call until its answer.
        request_id: as in `RequestRecord`.
        parent: as in `RequestRecord`.
        state: the client's tracestate.
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
    """Functions that are called with the record of each HTTP request, and of each gRPC call."""

    http: tuple[Callable[[RequestRecord], None], ...] = ()
    grpc: tuple[Callable[[CallRecord], None], ...] = ()


NO_OBSERVERS = Observers()


def sane_id(given: bytes) -> bytes:
    """Return `given` if it is safe to repeat as `x-request-id`: 1 to 128 letters, digits and `._:/+=@-`. Else empty."""
    return given if _SANE_ID.fullmatch(given) else b""


def http_client(transport: Any) -> str:
    """Return the client's address, or "unix"; empty if it has disconnected already."""
    peer = transport.get_extra_info("peername")
    if isinstance(peer, tuple):
        return _address(peer[0])
    return "" if isinstance(transport.get_extra_info("sockname"), tuple) else "unix"


def grpc_client(peer: str) -> str:
    """Return the address in gRPC's name of a peer: `ipv4:127.0.0.1:5000`, `ipv6:%5B::1%5D:5000` or `unix:`."""
    family, _, address = unquote(peer).partition(":")
    return _address(address.rpartition(":")[0].strip("[]")) if family in ("ipv4", "ipv6") else "unix"


def _address(shown: str) -> str:
    """Return an IPv4-mapped IPv6 address, as dual-stack sockets report it, as IPv4; any other unchanged."""
    mapped = ipaddress.ip_address(shown) if shown.startswith("::ffff:") else None
    return str(mapped.ipv4_mapped or mapped) if isinstance(mapped, ipaddress.IPv6Address) else shown
