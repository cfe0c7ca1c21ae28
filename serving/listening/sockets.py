"""Listening sockets: opening them when the server starts, and refusing new connections when it stops."""

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
from urllib.parse import quote

from trpo_tf.serving.errors import ServeError
from trpo_tf.serving.options import ServeOptions
from trpo_tf.serving.support.addresses import ANY_IPV4, ANY_IPV6, Address, bracketed, resolve, url_of

BACKLOG = 2048

LOCK_SECONDS = 5.0
"""How long to wait for another server that is just starting."""

_PORT_TRIES = 8
"""How often to try to find a port that is free on each address of a host."""

# A BPF program on the TCP header: load the flags (byte 13), drop what has SYN set, let everything else pass.
_NO_NEW_CONNECTIONS = ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))
_SO_ATTACH_FILTER = 26

_UNAVAILABLE_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
"""Errors for an address that this machine does not have."""


class GrpcPort:
    """The gRPC port, reserved for this server until gRPC itself opens it, once the models are loaded.

    Attributes:
        number: the port.
        addresses: addresses with the port, in gRPC's syntax.
        is_shared: whether several workers open it.
    """

    def __init__(self, claimed: list[socket.socket], *, is_shared: bool) -> None:
        self.number, self.is_shared = _port_of(claimed), is_shared
        bound = [Address(listener.family, listener.getsockname()) for listener in claimed]
        self.addresses = [f"{bracketed(address.host)}:{self.number}" for address in bound]
        _close(claimed)
        self._kept = [_bind(address, self.number, is_shared=True) for address in bound]
        self._is_ipv4_alone = bound[0].host == ANY_IPV4
        for kept in self._kept:
            # With the option set only a socket that listens would keep a port from others.
            kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)

    @contextmanager
    def opening(self) -> Iterator[None]:
        """Release the port for gRPC to open, unless workers share it, and keep 0.0.0.0 from including IPv6."""
        if not self.is_shared:
            _close(self._kept)
        placeholder = _ipv6_placeholder(self.number) if self._is_ipv4_alone else None
        try:
            yield
        finally:
            if placeholder is not None:
                placeholder.close()

    def close(self) -> None:
        """Release the port."""
        _close(self._kept)


class GrpcSocket:
    """The Unix socket of gRPC, which gRPC itself makes once the models are loaded, and removes in the end.

    Attributes:
        addresses: the socket, in gRPC's syntax.
    """

    is_shared = False

    def __init__(self, path: str, mode: int) -> None:
        """Make sure that gRPC can listen on the path. Raises `ServeError`."""
        self._path, self._mode = path, mode
        self.addresses = [f"unix:{quote(path)}"]
        with self._free(), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.bind(path)
            Path(path).unlink()

    @contextmanager
    def opening(self) -> Iterator[None]:
        """Let gRPC make the socket, with its permissions from the beginning. Raises `ServeError`.

        gRPC would also replace a socket that another server listens on.
        """
        with self._free():
            if Path(self._path).exists():
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
            before = os.umask(0o777 & ~self._mode)
            try:
                yield
            finally:
                os.umask(before)

    @contextmanager
    def _free(self) -> Iterator[None]:
        """Hold the lock of servers that start, and remove a socket that a killed one left. Raises `ServeError`."""
        try:
            with _startup_lock():
                _remove_stale_socket(self._path)
                yield
        except OSError as error:
            raise ServeError(f"can't listen on {self._path}: {reason(error)}; choose another --grpc-uds") from None

    def close(self) -> None:
        """Do nothing: gRPC removes the socket."""


GrpcPlace = GrpcPort | GrpcSocket


class Listening(NamedTuple):
    """Sockets that the server listens on.

    Attributes:
        workers: each worker's listening sockets.
        urls: URLs for clients.
        grpc: where gRPC is served.
    """

    workers: list[list[socket.socket]]
    urls: list[str]
    grpc: list[GrpcPlace]


@contextmanager
def listeners(options: ServeOptions) -> Iterator[Listening]:
    """Open all sockets that the options ask for, and close them on exit. Raises `ServeError`.

    On TCP each worker has a socket of its own, all on one port, and the kernel distributes connections by their
    addresses. Of 64 connections two workers got 34 and 30. With one inherited socket they got 63 and 1, since the
    worker that wakes first accepts all. A Unix socket can't be opened twice, so workers do inherit it.
    """
    workers: list[list[socket.socket]] = [[] for _ in range(options.workers)]
    urls: list[str] = []
    grpc: list[GrpcPlace] = []
    secure = "s" if options.tls_cert else ""
    with ExitStack() as stack:
        if (port := options.tcp_port) is not None:
            opened = listen(options.host, port, options.workers)
            for sockets, listening in zip(workers, opened, strict=True):
                stack.callback(_close, listening)
                sockets.extend(listening)
            urls.append(url_of(f"http{secure}", options.host, _port_of(opened[0])))
        if options.uds is not None:
            listener = stack.enter_context(listen_on_path(options.uds, int(options.uds_mode, 8)))
            for sockets in workers:
                sockets.append(listener)
            urls.append(f"unix:{options.uds}")
        if options.grpc_port >= 0:
            grpc.append(port_of_grpc := claim_grpc_port(options))
            stack.callback(port_of_grpc.close)
            urls.append(url_of(f"grpc{secure}", options.host, port_of_grpc.number))
        if options.grpc_uds is not None:
            grpc.append(GrpcSocket(options.grpc_uds, int(options.uds_mode, 8)))
            urls.append(f"grpc+unix:{options.grpc_uds}")
        yield Listening(workers, urls, grpc)


def listen(host: str, port: int, copies: int = 1) -> list[list[socket.socket]]:
    """Listen on each address of the host, with `copies` sockets each that share the port. Raises `ServeError`.

    A port that another process listens on is refused, even if that process would share it.
    """
    if copies == 1:
        return [_claim(host, port, "--port")]
    with _startup_lock():
        claimed = _claim(host, port, "--port")
        number = _port_of(claimed)
        bound = [Address(listener.family, listener.getsockname()) for listener in claimed]
        _close(claimed)
        opened: list[list[socket.socket]] = []
        try:
            for _ in range(copies):
                opened.append([])
                for address in bound:
                    opened[-1].append(_bind(address, number, is_shared=True))
                    opened[-1][-1].listen(BACKLOG)
        except OSError as error:
            for sockets in opened:
                _close(sockets)
            raise _refusal(host, number, error, "--port") from None
    return opened


def claim_grpc_port(options: ServeOptions) -> GrpcPort:
    """Reserve the port for gRPC. Raises `ServeError`."""
    with _startup_lock():
        claimed = _claim(options.host, options.grpc_port, "--grpc-port")
        try:
            return GrpcPort(claimed, is_shared=options.workers > 1)
        except OSError as error:
            raise _refusal(options.host, options.grpc_port, error, "--grpc-port") from None


@contextmanager
def listen_on_path(path: str, mode: int = stat.S_IRUSR | stat.S_IWUSR) -> Iterator[socket.socket]:
    """Listen on a Unix socket with these permissions, and remove it on exit. Raises `ServeError`.

    A socket that a killed server left is replaced. A socket that a server listens on is not, nor is any other file.
    """
    if not path or "\0" in path:
        raise ServeError("--uds is no path; give one for the socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            with _startup_lock():
                _remove_stale_socket(path)
                listener.bind(path)
                Path(path).chmod(mode)  # before it listens, so that nobody else has connected
                listener.listen(BACKLOG)
        except OSError as error:
            raise ServeError(f"can't listen on {path}: {reason(error)}; choose another --uds") from None
        inode = Path(path).stat().st_ino
        try:
            yield listener
        finally:
            with suppress(OSError):
                if Path(path).stat().st_ino == inode:
                    Path(path).unlink()


def refuse_new(listener: socket.socket) -> None:
    """Refuse new connections, and keep those that wait to be accepted, which closing the socket would reset.

    The filter was measured in twelve stops under eight clients that connect for each request. Without it all twelve
    lost connections, 75 in all; with it none did.
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


def accept_waiting(listener: socket.socket) -> list[socket.socket]:
    """Return the connections that wait to be accepted, which closing the listener would reset.

    libuv accepts one connection in each turn of its event loop, so that a busy loop can leave many of them waiting.
    """
    listener.setblocking(False)
    accepted: list[socket.socket] = []
    for _ in range(BACKLOG):  # no more: where new ones can't be refused, they could go on for ever
        try:
            accepted.append(listener.accept()[0])
        except BlockingIOError:  # none is left
            break
        except OSError:  # the client of this one has left, or there is no file for it
            continue
    return accepted


def reason(error: OSError) -> str:
    """Return the system's text for an error, as part of a message."""
    return (error.strerror or str(error)).split(" (")[0].lower()


def _claim(host: str, port: int, option: str) -> list[socket.socket]:
    """Return sockets that listen on each address of the host, on one unshared port. Raises `ServeError`."""
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
                    if error.errno not in _UNAVAILABLE_ADDRESS or len(addresses) == 1:
                        raise
                    problem = error
            if claimed:
                return claimed
        except OSError as error:
            problem = error
            _close(claimed)
    raise _refusal(host, port, problem, option)


def _bind(address: Address, port: int, *, is_shared: bool = False) -> socket.socket:
    """Return a socket bound to the port. Sockets of one user can share a port if all of them are `is_shared`."""
    bound = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if address.family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # `::` then takes IPv4 too
        bound.bind(address.with_port(port))
    except OSError:
        bound.close()
        raise
    return bound


def _ipv6_placeholder(port: int) -> socket.socket | None:
    """Return a socket that keeps gRPC from opening `::`, which it tries first for 0.0.0.0; None if that failed.

    Each worker needs a placeholder of its own, and waits until the others have closed theirs. Binding it makes Linux
    forget that sockets of this port were last shared, and check each.
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
            placeholder.close()  # there is no IPv6, or another process has the port, as gRPC will notice
            return None
        placeholder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        return placeholder


@contextmanager
def _startup_lock() -> Iterator[None]:
    """Hold a lock of this user's servers, so that two don't both find a port free and then share it.

    The lock is an abstract Unix socket, in the network namespace. The kernel frees it when its holder ends.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as lock:
        until = time.monotonic() + LOCK_SECONDS
        while time.monotonic() < until:
            try:
                lock.bind(f"\0trpo-tf listens, user {os.getuid()}")
                break
            except OSError as error:
                if error.errno != errno.EADDRINUSE:  # a system without abstract sockets
                    break
                time.sleep(0.005)
        yield


def _remove_stale_socket(path: str) -> None:
    """Remove a socket that no process listens on. Raises `OSError` for any other kind of file."""
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
    is_host = error.errno in (*_UNAVAILABLE_ADDRESS, errno.EINVAL)
    advice = "choose another --host" if is_host else f"choose another {option} (0: a free one)"
    return ServeError(f"can't listen on {host} port {port}: {reason(error)}; {advice}")


def _port_of(listening: list[socket.socket]) -> int:
    return int(listening[0].getsockname()[1])


def _close(listening: list[socket.socket]) -> None:
    for listener in listening:
        listener.close()
