"""What the server listens on, from its first connection to the last that it takes."""

import ctypes
import errno
import os
import socket
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from trpo_tf.serving.errors import ServeError
from trpo_tf.serving.options import ServeOptions
from trpo_tf.serving.support.addresses import ANY_IPV4, ANY_IPV6, Address, bracketed, resolve, url_of

BACKLOG = 2048

LOCK_SECONDS = 5.0
"""How long to wait for another server that is just starting."""

_PORT_TRIES = 8
"""How often to look for a port that is free on each address of a host."""

# A BPF program on the TCP header: load the flags (byte 13), drop what has SYN set, let everything else pass.
_NO_NEW_CONNECTIONS = ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))
_SO_ATTACH_FILTER = 26

_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
"""Errors of an address that this machine doesn't have."""


class GrpcPort:
    """The gRPC port, which nobody else may listen on; gRPC itself opens it, once the models are loaded.

    Attributes:
        number: the port.
        addresses: as gRPC takes them.
        is_shared: whether several workers open it.
    """

    def __init__(self, claimed: list[socket.socket], *, is_shared: bool) -> None:
        self.number, self.is_shared = _port_of(claimed), is_shared
        bound = [Address(listener.family, listener.getsockname()) for listener in claimed]
        self.addresses = [f"{bracketed(place.host)}:{self.number}" for place in bound]
        _close(claimed)
        self._kept = [_bind(place, self.number, is_shared=True) for place in bound]
        self._is_ipv4_alone = bound[0].host == ANY_IPV4
        for kept in self._kept:
            # With the option set only a socket that listens would keep a port from others.
            kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)

    @contextmanager
    def opening(self) -> Iterator[None]:
        """While gRPC opens the port: let go of it, unless it is shared, and see to it that 0.0.0.0 is IPv4 alone."""
        if not self.is_shared:
            _close(self._kept)
        placeholder = _ipv6_placeholder(self.number) if self._is_ipv4_alone else None
        try:
            yield
        finally:
            if placeholder is not None:
                placeholder.close()

    def close(self) -> None:
        """Let go of the port."""
        _close(self._kept)


class Listening(NamedTuple):
    """What is listened on.

    Attributes:
        workers: each worker's listening sockets.
        places: where clients find them.
        grpc: the port for gRPC, if it is served.
    """

    workers: list[list[socket.socket]]
    urls: list[str]
    grpc: GrpcPort | None


@contextmanager
def listeners(options: ServeOptions) -> Iterator[Listening]:
    """All that the options ask for. Raises `ServeError`.

    On TCP each worker has a socket of its own, all on one port, and the kernel spreads connections by their addresses:
    64 of them came out as 34 and 30 on two workers. Of one socket that both inherit it was 63 and 1, since who wakes
    first accepts all. A Unix socket can't be opened twice, so workers do inherit it.
    """
    workers: list[list[socket.socket]] = [[] for _ in range(options.workers)]
    urls, grpc = [], None
    secure = "s" if options.tls_cert else ""
    with ExitStack() as stack:
        if (port := options.tcp_port) is not None:
            opened = listen(options.host, port, options.workers)
            for own, listening in zip(workers, opened, strict=True):
                stack.callback(_close, listening)
                own.extend(listening)
            urls.append(url_of(f"http{secure}", options.host, _port_of(opened[0])))
        if options.uds is not None:
            listener = stack.enter_context(listen_on_path(options.uds))
            for own in workers:
                own.append(listener)
            urls.append(f"unix:{options.uds}")
        if options.grpc_port >= 0:
            grpc = claim_grpc_port(options)
            stack.callback(grpc.close)
            urls.append(url_of(f"grpc{secure}", options.host, grpc.number))
        yield Listening(workers, urls, grpc)


def listen(host: str, port: int, copies: int = 1) -> list[list[socket.socket]]:
    """Listen on each address of the host, with `copies` sockets each that share the port. Raises `ServeError`.

    A port that anybody else listens on is refused, whether he would share it or not.
    """
    if copies == 1:
        return [_claim(host, port, "--port")]
    with _one_at_a_time():
        claimed = _claim(host, port, "--port")
        number = _port_of(claimed)
        bound = [Address(listener.family, listener.getsockname()) for listener in claimed]
        _close(claimed)
        opened: list[list[socket.socket]] = []
        try:
            for _ in range(copies):
                opened.append([])
                for place in bound:
                    opened[-1].append(_bind(place, number, is_shared=True))
                    opened[-1][-1].listen(BACKLOG)
        except OSError as error:
            for own in opened:
                _close(own)
            raise _refusal(host, number, error, "--port") from None
    return opened


def claim_grpc_port(options: ServeOptions) -> GrpcPort:
    """Keep the port for gRPC. Raises `ServeError`."""
    with _one_at_a_time():
        claimed = _claim(options.host, options.grpc_port, "--grpc-port")
        try:
            return GrpcPort(claimed, is_shared=options.workers > 1)
        except OSError as error:
            raise _refusal(options.host, options.grpc_port, error, "--grpc-port") from None


@contextmanager
def listen_on_path(path: str) -> Iterator[socket.socket]:
    """A Unix socket that only this user can connect to, removed in the end. Raises `ServeError`.

    One that a killed server has left is replaced; one that is listened on is not, nor is a file of another kind.
    """
    if not path or "\0" in path:
        raise ServeError("--uds is no path; give one for the socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            with _one_at_a_time():
                _remove_abandoned(path)
                listener.bind(path)
                Path(path).chmod(stat.S_IRUSR | stat.S_IWUSR)  # before it listens, so that nobody has connected
                listener.listen(BACKLOG)
        except OSError as error:
            raise ServeError(f"can't listen on {path}: {reason(error)}; choose another --uds") from None
        own = Path(path).stat().st_ino
        try:
            yield listener
        finally:
            with suppress(OSError):
                if Path(path).stat().st_ino == own:
                    Path(path).unlink()


def refuse_new(listener: socket.socket) -> None:
    """Refuse new connections, and keep those that wait to be accepted, which closing would reset.

    Of twelve stops under eight clients that connect for each request, all twelve lost connections without the filter
    (75 in all), and none with it.
    """
    if listener.family == socket.AF_UNIX:
        with suppress(OSError):
            Path(listener.getsockname()).unlink()
        return
    program = b"".join(struct.pack("HBBI", *instruction) for instruction in _NO_NEW_CONNECTIONS)
    buffer = ctypes.create_string_buffer(program)
    with suppress(OSError):  # where there is no such filter, a connection made just now may be lost
        listener.setsockopt(
            socket.SOL_SOCKET,
            _SO_ATTACH_FILTER,
            struct.pack("@HP", len(_NO_NEW_CONNECTIONS), ctypes.addressof(buffer)),
        )


def reason(error: OSError) -> str:
    """What the system says of an error, for a line of our own."""
    return (error.strerror or str(error)).split(" (")[0].lower()


def _claim(host: str, port: int, option: str) -> list[socket.socket]:
    """Sockets that listen on each address of the host, all on one port, and alone. Raises `ServeError`."""
    addresses, problem = resolve(host), OSError()
    for _ in range(_PORT_TRIES if port == 0 and len(addresses) > 1 else 1):
        claimed: list[socket.socket] = []
        try:
            for address in addresses:
                try:
                    claimed.append(_bind(address, _port_of(claimed) if claimed else port))
                    claimed[-1].listen(BACKLOG)
                except OSError as error:
                    # A name may have an address of a family that is switched off.
                    if error.errno not in _NOT_HERE or len(addresses) == 1:
                        raise
                    problem = error
            if claimed:
                return claimed
        except OSError as error:
            problem = error
            _close(claimed)
    raise _refusal(host, port, problem, option)


def _bind(address: Address, port: int, *, is_shared: bool = False) -> socket.socket:
    """A socket on the port, which shares it with others of this user's, if they all say so."""
    bound = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if address.family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # of `::` alone: IPv4 too
        bound.bind(address.with_port(port))
    except OSError:
        bound.close()
        raise
    return bound


def _ipv6_placeholder(port: int) -> socket.socket | None:
    """A socket that keeps gRPC from opening IPv6 beside 0.0.0.0, which it tries first; None if nothing does.

    Each worker needs one of its own, and waits for the others': binding it has Linux forget that sockets of this port
    were shared last, and look at each.
    """
    try:
        placeholder = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    except OSError:
        return None
    placeholder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    placeholder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    until = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            placeholder.bind((ANY_IPV6, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE and time.monotonic() < until:
                time.sleep(0.005)
                continue
            placeholder.close()  # there is no IPv6, or somebody else has it, whom gRPC will meet as well
            return None
        placeholder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        return placeholder


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Hold a lock of this user's servers, so that two don't find a port free at once and then share it.

    It is a name without a file, in the network namespace: the kernel frees it when its holder ends.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as lock:
        until = time.monotonic() + LOCK_SECONDS
        while time.monotonic() < until:
            try:
                lock.bind(f"\0trpo-tf listens, user {os.getuid()}")
                break
            except OSError as error:
                if error.errno != errno.EADDRINUSE:  # a system without such names
                    break
                time.sleep(0.005)
        yield


def _remove_abandoned(path: str) -> None:
    """Remove a socket that nobody listens on. Raises `OSError` if there is anything else."""
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError("there is a file that is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        if probe.connect_ex(path) == errno.ECONNREFUSED:
            Path(path).unlink()


def _refusal(host: str, port: int, error: OSError, option: str) -> ServeError:
    is_host = error.errno in (*_NOT_HERE, errno.EINVAL)
    advice = "choose another --host" if is_host else f"choose another {option} (0: a free one)"
    return ServeError(f"can't listen on {host} port {port}: {reason(error)}; {advice}")


def _port_of(listening: list[socket.socket]) -> int:
    return int(listening[0].getsockname()[1])


def _close(listening: list[socket.socket]) -> None:
    for listener in listening:
        listener.close()
