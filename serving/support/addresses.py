"""Addresses of `--host`: name resolution, whether only this machine can connect, and their form in URLs."""

import ipaddress
import socket
from functools import cache
from typing import Any, NamedTuple

from trpo_tf.serving.errors import ServeError, quoted

ANY_IPV4, ANY_IPV6 = "0.0.0.0", "::"


class Address(NamedTuple):
    """An address without its port.

    Attributes:
        family: AF_INET or AF_INET6.
        sockaddr: argument of `socket.bind`, with port 0.
    """

    family: int
    sockaddr: Any

    @property
    def host(self) -> str:
        """Numeric address, with the name of its interface if it has a scope."""
        text = str(self.sockaddr[0])
        scope = self.sockaddr[3] if self.family == socket.AF_INET6 else 0
        return f"{text.partition('%')[0]}%{socket.if_indextoname(scope)}" if scope else text

    def with_port(self, port: int) -> Any:
        """Return the argument of `socket.bind` for this address and a port."""
        return (self.sockaddr[0], port, *self.sockaddr[2:])


@cache  # so that the server listens on the same addresses that were checked to be local
def resolve(host: str) -> tuple[Address, ...]:
    """Resolve a host name or a numeric address, which may be in brackets. Raises `ServeError`."""
    name = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not name:
        raise ServeError("--host is empty; give an address or a name, such as 127.0.0.1")
    if name == "*":  # glibc resolves it to the loopback addresses
        raise ServeError("--host * is no address; :: is every address of this machine, 0.0.0.0 every IPv4 address")
    if "://" in host or "]:" in host or host.count(":") == 1:
        raise ServeError(
            f"--host {quoted(host)[1:-1]} is more than an address; give that alone, and its port as --port"
        )
    try:
        # Given a `str`, Python would load its tables for internationalized names, even if it has only digits and dots.
        given = name.encode() if name.isascii() and name.isprintable() else name
        found = socket.getaddrinfo(given, 0, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else "it is no host name"
        raise ServeError(
            f"--host {quoted(host)[1:-1]} can't be resolved: {said.lower()}; give an address of this machine"
        ) from None
    return tuple(dict.fromkeys(Address(family, sockaddr) for family, _, _, _, sockaddr in found))


def is_local(host: str) -> bool:
    """Return whether all addresses of a host are loopback addresses. Raises `ServeError`."""
    return all(_is_loopback(address.host) for address in resolve(host))


def url_of(scheme: str, host: str, port: int) -> str:
    """Return the URL of a host and port, with IPv6 in brackets and its interface after `%25`, as for curl."""
    name = host.strip("[]")
    return f"{scheme}://{bracketed(name)}:{port}"


def bracketed(host: str) -> str:
    """Return a host in the form that it has before a port in a URL."""
    return f"[{host.replace('%', '%25')}]" if ":" in host else host


def _is_loopback(host: str) -> bool:
    address = ipaddress.ip_address(host)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
