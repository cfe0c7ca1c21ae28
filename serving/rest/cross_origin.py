"""Checks of the Host and Origin headers, against DNS rebinding and against requests from other sites' pages.

A page can make its own name resolve to this machine (DNS rebinding) and then read the answers. So the Host must be one
of this machine's names. A page of another site can send requests, though it can't read the answers. So the Origin,
which every browser sends with a POST, must be the server's own or an allowed one (CORS). Other clients send no Origin.
"""

import ipaddress
import re
from collections.abc import Callable, Mapping

from trpo_tf.serving.options import ServeOptions

_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]/@\s]*?)\.?(?::\d*)?")

_DEFAULT_PORTS = {b"http": b":80", b"https": b":443"}

_ALLOWED = (
    b"access-control-allow-methods: GET, HEAD, POST\r\n"
    b"access-control-allow-headers: authorization, content-type, content-encoding, inference-header-content-length, "
    b"x-request-id, traceparent, tracestate\r\n"
    b"access-control-max-age: 7200\r\n"
)
_EXPOSED = (
    b"access-control-expose-headers: inference-header-content-length, x-request-id, model-version, retry-after, "
    b"www-authenticate\r\n"
)


def host_check(options: ServeOptions) -> Callable[[bytes], bool]:
    """Return a function that tells whether a request over TCP may have a given Host header.

    Names without a dot are allowed as well: the public DNS has none, so no page can have such a name. So are loopback
    addresses, and any other address if other machines can reach the server.
    """
    if options.tcp_port is None or not options.checks_host:
        return lambda _host: True
    names = {"localhost", options.host.strip("[]").lower(), *(name.lower() for name in options.allow_host)}

    def is_allowed(host: bytes) -> bool:
        matched = _AUTHORITY.fullmatch(host.decode("latin-1").lower())
        if matched is None:
            return False
        name = matched[1].strip("[]")
        if name in names or name.endswith(".localhost") or not ({".", ":"} & {*name}):
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or not options.is_local

    return is_allowed


def authority_of(target: bytes) -> bytes:
    """Return the host and port in a request's target; empty if the target is a path."""
    return b"" if target.startswith(b"/") else re.split(rb"[/?#]", target.partition(b"://")[2], maxsplit=1)[0]


class CrossOrigin:
    """Origins whose pages may send requests, and the CORS headers for browsers.

    Attributes:
        vary: the `vary` header of every answer, for caches; empty if answers do not depend on the origin.
    """

    def __init__(self, origins: tuple[str, ...]) -> None:
        """Allow these origins, as browsers send them, or all with "*"."""
        self._is_any = "*" in origins
        self._origins = {origin.lower().encode() for origin in origins}
        self.vary = b"vary: origin\r\n" if origins and not self._is_any else b""

    def allows(self, headers: Mapping[bytes, bytes]) -> bool:
        """Return whether the page at the request's Origin may send it."""
        return self._is_listed(headers[b"origin"]) or _is_same_origin(headers)

    def headers(self, origin: bytes) -> bytes:
        """Return the headers that let a page of this origin read the answer; empty if it may not."""
        if not self._is_listed(origin):
            return b""
        return b"access-control-allow-origin: %b\r\n%b" % (b"*" if self._is_any else origin, _EXPOSED)

    def preflight_headers(self, headers: Mapping[bytes, bytes]) -> bytes:
        """Return the headers that answer a preflight request, also from a public site to a private address."""
        if headers.get(b"access-control-request-private-network") == b"true":
            return _ALLOWED + b"access-control-allow-private-network: true\r\n"
        return _ALLOWED

    def _is_listed(self, origin: bytes) -> bool:
        return self._is_any or origin.lower() in self._origins


def _is_same_origin(headers: Mapping[bytes, bytes]) -> bool:
    """Return whether the page is this server's own, by its `sec-fetch-site` header or by equal Origin and Host."""
    if headers.get(b"sec-fetch-site") == b"same-origin":
        return True
    scheme, _, authority = headers[b"origin"].lower().partition(b"://")
    port, host = _DEFAULT_PORTS.get(scheme, b""), headers.get(b"host", b"").lower()
    return bool(authority) and authority.removesuffix(port) == host.removesuffix(port)
