"""The addresses that `--host` means: what it resolves to, who reaches it, and how a URL writes it."""

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
        sockaddr: as `socket.bind` takes it, with port 0.
    """

    family: int
    sockaddr: Any

    @property
    def host(self) -> str:
        """The address in digits, with its interface if it has one."""
        text = str(self.sockaddr[0])
        scope = self.sockaddr[3] if self.family == socket.AF_INET6 else 0
        return f"{text.partition('%')[0]}%{socket.if_indextoname(scope)}" if scope else text

    def with_port(self, port: int) -> Any:
        """The same address, as `socket.bind` takes it."""
        return (self.sockaddr[0], port, *self.sockaddr[2:])


@cache  # so that what was found to be local is what is listened on
def resolve(host: str) -> tuple[Address, ...]:
    """The addresses of a host name, or of an address, which may be in brackets. Raises `ServeError`."""
    name = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not name:
        raise ServeError("--host is empty; give an address or a name, such as 127.0.0.1")
    if name == "*":  # glibc takes it for the loopback addresses
        raise ServeError("--host * is no address; :: is every address of this machine, 0.0.0.0 every IPv4 address")
    try:
        # Python would load its tables of international names to encode a text, also one that has only digits and dots.
        given = name.encode() if name.isascii() and name.isprintable() else name
        found = socket.getaddrinfo(given, 0, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else "it is no host name"
        raise ServeError(
            f"--host {quoted(host)[1:-1]} can't be resolved: {said.lower()}; give an address of this machine"
        ) from None
    return tuple(dict.fromkeys(Address(family, sockaddr) for family, _, _, _, sockaddr in found))


def is_local(host: str) -> bool:
    """Whether only this machine reaches the host, by each of its addresses. Raises `ServeError`."""
    return all(_is_loopback(address.host) for address in resolve(host))


def url_of(scheme: str, host: str, port: int) -> str:
    """The URL of a host and port; IPv6 in brackets, the interface behind `%25`, as curl takes it."""
    name = host.strip("[]")
    return f"{scheme}://{bracketed(name)}:{port}"


def bracketed(host: str) -> str:
    """The host as it stands before a port."""
    return f"[{host.replace('%', '%25')}]" if ":" in host else host


def _is_loopback(host: str) -> bool:
    address = ipaddress.ip_address(host)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
